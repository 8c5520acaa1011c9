"""The published downstream model: one linear layer behind dropout on frozen representations.

The representations (modalities concatenated, averaged, or one of them: `features.fuse`) come as arrays; only the
classifier trains. Nothing is drawn from ambient generators: initial weights, order of rows and dropout masks are
functions of the seed, so that two runs agree bit for bit on one device.

Steered by text, the head has a second half: a linear map into the space of a text encoder, where each class is the
encoded name that it has, t_k. With l the logits of the first half, z the mapped representation, both vectors of length
1, and a share s:

    loss    (1 - s) CE(l) + s CE(z . t / temperature)            scores    (1 - s) log softmax(l) + s log softmax(z . t)

FER-former (Li et al. 2023, arXiv 2303.12997) supervises image features by one-hot labels and by their similarity to
encoded label names side by side; there both reach a network, here a head alone, for encoders and representations are
frozen. Labels come in here and nowhere before: pretraining never sees their names.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from conclugen.common.extras import require
from conclugen.evaluation import checks
from conclugen.evaluation.checks import Floats
from conclugen.evaluation.config import PUBLISHED_WEIGHTS, FineTuneConfig, Kind
from conclugen.evaluation.metrics import multi_label
from conclugen.evaluation.probe import Readout
from conclugen.evaluation.protocol import Target
from conclugen.evaluation.solvers import log_softmax, sigmoid
from conclugen.random import uniform
from conclugen.schedule import learning_rate

_SHORTEST = 1e-12  # length of a vector, as torch's normalize has it


@dataclass(frozen=True)
class Epoch:
    """`validation_score`: accuracy; of many labels the weighted accuracy; of continuous labels minus the loss."""

    training_loss: float
    validation_loss: float
    validation_score: float


@dataclass(frozen=True)
class TextHalf:
    """The half of a head that compares with names: a map weight (R, E), bias (E,) into the space where the classes are
    `names` (K, E), all of length 1; what similarities are divided by, and its share of the scores."""

    weight: Floats
    bias: Floats
    names: Floats
    temperature: float
    share: float

    def scores(self, features: Floats) -> Floats:
        """(N, K) similarities over the temperature."""
        mapped = features @ self.weight + self.bias
        length = np.linalg.norm(mapped, axis=1, keepdims=True)
        scores: Floats = mapped / np.maximum(length, _SHORTEST) @ self.names.T / self.temperature
        return scores


@dataclass(frozen=True)
class FineTuned(Readout):
    """The classifier of the epoch with the best validation score (of equals the first): weight (R, K), bias (K,); and
    where text steers it, its other half."""

    kind: Kind
    weight: Floats
    bias: Floats
    best_epoch: int
    history: tuple[Epoch, ...]
    text: TextHalf | None = None

    def raw(self, features: ArrayLike) -> Floats:
        """(N, K) logits or values."""
        X = checks.matrix(features, "features")
        logits: Floats = X @ self.weight + self.bias
        if self.text is None:
            return logits
        share = self.text.share
        return (1 - share) * log_softmax(logits) + share * log_softmax(self.text.scores(X))


def fine_tune(
    features: ArrayLike,
    target: ArrayLike,
    validation_features: ArrayLike,
    validation_target: ArrayLike,
    kind: Kind,
    config: FineTuneConfig | None = None,
    *,
    classes: int | None = None,
    weights: Sequence[float] | Floats | None = None,
    names: Sequence[str] | None = None,
    texts: ArrayLike | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FineTuned:
    """Train the linear layer on (N, R) representations, stop early by the validation loss, keep the best epoch.

    target: (N,) classes (then `classes` is needed), (N, L) in {0, 1}, or (N,) / (N, T) values. `weights`: of the
    classes (K,), or of the positive rows of each label (L,); they act on the validation loss as well, as published.
    texts: (K, E) encoded names of the classes, which then steer the head too.
    Raises `ValueError`: NaN in a representation, missing labels, one class only, an empty class, wrong number of
    weights, loss not finite.
    """
    config = config or FineTuneConfig()
    X, V = checks.matrix(features, "features"), checks.matrix(validation_features, "validation_features")
    if X.shape[1] != V.shape[1]:
        raise ValueError(f"validation_features: width {V.shape[1]}, expected {X.shape[1]} as in training")
    y, v, outputs = _targets(kind, target, validation_target, classes, names)
    checks.same_length(len(X), target=y)
    checks.same_length(len(V), validation_target=v)
    if weights is not None and (kind == "continuous" or len(weights) != outputs):
        raise ValueError(f"weights: {len(weights)} given for {outputs} outputs of kind {kind!r}")

    x_NR, v_VR = (torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=device) for array in (X, V))
    label_dtype = torch.int64 if kind == "class" else dtype
    y_N, v_V = (torch.as_tensor(np.ascontiguousarray(t), dtype=label_dtype, device=device) for t in (y, v))
    weight_K = None if weights is None else torch.as_tensor(np.asarray(weights), dtype=dtype, device=device)
    t_KE = None if texts is None else torch.as_tensor(_names(texts, kind, outputs), dtype=dtype, device=device)
    classifier = _Classifier(
        x_NR, y_N, outputs, lambda out, true: _loss(out, true, kind, weight_K, config), config, t_KE
    )

    history: list[Epoch] = []
    best, best_epoch, kept = -np.inf, 0, classifier.parameters()
    lowest, lowest_epoch = np.inf, 0
    for epoch in range(config.epochs):
        training_loss = classifier.train_epoch(epoch)
        with torch.no_grad():
            validation_loss = float(classifier.mean_loss(v_VR, v_V))
            logits = classifier(v_VR)
        if not np.isfinite([training_loss, validation_loss]).all():
            raise ValueError(
                f"fine-tuning: loss {training_loss} (validation {validation_loss}) in epoch {epoch}; "
                f"lower optimizer.lr ({config.optimizer.lr}) or check the scale of the representations"
            )
        score = _score(logits.cpu().double().numpy(), v, kind, validation_loss)
        history.append(Epoch(training_loss, validation_loss, score))
        if score > best:
            best, best_epoch, kept = score, epoch, classifier.parameters()
        if validation_loss < lowest:
            lowest, lowest_epoch = validation_loss, epoch
        if epoch - lowest_epoch >= config.patience:
            break
    weight, bias, *half = kept
    text = None
    if texts is not None:
        map_weight, map_bias = half
        named = _names(texts, kind, outputs)
        text = TextHalf(map_weight, map_bias, named, config.text_temperature, config.text_share)
    return FineTuned(kind, weight, bias, best_epoch, tuple(history), text)


def _names(texts: ArrayLike, kind: Kind, outputs: int) -> Floats:
    """Encoded names (K, E) of length 1. Raises ValueError where they can't be those of the label's classes."""
    t = checks.matrix(texts, "texts")
    if kind != "class" or len(t) != outputs:
        raise ValueError(f"texts: {len(t)} names for {outputs} outputs of kind {kind!r}, expected one for each class")
    length = np.linalg.norm(t, axis=1, keepdims=True)
    if not (length > 0).all():
        raise ValueError("texts: a name is encoded as zero, which has no direction; choose another text_encoder")
    named: Floats = t / length
    return named


class _Classifier:
    """The linear layer, its optimiser and the training rows."""

    def __init__(
        self,
        x_NR: Tensor,
        y_N: Tensor,
        outputs: int,
        loss: Callable[[Tensor, Tensor], Tensor],
        config: FineTuneConfig,
        t_KE: Tensor | None = None,
    ) -> None:
        self.t_KE = t_KE
        self.x_NR, self.y_N, self.loss, self.config = x_NR, y_N, loss, config
        # Drawn on the CPU, so that the start is the same on every device.
        generator = torch.Generator().manual_seed(config.seed)
        maps = [self._map(out, generator) for out in (outputs, *(() if t_KE is None else (t_KE.shape[1],)))]
        self.weight_KR, self.bias_K = maps[0]
        self.text_map = maps[1] if t_KE is not None else None
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            [parameter for pair in maps for parameter in pair],
            settings.lr,
            (settings.beta1, settings.beta2),
            settings.eps,
            settings.weight_decay,
        )
        self.row_N = torch.arange(len(x_NR), device=x_NR.device)
        self.steps_per_epoch = math.ceil(len(x_NR) / config.batch)

    def _map(self, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Weight (outputs, R) and bias (outputs,) of a linear layer as it begins."""
        x_NR = self.x_NR
        weight = torch.empty(outputs, x_NR.shape[1], dtype=x_NR.dtype)
        torch.nn.init.kaiming_normal_(weight, generator=generator)
        bias = torch.zeros(outputs, dtype=x_NR.dtype, device=x_NR.device, requires_grad=True)
        return weight.to(x_NR.device).requires_grad_(), bias

    def __call__(self, x_BR: Tensor) -> Tensor:
        logits_BK = functional.linear(x_BR, self.weight_KR, self.bias_K)
        if self.text_map is None:
            return logits_BK
        share = self.config.text_share
        return (1 - share) * logits_BK.log_softmax(1) + share * self._similarities(x_BR).log_softmax(1)

    def mean_loss(self, x_BR: Tensor, y_B: Tensor) -> Tensor:
        """Of rows, 0-d."""
        logits_BK = functional.linear(x_BR, self.weight_KR, self.bias_K)
        if self.text_map is None:
            return self.loss(logits_BK, y_B)
        share = self.config.text_share
        return (1 - share) * self.loss(logits_BK, y_B) + share * self.loss(self._similarities(x_BR), y_B)

    def _similarities(self, x_BR: Tensor) -> Tensor:
        """(B, K) of the mapped rows to the names, over the temperature."""
        assert self.text_map is not None and self.t_KE is not None
        z_BE = functional.normalize(functional.linear(x_BR, *self.text_map), dim=1, eps=_SHORTEST)
        return z_BE @ self.t_KE.T / self.config.text_temperature

    def train_epoch(self, epoch: int) -> float:
        """One pass over the rows in this epoch's order; the mean loss."""
        order_N = uniform(self.config.seed, "downstream.order", epoch, self.row_N, 1)[:, 0].argsort(stable=True)
        total = torch.zeros_like(self.bias_K[0]).detach()
        for index, row_B in enumerate(order_N.split(self.config.batch)):
            step = epoch * self.steps_per_epoch + index
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config.optimizer, step, self.steps_per_epoch, self.config.epochs)
            loss = self.mean_loss(self._dropout(self.x_NR[row_B], row_B, step), self.y_N[row_B])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(row_B)
        return float(total) / len(self.x_NR)

    def parameters(self) -> tuple[Floats, ...]:
        """Copies of the weight (R, K) and the bias (K,); where text steers, also of the map's, (R, E) and (E,)."""
        maps = [(self.weight_KR, self.bias_K), *([] if self.text_map is None else [self.text_map])]
        tensors = [tensor for weight, bias in maps for tensor in (weight.T, bias)]
        return tuple(tensor.detach().cpu().double().numpy().copy() for tensor in tensors)

    def _dropout(self, x_BR: Tensor, row_B: Tensor, step: int) -> Tensor:
        rate = self.config.dropout
        if rate == 0:
            return x_BR
        draw_BR = uniform(self.config.seed, "downstream.dropout", step, row_B, x_BR.shape[1], dtype=torch.float32)
        return x_BR * (draw_BR >= rate) / (1 - rate)


