"""Pretraining on feature shards, tracked and resumable: what `ray_jobs.pretrain` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from conclugen import PretrainConfig, Pretrainer, export, reach
from conclugen.beside_raw import BesideRaw
from conclugen.common.ending import resumable
from conclugen.common.locks import bytes_in, check_room, folder_held
from conclugen.common.options import to_plain
from conclugen.common.revision import running_revision
from conclugen.common.screen import doing
from conclugen.evaluation.features import fuse
from conclugen.training.checkpoint import Checkpoint
from conclugen.training.model import Model
from ray_jobs import preflight, ray_cluster
from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.mixture import WEIGHTS, AnySource, Mixture, open_source, refuse_other_history, weights_differ_from
from ray_jobs.preflight import check_storage, check_tracking, within
from ray_jobs.provenance import stamp_of
from ray_jobs.run_config import PretrainJob, gpu_lines
from ray_jobs.run_folder import RunFolder
from ray_jobs.source import held_out_view, open_reader
from ray_jobs.tracking import model_artifact
from ray_jobs.tracking.described import standard_tags
from ray_jobs.tracking.destination import remember, uri_of_run
from ray_jobs.tracking.journal import Journal, metric_history
from ray_jobs.tracking.journal_sender import refused
from ray_jobs.tracking.mlflow_sink import MlflowSink
from ray_jobs.training import trainer
from ray_jobs.training import worker as train_worker
from ray_jobs.training.progress import ProgressPrinter
from ray_jobs.training.validation import check_validation, open_validation, spread_rows
from ray_jobs.training.worker import Attempt
from shards import View
from shards.output_folder import describe_differences

# Rows over which the scales of `concat+raw` are fitted, at most, and how many are embedded at once.
_SCALED_ROWS, _BLOCK_ROWS = 8192, 2048
_SLOWEST_BYTES_PER_S = 2**20  # of a store that still counts as answering


@dataclass(frozen=True)
class PretrainResult:
    """What a finished run left: its folder, its exported model, its last step, and how to find it in MLflow.

    refused: what MLflow has refused permanently, one line each; unsent: whether it lacks something that can yet be
    sent.
    """

    folder: RunFolder
    model: Path
    step: int
    tracking_uri: str
    mlflow_run_id: str | None
    refused: tuple[str, ...] = ()
    unsent: bool = False


def pretrain(job: PretrainJob, train: Callable[[Attempt], None] | None = None) -> PretrainResult:
    """See `ray_jobs.pretrain.pretrain`."""
    if job.run.commit is None:
        job = replace(job, run=replace(job.run, commit=running_revision()))
    source = open_source(job.data, job.pretrain)
    source.check()
    total_steps = source.plan.start_of_epoch(job.pretrain.epochs)
    check_validation(source, job.pretrain, job.run.keep_by)
    folder = RunFolder(job.run.output_folder / job.run.name)
    identity = job.pretrain.identity() | source.identity()
    folder.belongs(identity, changing=(WEIGHTS,))  # refused before anything is written
    with folder_held(folder.path, "the run is being trained", "another run.name", field="--output", keep=True):
        return _pretrain(job, source, folder, identity, total_steps, train or train_worker.train)


def _pretrain(
    job: PretrainJob,
    source: AnySource,
    folder: RunFolder,
    identity: dict[str, Any],
    total_steps: int,
    train: Callable[[Attempt], None],
) -> PretrainResult:
    uri = uri_of_run(folder.path, job.run.tracking_uri)
    check_tracking(uri, job.run.experiment, job.run.registered_model)
    store = folder.store(job.run)
    each = checkpoint_bytes(job.pretrain, source)
    before = folder.identity() if folder.belongs(identity, changing=(WEIGHTS,)) else identity
    reached = reached_step(store, identity, each)
    refuse_other_history(before, identity, 0)  # also where no checkpoint is left
    if reached > total_steps:
        raise ValueError(
            f"run {folder.name} is already at step {reached}, but pretrain.epochs={job.pretrain.epochs} ends at step "
            f"{total_steps}: its model comes from a longer run; give at least as many epochs, or another run.name"
        )
    if reached < total_steps and not store.is_local:
        check_storage("run.storage", store.location)
    elif reached < total_steps:
        what = "run.storage" if job.run.storage else "run.output"
        least = 2 * each - bytes_in(store.location)
        check_room(what, store.location, least, "two checkpoints")
    moments = None
    if job.pretrain.model.standardize and not folder.standardization.is_file():
        # Before the name is taken: it stays free where the data turns out to be damaged.
        moments = source.moments()
    resumed = folder.acquire(identity, changing=(WEIGHTS,))
    folder.save_config(job)
    if moments is not None:
        folder.save_standardization(moments)

    remember(folder.path, uri)
    journal = Journal(folder.journal, experiment=job.run.experiment, name=job.run.name, parent=job.run.parent_run_id)
    with (
        journal,
        MlflowSink(folder.journal, uri) as sink,
        _tensorboard(job, folder),
        resumable(lambda: progress(journal, folder, job, total_steps)),
        journal.running(),
    ):
        begun = journal.position
        journal.params(to_plain(job))
        journal.tags(tags(job, source))
        journal.inputs(source.inputs())
        journal.artifact(folder.config)
        begins = f"resuming after step {reached} of" if resumed or reached else "starting"
        size = f"{total_steps} steps, {job.run.workers} worker(s){source.describe()}"
        print(f"{begins} run {job.run.name}: {size}", flush=True)
        if (changed := weights_differ_from(before, identity)) is not None:
            print(f"weights of corpora are others than the run began with, from step {changed} on", flush=True)
        for line in gpu_lines(job):
            print(line, flush=True)
        if reached < total_steps:
            run = job.run
            ray_cluster.connect(run.workers, run.cpus_per_worker)
            waits = ray_cluster.check_places(run.workers, run.cpus_per_worker, run.gpu, run.min_workers, ray.nodes())
            if waits is not None:
                print(waits, flush=True)
            step_bytes = _predicted_step_bytes(job, source)
            with ProgressPrinter(folder.journal, total_steps), doing("pretraining"):
                trainer.fit(job, folder, total_steps, identity, train, step_bytes)
        step = export_model(job.pretrain, source, store, folder)
        validation = open_validation(source, job.pretrain)
        chances = {} if validation is None else validation.chances()
        for picture in plot_history(folder, chances, stamp_of(source.model_info())):
            journal.artifact(picture, target="plots")
        journal.model(
            model_artifact.build(folder.model, folder.path / "mlflow_model"),
            registered_name=job.run.registered_model,
        )
    not_taken = tuple(refused(folder.journal, begun))
    return PretrainResult(folder, folder.model, step, uri, sink.run_id, not_taken, not sink.complete)


def _predicted_step_bytes(job: PretrainJob, source: AnySource) -> int:
    """Say what a step is estimated to take on GPUs; returns the bytes that it takes of one, 0 without GPUs."""
    if not job.run.gpu:
        return 0
    from ray_jobs.training.forecast import forecast  # torch's tracing takes as long to import as torch

    found = forecast(job, source.reader.widths, ray.nodes())
    for line in found.lines:
        print(line, flush=True)
    return found.step_bytes


def _tensorboard(job: PretrainJob, folder: RunFolder) -> AbstractContextManager[object]:
    if not job.run.tensorboard:
        return nullcontext()
    from ray_jobs.tracking.tensorboard_sink import TensorboardSink

    return TensorboardSink(folder.journal, folder.tensorboard)


def checkpoint_bytes(config: PretrainConfig, source: AnySource) -> int:
    """What a checkpoint takes at least: parameters, and two moments of each that is trained."""
    widths = source.reader.widths
    with torch.device("meta"):
        model = Model(config, {m: int(widths[m]) for m in config.required_modalities})
    size = 8 if config.precision == "float64" else 4
    return size * sum((3 if p.requires_grad else 1) * p.numel() for p in model.parameters())


def newest(store: CheckpointStore, size: int) -> Checkpoint | None:
    """The newest checkpoint, each of about `size` bytes, or None without one.

    A store elsewhere has seconds to list them, and then the time that they take over a slow line. Raises OSError where
    it refuses or does not answer.
    """
    if store.is_local:
        return store.newest()
    steps = within("run.storage", store.location, "read", store.steps)
    return within(
        "run.storage",
        store.location,
        "read",
        store.newest,
        preflight.STORED_WITHIN_S + (1 + len(steps)) * size / _SLOWEST_BYTES_PER_S,
    )


def reached_step(store: CheckpointStore, identity: dict[str, Any], size: int) -> int:
    """The step of the run's newest checkpoint, 0 without one. Raises ValueError where it is a checkpoint of
    another run, OSError where the store cannot be read."""
    found = newest(store, size)
    if found is None:
        return 0
    step, there = int(found.meta["step_number"]), found.extra.get("identity", {})
    if differing := describe_differences(*({**one, WEIGHTS: None} for one in (there, identity))):
        raise ValueError(f"{store.location}: holds checkpoints of another run, which differs in {differing}")
    refuse_other_history(there, identity, step)
    return step


def progress(journal: Journal, folder: RunFolder, job: PretrainJob, total_steps: int) -> str:
    """Of an interrupted run: what is kept. The journal has read all steps when it took the status; to read them once
    more would take too long at the end of a long run."""
    made = f"run {folder.name}: {max(journal.mark(), 0)} of {total_steps} steps were made"
    store = folder.store(job.run)
    if store.is_local:  # a store elsewhere may be what does not answer
        kept = max(store.steps(), default=0)
        made += f", the newest checkpoint is of step {kept}" if kept else ", and no checkpoint yet"
    return f"{made}; the same command resumes there"


def tags(job: PretrainJob, source: AnySource) -> dict[str, str]:
    """What a run is found by in MLflow."""
    return {
        "preset": job.pretrain.preset,
        "recipe": job.pretrain.recipe,
        "tasks": " ".join(job.pretrain.tasks.active),
        "modalities": " ".join(job.pretrain.modalities),
        "seed": str(job.pretrain.seed),
        **source.tags(),
        **standard_tags("pretraining", description(job, source), job.run.commit),
    }


def description(job: PretrainJob, source: AnySource) -> str:
    """What MLflow shows above the run's numbers."""
    config = job.pretrain
    data = ", ".join(f"{each['name']} ({each['rows']} rows)" for each in source.inputs())
    lines = [
        f"Pretraining on {data}: {' + '.join(config.tasks.active)} over {', '.join(config.modalities)}, "
        f"recipe {config.recipe}, {config.epochs} epochs of batches of {config.global_batch}, seed {config.seed}.",
        "`validation/` is of held-out rows, `evaluation/` of a probe on them; its details (classes, draws) are in the "
        "tables among the artifacts.",
        stamp_of(source.model_info()),
    ]
    return "\n\n".join(filter(None, lines))


