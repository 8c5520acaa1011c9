"""The trials of a sweep, run by Ray Tune: searcher, scheduler, resources, actors that are used again."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from conclugen.common import machine
from conclugen.common.revision import running_revision
from ray_jobs import ray_cluster
from ray_jobs.provenance import origins
from ray_jobs.source import data_set
from ray_jobs.tracking.journal import Journal
from shards import Manifest
from tuning.nested_runs import NestedRunsSink
from tuning.sweep import population
from tuning.sweep.distributed import DistributedTrialActor
from tuning.sweep.folder import TrialStore, trial_name
from tuning.sweep.job import SweepJob
from tuning.sweep.space import Space
from tuning.sweep.trial import TrialShared
from tuning.sweep.trial_actor import EPOCH, TrialActor, TrialPlan
from tuning.sweep.tune_callback import StoreSearcher, TrialCallback, as_config

# Tune writes its own view of the experiment, a log for each trial and more; the sweep's own files are what counts.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # With its own handler an interrupt would look like the end of the search; `conclugen.common.ending` has it.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


_DRIVER_CPUS = 0.01


@dataclass(frozen=True)
class Prepared:
    """Everything that can be refused, checked and read before Ray starts."""

    job: SweepJob
    space: Space
    manifest: Manifest
    shared: TrialShared
    identity: dict[str, Any]
    mode: str


def run(ready: Prepared, store: TrialStore, journal: Journal, sink: NestedRunsSink) -> TrialCallback:
    """Give all trials that are left to Ray Tune."""
    from ray import tune

    job = ready.job
    local = not ray.is_initialized() and not ray_cluster.joins()
    # With trainers in it, the dashboard's State API tells them which controllers have died.
    ray_cluster.connect(job.resources.workers, job.resources.cpus_per_worker, dashboard=job.resources.workers > 1)
    concurrent = concurrency(job, machine.cores() if local else None)
    plan = TrialPlan(
        folder=store.folder.path,
        space=ready.space,
        data=job.data,
        milestones=job.schedule.milestones(ready.space, job.scheduler),
        objective=job.objective,
        mode=ready.mode,
        experiment=job.experiment,
        parent=journal.identity.run_id,
        tags=shared_tags(ready),
        inputs=shared_inputs(ready),
        threads=job.resources.cpus_per_worker,
        checkpoint_every_s=job.schedule.checkpoint_every_s,
        resources=job.resources,
    )
    print(
        f"{'resuming' if store.resumed else 'starting'} sweep {job.name}: {store.left} of {store.trials} trials left, "
        f"{concurrent} at a time, reports at epochs {', '.join(map(str, plan.milestones))}",
        flush=True,
    )
    callback = TrialCallback(store, plan, journal, sink)
    members: dict[str, Any] = {}
    if job.scheduler == "pbt":  # Tune's population takes no searcher: its members are all there from the beginning
        proposals = [as_config(p, weighted=True)["proposal"] for p in iter(store.propose, None)]
        members = {"config": {"proposal": tune.grid_search(proposals)}, "num_samples": 1}
    else:
        members = {"search_alg": StoreSearcher(store), "num_samples": store.left, "max_concurrent_trials": concurrent}
    actor = TrialActor if job.resources.workers == 1 else DistributedTrialActor
    with callback.settled(), _tune_settings():
        tune.run(
            tune.with_parameters(actor, shared=ready.shared, plan=plan),
            name=store.folder.next_start(),
            storage_path=str(store.folder.tune),
            scheduler=_scheduler(ready),
            resources_per_trial=_resources(job),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=3),
            reuse_actors=True,
            max_failures=job.resources.max_failures,
            raise_on_failed_trial=False,
            verbose=0,
            callbacks=[callback],
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            **members,
        )
    return callback


def _scheduler(ready: Prepared) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    job, space = ready.job, ready.space
    if job.scheduler == "pbt":
        return population.scheduler(space, job.objective, ready.mode, job.schedule.exchange_epochs, job.search_seed)
    if job.scheduler == "none":
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr=EPOCH,
        metric=job.objective,
        mode=ready.mode,
        max_t=space.epochs,
        grace_period=job.schedule.grace(space),
        reduction_factor=job.schedule.reduction,
    )


def _resources(job: SweepJob) -> dict[str, float]:
    """What Tune reserves for a trial; the workers of a trainer reserve theirs themselves."""
    if job.resources.workers > 1:
        return {"CPU": _DRIVER_CPUS}
    return {"CPU": job.resources.cpus_per_worker, "GPU": 1 if job.resources.gpu else 0}


def _name(trial: Any) -> str:
    return trial_name(trial.config["proposal"]["number"])


def concurrency(job: SweepJob, cores: int | None = None) -> int:
    """Trials that the cluster can run at a time.

    cores: of this machine, where Ray was started here with more logical CPUs than there are. Raises ValueError where
    not even one fits.
    """
    resources = ray.cluster_resources()
    each = job.resources.workers * job.resources.cpus_per_worker
    cpus = resources.get("CPU", 0.0) if cores is None else max(cores, each)
    fits = int(cpus // each)
    if job.resources.gpu:
        fits = min(fits, int(resources.get("GPU", 0.0) // job.resources.workers))
    if fits < 1:
        raise ValueError(
            f"resources: a trial needs {each} CPUs"
            + (f" and {job.resources.workers} GPUs" if job.resources.gpu else "")
            + f", the cluster has {resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}; ask for less"
        )
    return min(fits, job.resources.max_concurrent or fits)


def shared_tags(ready: Prepared) -> dict[str, str]:
    """MLflow tags that the sweep and its trials have in common."""
    data = {
        "dataset": Path(ready.job.data.folder).name,
        "manifest_digest": ready.manifest.digest,
        "view_digest": ready.identity["view"],
    }
    if ready.shared.corpora is not None:
        data = ready.shared.corpora.tags() | {"judged_on": str(ready.identity["judged_on"])}
    return {
        "sweep": ready.job.name,
        **data,
        "objective": ready.job.objective,
        **origins([ready.manifest.info]),
        "commit": ready.job.commit or running_revision(),
    }


def shared_inputs(ready: Prepared) -> list[dict[str, object]]:
    """The data sets that the sweep and its trials read, as MLflow lists them."""
    if ready.shared.corpora is not None:
        return ready.shared.corpora.inputs()
    return [data_set(str(ready.job.data.folder), str(ready.identity["view"]), int(ready.shared.counts.sum()))]


@contextlib.contextmanager
def _tune_settings() -> Iterator[None]:
    """Tune's switches are environment variables; those that the user has set are left alone."""
    made = [name for name in _TUNE_SETTINGS if name not in os.environ]
    os.environ.update({name: _TUNE_SETTINGS[name] for name in made})
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name in made:
            os.environ.pop(name, None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
