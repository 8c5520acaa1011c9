"""Do a probe's probabilities mean what they say?

With p_i the probabilities of row i, confidence c_i = max_k p_ik and y_i its class:

    ECE   = sum over bins b of n_b / n * |mean correct in b - mean confidence in b|
    Brier = mean over rows of sum over k of (p_ik - [y_i = k])^2, from 0 to 2
    NLL   = mean over rows of -log p_{i, y_i}

(Naeini, Cooper & Hauskrecht 2015, Guo et al. 2017; Brier 1950.)
Bins are of equal width over [0, 1] (a confidence on an edge belongs to the bin below it), or hold equally many rows.
The ECE of a finite sample is above zero for a perfectly calibrated model, and grows with the number of bins
(Kumar, Liang & Ma 2019): compare it between rows of one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from conclugen.evaluation.protocols.base import (
    Chart,
    EvaluationProtocol,
    Material,
    Outcome,
    Point,
    Table,
    failure_notes,
    finite,
    part,
)
from conclugen.evaluation.protocols.deferred import np, solvers, statistics
from conclugen.fields import choose, require

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from conclugen.evaluation.checks import Floats


@dataclass(frozen=True)
class CalibrationConfig:
    """Expected calibration error, Brier score, log-likelihood and reliability of a probe's probabilities.

    Attributes:
        bins: Bins of the confidence.
        binning: `width`, bins of equal width over 0 to 1, or `mass`, of equally many rows.
    """

    bins: int = 15
    binning: Literal["width", "mass"] = "width"

    def __post_init__(self) -> None:
        require(self.bins >= 1, "protocols.calibration.bins", self.bins, "1 or more")
        choose("protocols.calibration.binning", self.binning, ("width", "mass"))


class Calibration(EvaluationProtocol):
    name = "calibration"
    title = "Calibration"
    Config = CalibrationConfig
    order = 60

    @classmethod
    def run(cls, material: Material, config: CalibrationConfig) -> Outcome:
        rows = material.protocol.test_rows
        truth, groups = material.target.values[rows], material.units[rows]
        several = len(np.unique(groups)) > 1
        table: list[tuple[Any, ...]] = []
        bins_table: list[tuple[Any, ...]] = []
        series: dict[str, tuple[Point, ...]] = {}
        headline: dict[str, float] = {}
        holes: list[str] = []
        for system in material.systems:
            log_p, failures = log_probabilities(material, system)
            holes += failure_notes(system.name, material.options.fraction, failures)
            if log_p is None:
                continue
            sums = np.stack([row_sums(p, truth, config) for p in log_p], axis=1)  # (n, draws, 3 + 3 bins)
            grouped = statistics.group_sums(sums, groups)
            total = sums.sum(axis=0)[None]
            readings = {"ece": _ece, "brier": _brier, "nll": _nll, "accuracy": _accuracy, "confidence": _confidence}
            for name, reading in readings.items():
                statistic = statistics.mean_of_draws(reading)
                value = float(statistic(total)[0])
                low = high = None
                if several:
                    interval = statistics.bootstrap_interval(grouped, statistic, material.resampling)
                    low, high = finite(interval.low), finite(interval.high)
                table.append((system.name, name, finite(value), low, high))
                if name in ("ece", "brier", "nll"):
                    headline[f"{system.name}/{name}"] = value
            bins = total[0].mean(axis=0)[3:].reshape(3, config.bins)  # rows, hits and confidence, mean over draws
            points: list[Point] = []
            for at in range(config.bins):
                count, right, confidence = bins[:, at]
                if count > 0:
                    bins_table.append(
                        (system.name, at + 1, float(count), float(confidence / count), float(right / count))
                    )
                    points.append((float(confidence / count), float(right / count), None, None))
            series[system.name] = tuple(points)
        if not series:
            raise ValueError(f"no probe could be learned; {holes[-1]}")
        chart = Chart("reliability", "reliability", "confidence", "accuracy", series, diagonal=True)
        tables = (
            Table("scores", ("system", "score", "value", "low", "high"), tuple(table)),
            Table("reliability", ("system", "bin", "rows", "confidence", "accuracy"), tuple(bins_table)),
        )
        return Outcome(tables, (chart,), headline, _rules(material, config), tuple(holes))


def log_probabilities(material: Material, system: Any) -> tuple[list[Floats] | None, dict[int, str]]:
    """For each draw of labels (n, K) log-probabilities of the test rows, in their order; None where no draw taught."""
    arrays, present = system.represent(material.features), material.present
    fits, failures = material.fits(system, arrays, material.options.fraction)
    rows = material.protocol.test_rows
    found: dict[int, Floats] = {}
    for fit in fits:
        own = fit.split.fold.test_rows
        logits = fit.fitted.probe.raw(fit.inputs(part(arrays, own), part(present, own)))
        whole = found.setdefault(fit.split.draw, np.full((material.protocol.rows, logits.shape[1]), np.nan))
        whole[own] = solvers.log_softmax(logits)
    return ([found[draw][rows] for draw in sorted(found)] or None), failures


def row_sums(log_p: Floats, truth: NDArray[Any], config: CalibrationConfig) -> Floats:
    """(n, 3 + 3 bins): a row's 1, Brier score and negative log-likelihood; then for each bin whether the row is in it,
    in it and right, and its confidence there."""
    p = np.exp(log_p)
    at = np.arange(len(p))
    guess = p.argmax(axis=1)
    confidence, right = p[at, guess], (guess == truth).astype(np.float64)
    brier = ((p - np.eye(p.shape[1])[truth]) ** 2).sum(axis=1)
    inside = np.eye(config.bins)[bins_of(confidence, config)]
    head = np.stack([np.ones(len(p)), brier, -log_p[at, truth]], axis=1)
    return np.concatenate([head, inside, inside * right[:, None], inside * confidence[:, None]], axis=1)


def bins_of(confidence: Floats, config: CalibrationConfig) -> NDArray[np.int64]:
    """(n,) bin of each row: ((b - 1) / B, b / B] of equal width, or by rank."""
    if config.binning == "width":
        edges = np.linspace(0, 1, config.bins + 1)[1:-1]
        return np.searchsorted(edges, confidence, side="left")
    rank = np.empty(len(confidence), dtype=np.int64)
    rank[np.argsort(confidence, kind="stable")] = np.arange(len(confidence))
    return rank * config.bins // len(confidence)


def _bins(sums: Floats) -> tuple[Floats, Floats, Floats]:
    rest = sums[:, 3:].reshape(len(sums), 3, -1)
    return rest[:, 0], rest[:, 1], rest[:, 2]


def _ece(sums: Floats) -> Floats:
    _, right, confidence = _bins(sums)
    return np.abs(right - confidence).sum(axis=1) / sums[:, 0]


def _brier(sums: Floats) -> Floats:
    return sums[:, 1] / sums[:, 0]


def _nll(sums: Floats) -> Floats:
    return sums[:, 2] / sums[:, 0]


def _accuracy(sums: Floats) -> Floats:
    return _bins(sums)[1].sum(axis=1) / sums[:, 0]


def _confidence(sums: Floats) -> Floats:
    return _bins(sums)[2].sum(axis=1) / sums[:, 0]


def _rules(material: Material, config: CalibrationConfig) -> tuple[str, ...]:
    how = "of equal width over 0 to 1" if config.binning == "width" else "of equally many rows"
    return (
        f"ECE of the most likely class's probability, {config.bins} bins {how}; Brier score summed over the classes "
        "(0 to 2); NLL in nats. Lower is better.",
        f"Probabilities of the probe of {material.options.fraction:.0%} of the labels, as they are: nothing is fitted "
        "to calibrate them. Means over draws of labels; intervals resample test groups.",
        "The ECE of few rows is above zero for perfect probabilities too: compare it between rows.",
    )
