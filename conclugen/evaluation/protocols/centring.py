"""How much does a new speaker's representation gain from k unlabelled clips of that speaker?

Between two normalisations that are never compared with each other: inductive (k = 0: standardised on training rows, a
new speaker is unknown) and speaker-normalised (every speaker by the mean and deviation of all own clips: transductive).
With k clips x_1..x_k of a new speaker s, of each column

    z = (x - mean(x_1, ..., x_k)) / d,    d^2 = mean over training rows of (x - mean of the row's speaker)^2,

and training speakers, whose clips are all at hand, are centred by all of theirs: few clips tell a mean and no
deviation, so d is pooled within the training speakers. A speaker with fewer clips than k is centred by all there are.
Centring by few utterances is cepstral mean normalisation's idea (Atal 1974; for emotion Busso, Mariooryad, Metallinou &
Narayanan 2013, "Iterative feature normalization"); speakers' means as the main nuisance: Schuller et al. 2010.

A representation's heads know features as they were stored, so they are given z on that scale, z * deviation + mean of
the training rows: to them a speaker's mean looks like the training mean. They are not pretrained again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conclugen.evaluation.protocols.base import (
    GROUP,
    Chart,
    EvaluationProtocol,
    Material,
    Outcome,
    Point,
    System,
    Table,
    draws_of,
    failure_notes,
    finite,
    part,
)
from conclugen.evaluation.protocols.deferred import features, np
from conclugen.fields import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from conclugen.evaluation.checks import Floats, Integers
    from conclugen.evaluation.protocol import Fold

INDUCTIVE, ALL_MEAN, NORMALISED = "0 (inductive)", "all, mean alone", "all (speaker-normalised)"
_TICKS = {INDUCTIVE: "0", ALL_MEAN: "all: mean", NORMALISED: "all"}


@dataclass(frozen=True)
class CentringConfig:
    """Scores with each new speaker centred by a few unlabelled clips.

    Attributes:
        clips: Numbers of clips, besides none and all.
        clip_draws: Draws of which clips; scores are means over them.
        speaker: Column that says who speaks: `group`, or a text that was kept by `--meta`, as `meta.NAME`. A row
            without one is a speaker of its own.
    """

    clips: tuple[int, ...] = (1, 3, 10)
    clip_draws: int = 5
    speaker: str = GROUP

    def __post_init__(self) -> None:
        for count in self.clips:
            require(count >= 1, "protocols.centring.clips", count, "1 or more; none and all are always there")
        require(self.clip_draws >= 1, "protocols.centring.clip_draws", self.clip_draws, "1 or more")


class Centring(EvaluationProtocol):
    name = "centring"
    title = "Centring by a few clips of a new speaker"
    Config = CentringConfig
    kinds = ("class", "multilabel", "continuous")
    order = 40

    @classmethod
    def run(cls, material: Material, config: CentringConfig) -> Outcome:
        rows = material.protocol.test_rows
        names = material.values(config.speaker)
        speakers = own_speakers(names)
        named = rows[names[rows] != ""]
        _, sizes = np.unique(speakers[named], return_counts=True)
        if sizes.max(initial=0) < 2:
            raise ValueError(
                "every tested speaker has one row, so that nobody has other clips to be centred by; name the column "
                "that says who speaks by protocols.centring.speaker"
            )
        steps: dict[str, int | None] = {INDUCTIVE: 0}
        steps |= {str(count): count for count in sorted(set(config.clips))}
        steps |= {ALL_MEAN: None, NORMALISED: None}
        table: list[tuple[Any, ...]] = []
        series: dict[str, tuple[Point, ...]] = {}
        headline: dict[str, float] = {}
        nobodys = len(rows) - len(named)
        holes = [f"{nobodys} test rows have no speaker: each is centred by itself alone"] if nobodys else []
        short = {k: int((sizes < k).sum()) for k in config.clips if (sizes < k).any()}
        holes += [f"{count} of {len(sizes)} tested speakers have fewer than {k} clips" for k, count in short.items()]
        for system in material.systems:
            points: list[Point] = []
            for at, (name, predicted, failures) in enumerate(
                _predicted(material, system, speakers, steps, config.clip_draws)
            ):
                notes = failure_notes(system.name, material.options.fraction, failures)
                holes += [f"{name} clips: {note}" for note in notes]
                if predicted is None:
                    table.append((system.name, name, None, None, None, None))
                    continue
                value, low, high = material.measured(system.name, material.options.fraction, predicted)
                inductive = next((y for x, y, _, _ in points if x == 0), None)
                change = 0.0 if at == 0 else None if inductive is None else finite(value - inductive)
                points.append((float(at), value, low, high))
                table.append((system.name, name, finite(value), low, high, change))
                headline[f"{system.name}/{_short(name)}"] = value
            if points:
                series[system.name] = tuple(points)
        if not series:
            raise ValueError(f"no probe could be learned; {holes[-1]}")
        ticks = {float(at): _TICKS.get(name, name) for at, name in enumerate(steps)}
        chart = Chart(
            "clips", "score by clips of a new speaker", "unlabelled clips", material.score, series, ticks=ticks
        )
        columns = ("system", "clips of a new speaker", material.score, "low", "high", "minus inductive")
        return Outcome(
            (Table("clips", columns, tuple(table)),), (chart,), headline, _rules(material, config), tuple(holes)
        )


def _predicted(
    material: Material,
    system: System,
    speakers: NDArray[np.int64],
    steps: Mapping[str, int | None],
    clip_draws: int,
) -> Iterator[tuple[str, NDArray[Any] | None, dict[int, str]]]:
    """Step, (draws of labels x draws of clips, N) predictions, and draw of labels -> why it taught nothing.

    A probe is fitted for each draw of labels and each of the three ways to treat training rows: which clips were drawn
    changes test rows alone.
    """
    whole = [(fold, replace(material, protocol=material.protocol.only(fold))) for fold in material.protocol.folds]
    clips = [name for name in steps if name not in (INDUCTIVE, NORMALISED)]
    values: dict[str, list[_Drawn]] = {name: [] for name in steps}
    failures: dict[str, dict[int, str]] = {name: {} for name in steps}
    for fold, one in whole:
        plain = system.represent(material.features)
        fits, failed = one.fits(system, plain, material.options.fraction)
        values[INDUCTIVE].append(_Drawn(draws_of(fits), [one.predicted(fits, plain)]))
        failures[INDUCTIVE] |= failed
        seed = material.comparison.seed
        arrays = system.represent(centred(material.features, speakers, fold, None, seed, 0))
        fits, failed = one.fits(system, arrays, material.options.fraction)
        for name in clips:
            failures[name] |= failed
            found = []
            for draw in range(1 if steps[name] is None else clip_draws):
                inputs = centred(material.features, speakers, fold, steps[name], seed, draw)
                again = {block: array.copy() for block, array in arrays.items()}
                for block, array in system.represent(part(inputs, fold.test_rows)).items():
                    again[block][fold.test_rows] = array
                found.append(one.predicted(fits, again))
            values[name].append(_Drawn(draws_of(fits), found))
        arrays = system.represent(normalised(material.features, speakers, fold.train_rows))
        fits, failed = one.fits(system, arrays, material.options.fraction)
        values[NORMALISED].append(_Drawn(draws_of(fits), [one.predicted(fits, arrays)]))
        failures[NORMALISED] |= failed
    for name in steps:
        yield name, _merged(material, values[name]), failures[name]


@dataclass(frozen=True)
class _Drawn:
    """A fold's (draws of labels, N) predictions, an array for each draw of clips. draws: numbers of those of labels."""

    draws: tuple[int, ...]
    predicted: list[NDArray[Any]]


