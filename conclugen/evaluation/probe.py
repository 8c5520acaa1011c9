"""Linear probes of frozen representations: logistic regression (one or many labels) and ridge regression.

Strength C is chosen on held-out training groups, then the probe is fitted again on all labelled rows. Standardisation
is fitted on the training rows (of which the labelled ones may be a part). Of equally good strengths the smallest wins.
Classes are fitted by a softmax with a vector for each, also where there are two: scikit-learn, which then fits a single
one, comes to the same probe at twice the C.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.evaluation import checks
from conclugen.evaluation.checks import Floats
from conclugen.evaluation.config import RIDGE_STRENGTHS, STRENGTHS, Kind
from conclugen.evaluation.features import Scaling
from conclugen.evaluation.metrics import confusion_matrix
from conclugen.evaluation.protocol import group_folds
from conclugen.evaluation.solvers import (
    LayerBlock,
    Linear,
    Link,
    Rotation,
    layered_path,
    logistic_path,
    ridge_path,
    sigmoid,
    softmax,
)


class Readout(ABC):
    """A fitted linear model: from its raw outputs to probabilities and predictions, by the kind of label."""

    kind: Kind

    @abstractmethod
    def raw(self, features: ArrayLike) -> Floats:
        """(N, K) logits, or (N, T) values of a continuous label."""

    def probabilities(self, features: ArrayLike) -> Floats:
        """(N, K): softmax over the classes, or a sigmoid for each label."""
        if self.kind == "continuous":
            raise ValueError("probabilities: continuous labels have values, no probabilities; call predict")
        raw = self.raw(features)
        return softmax(raw) if self.kind == "class" else sigmoid(raw)

    def predict(self, features: ArrayLike) -> NDArray[Any]:
        """(N,) class indices, (N, L) labels in {0, 1} at probability 0.5, or (N, T) values."""
        raw = self.raw(features)
        if self.kind == "class":
            return raw.argmax(axis=1)
        return (raw > 0).astype(np.int64) if self.kind == "multilabel" else raw

    def judged(self, features: ArrayLike) -> NDArray[Any]:
        """What scores are computed from: (N,) classes, (N, L) probabilities, or (N,) values ((N, T) of several)."""
        if self.kind == "multilabel":
            return self.probabilities(features)
        found = self.predict(features)
        return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found


@dataclass(frozen=True)
class Probe(Readout):
    """A fitted probe. `scores`: C -> mean score over the inner folds (higher is better; empty where C was given)."""

    kind: Kind
    scaling: Scaling
    model: Linear
    strength: float
    scores: dict[float, float]

    def raw(self, features: ArrayLike) -> Floats:
        """(N, K) logits, or (N, T) values of a continuous probe."""
        X = checks.matrix(features, "features")
        if X.shape[1] != len(self.scaling.mean):
            raise ValueError(f"features: width {X.shape[1]}, the probe was fitted on width {len(self.scaling.mean)}")
        return self.model(self.scaling.apply(X))


def balanced_weights(target: ArrayLike, classes: int) -> list[float]:
    """n / (K n_k) of each class k: the weights of rows by which every class weighs the same in sum.

    target (n,): class of each row, in 0..K-1. A class without rows weighs n / K, which nothing reads.
    """
    counts = np.bincount(np.asarray(target), minlength=classes)
    return [float(weight) for weight in counts.sum() / (classes * np.maximum(counts, 1))]


def fit_classes(
    features: ArrayLike,
    target: ArrayLike,
    groups: ArrayLike,
    classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    inner_folds: int = 3,
    names: Sequence[str] | None = None,
    class_weights: Sequence[float] | None = None,
    select_by: Literal["accuracy", "uar"] = "accuracy",
    allow_absent_classes: bool = False,
    all_groups: ArrayLike | None = None,
    scaling: Scaling | None = None,
    scored: bool = False,
    layers: Sequence[LayerBlock] = (),
) -> Probe:
    """Multinomial logistic regression on (N, D) features with (N,) targets in 0..classes-1.

    groups (N,): speaker or video of each row (`range(N)` where there are none). `all_groups`: the training groups,
    where some of them have no labelled row. `scaling`: fitted on more rows than the labelled ones; default: on these.
    `scored`: a single strength is scored on the inner folds too. `layers`: columns that are layers side by side, of
    which the probe reads a weighted sum; it learns the weights (`solvers.layered_path`).
    An inner fold whose other groups lack a class trains without it; a class absent from all rows is refused unless
    `allow_absent_classes`, and then never predicted.
    Raises `ValueError`: NaN in features, missing or unknown label, empty class, one class only, too few groups.
    """
    X = checks.matrix(features, "features")
    checks.same_length(len(X), target=target, groups=groups)
    y = checks.class_labels(target, classes, "target", names)
    checks.trainable_classes(y, classes, names, allow_absent_classes)
    if class_weights is not None and len(class_weights) != classes:
        raise ValueError(f"class_weights: {len(class_weights)} given for {classes} classes")
    row_weight = None if class_weights is None else np.asarray(class_weights, dtype=np.float64)[y][:, None]

    def path(X: Floats, rows: NDArray[np.int64], strengths: list[float]) -> list[Linear]:
        seen, local = np.unique(y[rows], return_inverse=True)
        onehot = np.eye(len(seen))[local]
        weight = None if row_weight is None else row_weight[rows]
        if len(seen) == 1:  # nothing to tell apart: the fold predicts its one class, whatever the strength
            models = [Linear(np.zeros((X.shape[1], 1)), np.zeros(1))] * len(strengths)
        else:
            models = _logistic(X[rows], layers, onehot, strengths, "softmax", weight)
        return [_spread(model, seen, classes) for model in models]

    def score(model: Linear, X: Floats, rows: NDArray[np.int64]) -> float:
        guess = model(X[rows]).argmax(axis=1)
        if select_by == "accuracy":
            return float((guess == y[rows]).mean())
        confusion = confusion_matrix(y[rows], guess, classes)
        support = confusion.sum(axis=1)
        return float((np.diagonal(confusion)[support > 0] / support[support > 0]).mean())

    return _fit("class", X, groups, all_groups, strengths, inner_folds, scaling, scored, path, score)


def fit_labels(
    features: ArrayLike,
    target: ArrayLike,
    groups: ArrayLike,
    *,
    positive_weights: Sequence[float] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    inner_folds: int = 3,
    names: Sequence[str] | None = None,
    all_groups: ArrayLike | None = None,
    scaling: Scaling | None = None,
    scored: bool = False,
    layers: Sequence[LayerBlock] = (),
) -> Probe:
    """One logistic regression for each of L labels; target (N, L) in {0, 1}.

    `positive_weights` (L,) multiply the loss of positive rows. One C serves all labels: the one with the lowest
    weighted cross-entropy on held-out groups.
    Raises `ValueError` as `fit_classes`, and for a label that is never or always set.
    """
    X = checks.matrix(features, "features")
    Y = checks.matrix(target, "target")
    checks.same_length(len(X), target=Y, groups=groups)
    checks.binary(Y, "target")
    constant = np.flatnonzero((Y[:1] == Y).all(axis=0))
    if len(constant):
        label, state = checks.class_name(int(constant[0]), names), "always" if Y[0, constant[0]] else "never"
        raise ValueError(
            f"target: label {label} is {state} set in the {len(Y)} training rows; leave it out or add rows"
        )
    if positive_weights is not None and len(positive_weights) != Y.shape[1]:
        raise ValueError(f"positive_weights: {len(positive_weights)} given for {Y.shape[1]} labels")
    emphasis = np.ones(Y.shape[1]) if positive_weights is None else np.asarray(positive_weights, dtype=np.float64)
    weight = 1.0 + (emphasis - 1.0) * Y

    def path(X: Floats, rows: NDArray[np.int64], strengths: list[float]) -> list[Linear]:
        return _logistic(X[rows], layers, Y[rows], strengths, "sigmoid", weight[rows])

    def score(model: Linear, X: Floats, rows: NDArray[np.int64]) -> float:
        logits = model(X[rows])
        return -float((weight[rows] * (np.logaddexp(0.0, logits) - Y[rows] * logits)).mean())

    return _fit("multilabel", X, groups, all_groups, strengths, inner_folds, scaling, scored, path, score)


def fit_values(
    features: ArrayLike,
    target: ArrayLike,
    groups: ArrayLike,
    *,
    strengths: Sequence[float] = RIDGE_STRENGTHS,
    inner_folds: int = 3,
    all_groups: ArrayLike | None = None,
    scaling: Scaling | None = None,
    scored: bool = False,
    layers: Sequence[LayerBlock] = (),
) -> Probe:
    """Ridge regression of (N,) or (N, T) continuous targets; C (the inverse penalty) by held-out squared error."""
    X = checks.matrix(features, "features")
    values = np.asarray(target, dtype=np.float64)
    Y = checks.matrix(values[:, None] if values.ndim == 1 else values, "target")
    checks.same_length(len(X), target=Y, groups=groups)

    def path(X: Floats, rows: NDArray[np.int64], strengths: list[float]) -> list[Linear]:
        if layers:
            return [*layered_path(X[rows], layers, Y[rows], strengths, "identity")]
        return ridge_path(Rotation.of(X[rows]), Y[rows], strengths)

    def score(model: Linear, X: Floats, rows: NDArray[np.int64]) -> float:
        return -float(((model(X[rows]) - Y[rows]) ** 2).mean())

    return _fit("continuous", X, groups, all_groups, strengths, inner_folds, scaling, scored, path, score)


def _logistic(
    X: Floats, layers: Sequence[LayerBlock], target: Floats, strengths: list[float], link: Link, weight: Floats | None
) -> list[Linear]:
    if layers:
        return [*layered_path(X, layers, target, strengths, link, weight)]
    return logistic_path(Rotation.of(X), target, strengths, link, weight)


def _spread(model: Linear, seen: NDArray[np.int64], classes: int) -> Linear:
    """The model over all classes; those it was not trained on get a logit of minus infinity in all but name."""
    if len(seen) == classes:
        return model
    weight, bias = np.zeros((len(model.weight), classes)), np.full(classes, -1e30)
    weight[:, seen], bias[seen] = model.weight, model.bias
    return replace(model, weight=weight, bias=bias)


def _fit(
    kind: Kind,
    X: Floats,
    groups: ArrayLike,
    all_groups: ArrayLike | None,
    strengths: Sequence[float],
    inner_folds: int,
    scaling: Scaling | None,
    scored: bool,
    path: Callable[[Floats, NDArray[np.int64], list[float]], list[Linear]],
    score: Callable[[Linear, Floats, NDArray[np.int64]], float],
) -> Probe:
    """Choose C by the mean score over inner folds, then fit on all rows."""
    grid = sorted(set(strengths))
    if not grid or grid[0] <= 0:
        raise ValueError(f"strengths: expected positive numbers, found {list(strengths)}")
    scaling = Scaling.fit(X) if scaling is None else scaling
    scaled = scaling.apply(X)
    everything = np.arange(len(X))
    if len(grid) == 1 and not scored:
        return Probe(kind, scaling, path(scaled, everything, grid)[0], grid[0], {})
    fold = group_folds(groups, inner_folds, all_groups)
    table = np.empty((inner_folds, len(grid)))
    for held_out in range(inner_folds):
        fitted, judged = everything[fold != held_out], everything[fold == held_out]
        table[held_out] = [score(model, scaled, judged) for model in path(scaled, fitted, grid)]
    means = table.mean(axis=0)
    chosen = grid[int(means.argmax())]
    model = path(scaled, everything, [chosen])[0]
    return Probe(kind, scaling, model, chosen, {c: float(mean) for c, mean in zip(grid, means, strict=True)})
