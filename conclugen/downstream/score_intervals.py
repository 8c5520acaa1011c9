"""Bootstrap intervals over groups of the scores that an evaluation is read by, for every kind of label.

Each score is a function of sums over rows, taken once for each group (see `bootstrap`). Where several systems of one
kind predict the same rows (one for each draw of labels), a resample's value is the mean of theirs, over those where it
is defined.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.downstream.bootstrap import (
    DEFAULT,
    Interval,
    Resampling,
    Statistic,
    bootstrap_interval,
    group_sums,
    macro_f1,
    unweighted_average_recall,
)
from conclugen.downstream.checks import Floats
from conclugen.downstream.metrics import mean_of_defined


def class_intervals(
    target: ArrayLike, draws: Sequence[ArrayLike], classes: int, groups: ArrayLike, resampling: Resampling = DEFAULT
) -> dict[str, Interval]:
    """`accuracy`, `uar` and `f1_macro` of each draw's (N,) predicted classes against the (N,) true ones.

    In a resample that lacks a class, `uar` and `f1_macro` are means over the classes it has.
    """
    true = np.eye(classes)[np.asarray(target)]
    cells = [true[:, :, None] * np.eye(classes)[np.asarray(guess)][:, None, :] for guess in draws]
    sums = group_sums(np.stack(cells, axis=1), groups)  # (G, draws, K, K)
    statistics = {"accuracy": _accuracy, "uar": unweighted_average_recall, "f1_macro": macro_f1}
    return _intervals(statistics, sums, resampling)


def multilabel_intervals(
    target: ArrayLike,
    draws: Sequence[ArrayLike],
    groups: ArrayLike,
    threshold: float = 0.5,
    resampling: Resampling = DEFAULT,
) -> dict[str, Interval]:
    """`accuracy_weighted` and `accuracy_macro` of each draw's (N, L) probabilities against (N, L) labels in {0, 1}."""
    positive = np.asarray(target) > 0
    parts = [
        np.stack([positive == (np.asarray(score) > threshold), positive, np.ones_like(positive)], axis=1)
        for score in draws
    ]
    sums = group_sums(np.stack(parts, axis=1), groups)  # (G, draws, 3, L)
    return _intervals({"accuracy_weighted": _accuracy_weighted, "accuracy_macro": _accuracy_macro}, sums, resampling)


def continuous_intervals(
    target: ArrayLike, draws: Sequence[ArrayLike], groups: ArrayLike, resampling: Resampling = DEFAULT
) -> dict[str, Interval]:
    """`mae`, `pearson` and `concordance` of each draw's (N,) predicted values against the (N,) true ones."""
    # Each side about its own centre: the sums of squares lose no digits to a mean far from zero.
    true, centre = _centred(np.asarray(target, dtype=np.float64))
    parts = []
    for predicted in draws:
        guess, own_centre = _centred(np.asarray(predicted, dtype=np.float64))
        offset = np.full_like(true, own_centre - centre)
        error = np.abs(true - guess - offset)
        parts.append(
            np.stack([np.ones_like(true), true, guess, true**2, guess**2, true * guess, error, offset], axis=1)
        )
    sums = group_sums(np.stack(parts, axis=1), groups)  # (G, draws, 8)
    return _intervals({"mae": _mean_absolute_error, "pearson": _pearson, "concordance": _concordance}, sums, resampling)


def _centred(values: Floats) -> tuple[Floats, float]:
    """(N,) without their mean, and the mean; of a constant exactly 0, so that rounding makes no variance."""
    centre = float(values[0] if (values == values[0]).all() else values.mean())
    return values - centre, centre


