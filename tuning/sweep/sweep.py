"""Job: search task combinations, weights and sizes for the better representation. `python -m tuning.sweep --help`.

    python -m tuning.sweep --space laptop --data data/mine --label emotion --trials 64 --run first

Started again under the same name after whatever stopped it, it continues: trials that have ended are not run again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from conclugen.common import uris
from conclugen.common.commands import tell_next
from conclugen.common.ending import resumable
from conclugen.common.locks import folder_held
from conclugen.common.names import nearest
from conclugen.common.options import FAILED, GOOD, PARTIAL, save, to_plain
from conclugen.evaluation.config import ComparisonConfig
from ray_jobs import mixture
from ray_jobs.mixture import Corpora
from ray_jobs.preflight import check_tracking
from ray_jobs.run_config import DataConfig
from ray_jobs.source import available_widths, held_out_view
from ray_jobs.tracking.described import standard_tags
from ray_jobs.tracking.destination import remember, uri_of_run
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.standing import refusals
from shards import Manifest, View
from tuning.nested_runs import NestedRunsSink
from tuning.sweep import objective as objectives
from tuning.sweep import population, results
from tuning.sweep.folder import SCHEDULE, SweepFolder, TrialStore, trial_name
from tuning.sweep.job import DEFAULT_TRIALS, SweepJob
from tuning.sweep.objective import Judge, direction
from tuning.sweep.run import Prepared, run, shared_inputs, shared_tags
from tuning.sweep.search import GridSearch, searcher
from tuning.sweep.space import Space, names
from tuning.sweep.trial import SHARED_BYTES, TrialShared
from tuning.sweep.tune_callback import TrialCallback


@dataclass(frozen=True)
class SweepResult:
    """A sweep that is through. best: number of the best trial, None where none reached a measurement; not_run: of each
    kind of trial without a result, one line that says why and what to do; unsent: whether MLflow lacks something."""

    folder: SweepFolder
    store: TrialStore
    best: int | None
    table: str
    costs: dict[str, float]
    tracking_uri: str
    mlflow_run_id: str | None
    not_run: tuple[str, ...] = ()
    unsent: bool = False


def prepare(job: SweepJob) -> Prepared:
    """Open the data and check the space, the objective, the schedule.

    Raises ValueError for whatever can't work, naming it and what to change; nothing has been written then.
    """
    widths = mixture.available_widths(job.data) if job.data.sources else None
    judged_on = judged_corpus(job) if job.data.sources else None
    judged = job.data if judged_on is None else job.data.of_corpus(judged_on)
    manifest = Manifest.open(judged.folder)
    space = job.space.resolve(available_widths(judged, manifest) if widths is None else widths)
    mode = direction(job.objective)
    used = tuple(dict.fromkeys(name for subset in space.modalities for name in names(subset)))
    if job.scheduler == "pbt":
        population.check_space(space)
    elif job.search == "grid":
        count(job, GridSearch(space))
    job.schedule.milestones(space, job.scheduler)
    corpora = None
    if judged_on is None:
        judge = Judge.open(judged, manifest, used, job.measure)
    else:
        corpora = Corpora.open(job.data, used)
        refuse_without_modality(corpora, space.modalities)
        having = tuple(m for m in used if m in manifest.schema.resolve(judged.modalities))
        judge = Judge.open(judged, manifest, having, job.measure, partial(corpora.completed, judged_on))
    judge.check_objective(job.objective, [len(names(subset)) for subset in space.modalities])
    if job.measure.fusion not in ("concat", "mean", *set.intersection(*(set(names(s)) for s in space.modalities))):
        known = ("concat", "mean", *used)
        raise ValueError(
            f"measure.fusion: {job.measure.fusion!r}{nearest(job.measure.fusion, known)}; expected concat, mean, or a "
            "modality that every trial has"
        )
    most = SHARED_BYTES if job.resources.workers == 1 else 0  # workers read the shards themselves
    identity = objectives.identity(job.objective, judged, manifest, job.measure)
    if corpora is None:
        shared = TrialShared.open(job.data, manifest, used, judge, space.seed, most)
    else:
        shared = TrialShared.open_corpora(job.data, corpora, judge, space.seed, most)
        identity |= {"judged_on": judged_on, "corpora": corpora.identity() | weights_given(job)}
    for batch in space.global_batch:
        try:
            for data in heaviest(job, space):
                shared.check_batch(batch, data)
        except ValueError as error:
            where = f"view {job.data.view!r}: " if corpora is None else ""
            raise ValueError(f"space.global_batch: {batch}: {where}{error}") from error
    return Prepared(job, space, manifest, shared, identity, mode)


def judged_corpus(job: SweepJob) -> str:
    """The corpus of a mixture on which trials are judged. Raises ValueError where it must be named."""
    assert job.data.sources
    if job.judged_on is not None:
        return job.judged_on
    able = []
    for name, source in sorted(job.data.sources.items()):
        manifest = Manifest.open(source.folder)
        there = held_out_view(job.data.of_corpus(name), manifest) in View.names(manifest)
        if there and (job.data.label is None or job.data.label in [label.name for label in manifest.labels]):
            able.append(name)
    if len(able) != 1:
        what = "a validation view" + (f" and the label {job.data.label!r}" if job.data.label else "")
        raise ValueError(
            f"judged_on: missing, and corpora with {what} are: {', '.join(able) or 'none'}; name the one on which "
            "trials are judged"
        )
    return able[0]


def refuse_without_modality(corpora: Corpora, subsets: Sequence[str]) -> None:
    """Raise ValueError where trials of some modalities would see nothing of a corpus."""
    for subset in subsets:
        for corpus in corpora.corpora:
            if not set(names(subset)).intersection(corpus.reader.modalities):
                raise ValueError(
                    f"space.modalities: {subset}: corpus {corpus.name!r} has {', '.join(corpus.reader.modalities)}, "
                    "and a run would learn nothing of it; leave the subset out, or the corpus"
                )


def weights_given(job: SweepJob) -> dict[str, Any]:
    """The weights of corpora that are not searched, and later stages."""
    sources = (job.data.sources or {}).items()
    given = {
        name: {"weight": source.weight, "epochs": source.epochs}
        for name, source in sources
        if name not in job.space.corpora
    }
    return {"weights": given, "weights_from": job.data.weights_from}


def heaviest(job: SweepJob, space: Space) -> list[DataConfig]:
    """The data with each searched corpus at its largest share of all; the data itself where none is searched."""
    if not space.corpora:
        return [job.data]
    low = {name: within.low for name, within in space.corpora.items()}
    return [job.data.weighted(low)] + [
        job.data.weighted({**low, name: within.high}) for name, within in space.corpora.items()
    ]


def sweep(job: SweepJob) -> SweepResult:
    """Run a sweep, or continue it.

    Raises:
        ValueError: input or configuration that can't work, found before any trial starts; a folder of another sweep,
            or one that another process works in.
    """
    check_tracking(uri_of_run(job.folder, job.tracking_uri), job.experiment)
    ready = prepare(job)
    folder = SweepFolder(job.folder)
    folder.acquire(identity(ready))
    with folder_held(folder.path, "the sweep is being run", "another --run", field="--output", keep=True):
        return _locked(ready, folder)


def _locked(ready: Prepared, folder: SweepFolder) -> SweepResult:
    job, space = ready.job, ready.space
    save(job, folder.settings)
    source = searcher(
        "random" if job.scheduler == "pbt" else job.search, space, job.search_seed, ready.mode, folder.path
    )
    store = TrialStore(folder, space, source, count(job, source), job.objective, ready.identity)
    store.judge_beside(ready.shared.judge)
    if strongest := results.strongest_raw(store):
        print(f"strongest raw row: {strongest[0]}, {strongest[1]} {strongest[2]:.4f}", flush=True)
    uri = remember(folder.path, job.tracking_uri)
    journal = Journal(folder.journal, experiment=job.experiment, name=job.name)
    costs: dict[str, float] = {}
    whole = False
    with journal:
        journal.params(to_plain(job))
        journal.tags(sweep_tags(ready))
        journal.inputs(shared_inputs(ready))
        sink = NestedRunsSink(folder.path, folder.trials, uri)
        try:
            with resumable(lambda: _standing(store, job)), journal.running(lambda: len(store.died)):
                if store.left:
                    callback = run(ready, store, journal, sink)
                    costs = results.costs(callback.costs, time.monotonic() - callback.began)
                    _save_schedule(ready, store, callback)
                asked = ComparisonConfig(baselines=job.measure.baselines).wanted
                if ready.shared.judge.train is not None and "untrained" in asked:
                    for number in store.ranking(ready.mode)[:1]:
                        store.judge_untrained(number, ready.shared)
                written = results.write(store, job, ready.mode, not_run(store, job))
                for path in written:
                    journal.artifact(path, target="plots" if path.parent == folder.plots else "")
                if costs:
                    journal.metrics(len(store.outcomes), costs, series="cost")
        finally:
            whole = sink.close()
    order = store.ranking(ready.mode)
    text = results.table(store, ready.mode)
    best = order[0] if order else None
    return SweepResult(folder, store, best, text, costs, uri, sink.run_id, tuple(not_run(store, job)), not whole)


def _standing(store: TrialStore, job: SweepJob) -> str:
    ended = len(store.outcomes) - len(store.died)
    return f"sweep {job.name}: {ended} of {store.trials} trials have ended; the same command runs the rest"


def not_run(store: TrialStore, job: SweepJob) -> list[str]:
    """What a finished sweep has not run, as lines to print."""
    lines = []
    if store.died:
        numbers = ", ".join(map(trial_name, store.died[:10])) + (" ..." if len(store.died) > 10 else "")
        lines.append(
            f"{len(store.died)} trial(s) died, each with its reason in the ledger: {numbers}; the same command "
            "tries them again"
        )
    if store.left:
        lines.append(
            f"{store.left} of {store.trials} trials were not run: {job.search} found no configuration that the sweep "
            "does not have already; widen the space, or ask for fewer trials"
        )
    return lines


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
    # Sweeps of one folder are what they were before corpora could be searched.
    plain = {name: value for name, value in to_plain(ready.space).items() if name != "corpora" or value}
    space = {f"space.{name}": value for name, value in plain.items()}
    return {
        **space,
        **ready.identity,
        "search": job.search,
        "search_seed": job.search_seed,
        "scheduler": job.scheduler,
        **schedule,
    }


def sweep_tags(ready: Prepared) -> dict[str, str]:
    """MLflow tags of the sweep's own run."""
    space = ready.space
    description = (
        f"Sweep of {', '.join(space.tasks)} over {', '.join(space.modalities)} by {ready.job.objective}: a trial is a "
        "run below this one. The table and the pictures are among the artifacts; `conclugen report` says what mattered."
    )
    shared = shared_tags(ready)
    return (
        shared
        | standard_tags("sweep", description, shared["commit"])
        | {
            "search": ready.job.search,
            "scheduler": ready.job.scheduler,
            "tasks": " ".join(space.tasks),
            "modalities": " ".join(space.modalities),
            "seed": str(space.seed),
        }
    )


