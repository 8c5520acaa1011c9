"""Intervals by bootstrap over groups, paired tests of two systems, and correction for many comparisons.

Clips of one speaker are alike, so the group (a speaker, a video) is the unit of every statement. Every statistic here
is a function of sums over rows (hits and rows; a confusion matrix): sums are taken once for each group, and a resample
is a matrix product with how often each group was drawn. Percentile intervals; seeded, so the same numbers come out
again.

SciPy has neither: its bootstrap scores every resample's rows again, and its permutation test enumerates all 2^G signs,
where `sign_flip_p` counts those of 40 groups exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.evaluation.checks import Floats, class_labels, same_length
from conclugen.evaluation.metrics import mean_of_defined
from conclugen.evaluation.protocol import Target

# (B, ...) sums over the rows of B resamples -> (B,) values.
Statistic = Callable[[Floats], Floats]
# Group -> its number, or one number for each class.
Scores = Mapping[str, float | Sequence[float]]
# Of each pretraining seed and draw of labels.
Crossed = Sequence[Sequence[Scores]]
# Draws held at a time: 32 MB.
_BLOCK = 1 << 22
# 2^20 sums are kept for each half: all signs of up to 40 groups are counted, none is sampled.
EXACT_GROUPS = 40
_SAMPLED_SIGNS = 100_000
_SIGN_SEED = 127


@dataclass(frozen=True)
class Resampling:
    """How often groups are drawn, from which seed, and the level of the interval."""

    resamples: int = 10_000
    seed: int = 127
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ValueError(f"resamples: must be at least 1, got {self.resamples}")
        if not 0 < self.level < 1:
            raise ValueError(f"level: must be a share between 0 and 1, such as 0.95, got {self.level}")


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


# ---- the bootstrap


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
        raise ValueError(f"groups: an interval over groups needs at least 2, got {count}")
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


def crossed_interval(
    first: Floats, statistic: Statistic, resampling: Resampling = DEFAULT, second: Floats | None = None
) -> Interval:
    """Interval of a mean over seeds of pretraining and draws of labels, which other seeds, draws and test groups would
    have given: all three are drawn with replacement, each by itself, and crossed (Owen 2007, "The pigeonhole
    bootstrap", Annals of Applied Statistics 1(2)).

    first (S, L, G, ...): sums over the rows of each group, by seed and draw; what there is one of (100 % of the labels
    are one draw, raw features have no seed) stands still. second: of another system, of the same groups and draws; the
    value is then the first one's mean minus its own, with the same resample for both. Three seeds say little of others:
    a resample that draws each of three once or twice spreads by two thirds of their variance.
    Resamples in which the statistic is undefined are left out; of one system a draw in which it is leaves it to the
    other draws.

    Raises:
        ValueError: fewer than two groups; other groups or draws in the second; seeds that are neither as many nor one.
    """
    systems = [first] if second is None else [first, second]
    shapes = [system.shape[:3] for system in systems]
    seeds = max(shape[0] for shape in shapes)
    draws, groups = shapes[0][1:]
    if any(shape[1:] != (draws, groups) or shape[0] not in (1, seeds) for shape in shapes):
        raise ValueError(f"sums (seeds, draws, groups): {shapes[0]} and {shapes[-1]} cannot be paired")
    if groups < 2:
        raise ValueError(f"groups: an interval over groups needs at least 2, got {groups}")

    def mean(times: Sequence[Floats]) -> Floats:
        """(B,) values of resamples in which each seed (B, S), draw (B, L) and group (B, G) counts so many times."""
        of_seeds, of_draws, of_groups = times
        value = np.zeros(len(of_groups))
        for system, sign in zip(systems, (1.0, -1.0), strict=False):
            total, weight = np.zeros((2, len(of_groups)))
            for seed, draw in np.ndindex(system.shape[:2]):
                sums = system[seed, draw]
                totals = (of_groups @ sums.reshape(groups, -1)).reshape(len(of_groups), *sums.shape[1:])
                counted = of_draws[:, draw] / draws * (of_seeds[:, seed] / seeds if len(system) > 1 else 1.0)
                found = statistic(totals)
                # What a resample does not hold must not spoil it where it is undefined there.
                held = (counted > 0) & (np.isfinite(found) | (second is not None))
                total += np.where(held, counted * found, 0.0)
                weight += np.where(held, counted, 0.0)
            value += sign * _quotient(total, weight)
        return value

    generator = np.random.Generator(np.random.PCG64(resampling.seed))
    counts = [
        generator.multinomial(count, np.full(count, 1 / count), size=resampling.resamples).astype(np.float64)
        for count in (seeds, draws, groups)
    ]
    widest = max(int(np.prod(system.shape[3:])) for system in systems)
    step = max(1, _BLOCK // max(groups, widest))
    blocks = [[count[at : at + step] for count in counts] for at in range(0, resampling.resamples, step)]
    values = np.concatenate([mean(block) for block in blocks])
    values = values[np.isfinite(values)]
    estimate = float(mean([np.ones((1, count)) for count in (seeds, draws, groups)])[0])
    if not len(values):
        return Interval(estimate, float("nan"), float("nan"), resampling.level, groups)
    low, high = np.quantile(values, [(1 - resampling.level) / 2, (1 + resampling.level) / 2])
    return Interval(estimate, float(low), float(high), resampling.level, groups)


def statistic_difference(
    first: Floats, second: Floats, statistic: Statistic, resampling: Resampling = DEFAULT
) -> Interval:
    """Of statistic(first) - statistic(second), from (G, ...) group sums of two systems over the same rows."""

    def contrast(sums: Floats) -> Floats:
        return statistic(sums[:, 0]) - statistic(sums[:, 1])

    return bootstrap_interval(np.stack([first, second], axis=1), contrast, resampling, difference=True)


def confusion_sums(target: ArrayLike, predicted: ArrayLike, classes: int, groups: ArrayLike) -> Floats:
    """(G, K, K): the confusion matrix of each group, groups in sorted order."""
    true, guess = (np.eye(classes)[class_labels(v, classes, "classes")] for v in (target, predicted))
    return group_sums(true[:, :, None] * guess[:, None, :], groups)


# ---- intervals of the scores that a label is read by


def score_intervals(
    target: Target, rows: NDArray[np.integer], draws: Sequence[ArrayLike], groups: ArrayLike, resampling: Resampling
) -> dict[str, Interval]:
    """Score -> its interval, of predictions for `rows` from each draw of labels: groups and draws are drawn again,
    crossed (`crossed_interval`); of one draw groups alone.

    draws: of each, what `metrics.scores` takes. groups (n,): of `rows`; empty where these are of one group only.
    Classes: `accuracy`, `uar`, `f1_macro` (in a resample that lacks a class, means over those it has). Labels:
    `accuracy_weighted`, `accuracy_macro`. Numbers: `mae`, `pearson`, `concordance`; of sentiments all their scores.
    """
    true = target.values[rows]
    if len(np.unique(np.asarray(groups))) < 2:
        return {}
    if target.kind == "class":
        return class_intervals(true, draws, len(target.classes), groups, resampling)
    if target.kind == "multilabel":
        return multilabel_intervals(true, draws, groups, resampling=resampling)
    return (sentiment_intervals if target.sentiment else continuous_intervals)(true, draws, groups, resampling)


def class_intervals(
    target: ArrayLike, draws: Sequence[ArrayLike], classes: int, groups: ArrayLike, resampling: Resampling = DEFAULT
) -> dict[str, Interval]:
    """`accuracy`, `uar` and `f1_macro` of each draw's (N,) predicted classes against the (N,) true ones.

    In a resample that lacks a class, `uar` and `f1_macro` are means over the classes it has.
    """
    sums = np.stack([confusion_sums(target, guess, classes, groups) for guess in draws], axis=1)  # (G, draws, K, K)
    return _intervals(class_statistics(), sums, resampling)


def class_statistics() -> dict[str, Statistic]:
    """Score of classes -> it as a statistic of (B, K, K) confusion matrices."""
    return {"accuracy": accuracy, "uar": unweighted_average_recall, "f1_macro": macro_f1}


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
        "accuracy2_nonnegative": lambda sums: accuracy(sums[:, 0]),
        "f1_nonnegative": lambda sums: _f1_weighted(sums[:, 0]),
        "accuracy2_positive": lambda sums: accuracy(sums[:, 1]),
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
    """sums: (G, draws, ...)."""
    of_draws = np.moveaxis(sums, 1, 0)[None]  # of one seed
    return {name: crossed_interval(of_draws, one, resampling) for name, one in statistics.items()}


def mean_of_draws(statistic: Statistic) -> Callable[[Floats], Floats]:
    """A statistic of (B, ...) sums as its mean over the draws of (B, draws, ...) ones."""

    def mean(sums: Floats) -> Floats:
        return mean_of_defined([statistic(sums[:, draw]) for draw in range(sums.shape[1])])

    return mean


def accuracy(confusion: Floats) -> Floats:
    """(B, K, K) -> (B,): share of the rows on the diagonal; NaN of no rows."""
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


def _ratio_of_sums(sums: Floats) -> Floats:
    return sums[:, 0] / sums[:, 1]


def _mean_share(sums: Floats) -> Floats:
    """(B, K, 2) hits and rows of each class -> (B,): mean share over the classes that have rows."""
    hits, rows = sums[..., 0], sums[..., 1]
    share = np.divide(hits, rows, out=np.zeros_like(hits), where=rows > 0)
    mean: Floats = share.sum(axis=1) / np.maximum((rows > 0).sum(axis=1), 1)
    return mean


# ---- paired tests


@dataclass(frozen=True)
class Comparison:
    """first minus second, in accuracy or unweighted average recall over all test rows; `interval` by bootstrap over
    groups, p by sign flips, `adjusted` by Holm (1979) over the family of so many `comparisons` that it was made in."""

    first: str
    second: str
    interval: Interval
    p_value: float
    adjusted: float
    comparisons: int = 1

    @property
    def difference(self) -> float:
        return self.interval.estimate

    def tellable(self, level: float = 0.05) -> bool:
        """See `tellable`."""
        return tellable(self.interval.groups, self.comparisons, level)

    def verdict(self, level: float = 0.05, units: str = "speakers") -> str:
        """ "better", "worse", "no difference shown", of the first; or "cannot be told with G speakers" (`units`).

        A difference is shown by an adjusted p of at most `level` and an interval without 0: p flips the signs of
        groups alone, while the interval may cross draws of labels and seeds too.
        Of G groups there are 2^G choices of signs, so that no p is below 2^(1-G), and the smallest of m comparisons is
        corrected by m: where m 2^(1-G) is above the level, no data whatever would show a difference.
        """
        if not self.tellable(level):
            return f"cannot be told with {self.interval.groups} {units}"
        if self.adjusted > level or not self.interval.excludes_zero:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


def tellable(groups: int, comparisons: int = 1, level: float = 0.05) -> bool:
    """Whether any data of so many groups could reach the level in a family of so many corrected comparisons."""
    return comparisons * 2.0 ** (1 - groups) <= level


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p-value of (G,) paired differences, one of each group, each as likely to have either sign.

    Under the hypothesis that two systems are equal, the difference of their hits on one speaker is as likely to have
    either sign: of all 2^G ways to choose the signs, the p-value is the share in which the total is at least as far
    from zero as the one observed (Fisher 1935; Good 2005, section 3.2). Nothing is assumed of the distribution.
    Exact up to 40 groups: the sums of all signs of each half of the groups are sorted, and pairs that reach the
    observed total are counted (Horowitz & Sahni's meeting in the middle). Above, 100,000 seeded draws, the observed one
    counted among them, so that it is never 0.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError(f"differences: shape {d.shape}; expected (G,) finite numbers, one of each group")
    d = d[d != 0]  # the sign of nothing changes nothing
    if not len(d):
        return 1.0
    observed = abs(float(d.sum()))
    # Sums of the same numbers in another order differ by rounding; they are ties.
    reach = observed - 1e-9 * float(np.abs(d).sum())
    if len(d) > EXACT_GROUPS:
        return _sampled(d, reach)
    half = len(d) // 2
    left, right = _all_signs(d[:half]), np.sort(_all_signs(d[half:]))
    above = len(right) - np.searchsorted(right, reach - left, side="left")
    below = np.searchsorted(right, -reach - left, side="right")
    # With a total of (almost) nothing every sum reaches it, and would be counted from both sides.
    return min(1.0, float((above + below).sum()) / 2.0 ** len(d))


def paired_tests(
    pairs: Mapping[tuple[str, str], tuple[Scores | Crossed, Scores | Crossed]],
    rows: Scores,
    resampling: Resampling = DEFAULT,
) -> list[Comparison]:
    """Every pair of systems over the same groups, as one family, in accuracy or unweighted average recall (UAR).

    pairs: names of the first and the second system -> for each, group -> accuracy there (a mean over draws and over the
    seeds that both have), or such a mapping of each seed and draw of labels: then an interval crosses seeds, draws and
    groups (`crossed_interval`), and p-values are of the means. rows: group -> test rows.

    Of UAR both hold one number for each class: recall of the group's rows of it, and how many they are; where a group
    has none, its recall is not read. An interval resamples groups and takes every class's recall again; a p-value flips
    the signs of what each group adds to the difference, where a hit in a row of class k counts 1 / (K n_k).

    Raises ValueError where a system lacks a group, or there are fewer than 2.
    """
    intervals: dict[str, Interval] = {}
    raw: dict[str, float] = {}
    counts = np.asarray([np.atleast_1d(count) for count in rows.values()], dtype=np.float64)  # (G, K)
    for names, scores in pairs.items():
        name = " | ".join(names)
        one, other = (_hits(side, rows, counts, f"{name}: the {kind}") for kind, side in _named_sides(scores))
        difference = one.mean(axis=(0, 1)) - other.mean(axis=(0, 1))
        difference[np.abs(difference) <= 1e-12 * counts] = 0.0  # equal means of other numbers differ by rounding
        sums = np.stack([difference, counts], axis=2)
        if one.shape[:2] == other.shape[:2] == (1, 1):
            intervals[name] = bootstrap_interval(sums, _mean_share, resampling)
        else:
            first, second = (np.stack([hits, np.broadcast_to(counts, hits.shape)], axis=-1) for hits in (one, other))
            intervals[name] = crossed_interval(first, _mean_share, resampling, second)
        total = sums[..., 1].sum(axis=0)
        weights = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        raw[name] = sign_flip_p(sums[..., 0] @ weights)
    adjusted = holm(raw)
    named = [(" | ".join(names), names) for names in pairs]
    return [Comparison(*names, intervals[name], raw[name], adjusted[name], len(named)) for name, names in named]


def _named_sides(scores: tuple[Scores | Crossed, Scores | Crossed]) -> list[tuple[str, Crossed]]:
    return [
        (kind, [[side]] if isinstance(side, Mapping) else side)
        for kind, side in zip(("first", "second"), scores, strict=True)
    ]


def _hits(side: Crossed, rows: Scores, counts: Floats, who: str) -> Floats:
    """(S, L, G, K): hits of each seed, draw, group and class; K is 1 where classes are not told apart."""
    for draws in side:
        for scores in draws:
            missing = sorted(set(rows) - set(scores))
            if missing:
                raise ValueError(f"{who} system has no score of group {missing[0]!r}; is it of other test rows?")
    shares = np.asarray(
        [[[np.atleast_1d(scores[group]) for group in rows] for scores in draws] for draws in side], dtype=np.float64
    )
    return np.where(counts > 0, shares * counts, 0.0)


def _all_signs(values: Floats) -> Floats:
    """(2^n,) sums of +-values."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def _sampled(d: Floats, reach: float) -> float:
    generator = np.random.Generator(np.random.PCG64(_SIGN_SEED))
    hits = 0
    for _ in range(10):
        signs = generator.integers(0, 2, size=(_SAMPLED_SIGNS // 10, len(d))) * 2.0 - 1.0
        hits += int((np.abs(signs @ d) >= reach).sum())
    return (hits + 1) / (_SAMPLED_SIGNS + 1)


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
