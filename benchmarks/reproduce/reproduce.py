"""The result tables: frozen-feature pretraining judged against every row that needs none, and its own untrained heads.

    python -m benchmarks.reproduce --data FOLDER --output outputs/reproduce --results docs/results.md

FOLDER holds `ravdess_features.npz`, `mosi_features.npz`, `meld_dev_features.npz` and `ravdess_protocol.json`. For each
fold heads are pretrained on its training rows, without labels, in this process. Every cell (table, mode, fold, system,
seed) is kept below the output folder under an address of its options and data, so that a killed run continues where it
stopped, also with a later version that gives the same numbers (`kept`); what costs most comes last. `--kept` writes the
page of the cells there are.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import conclugen
from benchmarks.reproduce import kept as kept_cells
from benchmarks.reproduce import page as results_page
from benchmarks.reproduce.evaluation import Evaluation, evaluate, majority, merge, stack
from benchmarks.reproduce.feature_files import PROTOCOL_FILE, DataSet, read_meld, read_mosi, read_ravdess
from conclugen import Batch, PretrainConfig, Pretrainer, fields, presets
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import ComparisonConfig
from conclugen.evaluation.features import normalise
from conclugen.evaluation.judge import raw_baselines
from conclugen.evaluation.protocol import Fold
from shards import EpochPlan

SETS = ("ravdess", "mosi_audio_text", "mosi_text", "mosi_all", "meld")
RECIPES = ("improved", "paper")
CONSTANT = "most frequent labelled class"
_CELL_CONTENT = 3  # what a kept cell holds; raise it when `Evaluation` keeps more, so that older cells are made again
# What takes longest is judged last: a page of what there is then lacks whole rows, not parts of each.
_LATER = {"self_training": 1, "supervised": 1, "boosted_trees": 2}
_PASSES = 4


@dataclass(frozen=True)
class Settings:
    """What a pretraining of these small sets takes from us rather than from its preset; nothing of it was searched.

    paper_epochs, paper_lr: length and peak learning rate of the `paper` recipe, whose own rate is made for hundreds of
    thousands of clips. The rate is the top of the published search range; the length ends with a cosine cycle (5 + 20,
    5 + 20 + 40, ... epochs).
    """

    representation_dim: int = 512
    projection_dim: int = 128
    reconstruction_hidden_dim: int = 512
    clusters: int = 32
    queue_batches: int = 2
    global_batch: int = 256
    epochs: int = 40
    paper_epochs: int = 65
    paper_lr: float = 1e-3
    seeds: tuple[int, ...] = (127,)

    def config(self, recipe: str, modalities: Sequence[str]) -> PretrainConfig:
        """The preset `conclugen` in a recipe, at these sizes. Clustering never starts after the last epoch."""
        epochs = self.paper_epochs if recipe == "paper" else self.epochs
        config = presets.build(
            "conclugen",
            recipe,
            modalities=tuple(modalities),
            global_batch=self.global_batch,
            epochs=epochs,
            seed=self.seeds[0],
            model={
                "representation_dim": self.representation_dim,
                "projection_dim": self.projection_dim,
                "reconstruction_hidden_dim": self.reconstruction_hidden_dim,
            },
            tasks={"clustering": {"clusters": self.clusters, "queue_batches": self.queue_batches}},
        )
        if recipe == "paper":
            config = config.changed({"optimizer": {"lr": self.paper_lr}})
        clustering = config.tasks.clustering
        if clustering is not None and clustering.start_epoch >= epochs:
            config = config.changed({"tasks": {"clustering": {"start_epoch": 0}}})
        return config


def pretrained(
    config: PretrainConfig, features: Mapping[str, NDArray[np.float64]], group: NDArray[np.int64], fold: Fold
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Representation of each modality, (N, R), of all rows: first of the untrained heads, then after `config.epochs`.

    features: normalised, of all rows; only the fold's training rows are learned from or standardised on.
    """
    everything = Batch.of(
        Batch(
            {m: torch.from_numpy(features[m]) for m in config.modalities},
            {},
            torch.arange(len(group)),
            group=torch.from_numpy(group),
        )
    )
    plan = EpochPlan([len(fold.train_rows)], seed=config.seed, global_batch=config.global_batch, chunk_rows=1)
    steps = plan.steps_in(0)
    fitted = conclugen.standardize.fit({m: features[m][fold.train_rows] for m in config.modalities})
    pretrainer = Pretrainer(
        config,
        {m: features[m].shape[1] for m in config.modalities},
        steps_per_epoch=steps,
        standardization=fitted if config.model.standardize else None,
    )
    yield _representation(pretrainer, everything)
    for epoch in range(config.epochs):
        for step in range(steps):
            chosen = np.concatenate([np.arange(part.start, part.stop) for part in plan.rows(epoch, step)])
            pretrainer.step(_select(everything, fold.train_rows[chosen]))
    yield _representation(pretrainer, everything)


