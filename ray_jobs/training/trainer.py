"""The TorchTrainer around a Pretrainer: resources, time limits, and what is done about each kind of failure."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, PreemptionError, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as TrainRunConfig

from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.preflight import within
from ray_jobs.run_config import PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import metric_history
from ray_jobs.training import failures, far_folder, ray_internals, run_metrics
from ray_jobs.training import node_refresh as known_nodes
from ray_jobs.training import worker as train_worker
from ray_jobs.training.failures import Failure, RunFailedError
from ray_jobs.training.worker import COLLECTIVES_LATER_S, Attempt

# How often the controller looks at its workers, and for notices; Ray's own defaults are 2 and 5 s.
_CONTROLLER_LOOKS_EVERY_S, _NOTICES_EVERY_S = "0.5", "1"
# How long workers may take to come up on a busy machine. Where fewer would do, less: Ray may still count what a node
# had that hangs (one that is gone is waited for before), and tries with what is left only after this.
_WORKERS_START_WITHIN_S, _FEWER_AFTER_S = "300", "90"
_RECORDED_OPERATIONS = "2000"  # of NCCL's flight recorder; a step has some 30


def fit(
    job: PretrainJob,
    folder: RunFolder,
    total_steps: int,
    identity: Mapping[str, Any],
    train: Callable[[Attempt], None] = train_worker.train,
    step_bytes: int = 0,
) -> None:
    """Train until `total_steps`, from the newest checkpoint in the run's store if there is one.

    Failures that may pass (a worker, the controller, a node) are followed by another attempt, `run.max_failures` times;
    Ray's own retries are not used, for they repeat a deterministic error as well and do not cover the controller.
    A node that is taken away with a notice does not count, if a step was made since the last that did not.

    Args:
        train: What each worker runs.
        step_bytes: What a training step takes of a device, as far as it is known.

    Raises:
        RunFailedError: one line with rank, step and cause; the last good checkpoint stays.
    """
    failed, announced_at = 0, -1
    for restarts in itertools.count():
        run_metrics.tell(job.run.name, restarts=restarts)
        earlier, attempt = folder.last_attempt(), folder.begin_attempt()
        try:
            _make_room(job.run, earlier)
            with far_folder.home(folder, job.run) as home:
                _fit_once(job, Attempt(job, str(folder.path), total_steps, attempt, identity, step_bytes, home), train)
            if total_steps not in _stored(folder.store(job.run)):
                raise RunFailedError(f"the workers ended after step {last_step(folder)} of {total_steps}")
            failures.forget_beginnings(folder.failures)
            return
        except (TrainingFailedError, RayError) as error:
            found, at = failures.read(folder.failures, attempt), last_step(folder)
            recorded = {failure.rank for failure in found}
            others = failures.handed_over(error, attempt, job.run.workers, at)
            found = failures.most_telling([*found, *(other for other in others if other.rank not in recorded)])
            what = failures.describe(found, error, at)
            if found and found[0].fatal:
                raise RunFailedError(what) from error
            ended = "a node was taken away, as announced"
            if _was_announced(error, found) and at > announced_at:
                announced_at = at
            else:
                failed += 1
                most = job.run.max_failures
                if 0 <= most < failed:
                    told = f"{what}. Giving up after {failed} failures (run.max_failures={most})"
                    raise RunFailedError(told) from error
                ended = f"failure {failed}" + ("" if most < 0 else f" of {most}")
            print(f"{ended}: {what}; going on from the newest checkpoint", flush=True)
        ray_internals.release_orphaned_placement_groups()


def _stored(store: CheckpointStore) -> list[int]:
    return store.steps() if store.is_local else within("run.storage", store.location, "read", store.steps)


def _make_room(run: RunConfig, earlier: str | None) -> None:
    """Before an attempt: release what an earlier one still holds, and refresh the node list."""
    if earlier:
        ray_internals.cancel_reservation(earlier)
    if run.min_workers is not None:
        known_nodes.bring_up_to_date()


def _was_announced(error: Exception, found: Sequence[Failure]) -> bool:
    """Whether an attempt ended because a node was preempted after a notice, whoever noticed first: Ray Train, or a rank
    that lost its connection."""
    deaths = getattr(error, "worker_failures", {}).values()
    announced = isinstance(error, PreemptionError) or any(getattr(death, "preempted", False) for death in deaths)
    return announced or bool(found and found[0].was_announced)


def last_step(folder: RunFolder) -> int:
    """The last step that was journalled."""
    curve = metric_history(folder.journal).get("loss", []) if folder.journal.exists() else []
    return curve[-1][0] if curve else 0


def _fit_once(job: PretrainJob, attempt: Attempt, train: Callable[[Attempt], None]) -> None:
    run = job.run
    # Ray Train keeps nothing that is needed later: checkpoints and records are the run's own.
    with tempfile.TemporaryDirectory(prefix="ray-train-") as own_state, _limits(run):
        ray_internals.Trainer(
            attempt.name,
            functools.partial(train, attempt),
            torch_config=ray_internals.OwnAddressConfig(timeout_s=int(run.stall_timeout_s + COLLECTIVES_LATER_S)),
            scaling_config=ScalingConfig(
                num_workers=run.workers if run.min_workers is None else (run.min_workers, run.workers),
                use_gpu=run.gpu,
                resources_per_worker={"CPU": run.cpus_per_worker} | ({"GPU": 1} if run.gpu else {}),
            ),
            run_config=TrainRunConfig(
                name=attempt.name,
                storage_path=own_state,
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
                logging_config=LoggingConfig(log_level="CRITICAL"),  # traces are in failures.jsonl, progress is ours
                worker_runtime_env={"env_vars": nccl_environment(run, attempt.folder)} if run.gpu else None,
            ),
        ).fit()


def nccl_environment(run: RunConfig, folder: str) -> dict[str, str]:
    """NCCL settings of the workers: a rank whose collective ends by its time limit leaves its last operations in the
    run's folder (`nccl-rank-0` and so on, for `torchfrtrace`), and its watchdog has the same limit. What the user
    has set for the job holds."""
    wanted = {
        "TORCH_FR_BUFFER_SIZE": _RECORDED_OPERATIONS,
        "TORCH_FR_DUMP_TEMP_FILE": f"{folder}/nccl-rank-",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(int(run.stall_timeout_s + COLLECTIVES_LATER_S)),
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


@contextlib.contextmanager
def _limits(run: RunConfig) -> Iterator[None]:
    """Ray Train takes its time limits from the driver's environment only; what the user has set there holds."""
    wanted = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _CONTROLLER_LOOKS_EVERY_S,
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": _NOTICES_EVERY_S,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": _WORKERS_START_WITHIN_S
        if run.min_workers is None
        else _FEWER_AFTER_S,
        # A worker that is stopped, or whose machine hangs, can't give itself up.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(run.stall_timeout_s + COLLECTIVES_LATER_S),
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(run.stall_timeout_s + COLLECTIVES_LATER_S),
    }
    made = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(made)
    try:
        yield
    finally:
        for name in made:
            os.environ.pop(name, None)
