"""The TorchTrainer around a Pretrainer: resources, storage, failures, checkpoints kept."""

from __future__ import annotations

import os

from ray.train import CheckpointConfig, FailureConfig, Result, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchTrainer

from ray_jobs.run_config import PretrainJob
from ray_jobs.run_folder import RunFolder
from ray_jobs.train_worker import train

# A checkpoint's report holds all workers until the controller's next look; Ray's own default is 2 s.
_CONTROLLER_LOOKS_EVERY_S = "0.2"


def fit(job: PretrainJob, folder: RunFolder, total_steps: int) -> Result:
    """Train until `total_steps`, from the newest checkpoint in `folder` if there is one.

    Ray Train returns the old result for a name that has finished, so its name carries the length: a longer run under
    the same `run.name` is another name to Ray Train, and starts from the checkpoints that the shorter one left.
    """
    run = job.run
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _CONTROLLER_LOOKS_EVERY_S)
    trainer = TorchTrainer(
        train,
        train_loop_config={"job": job, "folder": str(folder.path), "total_steps": total_steps},
        scaling_config=ScalingConfig(
            num_workers=run.workers,
            use_gpu=run.gpu,
            resources_per_worker={"CPU": run.cpus_per_worker} | ({"GPU": 1} if run.gpu else {}),
        ),
        run_config=TrainRunConfig(
            name=f"until-step-{total_steps:010d}",
            storage_path=str(folder.train),
            failure_config=FailureConfig(max_failures=run.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=run.keep_checkpoints, checkpoint_score_attribute=run.keep_by, checkpoint_score_order="max"
            ),
        ),
    )
    return trainer.fit()
