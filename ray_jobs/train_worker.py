"""What every training worker runs: stream, step, validate, checkpoint, report."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero

from conclugen import Pretrainer, checkpoint
from ray_jobs.run_config import PretrainJob
from ray_jobs.run_folder import RunFolder, checkpoint_name
from ray_jobs.source import Source
from ray_jobs.step_recorder import StepRecorder
from ray_jobs.validation import Validation
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

    config = job.pretrain
    damage: list[dict[str, Any]] = []
    source = Source.open(job.data, config, quarantine=lambda sample: damage.append(asdict(sample)))
    pretrainer = Pretrainer(
        config,
        widths=source.reader.widths,
        steps_per_epoch=source.steps_per_epoch,
        standardization=folder.load_standardization(),
        device=ray.train.torch.get_device(),
    )
    cursor = restore(folder, pretrainer, rank)
    validation = Validation.open(job.data, source.manifest, config.modalities) if rank == 0 else None
    recorder = StepRecorder(config.global_batch)

    with source.stream(rank, world, cursor, total_steps - pretrainer.step_number) as batches:
        for rows in recorder.timed(batches):
            values = pretrainer.step(rows)
            step = pretrainer.step_number
            recorder.add(step, values)

            checkpoint_due = step % job.run.checkpoint_every == 0 or step == total_steps
            if checkpoint_due or step % job.run.report_every == 0:
                report = {"step": step, "steps": recorder.take(), "damage": damage.copy()}
                damage.clear()
                if checkpoint_due and rank == 0:
                    measures = validation.measure(pretrainer) if validation is not None else {}
                    save_and_report(report | {"validation": measures}, pretrainer, source.plan.cursor_at(step))
                else:
                    ray.train.report(report)


def restore(folder: RunFolder, pretrainer: Pretrainer, rank: int) -> Cursor:
    """Load the newest whole checkpoint, the same on every rank; its cursor, or the beginning where there is none."""
    found = folder.newest_checkpoint() if rank == 0 else None
    chosen = broadcast_from_rank_zero(str(found[0]) if found else None)
    if chosen is None:
        return Cursor(epoch=0, step=0)
    state = checkpoint.load(chosen)
    state.restore(pretrainer)
    return Cursor.from_dict(state.cursor)


def save_and_report(report: dict[str, Any], pretrainer: Pretrainer, cursor: Cursor) -> None:
    """Write a checkpoint locally and hand it to Ray Train, which stores it before it counts."""
    name = checkpoint_name(pretrainer.step_number)
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / name
        checkpoint.save(path, pretrainer, cursor=cursor.to_dict())
        report |= {f"validation/{name}": value for name, value in report["validation"].items()}  # what `keep_by` names
        ray.train.report(report, checkpoint=Checkpoint.from_directory(path), checkpoint_dir_name=name)