def _targets(
    kind: Kind, target: ArrayLike, validation: ArrayLike, classes: int | None, names: Sequence[str] | None
) -> tuple[NDArray[np.generic], NDArray[np.generic], int]:
    """Checked training and validation targets, and the number of outputs."""
    if kind == "class":
        if classes is None:
            raise ValueError("classes: needed for targets of kind 'class'")
        y = checks.class_labels(target, classes, "target", names)
        checks.trainable_classes(y, classes, names)
        return y, checks.class_labels(validation, classes, "validation_target", names), classes
    Y, V = (
        checks.matrix(array[:, None] if array.ndim == 1 else array, what)
        for array, what in ((np.asarray(target), "target"), (np.asarray(validation), "validation_target"))
    )
    if Y.shape[1] != V.shape[1]:
        raise ValueError(f"validation_target: {V.shape[1]} columns, expected {Y.shape[1]} as in training")
    if kind == "multilabel":
        for labels, what in ((Y, "target"), (V, "validation_target")):
            checks.binary(labels, what)
            if not labels.any():
                raise ValueError(f"{what}: no label is set in any row; nothing to learn or to select by")
    return Y, V, Y.shape[1]


def _loss(logits: Tensor, target: Tensor, kind: Kind, weight: Tensor | None, config: FineTuneConfig) -> Tensor:
    if kind == "class":
        return functional.cross_entropy(logits, target, weight)
    if kind == "multilabel":
        return functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
    distance = functional.l1_loss if config.continuous_loss == "l1" else functional.mse_loss
    return distance(logits, target)


