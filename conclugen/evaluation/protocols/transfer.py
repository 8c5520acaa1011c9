"""Does what was learned on one corpus hold on another? Train the probe on corpus A, judge it on corpus B.

Cross-corpus tests, as in Schuller et al. 2010 ("Cross-corpus acoustic emotion recognition: variances and strategies")
and in benchmarks such as MERBench (Lian et al. 2024): classes of both corpora are mapped to common names, rows of other
classes are left out, and only modalities that both corpora hold with one meaning and width are used. Features are
standardised on the training rows of A, or each corpus by its own rows (no label of B is used either way).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from conclugen.common import uris
from conclugen.common.names import did_you_mean
from conclugen.evaluation.protocols.base import (
    Corpus,
    EvaluationProtocol,
    Material,
    Outcome,
    System,
    Table,
    failure_notes,
    finite,
)
from conclugen.evaluation.protocols.deferred import features, np, splits
from conclugen.fields import choose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from conclugen.evaluation.checks import Floats

_FIELD = "protocols.transfer"


@dataclass(frozen=True)
class TransferConfig:
    """Training on this corpus, judging on another.

    Attributes:
        folder: Labelled shards of the corpus that is judged.
        label: Its label; none: of the same name as the one trained on.
        view: View of it that is judged; no row of it is trained on.
        train_classes: Class of this corpus -> common name; classes that are not named keep theirs.
        judge_classes: Class of the other corpus -> common name.
        scaling: Rows that features are standardised on: `source`, this corpus' training rows, or `corpus`, each corpus'
            own rows (of the other one without labels: transductive).
        unit: Column of the other corpus over whose values intervals are: `group`, `meta.NAME` or `row`; none: the one
            of this corpus where the other has it too, else `group`.
    """

    folder: str | None = None
    label: str | None = None
    view: str = "everything"
    train_classes: Mapping[str, str] = field(default_factory=dict)
    judge_classes: Mapping[str, str] = field(default_factory=dict)
    scaling: Literal["source", "corpus"] = "source"
    unit: str | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            uris.check(f"{_FIELD}.folder", self.folder)
        choose(f"{_FIELD}.scaling", self.scaling, ("source", "corpus"))


class Transfer(EvaluationProtocol):
    name = "transfer"
    title = "Transfer between corpora"
    Config = TransferConfig
    needs = ("folder",)
    order = 30

    @classmethod
    def run(cls, material: Material, config: TransferConfig) -> Outcome:
        if config.folder is None:
            raise ValueError(
                f"{_FIELD}.folder: must be the labelled shards of the corpus that is judged; give them, or leave "
                "transfer out of the protocols"
            )
        if material.corpus is None:
            raise ValueError(f"{_FIELD}.folder: other corpora can't be opened here")
        other = material.corpus(config.folder, config.label or material.target.name, config.view, config.unit)
        holes = [f"modality {name!r} is left out: {why}" for name, why in other.unlike.items()]
        if not other.features:
            raise ValueError(f"no modality has one meaning and width in both corpora: {'; '.join(holes)}")
        own = common_classes(material.target.classes, config.train_classes, f"{_FIELD}.train_classes")
        there = common_classes(other.target.classes, config.judge_classes, f"{_FIELD}.judge_classes")
        shared = [name for name in dict.fromkeys(own) if name in there]
        if len(shared) < 2:
            raise ValueError(
                f"{_FIELD}: the label sets share {', '.join(map(repr, shared)) or 'no class'}, and two are needed: "
                f"{', '.join(dict.fromkeys(own))} here, {', '.join(dict.fromkeys(there))} in {other.name}; name common "
                f"classes by {_FIELD}.train_classes and {_FIELD}.judge_classes"
            )
        both = _together(material, other, own, there, shared, config.scaling)
        rows: list[tuple[Any, ...]] = []
        headline: dict[str, float] = {}
        truth = both.target.values[both.protocol.test_rows]
        found: dict[str, NDArray[Any]] = {}
        for system in both.systems:
            arrays = system.represent(both.features)
            fits, failures = both.fits(system, arrays, both.options.fraction)
            holes += failure_notes(system.name, both.options.fraction, failures)
            if fits:
                found[system.name] = both.predicted(fits, arrays)
        if not found:
            raise ValueError(f"no probe could be learned; {holes[-1]}")
        labelled = both.target.values[both.protocol.folds[0].train_rows]
        most = int(np.bincount(labelled, minlength=len(shared)).argmax())
        constant = np.full((1, both.protocol.rows), most)
        for name, predicted in {**found, "majority of the training corpus": constant}.items():
            score = both.scored(name, both.options.fraction, predicted)
            for key in ("accuracy", "uar", "f1_macro"):
                interval = score.intervals.get(key)
                ends = (None, None) if interval is None else (finite(interval.low), finite(interval.high))
                rows.append((name, key, score.scores[key], *ends))
            headline[f"{name}/accuracy"], headline[f"{name}/uar"] = score.scores["accuracy"], score.scores["uar"]
        recalls = [
            (name, cls_, int((truth == i).sum()), finite(_recall(predicted[:, both.protocol.test_rows], truth, i)))
            for name, predicted in found.items()
            for i, cls_ in enumerate(shared)
        ]
        absent = [name for i, name in enumerate(shared) if not (truth == i).any()]
        if absent:
            holes.append(f"no judged row of class {', '.join(absent)}: uar and f1_macro are of the other classes")
        tables = (
            Table("scores", ("system", "score", "value", "low", "high"), tuple(rows)),
            Table("recall", ("system", "class", "rows", "recall"), tuple(recalls)),
        )
        return Outcome(
            tables,
            (),
            headline,
            _rules(material, other, both, own, there, shared, config),
            tuple(holes),
            judged=f"{other.target.name} of {other.name}, view {config.view}",
            unit=other.unit,
            units=len(np.unique(both.units[both.protocol.test_rows])),
        )


def common_classes(classes: Sequence[str], mapping: Mapping[str, str], field_: str) -> list[str]:
    """The common name of each class. ValueError: a name in the mapping that is not a class."""
    for name in mapping:
        if name not in classes:
            raise ValueError(f"{field_}: no class {name!r}, {did_you_mean(name, classes)}")
    return [mapping.get(name, name) for name in classes]


def _together(
    material: Material, other: Corpus, own: Sequence[str], there: Sequence[str], shared: Sequence[str], scaling: str
) -> Material:
    """Both corpora as one: the training rows of the first train, all rows of the other are judged.

    Modalities that only one of them can serve are missing in all rows of both, and systems that need them are left out.
    """
    fold = material.protocol.folds[0]
    place = {name: i for i, name in enumerate(shared)}
    first = _mapped(material.target.values[fold.train_rows], own, place)
    second = _mapped(other.target.values, there, place)
    train, judged = fold.train_rows[first >= 0], np.flatnonzero(second >= 0)
    for rows, which in ((train, "training row of this corpus"), (judged, f"row of {other.name}")):
        if not len(rows):
            raise ValueError(f"no {which} has one of the common classes {', '.join(shared)}; map others to them")
    lacking = [name for i, name in enumerate(shared) if not (first == i).any()]
    if lacking:
        raise ValueError(f"no training row of class {', '.join(lacking)}; leave it out by a name of its own, or map it")
    arrays = {}
    for name, values in other.features.items():
        parts = [np.asarray(material.features[name][train], np.float64), np.asarray(values[judged], np.float64)]
        if scaling == "corpus":  # on the scale of this corpus, which the heads know
            known = features.Scaling.fit(parts[0])
            parts[1] = features.Scaling.fit(parts[1]).apply(parts[1]) * known.deviation + known.mean
        arrays[name] = np.concatenate(parts)
    kind = splits.Target(
        material.target.name, "class", np.concatenate([first[first >= 0], second[judged]]), tuple(shared)
    )
    # Numbers of groups mean nothing across corpora: everyone is somebody else.
    names = [
        np.unique(material.protocol.groups[train], return_inverse=True)[1],
        np.unique(other.groups[judged], return_inverse=True)[1],
    ]
    groups = np.concatenate([names[0], names[0].max() + 1 + names[1]])
    everyone = np.arange(len(groups))
    joint = splits.Fold(0, everyone[: len(train)], everyone[len(train) :])
    protocol = splits.Protocol(
        f"{material.protocol.name} to {other.name}", kind, groups, (joint,), material.protocol.probe
    )
    systems = tuple(found for system in material.systems if (found := _of(system, set(arrays))) is not None)
    return replace(material, protocol=protocol, features=arrays, systems=systems)


def _of(system: System, modalities: set[str]) -> System | None:
    """The system on these modalities alone; None where it has no block of them."""
    parts = {block: modality for block, modality in system.parts.items() if modality in modalities}
    if not parts:
        return None

    def represent(arrays: Mapping[str, Floats]) -> dict[str, Floats]:
        found = system.represent(arrays)
        return {block: found[block] for block in parts}

    return replace(system, represent=represent, parts=parts, raw=frozenset(parts) & system.raw)


def _mapped(values: NDArray[Any], names: Sequence[str], place: Mapping[str, int]) -> NDArray[np.int64]:
    """(n,) common class of each row, -1 for none."""
    table = np.asarray([place.get(name, -1) for name in names] + [-1], dtype=np.int64)
    return table[values]


def _recall(predicted: NDArray[Any], truth: NDArray[Any], label: int) -> float:
    rows = truth == label
    return float((predicted[:, rows] == label).mean()) if rows.any() else float("nan")


def _rules(
    material: Material,
    other: Corpus,
    both: Material,
    own: Sequence[str],
    there: Sequence[str],
    shared: Sequence[str],
    config: TransferConfig,
) -> tuple[str, ...]:
    fold = both.protocol.folds[0]
    left = (
        len(material.protocol.folds[0].train_rows) - len(fold.train_rows),
        len(other.target.values) - len(fold.test_rows),
    )
    maps = [
        ", ".join(f"{a} as {b}" for a, b in zip(classes, names, strict=True) if a != b and b in shared)
        for classes, names in ((material.target.classes, own), (other.target.classes, there))
    ]
    renamed = "; ".join(text for text in maps if text)
    return (
        f"The probe learns from {len(fold.train_rows)} training rows of this corpus and is judged on "
        f"{len(fold.test_rows)} rows of {other.name} (view {config.view}); {left[0]} and {left[1]} rows of other "
        "classes are left out.",
        f"Common classes: {', '.join(shared)}{f' ({renamed})' if renamed else ''}.",
        f"Modalities of both: {', '.join(both.features)}; {other.told}.",
        "Features are standardised on "
        + ("the training rows." if config.scaling == "source" else "each corpus' own rows, without labels."),
        f"Intervals resample the judged corpus' units ({other.unit}).",
    )
