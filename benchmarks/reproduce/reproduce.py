"""The result tables: frozen-feature pretraining judged against the raw features and against its own untrained heads.

    python -m benchmarks.reproduce --data FOLDER --output outputs/reproduce --results docs/results.md

FOLDER holds `ravdess_features.npz`, `mosi_features.npz` and `ravdess_protocol.json`. For each fold heads are pretrained
on its training rows, without labels, in this process. Every cell (set, mode, fold, system) is kept below the output
folder under a digest of its configuration and data, so that a killed run goes on where it stopped.
"""

import argparse
import functools
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import conclugen
from benchmarks.reproduce import page as results_page
from benchmarks.reproduce.evaluation import Evaluation, evaluate, majority, merge, stack, table
from benchmarks.reproduce.feature_files import PROTOCOL_FILE, DataSet, read_mosi, read_ravdess
from conclugen import Batch, PretrainConfig, Pretrainer, fields, presets
from conclugen.common.atomic import atomic_path
from conclugen.evaluation.features import normalise
from conclugen.evaluation.protocol import Fold
from ray_jobs import plots
from shards import EpochPlan

SETS = ("ravdess", "mosi")
RECIPES = ("improved", "paper")
_CELL_CONTENT = 2  # what a kept cell holds; raise it when `Evaluation` keeps more, so that older cells are made anew


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


class Cells:
    """Evaluations of one system on one fold each, made once and kept as files of a folder.

    configs: name of a system -> its configuration; each is pretrained from every one of `seeds`.
    """

    def __init__(self, folder: Path, draws: int, seeds: Sequence[int]) -> None:
        self.folder, self.draws, self.seeds = folder, draws, tuple(seeds)
        self.started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def systems(self, data: DataSet, mode: str, configs: Mapping[str, PretrainConfig]) -> dict[str, Evaluation]:
        """Every system of a set in one mode, all folds together, in the order of the table.

        A pretrained system has each draw of labels once for each seed.
        """
        parts: dict[str, list[Evaluation]] = {}
        for fold in data.protocol.folds:
            for name, evaluation in self._fold(data, mode, fold, configs):
                parts.setdefault(name, []).append(evaluation)
        merged = {name: merge(evaluations) for name, evaluations in parts.items()}
        stages = [_judged(name, data) for name in configs]
        order = [*data.baselines, *(name for stage in zip(*stages, strict=True) for names in stage for name in names)]
        return {"majority class": majority(data.protocol, self.draws)} | {name: merged[name] for name in order}

    def _fold(
        self, data: DataSet, mode: str, fold: Fold, configs: Mapping[str, PretrainConfig]
    ) -> Iterator[tuple[str, Evaluation]]:
        single = data.protocol.only(fold)
        features = normalise(data.features, mode, fold.train_rows, data.protocol.groups)
        place = f"{data.protocol.name}-{mode}-{fold.number}"
        for name, modalities in data.baselines.items():
            path = self._path(place, name, data, None)
            if not path.exists():
                raw = _concatenated(features, modalities)
                _keep(path, evaluate(single, raw, self.draws, standardized=True, values=data.values))
            yield name, self._done(path, place, name)
        for system, config in configs.items():
            of_seeds: dict[str, list[Evaluation]] = {}
            for seed in self.seeds:
                seeded = replace(config, seed=seed)
                judged = _judged(system, data)
                paths = {name: self._path(place, name, data, seeded) for stage in judged for name in stage}
                if not all(path.exists() for path in paths.values()):
                    for stage, parts in zip(judged, pretrained(seeded, features, data.group, fold), strict=True):
                        for name, modalities in stage.items():
                            if not paths[name].exists():
                                whole = _concatenated(parts, modalities)
                                _keep(paths[name], evaluate(single, whole, self.draws, values=data.values))
                for name, path in paths.items():
                    of_seeds.setdefault(name, []).append(self._done(path, place, f"{name}, seed {seed}"))
            for name, kept in of_seeds.items():
                yield name, stack(kept)

    def _path(self, place: str, system: str, data: DataSet, config: PretrainConfig | None) -> Path:
        # The whole configuration, not its identity alone: learning rate and epochs decide the result here as well.
        what = [
            _CELL_CONTENT,
            data.digest,
            self.draws,
            data.values is not None,
            system,
            None if config is None else config.to_dict(),
        ]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{place}-{system.replace(', ', '+').replace(' ', '_')}-{digest}.npz"

    def _done(self, path: Path, place: str, system: str) -> Evaluation:
        print(f"[{time.monotonic() - self.started:7.1f} s] {place}: {system}", flush=True)
        return Evaluation.load(path)