def _save_schedule(ready: Prepared, store: TrialStore, callback: TrialCallback) -> None:
    """Of a population: the schedule of the best member's weights."""
    order = store.ranking(ready.mode)
    if ready.job.scheduler == "pbt" and order and callback.schedules.get(order[0]):
        best = order[0]
        schedule = population.Schedule.of(
            store.config(best), callback.schedules[best], store.objective, store.value(best)
        )
        schedule.save(store.folder.path / SCHEDULE)


def run_job(job: SweepJob) -> int:
    result = sweep(job)
    print(f"\n{result.table}")
    print("  ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in result.costs.items()))
    best = f"conclugen pretrain --config {result.folder.best}"
    if (result.folder.path / SCHEDULE).is_file():  # its weights changed in training
        best = f"python -m tuning.sweep.replay {result.folder.path}"
    print(
        f"\nsweep {job.name}: {len(result.store.outcomes)} trials ended"
        f"\n  table     {result.folder.table}"
        f"\n  best      {best}"
        f"\n  plots     {result.folder.plots}"
        f"\n  MLflow    run {result.mlflow_run_id} in {uris.public(result.tracking_uri)}"
    )
    for line in result.not_run:
        print(line)
    for line in refusals(result.folder.path):
        print(line)
    if result.unsent:
        print(f"not all of it reached MLflow; it is sent by: conclugen track {result.folder.path}")
    if result.best is None:
        return FAILED
    tell_next(["report", str(result.folder.path)])
    return PARTIAL if result.store.died else GOOD
