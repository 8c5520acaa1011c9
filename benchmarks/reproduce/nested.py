"""A recipe chosen inside the training groups of every fold: candidates beside today's recipe, and what was tellable.

    python -m benchmarks.reproduce.nested --data FOLDER --output outputs/nested --results docs/lab/nested.md

The groups of a set are dealt into blocks, which are the folds of its protocol; groups that no fold tests only train.
For every pair of blocks {i, j} a candidate is pretrained, and its probe fitted, on all other groups, and judged on i
and on j. The choice for the fold that tests block t rests on block j of every pair {t, j}: no row of t had a part in
it, and every pretraining serves two folds. CMU-MOSI has a published test part, which has no part here at all: its
training videos are dealt into blocks, each left out once, and there is one choice.

A candidate takes the place of today's recipe in a fold if no share of labels in any normalisation shows it worse and
one at least shows it better (`differences`: sign flips over groups, Holm over a normalisation's table); of several
the one with the largest mean difference. Else today's recipe stays. Cells are kept, so that a killed run continues
where it stopped; `--kept` writes the page of those there are.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reproduce.differences import Beside, differences, signed
from benchmarks.reproduce.evaluation import Evaluation, merge, stack
from benchmarks.reproduce.feature_files import DataSet
from benchmarks.reproduce.reproduce import Cells, Settings, System, read
from conclugen import PretrainConfig, fields
from conclugen.common.atomic import write_text
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.protocol import Fold, Protocol

SETS = ("ravdess", "meld", "mosi_audio_text")
TODAY = "improved"
_ALPHA = 0.05
# Half the width of a 95 % interval times this is what is shown in four cases of five: (1.96 + 0.84) / 1.96.
_SHOWN = 1.43
# Name -> what a configuration changes of today's recipe, at the sizes of `Settings`.
CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    TODAY: {},
    "shares": {
        "tasks": {
            "weighting": "share",
            "clustering": None,
            "contrastive": {"weight": 0.5},
            "reconstruction": {"weight": 0.5},
        }
    },
    "longer": {"epochs": 80},
}


@dataclass(frozen=True)
class Part:
    """Blocks that are held out together. data: whose protocol has one fold, which tests them."""

    blocks: tuple[int, ...]
    data: DataSet


def parts(data: DataSet, draw_seed: int, draws: int) -> tuple[list[NDArray[np.int64]], list[Part]]:
    """The rows of each block, and what is held out: pairs of the protocol's folds, or, where a published split has one
    fold, every fourth group of its training part, one after the other."""
    protocol, groups = data.protocol, data.protocol.groups
    if len(protocol.folds) > 1:
        blocks = [fold.test_rows for fold in protocol.folds]
        everything = np.arange(protocol.rows)
        held: list[tuple[int, ...]] = list(itertools.combinations(range(len(blocks)), 2))
    else:
        everything = protocol.folds[0].train_rows
        listed = np.unique(groups[everything])
        blocks = [everything[np.isin(groups[everything], listed[number::4])] for number in range(4)]
        held = [(number,) for number in range(4)]
    found = []
    for numbers in held:
        tested = np.sort(np.concatenate([blocks[number] for number in numbers]))
        fold = Fold(0, np.setdiff1d(everything, tested), tested)
        name = "-".join([protocol.name, "without", *map(str, numbers)])
        single = replace(protocol, name=name, folds=(fold,)).drawn(protocol.fractions, draws, draw_seed)
        found.append(Part(numbers, replace(data, protocol=single, values=None)))
    return blocks, found


def systems(configurations: Sequence[str]) -> list[System]:
    """Every configuration by itself, beside raw features, and both with heads of two seeds side by side: the first seed
    and the number behind it."""
    found = []
    for name, beside in itertools.product(configurations, (1, 2)):
        both = ", two seeds" if beside == 2 else ""
        common: dict[str, Any] = {"recipe": name, "trained": True, "seeded": True, "beside": beside}
        found += [
            System(f"{name}{both}", lambda _, heads: Blocks.plain(heads), **common),
            System(
                f"{name}{both} + raw",
                lambda raw, heads: Blocks.with_raw(np.concatenate(list(heads.values()), axis=1), raw),
                **common,
            ),
        ]
    return found


def judged_for(
    block: int | None, blocks: Sequence[NDArray[np.int64]], held: Sequence[tuple[Part, Mapping[str, Evaluation]]]
) -> tuple[Protocol, dict[str, Evaluation]]:
    """What speaks for the fold that tests a block (None: of a published test part): a protocol of the other blocks, and
    every system's predictions of them, none of which saw a row of that block."""
    folds: list[Fold] = []
    found: list[dict[str, Evaluation]] = []
    for part, evaluations in held:
        if block is not None and block not in part.blocks:
            continue
        (other,) = (number for number in part.blocks if number != block)
        (fold,) = part.data.protocol.folds
        folds.append(replace(fold, number=len(folds), test_rows=blocks[other]))
        hidden = np.setdiff1d(np.arange(part.data.protocol.rows), blocks[other])
        found.append({name: _without(evaluation, hidden) for name, evaluation in evaluations.items()})
    protocol = replace(held[0][0].data.protocol, folds=tuple(folds))
    names = [name for name in found[0] if all(name in each for each in found)]
    return protocol, {name: merge([replace(each[name], protocol=protocol.name) for each in found]) for name in names}