@dataclass(frozen=True)
class System:
    """A row of a table.

    Attributes:
        name: Of the row.
        blocks: What is judged, from the raw modalities and the heads' representations (empty for raw rows).
        method: Of the judge.
        recipe: Of the pretraining, or None.
        trained: The heads after pretraining, not before.
        seeded: What is judged, or how, is drawn from a seed.
        order: In which pass over the tables it is judged.
        beside: Pretrainings shown side by side: of the seed and those that follow it.
    """

    name: str
    blocks: Callable[[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]], Blocks]
    method: str = "probe"
    recipe: str | None = None
    trained: bool = False
    seeded: bool = False
    order: int = 0
    beside: int = 1


def raw_systems(modalities: Sequence[str]) -> list[System]:
    """Rows that need no pretraining, those of the judge."""
    empty = {name: np.empty((1, 1)) for name in modalities}
    config = ComparisonConfig(methods=("probe",), baselines=("all",))
    found = []
    for at, (systems, methods) in enumerate(raw_baselines(empty, config)):
        for name, method in [(name, method) for name in systems for method in methods]:

            def blocks(raw: Mapping[str, Any], _: Mapping[str, Any], at: int = at, name: str = name) -> Blocks:
                made = raw_baselines(raw, config)[at][0][name]
                assert isinstance(made, Blocks)
                return made

            label = name if method == "probe" else f"{name}, {method.replace('_', ' ')}"
            order = 1 if name.endswith("chosen") else _LATER.get(method, 0)
            found.append(System(label, blocks, method, seeded=method == "supervised", order=order))
    return found


def heads(recipe: str, order: int = 0) -> list[System]:
    """The heads of a configuration before and after pretraining, side by side as they are."""
    return [
        System(name, lambda _, parts: Blocks.plain(parts), recipe=recipe, trained=trained, seeded=True, order=order)
        for name, trained in ((untrained(recipe), False), (recipe, True))
    ]


def learned_systems(recipe: str, several: bool) -> list[System]:
    """The heads of a recipe before and after pretraining; those after it with weights of the blocks that are chosen as
    raw ones are, and beside the raw modalities."""
    chosen = System(
        f"{recipe}, block weights chosen",
        lambda _, parts: Blocks.weighted(parts),
        recipe=recipe,
        trained=True,
        seeded=True,
        order=2,
    )
    order = RECIPES.index(recipe) * (_PASSES - 1)
    with_raw = System(
        f"{recipe} + raw",
        lambda raw, parts: Blocks.with_raw(np.concatenate(list(parts.values()), axis=1), raw),
        recipe=recipe,
        trained=True,
        seeded=True,
        order=order,
    )
    return [*heads(recipe, order), *([chosen] if several and recipe == RECIPES[0] else []), with_raw]