def untrained(system: str) -> str:
    """Name of the system of a configuration's heads before the first step."""
    return f"untrained heads, {system}"


def _judged(system: str, data: DataSet) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """What is judged before and after pretraining: name of a system -> the modalities whose representation it is."""
    trained = {system: tuple(data.features)} | {f"{system}, {part}": names for part, names in data.parts.items()}
    return {untrained(name): modalities for name, modalities in trained.items()}, trained


def reproduce(
    data: Path,
    output: Path,
    results: Path,
    protocol_file: Path | None = None,
    draws: int = 5,
    sets: Sequence[str] = SETS,
    recipes: Sequence[str] = RECIPES,
    settings: Settings | None = None,
) -> None:
    """Evaluate every system of every set; write tables and comparisons to `results` after each set, plots beside it.

    Raises ValueError for an unknown set or recipe, and for a missing file, array or value.
    """
    for kind, chosen, allowed in (("sets", sets, SETS), ("recipes", recipes, RECIPES)):
        for name in chosen:
            fields.choose(kind, name, allowed)
    settings = settings or Settings()
    cells = Cells(output / "cells", draws, settings.seeds)
    sections: list[results_page.Section] = []
    readers = {
        "ravdess": functools.partial(read_ravdess, data, protocol_file),
        "mosi": functools.partial(read_mosi, data, draws),
    }
    for data_set in [readers[name]() for name in sets]:
        for mode in data_set.modes:
            configs = {recipe: settings.config(recipe, tuple(data_set.features)) for recipe in recipes}
            systems = cells.systems(data_set, mode, configs)
            shown = table(data_set.protocol, systems)
            first = next(iter(data_set.baselines))
            pairs = [
                (name, other)
                for recipe in recipes
                for name in _judged(recipe, data_set)[1]
                for other in (first, untrained(name))
            ]
            figure = Path("figures") / f"{data_set.protocol.name}_{mode}.png"
            sections.append(
                results_page.Section(
                    data_set.title,
                    data_set.note,
                    mode,
                    data_set.protocol,
                    systems,
                    shown,
                    pairs,
                    data_set.aims.get(mode, {}) if "improved" in recipes else {},
                    data_set.values,
                    figure,
                )
            )
            lines = {
                name: {fraction: cell.interval for fraction, cell in row.items()}
                for name, row in shown.items()
                if name != "majority class"
            }
            title = f"{data_set.title} ({mode.replace('_', '-')})"
            plots.label_efficiency(lines, results.parent / figure, title=title)
        results_page.write(results, sections, settings, draws, recipes)


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


def _concatenated(parts: Mapping[str, NDArray[Any]], modalities: Sequence[str]) -> NDArray[Any]:
    return np.concatenate([parts[m] for m in modalities], axis=1)


def _keep(path: Path, evaluation: Evaluation) -> None:
    with atomic_path(path) as temporary:
        evaluation.save(temporary)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the feature files")
    parser.add_argument("--output", type=Path, default=Path("outputs/reproduce"), help="kept cells")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("docs/results.md"),
        help="the page of tables; its plots: figures/ beside it",
    )
    parser.add_argument("--protocol", type=Path, help=f"folds and draws of RAVDESS; default: {PROTOCOL_FILE} of --data")
    parser.add_argument("--draws", type=int, default=5, help="draws of labels at each share below all")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated")
    parser.add_argument("--seeds", default="127", help="comma-separated seeds of pretraining; every one is run")
    given = parser.parse_args(arguments)
    try:
        sets, recipes = given.sets.split(","), given.recipes.split(",")
        settings = Settings(seeds=tuple(int(seed) for seed in given.seeds.split(",")))
        reproduce(given.data, given.output, given.results, given.protocol, given.draws, sets, recipes, settings)
    except ValueError as error:
        parser.error(str(error))
