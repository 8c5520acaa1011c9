"""Small pretraining jobs for tests, and a driver that runs one in a process of its own."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from conclugen import presets
from ray_jobs import pretrain as pretrain_job
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from tests.cluster import trace
from tests.ray_of_tests import RAY_OF_TESTS


def small_job(shards: Path, output: Path, name: str, workers: int = 1, **pretraining: Any) -> PretrainJob:
    """Three tasks in float64 on the made-up corpus; 20 steps an epoch at most, a checkpoint every 7 steps."""
    settings: dict[str, Any] = {
        "global_batch": 60,
        "epochs": 3,
        "precision": "float64",
        "model": {"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 16},
        "tasks": {"clustering": {"clusters": 4, "queue_batches": 2, "start_epoch": 1}},
    }
    return PretrainJob(
        pretrain=presets.build("conclugen", **{**settings, **pretraining}),
        data=DataConfig(folder=str(shards)),
        run=RunConfig(
            name=name, output=str(output), workers=workers, checkpoint_every=7, report_every=1, max_failures=0
        ),
    )


def with_run(job: PretrainJob, **run: Any) -> PretrainJob:
    return replace(job, run=replace(job.run, **run))


def without_ray_of_the_test() -> dict[str, str]:
    """The environment for what starts a Ray of its own: of variables for Ray it has those of every test."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | RAY_OF_TESTS


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for argument in ("shards", "output", "name"):
        parser.add_argument(f"--{argument}", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--read-tasks", type=int, default=2)
    parser.add_argument("--payload", default="auto")
    parser.add_argument("--max-failures", type=int, default=0)
    parser.add_argument("--tracking-uri")
    given = parser.parse_args()
    job = small_job(Path(given.shards), Path(given.output), given.name, given.workers, epochs=given.epochs)
    job = replace(job, data=replace(job.data, read_tasks=given.read_tasks, payload=given.payload))
    pretrain_job.pretrain(with_run(job, max_failures=given.max_failures, tracking_uri=given.tracking_uri), trace.train)