def _score(logits: Floats, target: NDArray[np.generic], kind: Kind, validation_loss: float) -> float:
    if kind == "class":
        return float((logits.argmax(axis=1) == target).mean())
    if kind == "multilabel":
        return multi_label(target, sigmoid(logits))["accuracy_weighted"]
    return -validation_loss


def class_weights(target: Target, rows: NDArray[np.integer], choice: str) -> Sequence[float] | Floats | None:
    """Weights of the classes (K,), or of each label's positive rows (L,), from the labels of `rows`; None: no weights.

    choice: `none`; `inverse_frequency`, N / (K n_k), so that every class weighs the same in sum; `frequency`,
    K n_k / N, what was published for CAER: it favours the majority, and is here to reproduce, not to recommend; or
    a data set's published list. Of several labels both frequencies are negatives / positives. Continuous labels have
    no weights.
    Raises ValueError for a class without rows, and a published list of another size.
    """
    if choice == "none" or target.kind == "continuous":
        return None
    if choice in PUBLISHED_WEIGHTS:
        return published_weights(target, choice)
    values = target.values[rows]
    if target.kind == "multilabel":
        positives = values.sum(axis=0)
        _all_there(positives, target, "positive row")
        return (len(values) - positives) / positives
    classes = len(target.classes)
    counts = np.bincount(checks.class_labels(values, classes, "target"), minlength=classes)
    _all_there(counts, target, "row")
    if choice == "frequency":
        return classes * counts / counts.sum()
    require("class weights", "sklearn")
    from sklearn.utils.class_weight import compute_class_weight

    return np.asarray(compute_class_weight("balanced", classes=np.arange(classes), y=values), dtype=np.float64)


def published_weights(target: Target, data_set: str) -> tuple[float, ...]:
    """The authors' list for a data set; ValueError where the label has another number of classes."""
    weights = PUBLISHED_WEIGHTS[data_set]
    if len(weights) != len(target.classes):
        raise ValueError(
            f"comparison.class_weights: the published list {data_set!r} has {len(weights)} weights, label "
            f"{target.name!r} has {len(target.classes)} classes; use inverse_frequency"
        )
    return weights


def _all_there(counts: NDArray[np.number], target: Target, what: str) -> None:
    if (counts == 0).any():
        name = checks.class_name(int(np.flatnonzero(counts == 0)[0]), target.classes)
        raise ValueError(f"class weights: {name} has no {what} to be weighed by")
