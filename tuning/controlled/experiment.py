"""Trains every system on every data seed, and asks the probe for every factor.

A cell is one system on one data seed: trained once, without labels, on the training speakers; then the one judge
(`conclugen.evaluation.judge`) fits its probe on the training speakers' labels of each factor and is scored on the
others'. What a cell found is a file of its own, named by everything that decides it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conclugen import NonFiniteLossError
from conclugen.common.atomic import write_json
from conclugen.common.reading import read_mapping
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.judge import evaluate, scores
from shards import Column, Label, Manifest, Sample, Schema, ShardWriter
from shards.format import publication
from shards.format.manifest import MANIFEST_NAME, plain_info
from shards.planning.view import IndexValues, View
from tuning.ablation import cell
from tuning.controlled import factors, rendered
from tuning.controlled.factors import Rows
from tuning.controlled.job import MADE, RAW, UNTRAINED, ControlledJob
from tuning.dataset import TEST_VIEW, TRAIN_VIEW, LabelledSet, open_set
from tuning.systems import System

WHOLE, BESIDE_WHOLE = ", row as a whole", ", modalities and row as a whole"
"""End the names of the representations of a system that learns one of the row as a whole; without: the modalities' side
by side, as of any other."""

Accuracy = dict[str, dict[str, float]]
"""Label -> share of labels, as text -> accuracy on the test speakers, mean over draws."""


@dataclass(frozen=True)
class Found:
    """What a cell found: accuracies by system, and each task's share of the heads' gradient in the second half of the
    steps."""

    accuracy: dict[str, Accuracy]
    shares: dict[str, float]


@dataclass(frozen=True)
class Cell:
    """One system on one data seed; None: what is not trained, which is raw features and untrained heads."""

    system: System | None
    seed: int

    @property
    def name(self) -> str:
        return f"{self.system.name if self.system else UNTRAINED}, data seed {self.seed}"

    def place(self, job: ControlledJob) -> Path:
        """The file of what was found; its name is made of all that decides it."""
        config = job.config(self.system or job.untrained).to_dict()
        content = {**job.settings(), "seed": self.seed, "trained": self.system is not None, "config": config}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
        return job.folder / "cells" / f"{digest}.json"


def measure(job: ControlledJob) -> tuple[dict[int, list[Found]], dict[str, str]]:
    """Run the cells that are missing. Returns what was found on each data seed, and the cells that failed, with why."""
    for seed in job.data_seeds:
        write_shards(job, seed)
    cells = [Cell(system, seed) for seed in job.data_seeds for system in (None, *job.all_systems)]
    missing = [each for each in cells if not each.place(job).exists()]
    failed = {}
    for number, (done, reason) in enumerate(_run(job, missing), len(cells) - len(missing) + 1):
        print(f"{number}/{len(cells)}  {done.name}{f': {reason}' if reason else ''}", flush=True)
        if reason:
            failed[done.name] = reason
    found: dict[int, list[Found]] = {seed: [] for seed in job.data_seeds}
    for each in cells:
        if each.name not in failed:
            found[each.seed].append(_read(each.place(job)))
    return found, failed


def write_shards(job: ControlledJob, seed: int) -> Manifest:
    """The feature shards of a data seed, written where they are missing; views train and test are of other speakers.

    Raises ValueError where the folder holds the shards of other factors.
    """
    folder, config = job.folder / f"seed-{seed}", job.source
    info = {f"{job.features}_of": config.content, "seed": seed}
    publication.finish_same(folder, info)  # of a start that was stopped; whose features they are is asked below
    if not (folder / MANIFEST_NAME).exists():
        _write(job, folder, seed, info)
    manifest = Manifest.open(folder)
    if any(manifest.info.get(name) != value for name, value in plain_info(info).items()):
        raise ValueError(f"{folder} holds features of other factors: give this experiment another --run")
    tested = {_speaker(number) for number in range(config.test_speakers)}
    groups = IndexValues.read(manifest, "group")
    for view, members in ((TRAIN_VIEW, {*groups.names} - tested), (TEST_VIEW, tested)):
        if view not in View.names(manifest):
            groups.view(view, members, {"by": "group", "test_speakers": config.test_speakers}).save()
    return manifest


def _write(job: ControlledJob, folder: Path, seed: int, info: Mapping[str, Any]) -> None:
    rows = factors.draw(job.factors, seed) if job.features == MADE else rendered.draw(job.rendered, seed, job.parallel)
    schema = Schema(
        columns=tuple(Column(name, x.shape[1]) for name, x in rows.features.items()),
        modalities={name: (name,) for name in rows.features},
        labels=tuple(Label(name, "class", classes) for name, classes in job.source.labels.items()),
        grouped=True,
    )
    with ShardWriter(folder, schema, shuffle_seed=seed, info=info) as writer:
        for sample in _samples(job, rows):
            writer.append(sample)


def _samples(job: ControlledJob, rows: Rows) -> Iterator[Sample]:
    classes = job.source.labels
    for row, speaker in enumerate(rows.speaker.tolist()):
        yield Sample(
            key=f"{_speaker(speaker)}_{row % job.source.clips:04d}",
            columns={m: x[row] for m, x in rows.features.items()},
            labels={name: classes[name][number[row]] for name, number in rows.labels.items()},
            group=_speaker(speaker),
        )


def _speaker(number: int) -> str:
    return f"speaker-{number:03d}"


def _run(job: ControlledJob, cells: list[Cell]) -> Iterator[tuple[Cell, str]]:
    """Cells as they are done, each with the reason why it failed or an empty one."""
    if job.parallel == 1 or len(cells) < 2:
        for each in cells:
            yield each, run_cell(job, each)
        return
    with ProcessPoolExecutor(min(job.parallel, len(cells)), multiprocessing.get_context("spawn")) as pool:
        try:
            waiting = {pool.submit(run_cell, job, each): each for each in cells}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:  # an error or Ctrl-C waits for the cells that run, not for all
            pool.shutdown(cancel_futures=True)


def run_cell(job: ControlledJob, own: Cell) -> str:
    """Run a cell and write what it found. Returns why it could not be run, or an empty text."""
    try:
        with cell.one_thread():
            found = find(job, own)
    except (ValueError, NonFiniteLossError) as error:
        return " ".join(str(error).split())
    place = own.place(job)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, asdict(found))
    return ""


def find(job: ControlledJob, own: Cell) -> Found:
    """What a cell finds."""
    folder = str(job.folder / f"seed-{own.seed}")
    sets = {label: open_set(label, folder, job.judging, label) for label in job.source.labels}
    data = next(iter(sets.values()))
    [fold] = data.protocol.folds
    modalities = tuple(job.source.widths)
    config = job.config(own.system or job.untrained)
    pretrainer, everything = cell.make_pretrainer(cell.Cell("pretrained", modalities, config), data, fold)
    reported: list[dict[str, torch.Tensor]] = []
    if own.system is not None:
        cell.train(pretrainer, everything, fold, 0, int(pretrainer.steps_per_epoch) * job.epochs, reported.append)
    name = own.system.name if own.system else UNTRAINED
    each = {m: r.numpy() for m, r in pretrainer.embed(everything).items()}
    systems = {name: Blocks.plain(each)}
    if whole := {task: z.numpy() for task, z in pretrainer.embed_jointly(everything).items()}:
        systems[f"{name}{WHOLE}"] = Blocks.plain(whole)
        systems[f"{name}{BESIDE_WHOLE}"] = Blocks.plain(each | whole)
    if own.system is None:
        raw = data.standardised(modalities, fold)
        systems = {RAW[0]: Blocks.plain(raw), RAW[1]: Blocks.balanced(raw), **systems}
    late = reported[len(reported) // 2 :]
    return Found(
        {name: _judge(sets, name, each) for name, each in systems.items()},
        {task: value for task in config.tasks.active if (value := _mean(late, f"share/{task}")) is not None},
    )


def _judge(sets: Mapping[str, LabelledSet], name: str, blocks: Blocks) -> Accuracy:
    return {
        label: {f"{each.fraction:g}": scores(each)["accuracy"] for each in evaluate(data.protocol, {name: blocks})}
        for label, data in sets.items()
    }


def _mean(reported: list[dict[str, torch.Tensor]], name: str) -> float | None:
    values = [float(values[name]) for values in reported if name in values]
    return float(np.mean(values)) if values else None


def _read(place: Path) -> Found:
    """Raises ValueError naming the file where it holds something else."""
    content: dict[str, Any] = read_mapping(place)
    try:
        accuracy = {
            str(system): {str(x): {str(f): float(v) for f, v in by.items()} for x, by in labels.items()}
            for system, labels in content["accuracy"].items()
        }
        return Found(accuracy, {str(task): float(share) for task, share in content["shares"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise ValueError(f"{place} is not what a cell found ({cause!r}): remove it, and it is run again") from cause
