"""The published downstream model: one linear layer behind dropout on frozen representations.

The representations (modalities concatenated, averaged, or one of them: `features.fuse`) come as arrays; only the
classifier trains. Nothing is drawn from ambient generators: initial weights, order of rows and dropout masks are
functions of the seed, so that two runs agree bit for bit on one device.
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
from conclugen.evaluation.solvers import sigmoid
from conclugen.random import uniform
from conclugen.schedule import learning_rate


@dataclass(frozen=True)
class Epoch:
    """`validation_score`: accuracy; of many labels the weighted accuracy; of continuous labels minus the loss."""

    training_loss: float
    validation_loss: float
    validation_score: float


@dataclass(frozen=True)
class FineTuned(Readout):
    """The classifier of the epoch with the best validation score (of equals the first): weight (R, K), bias (K,)."""

    kind: Kind
    weight: Floats
    bias: Floats
    best_epoch: int
    history: tuple[Epoch, ...]

    def raw(self, features: ArrayLike) -> Floats:
        """(N, K) logits or values."""
        return checks.matrix(features, "features") @ self.weight + self.bias


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
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FineTuned:
    """Train the linear layer on (N, R) representations, stop early by the validation loss, keep the best epoch.

    target: (N,) classes (then `classes` is needed), (N, L) in {0, 1}, or (N,) / (N, T) values. `weights`: of the
    classes (K,), or of the positive rows of each label (L,); they act on the validation loss as well, as published.
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
    classifier = _Classifier(x_NR, y_N, outputs, lambda out, true: _loss(out, true, kind, weight_K, config), config)

    history: list[Epoch] = []
    best, best_epoch, kept = -np.inf, 0, classifier.parameters()
    lowest, lowest_epoch = np.inf, 0
    for epoch in range(config.epochs):
        training_loss = classifier.train_epoch(epoch)
        with torch.no_grad():
            logits = classifier(v_VR)
            validation_loss = float(_loss(logits, v_V, kind, weight_K, config))
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
    return FineTuned(kind, *kept, best_epoch, tuple(history))


class _Classifier:
    """The linear layer, its optimiser and the training rows."""

    def __init__(
        self,
        x_NR: Tensor,
        y_N: Tensor,
        outputs: int,
        loss: Callable[[Tensor, Tensor], Tensor],
        config: FineTuneConfig,
    ) -> None:
        self.x_NR, self.y_N, self.loss, self.config = x_NR, y_N, loss, config
        # Drawn on the CPU, so that the start is the same on every device.
        weight_KR = torch.empty(outputs, x_NR.shape[1], dtype=x_NR.dtype)
        torch.nn.init.kaiming_normal_(weight_KR, generator=torch.Generator().manual_seed(config.seed))
        self.weight_KR = weight_KR.to(x_NR.device).requires_grad_()
        self.bias_K = torch.zeros(outputs, dtype=x_NR.dtype, device=x_NR.device, requires_grad=True)
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            [self.weight_KR, self.bias_K],
            settings.lr,
            (settings.beta1, settings.beta2),
            settings.eps,
            settings.weight_decay,
        )
        self.row_N = torch.arange(len(x_NR), device=x_NR.device)
        self.steps_per_epoch = math.ceil(len(x_NR) / config.batch)

    def __call__(self, x_BR: Tensor) -> Tensor:
        return functional.linear(x_BR, self.weight_KR, self.bias_K)

    def train_epoch(self, epoch: int) -> float:
        """One pass over the rows in this epoch's order; the mean loss."""
        order_N = uniform(self.config.seed, "downstream.order", epoch, self.row_N, 1)[:, 0].argsort(stable=True)
        total = torch.zeros_like(self.bias_K[0]).detach()
        for index, row_B in enumerate(order_N.split(self.config.batch)):
            step = epoch * self.steps_per_epoch + index
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config.optimizer, step, self.steps_per_epoch, self.config.epochs)
            loss = self.loss(self(self._dropout(self.x_NR[row_B], row_B, step)), self.y_N[row_B])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(row_B)
        return float(total) / len(self.x_NR)

    def parameters(self) -> tuple[Floats, Floats]:
        """Copies of the weight (R, K) and the bias (K,)."""
        weight, bias = (tensor.detach().cpu().double().numpy().copy() for tensor in (self.weight_KR.T, self.bias_K))
        return weight, bias

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
        return multi_label(target, sigmoid(logits)).accuracy_weighted
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