def export_model(config: PretrainConfig, source: AnySource, store: CheckpointStore, folder: RunFolder) -> int:
    """Write the model of the newest checkpoint for use elsewhere; returns its step."""
    state = newest(store, checkpoint_bytes(config, source))
    if state is None:
        raise ValueError(f"{folder.path}: the run ended without a whole checkpoint; run it again under the same name")
    pretrainer = Pretrainer(
        config,
        widths=source.reader.widths,
        steps_per_epoch=source.steps_per_epoch,
        standardization=folder.load_standardization(),
    )
    state.restore(pretrainer)
    info = source.model_info() | {"reach": reach_of(folder, source)}
    export.save(folder.model, pretrainer, info, beside_raw(pretrainer, source))
    return pretrainer.step_number


def reach_of(folder: RunFolder, source: AnySource) -> dict[str, list[float]]:
    """How far rows that were held out lie from what is learned (`conclugen.reach`); of data without a held-out view,
    and of a mixture, rows of the training view. Nothing of a model that does not standardise."""
    moments = folder.load_standardization()
    if moments is None:
        return {}
    if isinstance(source, Mixture):
        moments = {m: moments[m] for m in source.reader.modalities if m in moments}  # not those of single corpora
        rows = spread_rows(source.reader, _SCALED_ROWS)
    else:
        held_out, modalities = held_out_view(source.data, source.manifest), tuple(moments)
        view = source.view if held_out is None else View.open(source.manifest, held_out)
        rows = spread_rows(open_reader(source.data, source.manifest, view, modalities, ()), _SCALED_ROWS)
    missing = {m: np.where(rows.present[m][:, None], rows.features[m], np.nan) for m in moments}
    return reach.fit(reach.distances(missing, moments))


