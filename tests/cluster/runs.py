"""Small pretraining jobs for tests, and a driver that runs one in a process of its own."""

import sys
from pathlib import Path
from typing import Any

from conclugen import presets
from ray_jobs.pretrain import pretrain
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig


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


if __name__ == "__main__":
    pretrain(small_job(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], workers=int(sys.argv[4])))
