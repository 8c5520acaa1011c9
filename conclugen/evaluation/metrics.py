"""Scores of single-label, multi-label and continuous predictions.

What is undefined is NaN and named, never a silent zero:

- a class without true rows has no recall: its recall and F1 are NaN, it is listed in `absent`, and macro averages
  (the unweighted average recall among them) run over the classes that have true rows;
- a class with true rows that is never predicted has precision 0 (nothing it found was right), and so F1 0;
- a class without true rows that is predicted has precision 0; one that is not predicted either has precision NaN;
- the weighted average weighs by true rows, so absent classes drop out of it by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common.extras import require
from conclugen.evaluation.checks import Floats, Integers, binary, class_labels, matrix, same_length
from conclugen.evaluation.protocol import Target


@dataclass(frozen=True)
class PerClass:
    """Precision, recall, F1 and number of true rows, each (K,), one entry for each class or label."""

    names: tuple[str, ...]
    precision: Floats
    recall: Floats
    f1: Floats
    support: Integers

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes without a true row."""
        return tuple(name for name, count in zip(self.names, self.support, strict=True) if count == 0)

    def weighted(self, values: Floats) -> float:
        """Mean weighted by true rows; NaN where there are none at all."""
        total = int(self.support.sum())
        kept = self.support > 0
        return float(values[kept] @ self.support[kept] / total) if total else float("nan")

    def macro(self, values: Floats) -> float:
        """Mean over the classes that have true rows; NaN where there are none at all."""
        kept = self.support > 0
        return float(values[kept].mean()) if kept.any() else float("nan")

    def averages(self) -> dict[str, float]:
        columns = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        weighted = {f"{key}_weighted": self.weighted(values) for key, values in columns.items()}
        return weighted | {f"{key}_macro": self.macro(values) for key, values in columns.items()}

    def scalars(self) -> dict[str, float]:
        """`precision/<name>` and so on, for tracking; undefined values are left out."""
        columns = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        named = {
            f"{key}/{n}": float(v) for key, values in columns.items() for n, v in zip(self.names, values, strict=True)
        }
        return {key: value for key, value in named.items() if np.isfinite(value)}


@dataclass(frozen=True)
class SingleLabelScores:
    """`confusion[i, j]`: rows of class i predicted as j. `unweighted_average_recall` is the macro recall."""

    accuracy: float
    unweighted_average_recall: float
    confusion: Integers
    per_class: PerClass

    def scalars(self) -> dict[str, float]:
        """Every score under one flat name, for tracking."""
        head = {"accuracy": self.accuracy, "uar": self.unweighted_average_recall}
        return head | self.per_class.averages() | self.per_class.scalars()


@dataclass(frozen=True)
class MultiLabelScores:
    """`accuracy` (L,): (TP + TN) / N of each label; `accuracy_weighted`: weighted by positives, the published score."""

    accuracy_weighted: float
    accuracy: Floats
    per_label: PerClass

    def scalars(self) -> dict[str, float]:
        accuracy = {f"accuracy/{n}": float(v) for n, v in zip(self.per_label.names, self.accuracy, strict=True)}
        head = {"accuracy_weighted": self.accuracy_weighted, "accuracy_macro": float(self.accuracy.mean())}
        return head | self.per_label.averages() | accuracy | self.per_label.scalars()


@dataclass(frozen=True)
class ContinuousScores:
    """Mean absolute error, Pearson correlation and concordance (Lin 1989); NaN where a side is constant."""

    mean_absolute_error: float
    pearson: float
    concordance: float

    def scalars(self) -> dict[str, float]:
        return {"mae": self.mean_absolute_error, "pearson": self.pearson, "concordance": self.concordance}


@dataclass(frozen=True)
class SentimentScores:
    """The scores usual on CMU-MOSI; sentiment in [-3, 3].

    `accuracy7`: both sides cut to [-3, 3] and rounded to whole numbers (halves to even).
    `*_nonnegative`: negative against zero or more, every row. `*_positive`: negative against positive, rows whose true
    sentiment is 0 left out. F1 is weighted over the two classes.
    """

    continuous: ContinuousScores
    accuracy7: float
    accuracy2_nonnegative: float
    f1_nonnegative: float
    accuracy2_positive: float
    f1_positive: float

    def scalars(self) -> dict[str, float]:
        own = ("accuracy7", "accuracy2_nonnegative", "f1_nonnegative", "accuracy2_positive", "f1_positive")
        return self.continuous.scalars() | {name: float(getattr(self, name)) for name in own}


def mean_of_defined(values: ArrayLike) -> Floats:
    """Mean over the first axis of what is not NaN there; NaN where nothing is."""
    array = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(array)
    total, count = np.where(known, array, 0.0).sum(axis=0), known.sum(axis=0)
    mean: Floats = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return mean


