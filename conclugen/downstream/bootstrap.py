"""Intervals by bootstrap over groups (speakers, videos), and paired differences of two systems over the same groups.

Clips of one speaker are alike, so speakers are drawn, with all their clips. Every statistic here is a function of sums
over rows (hits and rows; a confusion matrix): sums are taken once for each group, and a resample is a matrix product
with how often each group was drawn. Percentile intervals; seeded, so the same numbers come out again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from conclugen.downstream.checks import Floats, same_length
from conclugen.downstream.metrics import confusion_matrix

# (B, ...) sums over the rows of B resamples -> (B,) values.
Statistic = Callable[[Floats], Floats]
# Draws held at a time: 32 MB.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Resampling:
    """How often groups are drawn, from which seed, and the level of the interval."""

    resamples: int = 10_000
    seed: int = 127
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ValueError(f"resamples: {self.resamples}; expected at least 1")
        if not 0 < self.level < 1:
            raise ValueError(f"level: {self.level}; expected a share between 0 and 1, such as 0.95")


DEFAULT = Resampling()


@dataclass(frozen=True)
class Interval:
    """An estimate on the data themselves and the percentile interval around it.

    `p_value` is two-sided, of the hypothesis that the value is zero (differences only; at best 2 / (resamples + 1)).
    """

    estimate: float
    low: float
    high: float
    level: float
    groups: int
    p_value: float | None = None

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def group_sums(values: ArrayLike, groups: ArrayLike) -> Floats:
    """(G, ...) sums of (N, ...) values over the rows of each group, groups in sorted order."""
    array = np.asarray(values, dtype=np.float64)
    same_length(len(array), groups=groups)
    listed, position = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(listed), *array.shape[1:]))
    np.add.at(sums, position, array)
    return sums


def bootstrap_interval(
    sums: Floats, statistic: Statistic, resampling: Resampling = DEFAULT, difference: bool = False
) -> Interval:
    """Interval of `statistic` of the total of (G, ...) group sums, groups drawn G at a time with replacement.

    Resamples where the statistic is undefined (NaN: a class was not drawn) are left out. `difference`: also a p-value.
    """
    count = len(sums)
    if count < 2:
        raise ValueError(f"groups: {count}; an interval over groups needs at least 2")
    level, resamples = resampling.level, resampling.resamples
    generator = np.random.Generator(np.random.PCG64(resampling.seed))
    flat = sums.reshape(count, -1)
    share = np.full(count, 1 / count)
    # Blocks bound the memory where there are many groups; the generator's sequence is the same for any block.
    blocks = np.diff(np.r_[0 : resamples : max(1, _BLOCK // count), resamples])
    totals = [generator.multinomial(count, share, size=int(size)).astype(np.float64) @ flat for size in blocks]
    values = statistic(np.concatenate(totals).reshape(resamples, *sums.shape[1:]))
    values = values[np.isfinite(values)]
    estimate = float(statistic(flat.sum(axis=0).reshape(1, *sums.shape[1:]))[0])
    if not len(values):
        return Interval(estimate, float("nan"), float("nan"), level, count)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    p_value = None
    if difference:
        tail = min(int((values <= 0).sum()), int((values >= 0).sum()))
        p_value = min(1.0, 2 * (tail + 1) / (len(values) + 1))
    return Interval(estimate, float(low), float(high), level, count, p_value)


def mean_interval(values: ArrayLike, groups: ArrayLike, resampling: Resampling = DEFAULT) -> Interval:
    """Of the mean over rows of (N,) values: accuracy from hits, mean absolute error from errors."""
    array = np.asarray(values, dtype=np.float64)
    sums = group_sums(np.stack([array, np.ones_like(array)], axis=1), groups)
    return bootstrap_interval(sums, _ratio_of_sums, resampling)


def mean_difference(
    first: ArrayLike, second: ArrayLike, groups: ArrayLike, resampling: Resampling = DEFAULT
) -> Interval:
    """Of mean(first) - mean(second), both (N,) over the same rows: positive where the first is higher."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    same_length(len(a), second=b, groups=groups)
    sums = group_sums(np.stack([a - b, np.ones_like(a)], axis=1), groups)
    return bootstrap_interval(sums, _ratio_of_sums, resampling, difference=True)


def confusion_interval(
    target: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    groups: ArrayLike,
    statistic: Statistic,
    resampling: Resampling = DEFAULT,
) -> Interval:
    """Of a statistic of the confusion matrix, such as `unweighted_average_recall` or `macro_f1` below."""
    return bootstrap_interval(_confusions(target, predicted, classes, groups), statistic, resampling)


def confusion_difference(
    target: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    classes: int,
    groups: ArrayLike,
    statistic: Statistic,
    resampling: Resampling = DEFAULT,
) -> Interval:
    """Of statistic(first) - statistic(second), predictions of two systems for the same rows."""
    both = np.stack([_confusions(target, guess, classes, groups) for guess in (first, second)], axis=1)

    def contrast(sums: Floats) -> Floats:
        return statistic(sums[:, 0]) - statistic(sums[:, 1])

    return bootstrap_interval(both, contrast, resampling, difference=True)


def unweighted_average_recall(confusion: Floats) -> Floats:
    """(B, K, K) -> (B,): mean recall over the classes that have rows."""
    support = confusion.sum(axis=2)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    recall = np.divide(hits, support, out=np.zeros_like(support), where=support > 0)
    return recall.sum(axis=1) / np.maximum((support > 0).sum(axis=1), 1)


def macro_f1(confusion: Floats) -> Floats:
    """(B, K, K) -> (B,): mean F1 over the classes that have rows."""
    support, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(support), where=support > 0)
    return f1.sum(axis=1) / np.maximum((support > 0).sum(axis=1), 1)


def holm(p_values: Mapping[str, float] | Sequence[float]) -> dict[str, float]:
    """Holm's step-down adjustment (1979) of p-values, by name (or position): reject where it is at most the level."""
    named = dict(p_values) if isinstance(p_values, Mapping) else {str(i): p for i, p in enumerate(p_values)}
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise ValueError(f"p-value of {name!r}: {value}; expected a number from 0 to 1")
    adjusted: dict[str, float] = {}
    floor = 0.0
    for position, name in enumerate(sorted(named, key=lambda key: named[key])):
        floor = max(floor, min(1.0, (len(named) - position) * named[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in named}


def _ratio_of_sums(sums: Floats) -> Floats:
    return sums[:, 0] / sums[:, 1]


def _confusions(target: ArrayLike, predicted: ArrayLike, classes: int, groups: ArrayLike) -> Floats:
    """(G, K, K): the confusion matrix of each group, groups in sorted order."""
    true, guess, owner = np.asarray(target), np.asarray(predicted), np.asarray(groups)
    same_length(len(true), predicted=guess, groups=owner)
    each = [owner == group for group in np.unique(owner)]
    return np.stack([confusion_matrix(true[rows], guess[rows], classes) for rows in each]).astype(np.float64)