def _without(evaluation: Evaluation, rows: NDArray[np.int64]) -> Evaluation:
    predicted = {fraction: values.copy() for fraction, values in evaluation.predicted.items()}
    for values in predicted.values():
        values[:, rows] = -1
    return replace(evaluation, predicted=predicted, values=None)


@dataclass(frozen=True)
class Compared:
    """What one fold is chosen by. tables: normalisation -> candidate minus today's, at each share of labels."""

    block: int | None
    tables: Mapping[str, Sequence[Beside]]

    def mean(self, system: str) -> float:
        """Of the candidate's differences, over shares and normalisations."""
        found = [b.interval.estimate for table in self.tables.values() for b in table if b.system == system]
        return float(np.mean(found))

    def shown(self, system: str) -> tuple[int, int]:
        """In how many of them it is shown to be better, and to be worse."""
        mine = [b for table in self.tables.values() for b in table if b.system == system]
        sure = [b for b in mine if b.comparison.adjusted <= _ALPHA]
        return sum(b.interval.low > 0 for b in sure), sum(b.interval.high < 0 for b in sure)

    @property
    def chosen(self) -> str:
        """The recipe of this fold."""
        names = dict.fromkeys(b.system for table in self.tables.values() for b in table)
        able = [name for name in names if self.shown(name)[0] and not self.shown(name)[1]]
        return max(able, key=self.mean, default=TODAY)

    @property
    def power(self) -> float:
        """The difference that the median comparison of this fold would show in four cases of five."""
        half = [(b.interval.high - b.interval.low) / 2 for table in self.tables.values() for b in table]
        return float(_SHOWN * np.median(half))


def nested(
    data: Path,
    output: Path,
    results: Path,
    settings: Settings,
    sets: Sequence[str] = SETS,
    configurations: Sequence[str] = tuple(CONFIGURATIONS),
    draws: int = 5,
    draw_seed: int = 331,
    kept: bool = False,
) -> None:
    """Judge every candidate and write the page. Raises ValueError for an unknown set or configuration, and for a
    missing file, array or value."""
    for kind, chosen, allowed in (("sets", sets, SETS), ("configurations", configurations, CONFIGURATIONS)):
        for name in chosen:
            fields.choose(kind, name, list(allowed))
    rows = systems(configurations)
    cells = Cells(output / "cells", draws, settings.seeds, kept)
    whole = {name: read(name, data, draws, None, draw_seed) for name in sets}
    split = {name: parts(each, draw_seed, draws) for name, each in whole.items()}
    if not kept:
        for name, mode in _order(whole):
            for part in split[name][1]:
                configs = _configs(configurations, settings, whole[name])
                for row in rows:
                    for seed in _seeds(row, settings.seeds):
                        cells.make(part.data, mode, [row], configs, seed)
    sections = []
    for name in sets:
        blocks, held = split[name]
        configs = _configs(configurations, settings, whole[name])
        judged = {
            mode: [(part, _systems(cells, part.data, mode, rows, configs)) for part in held]
            for mode in whole[name].modes
        }
        folds: list[int | None] = [*range(len(blocks))] if len(held[0].blocks) > 1 else [None]
        compared = [c for fold in folds if (c := _compared(fold, blocks, judged, whole[name])) is not None]
        sections.append(_section(whole[name], len(held), compared))
    write_text(results, "\n\n".join([*_head(settings, configurations, draws, draw_seed), *sections]) + "\n")


def _order(whole: Mapping[str, DataSet]) -> Iterator[tuple[str, str]]:
    """Every set in its first normalisation, then in the others."""
    for at in range(max(len(data.modes) for data in whole.values())):
        for name, data in whole.items():
            if at < len(data.modes):
                yield name, data.modes[at]


def _seeds(row: System, seeds: Sequence[int]) -> Sequence[int]:
    return seeds if row.beside == 1 else seeds[:1]


def _configs(configurations: Sequence[str], settings: Settings, data: DataSet) -> dict[str, PretrainConfig]:
    today = settings.config("improved", tuple(data.features))
    return {name: today.changed(CONFIGURATIONS[name]) for name in configurations}