def _merged(material: Material, folds: Sequence[_Drawn]) -> NDArray[Any] | None:
    """Predictions of every fold as one, of the draws of labels that taught something in each; None where none did."""
    common = sorted(set.intersection(*(set(each.draws) for each in folds)))
    if not common:
        return None
    parts = [[found[[each.draws.index(draw) for draw in common]] for found in each.predicted] for each in folds]
    whole = parts[0]
    for fold, each in zip(material.protocol.folds[1:], parts[1:], strict=True):
        for place, found in zip(whole, each, strict=True):
            place[:, fold.test_rows] = found[:, fold.test_rows]
    return np.concatenate(whole)


def own_speakers(names: NDArray[np.str_]) -> NDArray[np.int64]:
    """(N,) number of each row's speaker; a row without one (an empty name) is a speaker of its own."""
    numbers = np.unique(names, return_inverse=True)[1].astype(np.int64)
    return np.where(names == "", len(names) + np.arange(len(names)), numbers)


def _short(name: str) -> str:
    return {INDUCTIVE: "0", ALL_MEAN: "all_mean", NORMALISED: "all"}.get(name, name)


def normalised(arrays: Mapping[str, Floats], groups: NDArray[Any], train_rows: Integers) -> dict[str, Floats]:
    """Every speaker by the mean and deviation of all own rows, on the scale of the training rows."""
    return _on_scale(_by_group(arrays, groups), arrays, train_rows)


