"""Scores of single-label, multi-label and continuous predictions.

What is undefined is NaN and named, never a silent zero:

- a class without true rows has no recall: its recall and F1 are NaN, it is listed in `absent`, and macro averages
  (the unweighted average recall among them) run over the classes that have true rows;
- a class with true rows that is never predicted has precision 0 (nothing it found was right), and so F1 0;
- a class without true rows that is predicted has precision 0; one that is not predicted either has precision NaN;
- the weighted average weighs by true rows, so absent classes drop out of it by themselves.

Scores have flat names, as tracking takes them: `f1_macro`, and of classes `f1/NAME` where it is defined.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common.extras import require
from conclugen.evaluation.checks import Floats, Integers, binary, class_labels, matrix, same_length
from conclugen.evaluation.protocol import Target


def mean_of_defined(values: ArrayLike) -> Floats:
    """Mean over the first axis of what is not NaN there; NaN where nothing is."""
    array = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(array)
    total, count = np.where(known, array, 0.0).sum(axis=0), known.sum(axis=0)
    mean: Floats = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return mean


def _by_class(
    names: tuple[str, ...], parts: Sequence[tuple[NDArray[Any], NDArray[Any], Sequence[int]]]
) -> tuple[dict[str, float], dict[str, float], Integers]:
    """Precision, recall and F1 of the labels of each part (true, predicted, labels to score): averages weighted by true
    rows and over the classes that have some, NaN where there are none at all; each class's where it is defined; and the
    number of true rows of each."""
    require("scoring", "sklearn")
    from sklearn.metrics import precision_recall_fscore_support  # training processes import this file and score nothing

    columns = [
        precision_recall_fscore_support(true, predicted, labels=labels, zero_division=np.nan)
        for true, predicted, labels in parts
    ]
    precision, recall, f1, support = (np.concatenate(values) for values in zip(*columns, strict=True))
    precision[np.isnan(precision) & (support > 0)] = 0.0
    found = {"precision": precision, "recall": recall, "f1": np.where(support > 0, f1, np.nan)}
    kept = support > 0
    averages = {f"{name}_weighted": _weighted(values, support) for name, values in found.items()}
    averages |= {
        f"{name}_macro": float(values[kept].mean()) if kept.any() else float("nan") for name, values in found.items()
    }
    each = {f"{name}/{n}": float(v) for name, values in found.items() for n, v in zip(names, values, strict=True)}
    return averages, {name: value for name, value in each.items() if np.isfinite(value)}, support


def _weighted(values: Floats, support: Integers) -> float:
    """Mean weighted by true rows; NaN where there are none at all."""
    kept = support > 0
    return float(values[kept] @ support[kept] / support.sum()) if kept.any() else float("nan")


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
) -> dict[str, float]:
    """Scores of (N,) predicted classes against (N,) true ones; both in 0..classes-1, at least one row. `uar`, the
    unweighted average recall, is the macro recall."""
    confusion = confusion_matrix(target, predicted, classes)
    total = int(confusion.sum())
    if not total:
        raise ValueError("target: no rows to score")
    part = (np.asarray(target), np.asarray(predicted), range(classes))
    averages, each, _ = _by_class(_names(names, classes), [part])
    return {"accuracy": float(np.trace(confusion) / total), "uar": averages["recall_macro"], **averages, **each}


def multi_label(
    target: ArrayLike, probability: ArrayLike, names: Sequence[str] | None = None, threshold: float = 0.5
) -> dict[str, float]:
    """Scores of (N, L) probabilities against (N, L) labels in {0, 1}; a label is predicted above the threshold.

    `accuracy/NAME`: (TP + TN) / N of a label; `accuracy_weighted`: weighted by positives, the published score.
    """
    true, score = matrix(target, "target"), matrix(probability, "probability")
    if true.shape != score.shape:
        raise ValueError(f"probability: shape {score.shape}, expected {true.shape} as in the target")
    binary(true, "target")
    positive, guess = true > 0, score > threshold
    columns = [(positive[:, label], guess[:, label], [True]) for label in range(true.shape[1])]
    labels = _names(names, true.shape[1])
    averages, each, support = _by_class(labels, columns)
    accuracy = (positive == guess).mean(axis=0)
    head = {"accuracy_weighted": _weighted(accuracy, support), "accuracy_macro": float(accuracy.mean())}
    return head | averages | {f"accuracy/{n}": float(v) for n, v in zip(labels, accuracy, strict=True)} | each


def continuous(target: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Mean absolute error, Pearson correlation and concordance (Lin 1989) of (N,) predicted values and (N,) true ones;
    NaN where a side is constant."""
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
    return {
        "mae": float(np.abs(true - guess).mean()),
        "pearson": covariance / spread if spread > 0 and not constant else float("nan"),
        "concordance": 2 * covariance / distance if distance > 0 else float("nan"),
    }


def sentiment(target: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """The scores usual on CMU-MOSI, of (N,) predicted sentiments against (N,) true ones in [-3, 3].

    `accuracy7`: both sides cut to [-3, 3] and rounded to whole numbers (halves to even). `*_nonnegative`: negative
    against zero or more, every row. `*_positive`: negative against positive, rows whose true sentiment is 0 left out;
    NaN where only zeros are true. F1 is weighted over the two classes.
    """
    true, guess = np.asarray(target, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    found = continuous(true, guess)
    found["accuracy7"] = float((np.round(np.clip(true, -3, 3)) == np.round(np.clip(guess, -3, 3))).mean())
    nonzero = true != 0
    sides = {"nonnegative": (true >= 0, guess >= 0), "positive": (true[nonzero] > 0, guess[nonzero] > 0)}
    for name, (one, other) in sides.items():
        side = single_label(one, other, 2) if len(one) else {}
        found[f"accuracy2_{name}"] = side.get("accuracy", float("nan"))
        found[f"f1_{name}"] = side.get("f1_weighted", float("nan"))
    return found


def scores(target: Target, rows: NDArray[np.integer], predicted: ArrayLike) -> dict[str, float]:
    """Every score that fits the label's kind, by flat name, of predictions for `rows`.

    predicted: (n,) classes, (n, L) probabilities, or (n,) values.
    """
    true = target.values[rows]
    if target.kind == "class":
        return single_label(true, predicted, len(target.classes), target.classes)
    if target.kind == "multilabel":
        return multi_label(true, predicted, target.classes)
    return (sentiment if target.sentiment else continuous)(true, predicted)