class Cells:
    """Evaluations of one system on one fold each, made once and kept as files of a folder.

    configs: name of a recipe (or of a variant) -> its configuration; each is pretrained from every one of `seeds`.
    kept: make none, and leave out what is not there.
    """

    def __init__(self, folder: Path, draws: int, seeds: Sequence[int], kept: bool = False) -> None:
        self.folder, self.draws, self.seeds, self.kept = folder, draws, tuple(seeds), kept
        self.started = time.monotonic()
        self.used: set[Path] = set()  # what systems were put together from: cells, and heads behind them
        folder.mkdir(parents=True, exist_ok=True)

    def make(
        self,
        data: DataSet,
        mode: str,
        rows: Sequence[System],
        configs: Mapping[str, PretrainConfig],
        seed: int,
        order: int | None = None,
    ) -> None:
        """Judge the rows (of a pass) that are not there yet."""
        for fold in data.protocol.folds:
            place = f"{data.protocol.name}-{mode}-{fold.number}"
            features: dict[str, NDArray[np.float64]] = {}
            for row in rows:
                if order not in (None, row.order):
                    continue
                path, what = self._cell(place, row, data, configs, seed)
                if kept_cells.holds(path, what):
                    continue
                features = features or normalise(data.features, mode, fold.train_rows, data.protocol.groups)
                parts: dict[str, NDArray[np.float32]] = {}
                if row.recipe is not None:
                    for number in range(row.beside):
                        config = replace(configs[row.recipe], seed=seed + number)
                        both = self._representations(place, data, mode, config, features, fold)
                        parts |= {f"{m} {number}" if number else m: both[int(row.trained)][m] for m in data.shown}
                blocks = row.blocks({m: features[m] for m in data.shown}, parts)
                values = data.values if row.method == "probe" else None
                single = data.protocol.only(fold)
                found = evaluate(single, blocks, self.draws, row.recipe is None, values, row.method, seed)
                found.save(path, what)
                self._tell(place, row.name, seed if row.seeded else None, found.seconds)

    def systems(
        self, data: DataSet, mode: str, rows: Sequence[System], configs: Mapping[str, PretrainConfig]
    ) -> dict[str, Evaluation]:
        """Every row, all folds and seeds together, of those seeds that every fold has."""
        found = {CONSTANT: majority(data.protocol, self.draws)}
        for row in rows:
            of_seeds = []
            for seed in self.seeds if row.seeded else self.seeds[:1]:
                merged = self.kept_of(data, mode, row, configs, seed)
                if merged is not None:
                    of_seeds.append(replace(merged, seed_names=(seed,) if row.seeded else ()))
            if of_seeds:
                found[row.name] = stack(of_seeds)
        return found

    def kept_of(
        self, data: DataSet, mode: str, row: System, configs: Mapping[str, PretrainConfig], seed: int
    ) -> Evaluation | None:
        """A row from one seed, all folds together; None where a fold is missing."""
        places = [f"{data.protocol.name}-{mode}-{fold.number}" for fold in data.protocol.folds]
        cells = [self._cell(place, row, data, configs, seed) for place in places]
        if not all(kept_cells.holds(path, what) for path, what in cells):
            return None
        self.used |= {path for path, _ in cells}
        if row.recipe is not None:
            for number in range(row.beside):
                config = replace(configs[row.recipe], seed=seed + number)
                self.used |= {self._heads(data, mode, config, fold)[0] for fold in data.protocol.folds}
        return merge([Evaluation.load(path) for path, _ in cells])

    def _cell(
        self, place: str, row: System, data: DataSet, configs: Mapping[str, PretrainConfig], seed: int
    ) -> tuple[Path, dict[str, Any]]:
        """Where a cell is kept, and what it is made from."""
        what = {
            "content": _CELL_CONTENT,
            "data": data.digest,
            "labelled": [[r.tolist() for r in d] for f in data.protocol.folds for _, d in sorted(f.labelled.items())],
            "draws": self.draws,
            "values": data.values is not None,
            "shown": data.shown,
            "row": row.name,
            "method": row.method,
            "probe": data.protocol.probe,
            "seed": seed if row.seeded else None,
            # Learning rate and epochs too, which identify no run: they decide the result here as well.
            "pretrain": None if row.recipe is None else replace(configs[row.recipe], seed=seed),
        }
        name = row.name.replace(", ", "+").replace(" ", "_")
        return self.folder / f"{place}-{name}-{kept_cells.address(what)}.npz", what

    def _heads(self, data: DataSet, mode: str, config: PretrainConfig, fold: Fold) -> tuple[Path, dict[str, Any]]:
        what = {"data": data.digest, "mode": mode, "rows": fold.train_rows.tolist(), "pretrain": config}
        return self.folder / f"heads-{config.recipe}-{kept_cells.address(what)}.npz", what

    def _representations(
        self,
        place: str,
        data: DataSet,
        mode: str,
        config: PretrainConfig,
        features: Mapping[str, NDArray[np.float64]],
        fold: Fold,
    ) -> list[dict[str, NDArray[np.float32]]]:
        """Of the heads before and after pretraining, kept as well: several rows are judged from one."""
        path, what = self._heads(data, mode, config, fold)
        if not kept_cells.holds(path, what):
            started = time.process_time()
            stages = pretrained(config, features, data.group, fold)
            arrays = {f"{at}/{m}": array for at, parts in enumerate(stages) for m, array in parts.items()}
            seconds = time.process_time() - started
            kept_cells.save(path, what, {"seconds": np.asarray(seconds), **arrays})
            self._tell(place, f"pretraining, {config.recipe}", config.seed, seconds)
        with np.load(path, allow_pickle=False) as stored:
            return [{m: stored[f"{at}/{m}"] for m in config.modalities} for at in (0, 1)]

    def seconds(self, data: DataSet, mode: str, config: PretrainConfig) -> float:
        """Mean CPU time of one kept pretraining by a recipe, of folds and seeds; NaN where there is none."""
        found = []
        for seed in self.seeds:
            for fold in data.protocol.folds:
                path, what = self._heads(data, mode, replace(config, seed=seed), fold)
                if kept_cells.holds(path, what):
                    with np.load(path, allow_pickle=False) as stored:
                        found.append(float(stored["seconds"]))
        return float(np.mean(found)) if found else float("nan")

    def _tell(self, place: str, what: str, seed: int | None, seconds: float) -> None:
        of_seed = "" if seed is None else f", seed {seed}"
        print(f"[{time.monotonic() - self.started:7.1f} s] {place}: {what}{of_seed} ({seconds:.1f} s)", flush=True)