def centred(
    arrays: Mapping[str, Floats], groups: NDArray[Any], fold: Fold, count: int | None, seed: int, draw: int
) -> dict[str, Floats]:
    """Training speakers by the mean of all own rows, tested ones by that of `count` of theirs (None: all), all by the
    deviation within training speakers; on the scale of the training rows. Other rows as training ones.

    A speaker none of whose drawn clips has a modality stands at the training mean there.
    """
    tested = np.zeros(len(groups), dtype=bool)
    tested[fold.test_rows] = True
    clips = drawn_clips(groups, fold.test_rows, count, seed, draw)
    nobody = np.empty(0, dtype=np.int64)
    result = {}
    for name, array in arrays.items():
        values = np.asarray(array, dtype=np.float64)
        known = np.asarray(np.isfinite(values).all(axis=1))
        shifted = np.full_like(values, np.nan)
        train = fold.train_rows[known[fold.train_rows]]
        for group in np.unique(groups):
            own = groups == group
            # Of a speaker who is trained on and tested, training clips tell the tested ones nothing, nor they them.
            for rows, by in ((own & ~tested, np.flatnonzero(own & ~tested)), (own & tested, clips.get(group, nobody))):
                by = by[known[by]]
                mean = values[by].mean(axis=0) if len(by) else values[train].mean(axis=0)
                shifted[rows] = values[rows] - mean
        deviation = np.sqrt((shifted[train] ** 2).mean(axis=0))
        deviation[deviation <= 1e-9 * np.maximum(np.abs(values[train]).max(axis=0), 1e-300)] = 1.0
        result[name] = shifted / deviation
    return _on_scale(result, arrays, fold.train_rows)


def drawn_clips(
    groups: NDArray[Any], test_rows: Integers, count: int | None, seed: int, draw: int
) -> dict[Any, Integers]:
    """Tested group -> the rows that it is centred by; those of fewer clips are among those of more."""
    generator = np.random.Generator(np.random.PCG64([seed, draw, 11]))
    order = generator.permutation(len(groups))
    found = {}
    for group in np.unique(groups[test_rows]):
        own = order[np.isin(order, test_rows) & (groups[order] == group)]
        found[group] = np.sort(own if count is None else own[:count])
    return found


def _by_group(arrays: Mapping[str, Floats], groups: NDArray[Any]) -> dict[str, Floats]:
    """`features.standardize_by_group`, of groups none of whose rows has a modality nothing."""
    result = {}
    for name, array in arrays.items():
        values = np.asarray(array, dtype=np.float64)
        known = np.asarray(np.isfinite(values).all(axis=1))
        whole = np.full_like(values, np.nan)
        whole[known] = features.standardize_by_group(values[known], groups[known])
        result[name] = whole
    return result


def _on_scale(z: Mapping[str, Floats], arrays: Mapping[str, Floats], train_rows: Integers) -> dict[str, Floats]:
    scaled = {}
    for name, values in z.items():
        scale = features.Scaling.fit(np.asarray(arrays[name], dtype=np.float64)[train_rows])
        scaled[name] = values * scale.deviation + scale.mean
    return scaled


def _rules(material: Material, config: CentringConfig) -> tuple[str, ...]:
    return (
        "0: features standardised on training rows. k: a tested speaker by the mean of k own clips, training speakers "
        "by theirs, the deviation within training speakers. all, mean alone: the same by all own clips. "
        "speaker-normalised: every speaker by own mean and own deviation.",
        f"Which clips: {config.clip_draws} seeded draws; scores are means over these and over draws of labels. Every "
        "test row is scored, those that a speaker is centred by among them; their labels are not used.",
        "Heads are not pretrained again: they are given a speaker's mean as the training mean.",
        "Rows of this table are different tasks: what is known of a new speaker differs.",
    )
