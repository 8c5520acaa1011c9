"""Job: search task combinations, weights and sizes for the better representation. `python -m tuning.sweep --help`.

    python -m tuning.sweep --space laptop --data.folder data/mine --data.label emotion --trials 64 --name first

Started again under the same name after whatever stopped it, it goes on: trials that have ended are not run again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from conclugen.fields import nearest
from ray_jobs import configuration, ray_cluster
from ray_jobs.source import available_widths
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.mlflow_environment import check_tracking_uri, default_tracking_uri
from shards import Manifest
from tuning import objective as objectives
from tuning import population, sweep_results
from tuning.objective import Judge, direction
from tuning.search import GridSearch, proposer
from tuning.space import Space, names
from tuning.sweep_distributed import DistributedTrialActor
from tuning.sweep_folder import SweepBook, SweepFolder, trial_name
from tuning.sweep_job import DEFAULT_TRIALS, SweepJob, parse
from tuning.sweep_search import BookSearcher, Referee, as_config
from tuning.sweep_tracking import SweepSink
from tuning.sweep_trial import EPOCH, TrialActor, TrialPlan
from tuning.trial import SHARED_BYTES, TrialShared

# Tune writes its own view of the experiment, a log for each trial and more; the sweep's own files are what counts.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


_DRIVER_CPUS = 0.01


@dataclass(frozen=True)
class SweepResult:
    """A sweep that is through. best: number of the best trial, None where none reached a measurement."""

    folder: SweepFolder
    book: SweepBook
    best: int | None
    table: str
    costs: dict[str, float]
    tracking_uri: str
    mlflow_run_id: str | None


@dataclass(frozen=True)
class Prepared:
    """Everything that can be refused, checked and read before Ray starts."""

    job: SweepJob
    space: Space
    manifest: Manifest
    shared: TrialShared
    identity: dict[str, Any]
    mode: str


def prepare(job: SweepJob) -> Prepared:
    """Open the data and check the space, the objective, the schedule.

    Raises ValueError for whatever can't work, naming it and what to change; nothing has been written then.
    """
    manifest = Manifest.open(job.data.folder)
    space = job.space.resolve(available_widths(job.data, manifest))
    mode = direction(job.objective)
    used = tuple(dict.fromkeys(name for subset in space.modalities for name in names(subset)))
    if job.scheduler == "pbt":
        population.check_space(space)
    elif job.search == "grid":
        count(job, GridSearch(space))
    job.schedule.milestones(space, job.scheduler)
    judge = Judge.open(job.data, manifest, used, job.measure)
    judge.check_objective(job.objective, [len(names(subset)) for subset in space.modalities])
    if job.measure.fusion not in ("concat", "mean", *set.intersection(*(set(names(s)) for s in space.modalities))):
        known = ("concat", "mean", *used)
        raise ValueError(
            f"measure.fusion: {job.measure.fusion!r}{nearest(job.measure.fusion, known)}; expected concat, mean, or a "
            "modality that every trial has"
        )
    most = SHARED_BYTES if job.resources.workers == 1 else 0  # workers read the shards themselves
    shared = TrialShared.open(job.data, manifest, used, judge, space.seed, most)
    for batch in space.global_batch:
        shared.check_batch(batch)
    identity = objectives.identity(job.objective, job.data, manifest, job.measure)
    return Prepared(job, space, manifest, shared, identity, mode)


def sweep(job: SweepJob) -> SweepResult:
    """Run a sweep, or go on with it.

    Raises:
        ValueError: input or configuration that can't work, found before any trial starts; a folder of another sweep,
            or one that another process works in.
    """
    check_tracking_uri(job.tracking_uri or default_tracking_uri(job.output))
    ready = prepare(job)
    folder = SweepFolder(job.folder)
    folder.claim(identity(ready))
    folder.lock()
    try:
        return _locked(ready, folder)
    finally:
        folder.unlock()


def _locked(ready: Prepared, folder: SweepFolder) -> SweepResult:
    job, space = ready.job, ready.space
    configuration.save(job, folder.settings)
    source = proposer(
        "random" if job.scheduler == "pbt" else job.search, space, job.search_seed, ready.mode, folder.path
    )
    book = SweepBook(folder, space, source, count(job, source), job.objective, ready.identity)
    uri = job.tracking_uri or default_tracking_uri(folder.path.parent)
    journal = Journal(folder.journal, experiment=job.experiment, name=job.name)
    with journal:
        journal.status("RUNNING")
        journal.params(configuration.to_plain(job))
        journal.tags(sweep_tags(ready))
        sink = SweepSink(folder, uri)
        costs: dict[str, float] = {}
        try:
            if book.left:
                referee = _run(ready, book, journal, sink)
                costs = sweep_results.costs(referee.costs, time.monotonic() - referee.began)
                _save_schedule(ready, book, referee)
            written = sweep_results.write(book, job, ready.mode)
            for path in written:
                journal.artifact(path, target="plots" if path.suffix == ".png" else "")
            if costs:
                journal.metrics(len(book.outcomes), costs, series="cost")
            journal.status("FINISHED")
        except BaseException:
            journal.status("FAILED")
            raise
        finally:
            sink.close()
    order = book.ranking(ready.mode)
    text = sweep_results.table(book, ready.mode)
    return SweepResult(folder, book, order[0] if order else None, text, costs, uri, sink.run_id)


def _run(ready: Prepared, book: SweepBook, journal: Journal, sink: SweepSink) -> Referee:
    """Give all trials that are left to Ray Tune."""
    from ray import tune

    job = ready.job
    local = not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")
    ray_cluster.connect(job.resources.workers, job.resources.cpus_per_worker)
    concurrent = concurrency(job, os.cpu_count() or 1 if local else None)
    plan = TrialPlan(
        folder=book.folder.path,
        space=ready.space,
        data=job.data,
        milestones=job.schedule.milestones(ready.space, job.scheduler),
        objective=job.objective,
        mode=ready.mode,
        experiment=job.experiment,
        parent=journal.identity.run_id,
        tags=shared_tags(ready),
        threads=job.resources.cpus_per_worker,
        checkpoint_every_s=job.schedule.checkpoint_every_s,
        resources=job.resources,
    )
    print(
        f"{'resuming' if book.resumed else 'starting'} sweep {job.name}: {book.left} of {book.trials} trials to run, "
        f"{concurrent} at a time, reports at epochs {', '.join(map(str, plan.milestones))}",
        flush=True,
    )
    referee = Referee(book, plan, journal, sink)
    members: dict[str, Any] = {}
    if job.scheduler == "pbt":  # Tune's population takes no searcher: its members are all there from the beginning
        proposals = [as_config(p, weighted=True)["proposal"] for p in iter(book.propose, None)]
        members = {"config": {"proposal": tune.grid_search(proposals)}, "num_samples": 1}
    else:
        members = {"search_alg": BookSearcher(book), "num_samples": book.left, "max_concurrent_trials": concurrent}
    actor = TrialActor if job.resources.workers == 1 else DistributedTrialActor
    with _tune_settings():
        tune.run(
            tune.with_parameters(actor, shared=ready.shared, plan=plan),
            name=book.folder.next_start(),
            storage_path=str(book.folder.tune),
            scheduler=_scheduler(ready),
            resources_per_trial=_resources(job),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=3),
            reuse_actors=True,
            max_failures=job.resources.max_failures,
            raise_on_failed_trial=False,
            verbose=0,
            callbacks=[referee],
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            **members,
        )
    return referee


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


def count(job: SweepJob, source: Any) -> int:
    """How many trials the sweep has. Raises ValueError where a grid would be cut short."""
    if not isinstance(source, GridSearch):
        return job.trials or DEFAULT_TRIALS
    points = len(source.points)
    if job.trials is not None and job.trials < points:
        raise ValueError(
            f"trials: {job.trials}, but the grid of this space has {points} points: narrow the space, or its ranges' "
            f"`points`, or leave trials out"
        )
    return points


def identity(ready: Prepared) -> dict[str, Any]:
    """What makes a sweep the same sweep. The number of trials may grow."""
    job = ready.job
    schedule = (
        {"grace": job.schedule.grace(ready.space), "reduction": job.schedule.reduction}
        if job.scheduler == "asha"
        else {}
    )
    space = {f"space.{name}": value for name, value in configuration.to_plain(ready.space).items()}
    return {
        **space,
        **ready.identity,
        "search": job.search,
        "search_seed": job.search_seed,
        "scheduler": job.scheduler,
        **schedule,
    }


def shared_tags(ready: Prepared) -> dict[str, str]:
    """MLflow tags that the sweep and its trials have in common."""
    return {
        "sweep": ready.job.name,
        "dataset": Path(ready.job.data.folder).name,
        "manifest_digest": ready.manifest.digest,
        "view_digest": ready.identity["view"],
        "objective": ready.job.objective,
        "commit": ready.job.commit or "unknown",
    }


def sweep_tags(ready: Prepared) -> dict[str, str]:
    """MLflow tags of the sweep's own run."""
    space = ready.space
    return shared_tags(ready) | {
        "kind": "sweep",
        "search": ready.job.search,
        "scheduler": ready.job.scheduler,
        "tasks": " ".join(space.tasks),
        "modalities": " ".join(space.modalities),
        "seed": str(space.seed),
    }


def _save_schedule(ready: Prepared, book: SweepBook, referee: Referee) -> None:
    """Of a population: how the best one's weights came about."""
    order = book.ranking(ready.mode)
    if ready.job.scheduler == "pbt" and order and referee.schedules.get(order[0]):
        best = order[0]
        schedule = population.Schedule.of(book.config(best), referee.schedules[best], book.objective, book.value(best))
        schedule.save(book.folder.path / "schedule.json")


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


def main(argv: Sequence[str] | None = None) -> int:
    job = parse(argv, description=__doc__)
    try:
        result = sweep(job)
    except (ValueError, FileNotFoundError) as error:
        # Input or configuration that can't work; anything else is a fault, and shows its trace.
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{result.table}")
    print("  ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in result.costs.items()))
    print(
        f"\nsweep {job.name}: {len(result.book.outcomes)} trials ended"
        f"\n  table     {result.folder.table}"
        f"\n  best      python -m ray_jobs.pretrain --config {result.folder.best}"
        f"\n  plots     {result.folder.plots}"
        f"\n  MLflow    run {result.mlflow_run_id} in {result.tracking_uri}"
    )
    return 0 if result.best is not None else 1


if __name__ == "__main__":
    sys.exit(main())
