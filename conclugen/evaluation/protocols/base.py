"""What every evaluation protocol is given, what it gives back, and what they share.

A protocol asks one question of a representation, beside raw features, by the probes of the one judge. It reads a
`Material` (rows, labels, groups, features and systems) and returns an `Outcome`: tables, charts, a few headline numbers
and, in words, the rules by which they were made. What the data cannot serve is a `ValueError` in one line where nothing
is left to measure, else a hole that names its reason.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from conclugen.common import uris
from conclugen.evaluation.config import ComparisonConfig
from conclugen.evaluation.protocols.deferred import blocks, features, judge, np, statistics
from conclugen.fields import choose, require

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from conclugen.evaluation.blocks import Blocks
    from conclugen.evaluation.checks import Floats, Integers
    from conclugen.evaluation.features import Scaling
    from conclugen.evaluation.judge import FittedProbe, Score
    from conclugen.evaluation.protocol import Protocol, Split, Target

Cell = str | int | float | None
Point = tuple[float, float, float | None, float | None]  # x, y and the ends of y's interval, where it has one
Arrays = Mapping[str, "Floats"]
Masks = Mapping[str, "NDArray[np.bool_]"]
ScoreName = Literal["accuracy", "uar", "f1_macro"]
Fill = Literal["mean", "zero"]
GROUP = "group"


@dataclass(frozen=True)
class ProtocolOptions:
    """What all protocols share.

    Attributes:
        score: Of class labels, by which protocols read them: `accuracy`, `uar` (unweighted average recall) or
            `f1_macro`; none: that of `comparison.select_by`. Other labels are read by their main score.
        fraction: Share of the training rows whose labels the probe learns from; of `labels-to-target` see there.
        draws: Draws of labels at each share below 1.
        fill: What replaces a missing modality: the training `mean` of its block, which tells a probe
            nothing, or `zero`, as exported heads write it. Raw features, and means over modalities, are filled alike.
        resamples: Bootstrap resamples of intervals.
        least_rows: Fewest rows that a group, or a class of it, is scored by.
    """

    score: ScoreName | None = None
    fraction: float = 1.0
    draws: int = 5
    fill: Fill = "mean"
    resamples: int = 2000
    least_rows: int = 10

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "protocols.fraction", self.fraction, "a share above 0 and up to 1")
        for name in ("draws", "resamples", "least_rows"):
            require(getattr(self, name) >= 1, f"protocols.{name}", getattr(self, name), "1 or more")


# ---- what comes out


@dataclass(frozen=True)
class Table:
    """name: of its file. columns: headings. rows: one cell for each column; None is a hole."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Chart:
    """Lines of points with intervals. log: of x. diagonal: x = y is drawn too. ticks: names of places on x."""

    name: str
    title: str
    xlabel: str
    ylabel: str
    series: Mapping[str, tuple[Point, ...]]
    log: bool = False
    diagonal: bool = False
    ticks: Mapping[float, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a protocol found.

    Attributes:
        rules: How the numbers were made, a sentence each.
        holes: What could not be measured, and why.
        headline: Name -> number: the few that a run is searched by.
        judged: The rows that were judged, in words, where they are not the material's test rows.
        unit: What one unit of intervals over those is called.
        units: How many of these they have.
    """

    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()
    headline: Mapping[str, float] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    holes: tuple[str, ...] = ()
    judged: str = ""
    unit: str = ""
    units: int | None = None


# ---- what goes in


@dataclass(frozen=True)
class System:
    """A representation as blocks of columns, each made of one modality.

    Attributes:
        represent: Modality -> (n, D_m) features, NaN in rows that lack it -> block -> (n, R_b).
        parts: Block -> its modality.
        arrange: Block -> (n, R_b) -> how a probe may weigh them. None: the mean over the modalities that a row has.
        raw: Blocks of raw features. They are standardised on training rows, and a missing one is the training mean.
        scaled: All blocks are standardised on training rows before they are arranged.
        parameters: Learned numbers of the representation.
    """

    name: str
    represent: Callable[[Arrays], dict[str, Floats]]
    parts: Mapping[str, str]
    arrange: Callable[[Arrays], Blocks] | None
    raw: frozenset[str] = frozenset()
    scaled: bool = False
    parameters: int = 0

    @property
    def only_raw(self) -> bool:
        """Whether nothing in it is learned without labels."""
        return set(self.parts) == self.raw


@dataclass(frozen=True)
class Assembly:
    """How a system's blocks become a probe's matrix: fitted on training rows, applied to any."""

    system: System
    scalings: Mapping[str, Scaling]
    fills: Mapping[str, Floats]

    @classmethod
    def of(cls, system: System, arrays: Arrays, present: Masks, train_rows: Integers, fill: Fill) -> Assembly:
        """arrays: block -> (N, R_b); present: modality -> (N,). ValueError: a modality that no training row has."""
        scalings, fills = {}, {}
        for block, array in arrays.items():
            rows = train_rows[present[system.parts[block]][train_rows]]
            if not len(rows):
                raise ValueError(f"{block}: no training row has this modality; leave it out of the comparison")
            fitted = features.Scaling.fit(array[rows])
            own = system.scaled or block in system.raw
            scalings[block] = fitted if own else features.Scaling.none(array.shape[1])
            mean = fitted.mean if fill == "mean" or block in system.raw else np.zeros(array.shape[1])
            fills[block] = mean
        return cls(system, scalings, fills)

    def blocks(self, arrays: Arrays, present: Masks) -> Blocks:
        """Of n rows: block -> (n, R_b), modality -> (n,)."""
        filled, here = {}, {}
        for block, array in arrays.items():
            mask = present[self.system.parts[block]][:, None]
            filled[block] = self.scalings[block].apply(np.where(mask, array, self.fills[block]))
            here[block] = mask
        if self.system.arrange is not None:
            return self.system.arrange(filled)
        count = np.sum(list(here.values()), axis=0)
        total = np.sum([np.where(here[b], filled[b], 0.0) for b in filled], axis=0)
        nothing = np.mean([self.fills[b] for b in filled], axis=0)
        return blocks.Blocks.plain({"mean": np.where(count > 0, total / np.maximum(count, 1), nothing)})


@dataclass(frozen=True)
class Fit:
    """One probe: of a split, on an assembly's blocks."""

    split: Split
    assembly: Assembly
    fitted: FittedProbe

    def inputs(self, arrays: Arrays, present: Masks) -> Floats:
        """(n, d) the probe's columns."""
        return self.fitted.on(self.assembly.blocks(arrays, present))

    def judged(self, arrays: Arrays, present: Masks) -> NDArray[Any]:
        """Predictions of n rows: classes, probabilities of labels, or values."""
        return self.fitted.probe.judged(self.inputs(arrays, present))


@dataclass(frozen=True)
class Corpus:
    """Another labelled corpus, in the modalities that both hold with one meaning and width.

    Attributes:
        name: For messages.
        target: Its label; class indices are its own.
        groups: (n,) unit of intervals of each row.
        features: Modality -> (n, D_m), NaN where missing.
        unlike: Modality -> why it cannot be used.
        told: How the meaning of the columns was compared.
        unit: What one of the groups is called.
    """

    name: str
    target: Target
    groups: NDArray[Any]
    features: Arrays
    unlike: Mapping[str, str]
    told: str
    unit: str = "speaker"


@dataclass(frozen=True)
class Material:
    """What a protocol is asked about.

    Attributes:
        protocol: Rows, labels, groups and folds, without draws of labels.
        features: Modality -> (N, D_m) as stored, NaN in rows that lack it.
        systems: Representations and, beside them, raw features.
        comparison: Class weights of probes, selection and seed.
        options: What all protocols share.
        column: Name -> (N,) texts, as `values` gives them.
        corpus: (folder, label, view, column of units or None) -> another corpus.
    """

    protocol: Protocol
    features: Arrays
    systems: tuple[System, ...]
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    options: ProtocolOptions = field(default_factory=ProtocolOptions)
    column: Callable[[str], NDArray[np.str_]] | None = None
    corpus: Callable[[str, str, str, str | None], Corpus] | None = None

    @property
    def target(self) -> Target:
        return self.protocol.target

    @property
    def units(self) -> NDArray[Any]:
        """(N,) whose rows they are, in intervals."""
        return self.protocol.interval_units

    def values(self, column: str) -> NDArray[np.str_]:
        """(N,) the value of each row in a column, "" for none; `group` is the protocol's own where there are no others.

        Raises ValueError for an unknown column, with those there are.
        """
        if self.column is not None:
            return np.asarray(self.column(column)).astype(str)
        if column != GROUP:
            raise ValueError(f"no column {column!r}, allowed: {GROUP}")
        return np.asarray(self.protocol.groups).astype(str)

    @property
    def present(self) -> dict[str, NDArray[np.bool_]]:
        """Modality -> (N,) whether a row has it."""
        return {name: np.asarray(np.isfinite(array).all(axis=1)) for name, array in self.features.items()}

    @property
    def score(self) -> str:
        """The score that rows are read by."""
        if self.target.kind != "class":
            return self.target.main_score
        return self.options.score or self.comparison.select_by

    @property
    def resampling(self) -> statistics.Resampling:
        return statistics.Resampling(self.options.resamples, self.comparison.seed)

    def drawn(self, fractions: Sequence[float]) -> Protocol:
        """The protocol with the probe's settings and draws of labels at these shares."""
        comparison = self.comparison
        probe = dataclasses.replace(
            self.protocol.probe, class_weights=comparison.probe_weights, select_by=comparison.select_by
        )
        return dataclasses.replace(self.protocol, probe=probe).drawn(fractions, self.options.draws, comparison.seed)

    def fits(
        self, system: System, arrays: Arrays, fraction: float, present: Masks | None = None
    ) -> tuple[list[Fit], dict[int, str]]:
        """A probe for each fold and draw of labels that taught something in every fold, and draw -> why not of others.

        arrays: block -> (N, R_b), as the system represents all rows.
        """
        drawn, here = self.drawn((fraction,)), self.present if present is None else present
        fits: list[Fit] = []
        failures: dict[int, str] = {}
        for fold in drawn.folds:
            assembly = Assembly.of(system, arrays, here, fold.train_rows, self.options.fill)
            together = assembly.blocks(arrays, here)
            for split in drawn.only(fold).splits():
                if split.draw in failures:
                    continue
                try:
                    fits.append(Fit(split, assembly, judge.fit_probe(drawn, together, split)))
                except ValueError as error:
                    failures[split.draw] = uris.scrub(error)
        return [fit for fit in fits if fit.split.draw not in failures], failures

    def predicted(self, fits: Sequence[Fit], arrays: Arrays, present: Masks | None = None) -> NDArray[Any]:
        """(draws, N) or (draws, N, L): what the probes say of their fold's test rows; -1 or NaN elsewhere."""
        here = self.present if present is None else present
        places = {draw: place for place, draw in enumerate(draws_of(fits))}
        target = self.target
        values = np.full((len(places), *target.values.shape), -1 if target.kind == "class" else np.nan, target.dtype)
        for fit in fits:
            rows = fit.split.fold.test_rows
            values[places[fit.split.draw], rows] = fit.judged(part(arrays, rows), part(here, rows))
        return values

    def scored(self, system: str, fraction: float, predicted: NDArray[Any]) -> Score:
        """The judge's score of (draws, N) predictions, with intervals over groups."""
        made = judge.Predictions(self.protocol, system, "probe", fraction, predicted, np.empty((0, 0)))
        return judge.score(made, self.resampling)

    def measured(
        self, system: str, fraction: float, predicted: NDArray[Any]
    ) -> tuple[float, float | None, float | None]:
        """`score` and the ends of its interval, where it has one."""
        found = self.scored(system, fraction, predicted)
        interval = found.intervals.get(self.score)
        value = found.scores.get(self.score, float("nan"))
        return (value, None, None) if interval is None else (value, finite(interval.low), finite(interval.high))

    def strongest_raw(self, values: Mapping[str, float]) -> str:
        """Of system -> score the raw row that scores highest: on the test rows themselves, in its favour."""
        raw = {s.name: values[s.name] for s in self.systems if s.only_raw and np.isfinite(values.get(s.name, np.nan))}
        if not raw:
            raise ValueError("no raw row was scored to compare with; add raw or raw_balanced to comparison.baselines")
        return max(raw, key=lambda name: raw[name])


class EvaluationProtocol(ABC):
    """One question. A file of this folder that defines one registers it."""

    name: ClassVar[str]
    """As commands call it, words joined by hyphens."""
    title: ClassVar[str]
    """What it answers, as a heading."""
    Config: ClassVar[type]
    """Its options: a frozen dataclass, each field documented, all with defaults."""
    kinds: ClassVar[tuple[str, ...]] = ("class",)
    """Of labels that it serves."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Options without which it can't be asked: `all` leaves it out where one of them is not given."""
    order: ClassVar[int] = 0
    """Place in lists, and in what `all` runs."""

    @classmethod
    @abstractmethod
    def run(cls, material: Material, config: Any) -> Outcome:
        """Raises ValueError where the data cannot serve it, in one line."""


def draws_of(fits: Sequence[Fit]) -> tuple[int, ...]:
    """Numbers of the draws of labels, in the order of `Material.predicted`."""
    return tuple(sorted({fit.split.draw for fit in fits}))


def part(arrays: Mapping[str, NDArray[Any]], rows: Integers) -> dict[str, NDArray[Any]]:
    """These rows of each array."""
    return {name: array[rows] for name, array in arrays.items()}


def finite(value: float) -> float | None:
    """None for what is not a number."""
    return float(value) if np.isfinite(value) else None


def failure_notes(system: str, fraction: float, failures: Mapping[int, str]) -> Iterator[str]:
    """Draws of labels that taught a probe nothing, each with its reason."""
    for draw, reason in failures.items():
        yield f"{system}, {fraction:.0%} of labels, draw {draw}: {reason}"


def check_share(field_: str, values: Sequence[float], least: int = 1) -> None:
    """Raise ValueError unless these are shares above 0 and up to 1, so many at least and none twice."""
    require(len(values) >= least, field_, values, f"at least {least} share(s)")
    for value in values:
        require(0 < value <= 1, field_, value, "shares above 0 and up to 1")
    require(len(set(values)) == len(values), field_, values, "each share once")


__all__ = [
    "GROUP",
    "Assembly",
    "Cell",
    "Chart",
    "Corpus",
    "EvaluationProtocol",
    "Fit",
    "Material",
    "Outcome",
    "Point",
    "ProtocolOptions",
    "System",
    "Table",
    "check_share",
    "choose",
    "draws_of",
    "failure_notes",
    "finite",
    "part",
]
