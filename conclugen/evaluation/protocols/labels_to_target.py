"""How many labels reach the score that the strongest raw row reaches with N labels?

A curve of a system is its score s(n) at the numbers n of labelled rows that were tried. Scores of a few draws are noisy
and a curve may fall where more labels were given; its least-squares non-decreasing fit is read instead (isotonic
regression: Barlow et al. 1972; Robertson, Wright & Dykstra 1988),

    f(n_i) = max over j <= i of min over k >= i of mean(s(n_j), ..., s(n_k)),

linear in log n between two neighbours. With the target t = f_raw(N), the labels that a system needs are the smallest n
with f(n) >= t. Below the smallest n tried it is only known that the answer is at most that n; a curve that never
reaches t has no answer, and none is extrapolated: both are kept as what they are (censored), in intervals too.

Intervals resample test groups and draws of labels at once, with replacement (Owen 2007's crossed bootstrap), the same
groups and draws for every system; of a resample the target is read again from the same raw row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conclugen.evaluation.protocols.base import (
    Chart,
    EvaluationProtocol,
    Material,
    Outcome,
    Point,
    Table,
    check_share,
    failure_notes,
)
from conclugen.evaluation.protocols.deferred import np, statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from conclugen.evaluation.checks import Floats

NOT_REACHED = "not reached"
_TIE = 1e-12


@dataclass(frozen=True)
class LabelsToTargetConfig:
    """How many labels reach what a share of the labels of the strongest raw row reach.

    Attributes:
        targets: Shares of the training rows whose labels the raw row gets; what it scores with them is to be reached.
        fractions: Shares of labels at which every system is judged, besides `targets`: the grid of the curves.
    """

    targets: tuple[float, ...] = (0.03, 0.1, 1.0)
    fractions: tuple[float, ...] = (0.03, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)

    def __post_init__(self) -> None:
        check_share("protocols.labels_to_target.targets", self.targets)
        check_share("protocols.labels_to_target.fractions", self.fractions, least=2)


@dataclass(frozen=True)
class Answer:
    """labels: smallest number that reaches the target; infinite: not reached. at_most: it is the smallest number tried,
    and fewer may do. low, high: its interval, infinite and at the smallest number likewise. reached: share of the
    resamples that reach the target."""

    labels: float
    at_most: bool
    low: float
    high: float
    reached: float


class LabelsToTarget(EvaluationProtocol):
    name = "labels-to-target"
    title = "Labels to target"
    Config = LabelsToTargetConfig
    order = 10

    @classmethod
    def run(cls, material: Material, config: LabelsToTargetConfig) -> Outcome:
        fractions = sorted({*config.fractions, *config.targets})
        confusions, numbers, draws, holes = _confusions(material, fractions)
        kept = sorted(numbers)
        if len(kept) < 2:
            raise ValueError(
                f"a curve needs two shares of labels from which something is learned, and {len(kept)} of "
                f"{len(fractions)} taught a probe; {holes[0] if holes else 'give more of them'}"
            )
        labels = np.asarray([numbers[fraction] for fraction in kept])
        counts = [draws[fraction] for fraction in kept]
        curves = _resampled(material, {name: [own[f] for f in kept] for name, own in confusions.items()})
        smooth = {name: isotonic(values) for name, values in curves.items()}
        rows: list[tuple[Any, ...]] = []
        headline: dict[str, float] = {}
        for target in config.targets:
            if target not in kept:
                holes.append(f"target of {target:.0%} of labels: no draw of labels taught a probe there")
                continue
            at = kept.index(target)
            raw = material.strongest_raw({name: float(values[0, at]) for name, values in curves.items()})
            goal = smooth[raw][:, at]
            for name, values in smooth.items():
                found = answer(labels, values, goal, material.resampling.level)
                saved = labels[at] / found.labels
                told = NOT_REACHED if math.isinf(found.labels) else "at most" if found.at_most else ""
                rows.append(
                    (
                        name,
                        target,
                        float(labels[at]),
                        counts[at],
                        raw,
                        float(goal[0]),
                        _number(found.labels),
                        _number(found.low),
                        _number(found.high),
                        told,
                        found.reached,
                        None if math.isinf(found.labels) else float(saved),
                    )
                )
                if not math.isinf(found.labels):
                    headline[f"{name}/{target:g}/labels"] = found.labels
                headline[f"{name}/{target:g}/reached"] = found.reached
        target_columns = ("target share", "target labels", "target draws", "raw row", "target score")
        columns = ("system", *target_columns, "labels", "low", "high")
        tables = (
            Table("labels", (*columns, "censored", "resamples that reach it", "times fewer labels"), tuple(rows)),
            _curve_table(material, kept, labels, counts, curves, smooth),
        )
        rules = _rules(material, kept, labels, counts)
        return Outcome(tables, (_chart(material, labels, curves),), headline, rules, tuple(holes))


def _confusions(
    material: Material, fractions: Sequence[float]
) -> tuple[dict[str, dict[float, Floats]], dict[float, float], dict[float, int], list[str]]:
    """System -> share -> (G, draws, K, K) confusion sums of the draws that taught every system something; share ->
    labelled rows, mean over folds and these draws; share -> how many draws they are; holes."""
    represented = {system.name: system.represent(material.features) for system in material.systems}
    confusions: dict[str, dict[float, Floats]] = {system.name: {} for system in material.systems}
    numbers: dict[float, float] = {}
    counts: dict[float, int] = {}
    holes: list[str] = []
    rows = material.protocol.test_rows
    truth, groups, classes = material.target.values[rows], material.units[rows], len(material.target.classes)
    for fraction in fractions:
        by_draw: dict[str, dict[int, NDArray[Any]]] = {}
        sizes: dict[int, list[int]] = {}
        for system in material.systems:
            arrays = represented[system.name]
            fits, failures = material.fits(system, arrays, fraction)
            holes += failure_notes(system.name, fraction, failures)
            predicted = material.predicted(fits, arrays)
            draws = sorted({fit.split.draw for fit in fits})
            by_draw[system.name] = dict(zip(draws, predicted, strict=True))
            sizes = {draw: [len(fit.split.labelled_rows) for fit in fits if fit.split.draw == draw] for draw in draws}
        common = sorted(set.intersection(*(set(own) for own in by_draw.values())))
        if not common:
            continue
        numbers[fraction] = float(np.mean([size for draw in common for size in sizes[draw]]))
        counts[fraction] = len(common)
        for name, own in by_draw.items():
            sums = [statistics.confusion_sums(truth, own[draw][rows], classes, groups) for draw in common]
            confusions[name][fraction] = np.stack(sums, axis=1)
    return confusions, numbers, counts, holes


def _resampled(material: Material, confusions: dict[str, list[Floats]]) -> dict[str, Floats]:
    """System -> (1 + B, F) scores: on the data themselves, then of each resample of groups and draws.

    confusions: system -> for each share (G, draws, K, K).
    """
    statistic = statistics.class_statistics()[material.score]
    resampling = material.resampling
    generator = np.random.Generator(np.random.PCG64([resampling.seed, 1]))
    first = next(iter(confusions.values()))
    count = len(first[0])
    if count < 2:
        raise ValueError(f"an interval over groups needs at least 2 tested groups, got {count}; test more speakers")
    counts = generator.multinomial(count, np.full(count, 1 / count), size=resampling.resamples).astype(np.float64)
    counts = np.concatenate([np.ones((1, count)), counts])
    draws = []
    for sums in first:
        n = sums.shape[1]
        again = generator.multinomial(n, np.full(n, 1 / n), size=resampling.resamples) / n
        draws.append(np.concatenate([np.full((1, n), 1 / n), again]))
    scores = {}
    for name, own in confusions.items():
        columns = []
        for sums, weights in zip(own, draws, strict=True):
            matrices = np.tensordot(counts, sums, axes=1)  # (1 + B, draws, K, K)
            each = statistic(matrices.reshape(-1, *sums.shape[2:])).reshape(len(counts), -1)
            columns.append((each * weights).sum(axis=1))
        scores[name] = np.stack(columns, axis=1)
    return scores


def isotonic(scores: NDArray[Any]) -> Floats:
    """(B, F) the least-squares non-decreasing fit of each row, all places weighing the same."""
    values = np.asarray(scores, dtype=np.float64)
    places = values.shape[1]
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    fitted = np.full_like(values, -np.inf)
    for start in range(places):
        ends = np.arange(start + 1, places + 1)
        means = (sums[:, ends] - sums[:, start : start + 1]) / (ends - start)  # of start..k, for k from start on
        least = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]  # the smallest over k >= i
        fitted[:, start:] = np.maximum(fitted[:, start:], least)
    return fitted


def labels_to_reach(
    labels: NDArray[Any], curves: NDArray[Any], goals: NDArray[Any]
) -> tuple[Floats, NDArray[np.bool_]]:
    """(B,) the smallest n with f(n) >= goal, infinite where there is none, and whether it is the smallest n tried.

    labels (F,), ascending; curves (B, F), non-decreasing, linear in log n between neighbours; goals (B,).
    """
    reached = curves >= goals[:, None] - _TIE
    at = reached.argmax(axis=1)
    rows = np.arange(len(curves))
    before = np.maximum(at - 1, 0)
    low, high = curves[rows, before], curves[rows, at]
    rise = np.where(high > low, high - low, 1.0)
    share = np.clip((goals - low) / rise, 0.0, 1.0)
    log = np.log(labels)
    found = np.exp(log[before] + share * (log[at] - log[before]))
    found = np.where(at == 0, labels[0], found)
    return np.where(reached.any(axis=1), found, np.inf), reached[:, 0]


def answer(labels: NDArray[Any], curves: Floats, goals: Floats, level: float) -> Answer:
    """Row 0 of (1 + B, F) curves and (1 + B,) goals is the estimate, the others its resamples."""
    found, least = labels_to_reach(labels, curves, goals)
    ordered = np.sort(found[1:])  # of order statistics, so that infinity needs no arithmetic
    ends = [ordered[max(math.ceil(share * len(ordered)) - 1, 0)] for share in ((1 - level) / 2, (1 + level) / 2)]
    return Answer(float(found[0]), bool(least[0]), float(ends[0]), float(ends[1]), float(np.isfinite(found[1:]).mean()))


def _number(value: float) -> float | str:
    return NOT_REACHED if math.isinf(value) else float(value)


def _ends(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _curve_table(
    material: Material,
    kept: Sequence[float],
    labels: Floats,
    counts: Sequence[int],
    curves: dict[str, Floats],
    smooth: dict[str, Floats],
) -> Table:
    rows = []
    for name, values in curves.items():
        for at, fraction in enumerate(kept):
            low, high = _ends(values[:, at], material.resampling.level)
            fitted = float(smooth[name][0, at])
            rows.append((name, fraction, float(labels[at]), counts[at], float(values[0, at]), low, high, fitted))
    columns = ("system", "share", "labels", "draws", material.score, "low", "high", "non-decreasing fit")
    return Table("curves", columns, tuple(rows))


def _chart(material: Material, labels: Floats, curves: dict[str, Floats]) -> Chart:
    series: dict[str, tuple[Point, ...]] = {}
    for name, values in curves.items():
        ends = [_ends(values[:, at], material.resampling.level) for at in range(len(labels))]
        series[name] = tuple((float(n), float(values[0, at]), *ends[at]) for at, n in enumerate(labels))
    ticks = {float(n): f"{n:.0f}" for n in labels}
    return Chart("curves", "score by number of labels", "labelled rows", material.score, series, log=True, ticks=ticks)


def _rules(material: Material, kept: Sequence[float], labels: Floats, counts: Sequence[int]) -> tuple[str, ...]:
    options = material.options
    drawn = ", ".join(f"{count} at {fraction:.0%}" for fraction, count in zip(kept, counts, strict=True))
    single = [f"{fraction:.0%}" for fraction, count in zip(kept, counts, strict=True) if count == 1]
    alone = f" At {' and '.join(single)} there is one, so that intervals there are over groups alone." if single else ""
    return (
        f"Curves of {material.score} at {labels[0]:.0f} to {labels[-1]:.0f} labelled rows, mean over draws of labels; "
        "read from their non-decreasing least-squares fit, linear in log(labels).",
        f"Draws of labels that taught every system something: {drawn}.{alone}",
        "The target is what the strongest raw row at its share (on the test rows themselves, in its favour) reaches.",
        "`at most`: the smallest number tried does already. `not reached`: no number tried does; nothing is "
        "extrapolated, and an interval without upper end reaches beyond all of them.",
        f"{material.resampling.level:.0%} intervals: {options.resamples} resamples of test groups and draws of labels, "
        "crossed, the same for all systems. They do not cover another pretraining seed.",
    )