def untrained(system: str) -> str:
    """Name of the system of a configuration's heads before the first step."""
    return f"untrained heads, {system}"


def read(name: str, data: Path, draws: int, protocol_file: Path | None = None, draw_seed: int | None = None) -> DataSet:
    """The set of a table. draw_seed: of labels; without it RAVDESS has those of its protocol file."""
    seed = {} if draw_seed is None else {"seed": draw_seed}
    if name == "ravdess":
        return read_ravdess(data, protocol_file, draws, draw_seed)
    return read_meld(data, draws, **seed) if name == "meld" else read_mosi(data, draws, name, **seed)


def reproduce(
    data: Path,
    output: Path,
    results: Path,
    protocol_file: Path | None = None,
    draws: int = 5,
    sets: Sequence[str] = SETS,
    recipes: Sequence[str] = RECIPES,
    settings: Settings | None = None,
    draw_seed: int | None = None,
    kept: bool = False,
) -> None:
    """Judge every row of every set, the quick ones first, and write the page to `results`, its plots beside it.

    kept: judge nothing, and write the page of the cells that are there.

    Raises ValueError for an unknown set or recipe, and for a missing file, array or value.
    """
    for kind, chosen, allowed in (("sets", sets, SETS), ("recipes", recipes, RECIPES)):
        for name in chosen:
            fields.choose(kind, name, allowed)
    settings = settings or Settings()
    cells = Cells(output / "cells", draws, settings.seeds, kept)
    tables = []
    for name in sets:
        data_set = read(name, data, draws, protocol_file, draw_seed)
        configs = {recipe: settings.config(recipe, tuple(data_set.features)) for recipe in recipes}
        learned = [row for recipe in recipes for row in learned_systems(recipe, len(data_set.shown) > 1)]
        tables += [(data_set, mode, raw_systems(data_set.shown) + learned, configs) for mode in data_set.modes]
    if not kept:
        for order, seed in itertools.product(range(_PASSES), settings.seeds):
            for data_set, mode, rows, configs in tables:
                cells.make(data_set, mode, rows, configs, seed, order)
    sections = [
        results_page.Section(
            data_set,
            mode,
            cells.systems(data_set, mode, rows, configs),
            {row.name: row.recipe for row in rows if row.recipe is not None},
            tuple(row.name for row in rows),
            {recipe: cells.seconds(data_set, mode, config) for recipe, config in configs.items()},
        )
        for data_set, mode, rows, configs in tables
    ]
    results_page.write(results, sections, settings, draws, draw_seed, kept_cells.revisions(cells.used))


def _select(batch: Batch, rows: NDArray[np.int64]) -> Batch:
    index = torch.from_numpy(rows)
    return Batch(
        {m: x[index] for m, x in batch.features.items()},
        {m: x[index] for m, x in batch.present.items()},
        batch.row[index],
        group=None if batch.group is None else batch.group[index],
    )


def _representation(pretrainer: Pretrainer, batch: Batch) -> dict[str, NDArray[np.float32]]:
    return {m: r.numpy() for m, r in pretrainer.embed(batch).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the feature files")
    parser.add_argument("--output", type=Path, default=Path("outputs/reproduce"), help="kept cells")
    parser.add_argument(
        "--results",
        type=Path,
        help="the page of tables; its plots: figures/ beside it; default: results.md of --output",
    )
    parser.add_argument("--protocol", type=Path, help=f"folds and draws of RAVDESS; default: {PROTOCOL_FILE} of --data")
    parser.add_argument("--draws", type=int, default=5, help="draws of labels at each share below all")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated")
    parser.add_argument("--seeds", default="127", help="comma-separated seeds of pretraining; every one is run")
    parser.add_argument("--draw-seed", type=int, help="of the draws of labels; default: RAVDESS's file, else 127")
    parser.add_argument("--kept", action="store_true", help="judge nothing; write the page of the cells there are")
    given = parser.parse_args(arguments)
    try:
        sets, recipes = given.sets.split(","), given.recipes.split(",")
        settings = Settings(seeds=tuple(int(seed) for seed in given.seeds.split(",")))
        places = (given.data, given.output, given.results or given.output / "results.md", given.protocol)
        reproduce(*places, given.draws, sets, recipes, settings, given.draw_seed, given.kept)
    except ValueError as error:
        parser.error(str(error))