def _systems(
    cells: Cells, data: DataSet, mode: str, rows: Sequence[System], configs: Mapping[str, PretrainConfig]
) -> dict[str, Evaluation]:
    """Those that are kept, by name. Two seeds side by side are one system, which is compared with the mean over both:
    it names no seed."""
    found = {}
    for row in rows:
        kept = {seed: cells.kept_of(data, mode, row, configs, seed) for seed in _seeds(row, cells.seeds)}
        names = [seed for seed, evaluation in kept.items() if evaluation is not None]
        evaluations = [evaluation for evaluation in kept.values() if evaluation is not None]
        if evaluations:
            found[row.name] = replace(stack(evaluations), seed_names=() if row.beside > 1 else tuple(names))
    return found


def _compared(
    block: int | None,
    blocks: Sequence[NDArray[np.int64]],
    judged: Mapping[str, Sequence[tuple[Part, Mapping[str, Evaluation]]]],
    data: DataSet,
) -> Compared | None:
    """None where nothing is there to compare."""
    tables = {}
    for mode, held in judged.items():
        protocol, evaluations = judged_for(block, blocks, held)
        pairs = [(name, TODAY, f) for name in evaluations if name != TODAY for f in protocol.fractions]
        if TODAY in evaluations and pairs:
            found = differences(protocol, evaluations, pairs, data.measure)
            tables[mode] = [beside for beside in found if beside is not None]
    return Compared(block, tables) if tables else None


def _head(settings: Settings, configurations: Sequence[str], draws: int, draw_seed: int) -> list[str]:
    changes = "; ".join(f"`{name}` {CONFIGURATIONS[name]}" for name in configurations if CONFIGURATIONS[name])
    return [
        "# Choices inside training groups",
        f"Written by `python -m benchmarks.reproduce.nested --data folder` on {datetime.now(UTC).date()}; that module "
        "says how folds are made and what is chosen by. Pretraining seeds "
        f"{', '.join(map(str, settings.seeds))}, {draws} draws of labels below 100 % (seed {draw_seed}); neither is "
        "used by the page of results. Differences are to "
        f"`{TODAY}`, over groups, draws and seeds crossed; bold: shown, after Holm over one table. `+ raw`: half of "
        "the variance to the heads, half to balanced raw features; `two seeds`: heads of both seeds side by side.",
        f"Configurations: {changes}.",
    ]


def _section(data: DataSet, held: int, compared: Sequence[Compared]) -> str:
    lines = [f"## {data.title}", "", f"{held} held-out parts; {data.units}; {data.measure}.", ""]
    if not compared:
        return "\n".join([*lines, "Not run."])
    lines += ["| fold | chosen | a difference shown in four cases of five, points |", "|---|---|---|"]
    for each in compared:
        fold = "published test part" if each.block is None else f"tests block {each.block}"
        lines.append(f"| {fold} | `{each.chosen}` | {100 * each.power:.1f} |")
    for each in compared:
        for mode, table in each.tables.items():
            where = "" if each.block is None else f", without block {each.block}"
            shares = list(dict.fromkeys(beside.fraction for beside in table))
            lines += ["", f"### {mode.replace('_', '-').capitalize()}{where}", ""]
            lines += [
                f"| minus `{TODAY}` | {' | '.join(f'{f:.0%}' for f in shares)} |",
                "|---" * (len(shares) + 1) + "|",
            ]
            for name in dict.fromkeys(beside.system for beside in table):
                cells = [
                    _cell(beside) for f in shares for beside in table if (beside.system, beside.fraction) == (name, f)
                ]
                lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(beside: Beside) -> str:
    sure = beside.comparison.adjusted <= _ALPHA and not beside.interval.low <= 0 <= beside.interval.high
    return f"**{signed(beside.interval)}**" if sure else signed(beside.interval)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce.nested", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the feature files")
    parser.add_argument("--output", type=Path, default=Path("outputs/nested"), help="kept cells")
    parser.add_argument("--results", type=Path, default=Path("docs/lab/nested.md"), help="the page of tables")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated")
    parser.add_argument("--configurations", default=",".join(CONFIGURATIONS), help="comma-separated")
    parser.add_argument("--seeds", default="311,312", help="comma-separated seeds of pretraining; every one is run")
    parser.add_argument("--draws", type=int, default=5, help="draws of labels at each share below all")
    parser.add_argument("--draw-seed", type=int, default=331, help="of the draws of labels")
    parser.add_argument("--kept", action="store_true", help="judge nothing; write the page of the cells there are")
    given = parser.parse_args(arguments)
    try:
        settings = Settings(seeds=tuple(int(seed) for seed in given.seeds.split(",")))
        chosen = given.sets.split(","), given.configurations.split(",")
        places = (given.data, given.output, given.results)
        nested(*places, settings, *chosen, given.draws, given.draw_seed, given.kept)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