def beside_raw(pretrainer: Pretrainer, source: AnySource) -> BesideRaw:
    """Scales of `concat+raw` over training rows, spread over the view."""
    modalities = pretrainer.config.modalities
    rows = spread_rows(source.reader, _SCALED_ROWS)
    blocks = [pretrainer.embed(rows.part(at, at + _BLOCK_ROWS)) for at in range(0, len(rows), _BLOCK_ROWS)]
    whole = {m: np.concatenate([block[m].cpu().numpy() for block in blocks]) for m in modalities}
    fused, usable = fuse(whole, "concat", rows.present)
    features = {m: rows.features[m][usable] for m in modalities}
    return BesideRaw.fit(fused[usable], features, {m: rows.present[m][usable] for m in modalities})


def plot_history(folder: RunFolder, chances: Mapping[str, float], stamp: str) -> list[Path]:
    """Losses and health of the whole run, from its journal; the files. chances: of validation's measures; stamp: what
    the pictures say at their foot."""
    from ray_jobs import figure_style, plots  # matplotlib: not before the run is over
    from ray_jobs.training.health_panels import health_panels

    history = metric_history(folder.journal)
    losses = {name: curve for name, curve in history.items() if name == "loss" or name.startswith("loss/")}
    health = {
        name.removeprefix("validation/"): curve for name, curve in history.items() if name.startswith("validation/")
    }
    drawn = []
    if losses:
        by_task: dict[str, dict[str, Any]] = {}
        for name, curve in losses.items():  # `loss/TASK`, of a mixture also `loss/TASK/CORPUS`
            task, _, corpus = name.removeprefix("loss/").partition("/")
            by_task.setdefault(task, {})[corpus or "all rows"] = curve
        panels = [plots.Panel(task if task == "loss" else f"loss of {task}", own) for task, own in by_task.items()]
        with figure_style.stamped(stamp):
            drawn.append(plots.panels(panels, folder.plots / "losses.png"))
    if shown := health_panels(health, chances):
        with figure_style.stamped(stamp):
            drawn.append(plots.panels(shown, folder.plots / "health.png"))
    return [path for picture in drawn for path in figure_style.files_of(picture)]