def _per_class(names: tuple[str, ...], parts: Sequence[tuple[NDArray[Any], NDArray[Any], Sequence[int]]]) -> PerClass:
    """Of each part (true, predicted, labels to score) the columns of those labels, one after the other."""
    require("scoring", "sklearn")
    from sklearn.metrics import precision_recall_fscore_support  # training processes import this file and score nothing

    columns = [
        precision_recall_fscore_support(true, predicted, labels=labels, zero_division=np.nan)
        for true, predicted, labels in parts
    ]
    precision, recall, f1, support = (np.concatenate(values) for values in zip(*columns, strict=True))
    precision[np.isnan(precision) & (support > 0)] = 0.0
    return PerClass(names, precision, recall, np.where(support > 0, f1, np.nan), support.astype(np.int64))


def _names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if names is not None and len(names) != count:
        raise ValueError(f"names: {len(names)} given for {count} classes")
    return tuple(names) if names is not None else tuple(str(index) for index in range(count))


def confusion_matrix(target: ArrayLike, predicted: ArrayLike, classes: int) -> Integers:
    """(K, K) counts: row is the true class, column the predicted one."""
    true = class_labels(target, classes, "target")
    guess = class_labels(predicted, classes, "predicted")
    same_length(len(true), predicted=guess)
    return np.bincount(true * classes + guess, minlength=classes * classes).reshape(classes, classes)


def single_label(
    target: ArrayLike, predicted: ArrayLike, classes: int, names: Sequence[str] | None = None
) -> SingleLabelScores:
    """Scores of (N,) predicted classes against (N,) true ones; both in 0..classes-1, at least one row."""
    confusion = confusion_matrix(target, predicted, classes)
    total = int(confusion.sum())
    if not total:
        raise ValueError("target: no rows to score")
    part = (np.asarray(target), np.asarray(predicted), range(classes))
    per_class = _per_class(_names(names, classes), [part])
    accuracy = float(np.trace(confusion) / total)
    return SingleLabelScores(accuracy, per_class.macro(per_class.recall), confusion, per_class)


def multi_label(
    target: ArrayLike, probability: ArrayLike, names: Sequence[str] | None = None, threshold: float = 0.5
) -> MultiLabelScores:
    """Scores of (N, L) probabilities against (N, L) labels in {0, 1}; a label is predicted above the threshold."""
    true, score = matrix(target, "target"), matrix(probability, "probability")
    if true.shape != score.shape:
        raise ValueError(f"probability: shape {score.shape}, expected {true.shape} as in the target")
    binary(true, "target")
    positive, guess = true > 0, score > threshold
    columns = [(positive[:, label], guess[:, label], [True]) for label in range(true.shape[1])]
    per_label = _per_class(_names(names, true.shape[1]), columns)
    accuracy = (positive == guess).mean(axis=0)
    return MultiLabelScores(per_label.weighted(accuracy), accuracy, per_label)


def continuous(target: ArrayLike, predicted: ArrayLike) -> ContinuousScores:
    """Scores of (N,) predicted values against (N,) true ones."""
    true, guess = (
        matrix(np.asarray(v)[:, None], what)[:, 0] for v, what in ((target, "target"), (predicted, "predicted"))
    )
    same_length(len(true), predicted=guess)
    true_centred, guess_centred = true - true.mean(), guess - guess.mean()
    # Rounding of a constant's mean must not make a correlation.
    constant = bool((true == true[0]).all() or (guess == guess[0]).all())
    covariance = 0.0 if constant else float(true_centred @ guess_centred) / len(true)
    variances = float(true_centred @ true_centred) / len(true), float(guess_centred @ guess_centred) / len(true)
    spread = float(np.sqrt(variances[0] * variances[1]))
    distance = sum(variances) + float(true.mean() - guess.mean()) ** 2
    return ContinuousScores(
        float(np.abs(true - guess).mean()),
        covariance / spread if spread > 0 and not constant else float("nan"),
        2 * covariance / distance if distance > 0 else float("nan"),
    )


def sentiment(target: ArrayLike, predicted: ArrayLike) -> SentimentScores:
    """CMU-MOSI's scores of (N,) predicted sentiments against (N,) true ones; NaN where only zeros are true."""
    base = continuous(target, predicted)
    true, guess = np.asarray(target, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    seven = np.round(np.clip(true, -3, 3)) == np.round(np.clip(guess, -3, 3))
    nonnegative = single_label(true >= 0, guess >= 0, 2)
    nonzero = true != 0
    polar = single_label(true[nonzero] > 0, guess[nonzero] > 0, 2) if nonzero.any() else None
    return SentimentScores(
        base,
        float(seven.mean()),
        nonnegative.accuracy,
        nonnegative.per_class.weighted(nonnegative.per_class.f1),
        polar.accuracy if polar else float("nan"),
        polar.per_class.weighted(polar.per_class.f1) if polar else float("nan"),
    )


def scores(target: Target, rows: NDArray[np.integer], predicted: ArrayLike) -> dict[str, float]:
    """Every score that fits the label's kind, by flat name, of predictions for `rows`.

    predicted: (n,) classes, (n, L) probabilities, or (n,) values.
    """
    true = target.values[rows]
    if target.kind == "class":
        return single_label(true, predicted, len(target.classes), target.classes).scalars()
    if target.kind == "multilabel":
        return multi_label(true, predicted, target.classes).scalars()
    return (sentiment if target.sentiment else continuous)(true, predicted).scalars()
