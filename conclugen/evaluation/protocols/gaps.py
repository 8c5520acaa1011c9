"""How unequal are scores between groups of people?

For each value v of a column (sex, speaker), s(v) is the score over the test rows that have it; the gap is

    max over v of s(v) - min over v of s(v),

and of a single class c the same of its recall, P(predicted c | true c, v): the equal-opportunity difference (Hardt,
Price & Srebro 2016), as used for emotion by Gorrostieta et al. 2019 and Lin et al. 2024 (Emo-bias, arXiv 2406.05065).

A largest minus a smallest value is above zero by chance alone, more so with more groups and fewer rows. So beside the
gap stands what chance gives: the mean gap where the same people are dealt to the values at random (of columns whose
values are single people: where their rows are dealt, class by class), and the share of such deals with a gap as large
(a permutation test; Good 2005).

Intervals resample the people of each value with replacement, values stay (where a value has one person, its rows are
resampled), and draws of labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conclugen.evaluation.protocols.base import (
    GROUP,
    EvaluationProtocol,
    Material,
    Outcome,
    Table,
    failure_notes,
    finite,
)
from conclugen.evaluation.protocols.deferred import np, statistics
from conclugen.fields import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from conclugen.evaluation.checks import Floats

_DEALS = 1000
_BLOCK = 25  # resamples that are drawn at a time
_MOST_SUMS = 1 << 22  # numbers that are gathered at a time: 32 MiB


@dataclass(frozen=True)
class GapsConfig:
    """Best minus worst score between groups of test rows.

    Attributes:
        columns: What groups rows: `group` (whose rows they are), or a column of the shards' index: a class label, or a
            text that was kept by `--meta`.
    """

    columns: tuple[str, ...] = (GROUP,)

    def __post_init__(self) -> None:
        require(bool(self.columns), "protocols.gaps.columns", self.columns, "at least one column")


@dataclass(frozen=True)
class Gap:
    """estimate, its interval, the mean gap of chance and the share of deals with a gap as large."""

    estimate: float
    low: float
    high: float
    chance: float
    p_value: float
    best: str
    worst: str


class Gaps(EvaluationProtocol):
    name = "gaps"
    title = "Gaps between groups"
    Config = GapsConfig
    order = 50

    @classmethod
    def run(cls, material: Material, config: GapsConfig) -> Outcome:
        holes: list[str] = []
        columns = {}
        for column in config.columns:
            try:
                columns[column] = material.values(column)
            except ValueError as error:
                holes.append(f"column {column!r}: {error}")
        if not columns:
            raise ValueError("; ".join(holes))
        scores: list[tuple[Any, ...]] = []
        gaps: list[tuple[Any, ...]] = []
        headline: dict[str, float] = {}
        told = set()
        for system in material.systems:
            arrays = system.represent(material.features)
            fits, failures = material.fits(system, arrays, material.options.fraction)
            holes += failure_notes(system.name, material.options.fraction, failures)
            if not fits:
                continue
            predicted = material.predicted(fits, arrays)
            for column, values in columns.items():
                cells = Cells.of(material, values, predicted)
                told |= {f"column {column!r}: {note}" for note in cells.left_out}
                if len(cells.names) < 2:
                    told.add(
                        f"column {column!r}: {len(cells.names)} value(s) with {material.options.least_rows} test rows, "
                        "and a gap takes two"
                    )
                    continue
                for name, rows, value in cells.scores(material.score):
                    scores.append((system.name, column, name, rows, finite(value)))
                readings = (material.score, *(f"recall/{name}" for name in material.target.classes))
                found = cells.gaps(readings)
                for what, gap in found.items():
                    gaps.append(
                        (
                            system.name,
                            column,
                            what,
                            gap.best,
                            gap.worst,
                            gap.estimate,
                            finite(gap.low),
                            finite(gap.high),
                            gap.chance,
                            gap.p_value,
                        )
                    )
                if material.score in found:
                    headline[f"{system.name}/{column}"] = found[material.score].estimate
                few = [what.removeprefix("recall/") for what in readings if what not in found]
                if few:
                    told.add(
                        f"column {column!r}, recall of {', '.join(few)}: fewer than two values have "
                        f"{material.options.least_rows} test rows of the class"
                    )
        holes += sorted(told)
        if not gaps:
            raise ValueError("; ".join(holes))
        tables = (
            Table(
                "gaps",
                ("system", "column", "of", "best", "worst", "gap", "low", "high", "gap by chance", "p of chance"),
                tuple(gaps),
            ),
            Table("scores", ("system", "column", "value", "rows", material.score), tuple(scores)),
        )
        return Outcome(tables, (), headline, _rules(material), tuple(holes))


@dataclass(frozen=True)
class Cells:
    """Confusion sums of the units (people, or rows) of each value.

    Attributes:
        names: The values, V.
        sums: (units, draws, K, K).
        owner: (units,) position of each unit's value, ascending.
        alike: (units,) units that chance may exchange: all of one number.
        classes: Names, K.
        least: Fewest rows by which a value, or a class of it, is scored.
        left_out: Values with fewer rows, and rows without a value.
    """

    names: tuple[str, ...]
    sums: Floats
    owner: NDArray[np.int64]
    alike: NDArray[np.int64]
    classes: tuple[str, ...]
    least: int
    resampling: statistics.Resampling
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, material: Material, values: NDArray[np.str_], predicted: NDArray[Any]) -> Cells:
        rows, least = material.protocol.test_rows, material.options.least_rows
        own, people_, truth = values[rows], material.units[rows], material.target.values[rows]
        classes = material.target.classes
        listed, counts = np.unique(own, return_counts=True)
        few = [f"{name!r} ({count})" for name, count in zip(listed, counts, strict=True) if name and count < least]
        left = [f"{int((own == '').sum())} test rows have no value"] if (own == "").any() else []
        left += [f"fewer than {least} test rows, left out: {', '.join(few)}"] if few else []
        names = tuple(str(n) for n, count in zip(listed, counts, strict=True) if n and count >= least)
        kept = np.isin(own, names)
        value = np.searchsorted(np.asarray(names), own[kept]) if names else np.empty(0, np.int64)
        people = np.unique(people_[kept], return_inverse=True)[1]
        # People who have several values (an emotion) count apart in each.
        unit = np.unique(np.stack([value, people], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        single = any(len(np.unique(people[value == v])) < 2 for v in range(len(names)))
        unit = np.arange(len(value)) if single else unit
        sums = [
            statistics.confusion_sums(truth[kept], guess[rows][kept], len(classes), unit)
            if names
            else np.empty((0, 0, 0))
            for guess in predicted
        ]
        first = np.unique(unit, return_index=True)[1] if len(unit) else np.empty(0, np.int64)
        alike = truth[kept][first] if single else np.zeros(len(first), np.int64)
        order = np.argsort(value[first], kind="stable")
        whole, owner = np.stack(sums, axis=1)[order], value[first][order]
        return cls(names, whole, owner, alike[order], classes, least, material.resampling, tuple(left))

    @property
    def starts(self) -> NDArray[np.int64]:
        """(V,) first unit of each value."""
        return np.searchsorted(self.owner, np.arange(len(self.names)))

    @property
    def totals(self) -> Floats:
        """(1, V, draws, K, K) of the values."""
        return np.add.reduceat(self.sums, self.starts, axis=0)[None]

    def scores(self, score: str) -> list[tuple[str, int, float]]:
        """Value, its rows and its score."""
        whole = self.totals
        values = self._read(whole, score)[0].mean(axis=-1)
        rows = whole[0, :, 0].sum(axis=(1, 2)).astype(int)
        return [(name, int(n), float(v)) for name, n, v in zip(self.names, rows, values, strict=True)]

    def gaps(self, readings: Sequence[str]) -> dict[str, Gap]:
        """Of scores, and of `recall/CLASS` over the values that have enough rows of it; without those of fewer than two
        values."""
        whole = self.totals
        kept = {what: self._kept(whole, what) for what in readings}
        kept = {what: mask for what, mask in kept.items() if mask.sum() > 1}
        resampled: dict[str, list[Floats]] = {what: [] for what in kept}
        dealt: dict[str, list[Floats]] = {what: [] for what in kept}
        for totals, weights in self._resampled():
            for what, mask in kept.items():
                values = (self._read(totals, what) * weights[:, None]).sum(axis=-1)
                resampled[what].append(_spread(values, mask))
        for totals in self._dealt():
            for what, mask in kept.items():
                dealt[what].append(_spread(self._read(totals, what).mean(axis=-1), mask))
        return {
            what: self._gap(
                np.where(mask, self._read(whole, what)[0].mean(axis=-1), np.nan),
                np.concatenate(resampled[what]),
                np.concatenate(dealt[what]),
            )
            for what, mask in kept.items()
        }

    def _gap(self, own: Floats, resampled: Floats, dealt: Floats) -> Gap:
        """own (V,), NaN for values that are left out."""
        estimate = float(np.nanmax(own) - np.nanmin(own))
        ends = [(1 - self.resampling.level) / 2, (1 + self.resampling.level) / 2]
        low, high = np.nanquantile(resampled, ends) if np.isfinite(resampled).any() else (np.nan, np.nan)
        return Gap(
            estimate,
            float(low),
            float(high),
            float(np.nanmean(dealt)),
            float(((dealt >= estimate - 1e-12).sum() + 1) / (len(dealt) + 1)),
            self.names[int(np.nanargmax(own))],
            self.names[int(np.nanargmin(own))],
        )

    def _kept(self, whole: Floats, what: str) -> NDArray[np.bool_]:
        """(V,) values that have enough rows of what is read."""
        if not what.startswith("recall/"):
            return np.ones(len(self.names), dtype=bool)
        label = self.classes.index(what.removeprefix("recall/"))
        return np.asarray(whole[0, :, 0, label].sum(axis=1) >= self.least)

    def _read(self, totals: Floats, what: str) -> Floats:
        """(B, V, draws) of confusion sums; NaN where a class has no row."""
        flat = totals.reshape(-1, *totals.shape[-2:])
        if what.startswith("recall/"):
            label = self.classes.index(what.removeprefix("recall/"))
            rows = flat[:, label].sum(axis=1)
            values = np.divide(flat[:, label, label], rows, out=np.full(len(flat), np.nan), where=rows > 0)
        else:
            values = statistics.class_statistics()[what](flat)
            values = np.where(flat.sum(axis=(1, 2)) > 0, values, np.nan)
        return values.reshape(totals.shape[:3])

    def _resampled(self) -> Iterator[tuple[Floats, Floats]]:
        """(b, V, draws, K, K) sums of resamples of units within their values, and (b, draws) weights of draws."""
        generator = np.random.Generator(np.random.PCG64([self.resampling.seed, 2]))
        draws = self.sums.shape[1]
        parts = np.split(self.sums, self.starts[1:])
        for size in _sizes(self.resampling.resamples):
            times = [
                generator.multinomial(len(part), np.full(len(part), 1 / len(part)), size=size).astype(np.float64)
                for part in parts
            ]
            weights = generator.multinomial(draws, np.full(draws, 1 / draws), size=size) / draws
            for some in self._portions(size):
                totals = [np.tensordot(often[some], part, axes=1) for often, part in zip(times, parts, strict=True)]
                yield np.stack(totals, axis=1), weights[some]

    def _dealt(self) -> Iterator[Floats]:
        """(b, V, draws, K, K) sums where units are dealt to the values at random among those that are alike."""
        generator = np.random.Generator(np.random.PCG64([self.resampling.seed, 3]))
        for size in _sizes(min(_DEALS, self.resampling.resamples)):
            dealt = np.empty((size, len(self.owner)), dtype=np.int64)
            for kind in np.unique(self.alike):
                units = np.flatnonzero(self.alike == kind)
                dealt[:, units] = generator.permuted(np.tile(units, (size, 1)), axis=1)
            for some in self._portions(size):
                yield np.add.reduceat(self.sums[dealt[some]], self.starts, axis=1)

    def _portions(self, size: int) -> Iterator[slice]:
        """Of so many resamples as few at a time as keep the sums of all units within `_MOST_SUMS` numbers."""
        most = max(1, _MOST_SUMS // max(self.sums.size, 1))
        return (slice(at, min(at + most, size)) for at in range(0, size, most))


def _spread(values: Floats, kept: NDArray[np.bool_]) -> Floats:
    """(B, V) -> (B,): largest minus smallest of the values kept; NaN where one is not defined."""
    chosen = values[:, kept]
    return chosen.max(axis=1) - chosen.min(axis=1)


def _sizes(total: int) -> Sequence[int]:
    return [min(_BLOCK, total - at) for at in range(0, total, _BLOCK)]


def _rules(material: Material) -> tuple[str, ...]:
    options = material.options
    return (
        f"Scores over the test rows of each value, mean over draws of labels, of probes with {options.fraction:.0%} of "
        f"the labels; values (and classes of them) with fewer than {options.least_rows} rows are left out.",
        "The gap is the best minus the worst value; `gap by chance` is its mean where people are dealt to the values "
        "at random (of values that are single people: their rows, class by class), `p of chance` the share of such "
        "deals with a gap as large. A gap near the one of chance is none that these data show.",
        "Intervals resample the people of each value (rows, where a value has one person) and draws of labels. They "
        "are of this largest difference, which is biased upwards; p is not corrected for the number of rows.",
    )