def sentiment_intervals(
    target: ArrayLike, draws: Sequence[ArrayLike], groups: ArrayLike, resampling: Resampling = DEFAULT
) -> dict[str, Interval]:
    """Every score of `metrics.sentiment` of each draw's (N,) predicted sentiments against the (N,) true ones."""
    true = np.asarray(target, dtype=np.float64)
    sevens, polarities = [], []
    for predicted in draws:
        guess = np.asarray(predicted, dtype=np.float64)
        hit = np.round(np.clip(true, -3, 3)) == np.round(np.clip(guess, -3, 3))
        sevens.append(np.stack([hit, np.ones_like(hit)], axis=1))
        positive = _cells(true > 0, guess > 0) * (true != 0)[:, None, None]
        polarities.append(np.stack([_cells(true >= 0, guess >= 0), positive], axis=1))
    seven_sums = group_sums(np.stack(sevens, axis=1), groups)  # (G, draws, 2)
    polarity_sums = group_sums(np.stack(polarities, axis=1), groups)  # (G, draws, 2 readings, 2, 2)
    readings: dict[str, Statistic] = {
        "accuracy2_nonnegative": lambda sums: _accuracy(sums[:, 0]),
        "f1_nonnegative": lambda sums: _f1_weighted(sums[:, 0]),
        "accuracy2_positive": lambda sums: _accuracy(sums[:, 1]),
        "f1_positive": lambda sums: _f1_weighted(sums[:, 1]),
    }
    return (
        continuous_intervals(target, draws, groups, resampling)
        | _intervals({"accuracy7": lambda sums: sums[:, 0] / sums[:, 1]}, seven_sums, resampling)
        | _intervals(readings, polarity_sums, resampling)
    )


def _cells(true: NDArray[np.bool_], guess: NDArray[np.bool_]) -> Floats:
    """(N, 2, 2): the cell of the confusion matrix that each row falls into."""
    either = np.eye(2)
    return either[true.astype(np.int64)][:, :, None] * either[guess.astype(np.int64)][:, None, :]


def _intervals(statistics: Mapping[str, Statistic], sums: Floats, resampling: Resampling) -> dict[str, Interval]:
    return {name: bootstrap_interval(sums, _mean_of_draws(one), resampling) for name, one in statistics.items()}


def _mean_of_draws(statistic: Statistic) -> Callable[[Floats], Floats]:
    """Of (B, draws, ...) sums."""

    def mean(sums: Floats) -> Floats:
        return mean_of_defined([statistic(sums[:, draw]) for draw in range(sums.shape[1])])

    return mean


def _accuracy(confusion: Floats) -> Floats:
    return _quotient(np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2)))


def _f1_weighted(confusion: Floats) -> Floats:
    """F1 of each class, weighted by its rows."""
    support, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(support), where=support > 0)
    return _quotient((support * f1).sum(axis=1), support.sum(axis=1))


def _accuracy_weighted(sums: Floats) -> Floats:
    """Accuracy of each label, weighted by its positives; undefined where there are none."""
    hits, positives, rows = sums[:, 0], sums[:, 1], sums[:, 2]
    total = positives.sum(axis=1)
    weighted = (positives * hits / rows).sum(axis=1)
    return np.divide(weighted, total, out=np.full(len(total), np.nan), where=total > 0)


def _accuracy_macro(sums: Floats) -> Floats:
    return (sums[:, 0] / sums[:, 2]).mean(axis=1)


def _mean_absolute_error(sums: Floats) -> Floats:
    return sums[:, 6] / sums[:, 0]


def _pearson(sums: Floats) -> Floats:
    _, _, true_variance, guess_variance, covariance = _moments(sums)
    return _quotient(covariance, np.sqrt(np.maximum(true_variance * guess_variance, 0)))


def _concordance(sums: Floats) -> Floats:
    true_mean, guess_mean, true_variance, guess_variance, covariance = _moments(sums)
    offset = sums[:, 7] / sums[:, 0]
    return _quotient(2 * covariance, true_variance + guess_variance + (true_mean - guess_mean - offset) ** 2)


def _moments(sums: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    count, true, guess, true_square, guess_square, product = sums[:, :6].T
    true_mean, guess_mean = true / count, guess / count
    return (
        true_mean,
        guess_mean,
        true_square / count - true_mean**2,
        guess_square / count - guess_mean**2,
        product / count - true_mean * guess_mean,
    )


def _quotient(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
