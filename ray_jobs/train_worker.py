"""What every training worker runs: stream, step, validate, checkpoint, report."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero

from conclugen import Pretrainer, checkpoint
from conclugen.prefetch import prefetch
from ray_jobs.run_config import PretrainJob
from ray_jobs.run_folder import RunFolder, checkpoint_name
from ray_jobs.source import Source
from ray_jobs.step_recorder import SilentRecorder, StepRecorder
from shards import Cursor


def train(settings: dict[str, Any]) -> None:
    """The training loop of one rank.

    Args:
        settings: `job`: a `PretrainJob`; `folder`: the run's folder; `total_steps`: optimiser steps of the whole run.
    """
    job: PretrainJob = settings["job"]
    folder = RunFolder(settings["folder"])
    total_steps: int = settings["total_steps"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.run.cpus_per_worker)
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train announces every report; the progress line is ours

    config = job.pretrain
    source = Source.open(job.data, config, quarantine=folder.quarantine(rank))
    pretrainer = Pretrainer(
        config,
        widths=source.reader.widths,
        steps_per_epoch=source.steps_per_epoch,
        standardization=folder.load_standardization(),
        device=ray.train.torch.get_device(),
    )
    cursor = restore(folder, pretrainer, rank)
    recorder = StepRecorder(folder, job, source.manifest) if rank == 0 else SilentRecorder()

    with source.stream(rank, world, cursor, total_steps - pretrainer.step_number) as batches:
        for rows in recorder.timed(prefetch(batches, pretrainer.device)):
            values = pretrainer.step(rows)
            step = pretrainer.step_number
            recorder.add(step, values)
            if step % job.run.report_every == 0 or step == total_steps:
                recorder.write()
            if step % job.run.checkpoint_every == 0 or step == total_steps:
                measures = recorder.validate(pretrainer)
                report_checkpoint(rank, measures, pretrainer, source.plan.cursor_at(step))


def restore(folder: RunFolder, pretrainer: Pretrainer, rank: int) -> Cursor:
    """Load the newest whole checkpoint, the same on every rank; its cursor, or the beginning where there is none."""
    found = folder.newest_checkpoint() if rank == 0 else None
    chosen = broadcast_from_rank_zero(str(found[0]) if found else None)
    if chosen is None:
        return Cursor(epoch=0, step=0)
    state = checkpoint.load(chosen)
    state.restore(pretrainer)
    return Cursor.from_dict(state.cursor)


def report_checkpoint(rank: int, measures: dict[str, float], pretrainer: Pretrainer, cursor: Cursor) -> None:
    """Rank 0 writes a checkpoint locally; Ray Train stores it before it counts. All ranks meet."""
    pretrainer.check_finite()
    if rank != 0:
        ray.train.report({})
        return
    name = checkpoint_name(pretrainer.step_number)
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / name
        checkpoint.save(path, pretrainer, cursor=cursor.to_dict())
        metrics = {f"validation/{name}": value for name, value in measures.items()}  # what `run.keep_by` names
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(path), checkpoint_dir_name=name)
