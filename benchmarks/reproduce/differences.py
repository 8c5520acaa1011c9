"""Systems compared: scores with intervals that cross test groups, draws of labels and pretraining seeds, and each
system beside the strongest row that needs no pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.reproduce.evaluation import Evaluation
from conclugen.evaluation.checks import Floats
from conclugen.evaluation.protocol import Protocol
from conclugen.evaluation.statistics import (
    DEFAULT,
    Comparison,
    Interval,
    Resampling,
    Statistic,
    accuracy,
    confusion_sums,
    crossed_interval,
    holm,
    macro_f1,
    sign_flip_p,
    unweighted_average_recall,
)

MEASURES: Mapping[str, Statistic] = {
    "accuracy": accuracy,
    "uar": unweighted_average_recall,
    "f1_macro": macro_f1,
}


@dataclass(frozen=True)
class Beside:
    """A system minus another at one share of labels, in one score. `comparison`: of a family, corrected; its interval
    crosses groups, draws and seeds, and its p flips the signs of groups. `seeds`: those of pretraining that were
    paired, where they are not all that both have; else empty."""

    system: str
    other: str
    fraction: float
    comparison: Comparison
    seeds: tuple[int, ...] = ()

    @property
    def interval(self) -> Interval:
        return self.comparison.interval


def confusions(protocol: Protocol, evaluation: Evaluation, fraction: float) -> Floats:
    """(seeds, draws, G, K, K) confusion of the test rows of each group.

    Raises ValueError for a test row without prediction.
    """
    rows, classes = protocol.test_rows, len(protocol.target.classes)
    predicted = evaluation.by_seed(protocol, fraction)[:, :, rows]
    if (predicted < 0).any():
        raise ValueError(f"{protocol.name}: some test rows have no prediction; is the evaluation incomplete?")
    true, groups = protocol.target.values[rows], protocol.interval_units[rows]
    return np.stack([[confusion_sums(true, guess, classes, groups) for guess in draws] for draws in predicted])


def score(
    protocol: Protocol, evaluation: Evaluation, fraction: float, measure: str, resampling: Resampling = DEFAULT
) -> Interval:
    """Mean over seeds and draws of a score over all test rows, with its crossed interval."""
    return crossed_interval(confusions(protocol, evaluation, fraction), MEASURES[measure], resampling)


def mean(protocol: Protocol, evaluation: Evaluation, fraction: float, measure: str) -> float:
    """The estimate of `score`."""
    sums = confusions(protocol, evaluation, fraction).sum(axis=2)
    return float(np.mean([MEASURES[measure](draws) for draws in sums]))


def strongest(protocol: Protocol, systems: Mapping[str, Evaluation], fraction: float, measure: str) -> str:
    """The best of these on the test rows themselves, which is in its favour; of equals the first."""
    return max(systems, key=lambda name: mean(protocol, systems[name], fraction, measure))


def differences(
    protocol: Protocol,
    systems: Mapping[str, Evaluation],
    pairs: Sequence[tuple[str, str, float]],
    measure: str,
    resampling: Resampling = DEFAULT,
) -> list[Beside | None]:
    """Every (first, second, share of labels) as one family, corrected by Holm.

    Systems that were both pretrained are paired at the seeds that both have; None, and no part of the family, where
    they share none.

    The p is of sign flips over groups, means over draws and seeds, of what each group adds to the score: a hit counts
    1 / N in accuracy, and 1 / (K n_k) in a row of class k in unweighted average recall.
    """
    weights = _weights(protocol, measure)
    intervals, p_values, seeds = {}, {}, {}
    for at, (first, second, fraction) in enumerate(pairs):
        evaluations = [systems[first], systems[second]]
        if all(evaluation.seed_names for evaluation in evaluations):
            shared = [name for name in evaluations[0].seed_names if name in evaluations[1].seed_names]
            if not shared:
                continue
            if any(len(shared) < evaluation.seeds for evaluation in evaluations):
                seeds[at] = tuple(shared)
            evaluations = [evaluation.of_seeds(shared) for evaluation in evaluations]
        one, other = (confusions(protocol, evaluation, fraction) for evaluation in evaluations)
        intervals[at] = crossed_interval(one, MEASURES[measure], resampling, other)
        hits = [np.diagonal(sums, axis1=3, axis2=4).mean(axis=(0, 1)) for sums in (one, other)]  # (G, K)
        p_values[str(at)] = sign_flip_p((hits[0] - hits[1]) @ weights)
    adjusted = holm(p_values)

    def beside(at: int) -> Beside:
        p = p_values[str(at)], adjusted[str(at)]
        comparison = Comparison(*pairs[at][:2], intervals[at], *p, len(intervals))
        return Beside(*pairs[at], comparison, seeds.get(at, ()))

    return [beside(at) if at in intervals else None for at in range(len(pairs))]


def _weights(protocol: Protocol, measure: str) -> NDArray[np.float64]:
    """(K,) what a hit in a row of each class adds to a score over all test rows."""
    counts = np.bincount(protocol.target.values[protocol.test_rows], minlength=len(protocol.target.classes))
    if measure == "uar":
        present = counts > 0
        return np.where(present, 1.0 / (present.sum() * np.maximum(counts, 1)), 0.0)
    return np.full(len(counts), 1.0 / counts.sum())


def signed(interval: Interval) -> str:
    """`+0.041 [+0.020, +0.062]`."""
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
