"""Small sweeps for tests, and trial actors that die or wait when they are told to."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from ray_jobs.run_config import DataConfig
from tuning.sweep.job import ResourceConfig, ScheduleConfig, SweepJob
from tuning.sweep.space import Range, Space, Weights
from tuning.sweep.sweep import sweep
from tuning.sweep.trial_actor import TrialActor


def small_space(**changes: Any) -> Space:
    """Trials of a second: six epochs of few steps."""
    settings: dict[str, Any] = {
        "modalities": ("video+audio",),
        "tasks": ("contrastive", "clustering+reconstruction", "contrastive+reconstruction"),
        "recipe": ("improved",),
        "weights": Weights(Range(0.1, 1.0), Range(0.1, 1.0), Range(0.1, 1.0)),
        "representation_dim": (8, 16),
        "projection_dim": (8,),
        "reconstruction_hidden_dim": (8,),
        "clusters": (4,),
        "queue_batches": (0,),
        "start_epoch": (0,),
        "cluster_mode": ("joint",),
        "lr": Range(1e-5, 1e-2),
        "global_batch": (60,),
        "epochs": 9,
    }
    return Space(**{**settings, **changes})


def fixed_space(**changes: Any) -> Space:
    """Nothing open but the weights."""
    one = {
        "tasks": ("contrastive+reconstruction",),
        "representation_dim": (16,),
        "temperature": Range(0.3, 0.3),
        "lr": Range(3e-3, 3e-3),
        "weight_decay": Range(1e-4, 1e-4),
    }
    return small_space(**{**one, **changes})


def small_sweep(shards: Path, output: Path, name: str, **changes: Any) -> SweepJob:
    settings: dict[str, Any] = {
        "space": small_space(),
        "trials": 12,
        "search": "random",
        "schedule": ScheduleConfig(checkpoint_every_s=0),
        "resources": ResourceConfig(max_concurrent=2),
    }
    data = DataConfig(folder=str(shards), label="emotion")
    return SweepJob(data=data, name=name, output=str(output), **{**settings, **changes})


class DyingActor(TrialActor):
    """Trial 1 takes its process with it after its second report, once."""

    def step(self) -> dict[str, Any]:
        marker = self._plan.folder / "has-died"
        if self.trial_name == "0001" and self._trial.epoch >= 3 and not marker.exists():
            marker.write_text(f"epoch {self._trial.epoch}, pid {os.getpid()}")
            os._exit(1)
        return super().step()


class FragileActor(TrialActor):
    """Trial 1 dies whenever it trains."""

    def step(self) -> dict[str, Any]:
        if self.trial_name == "0001":
            os._exit(1)
        return super().step()


class SlowActor(TrialActor):
    """Takes a while for each report, so that a test can come in between."""

    def step(self) -> dict[str, Any]:
        time.sleep(0.4)
        return super().step()


if __name__ == "__main__":
    from tuning.sweep import run

    run.TrialActor = SlowActor  # type: ignore[misc]
    sweep(small_sweep(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], search="tpe", trials=int(sys.argv[4])))
