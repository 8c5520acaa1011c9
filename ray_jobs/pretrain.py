"""Job: pretrain on feature shards, tracked and resumable. `python -m ray_jobs.pretrain --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conclugen import Pretrainer, export
from ray_jobs import configuration, plots, ray_cluster, trainer
from ray_jobs.progress import ProgressPrinter
from ray_jobs.run_config import PretrainJob
from ray_jobs.run_folder import RunFolder
from ray_jobs.source import Source
from ray_jobs.tracking import model_artifact
from ray_jobs.tracking.journal import Journal, metric_history
from ray_jobs.tracking.mlflow_environment import default_tracking_uri
from ray_jobs.tracking.mlflow_sink import MlflowSink
from shards.stats import column_moments


@dataclass(frozen=True)
class PretrainResult:
    """Where a finished run stands: its folder, its exported model, its last step, and how to find it in MLflow."""

    folder: RunFolder
    model: Path
    step: int
    tracking_uri: str
    mlflow_run_id: str | None


def pretrain(job: PretrainJob) -> PretrainResult:
    """Run or resume a pretraining run to its end.

    Raises:
        ValueError: input or configuration that cannot work, found before any worker starts.
        ray.train.TrainingFailedError: the workers failed more often than `run.max_failures`; checkpoints stay.
    """
    config = job.pretrain
    source = Source.open(job.data, config)
    total_steps = source.plan.start_of_epoch(config.epochs)

    folder = RunFolder(job.run.output_folder / job.run.name)
    identity = config.identity() | source.identity()
    resumed = folder.belongs(identity)
    moments = None
    if config.model.standardize and not folder.standardization.is_file():
        # Before the name is taken: it stays free where the data turns out to be damaged.
        moments = column_moments(source.reader, source.view, job.data.standardization_rows, config.seed)
    folder.claim(identity)
    configuration.save(job, folder.config)
    if moments is not None:
        folder.save_standardization(moments)

    uri = job.run.tracking_uri or default_tracking_uri(job.run.output_folder)
    journal = Journal(folder.journal, experiment=job.run.experiment, name=job.run.name, parent=job.run.parent_run_id)
    with journal, MlflowSink(folder.journal, uri) as sink:
        journal.status("RUNNING")
        journal.params(configuration.to_plain(job))
        journal.tags(tags(job, source))
        journal.artifact(folder.config)
        begins = "resuming" if resumed else "starting"
        print(f"{begins} run {job.run.name}: {total_steps} steps, {job.run.workers} worker(s)", flush=True)
        try:
            ray_cluster.connect(job.run.workers, job.run.cpus_per_worker)
            with ProgressPrinter(folder.journal, total_steps):
                trainer.fit(job, folder, total_steps)
            step = export_model(job, source, folder)
            for picture in plot_history(folder):
                journal.artifact(picture, target="plots")
            journal.model(
                model_artifact.build(folder.model, folder.path / "mlflow_model"),
                registered_name=job.run.registered_model,
            )
            journal.status("FINISHED")
        except BaseException:
            journal.status("FAILED")
            raise
    return PretrainResult(folder, folder.model, step, uri, sink.run_id)


def tags(job: PretrainJob, source: Source) -> dict[str, str]:
    """What a run is found by in MLflow."""
    return {
        "preset": job.pretrain.preset,
        "recipe": job.pretrain.recipe,
        "tasks": " ".join(job.pretrain.tasks.active),
        "modalities": " ".join(job.pretrain.modalities),
        "seed": str(job.pretrain.seed),
        "dataset": Path(job.data.folder).name,
        "manifest_digest": source.manifest.digest,
        "view_digest": source.view.digest,
        "commit": job.run.commit or "unknown",
    }


def export_model(job: PretrainJob, source: Source, folder: RunFolder) -> int:
    """Write the model of the newest checkpoint for use elsewhere; returns its step."""
    found = folder.newest_checkpoint()
    if found is None:
        raise ValueError(f"{folder.path}: the run ended without a whole checkpoint; run it again under the same name")
    _, state = found
    pretrainer = Pretrainer(
        job.pretrain,
        widths=source.reader.widths,
        steps_per_epoch=source.steps_per_epoch,
        standardization=folder.load_standardization(),
    )
    state.restore(pretrainer)
    export.save(
        folder.model, pretrainer, {"data": source.identity(), "modalities": source.identity()["data.modalities"]}
    )
    return pretrainer.step_number


def plot_history(folder: RunFolder) -> list[Path]:
    """Loss and health curves of the whole run, from its journal."""
    folder.plots.mkdir(exist_ok=True)
    history = metric_history(folder.journal)
    losses = {name: curve for name, curve in history.items() if name == "loss" or name.startswith("loss/")}
    health = {name: curve for name, curve in history.items() if name.startswith("validation/")}
    pictures = []
    for name, curves in (("losses.png", losses), ("health.png", health)):
        if curves:
            plots.curves(curves, folder.plots / name)
            pictures.append(folder.plots / name)
    return pictures


def main(argv: Sequence[str] | None = None) -> int:
    job = configuration.parse(PretrainJob, argv, description=__doc__)
    try:
        result = pretrain(job)
    except (ValueError, FileNotFoundError) as error:
        # Input or configuration that can't work; anything else is a fault, and shows its trace.
        print(f"error: {error}", file=sys.stderr)
        return 1
    damaged = result.folder.quarantined()
    if damaged:
        print(f"\n{len(damaged)} damaged sample(s) were left out, listed in {result.folder.path / 'quarantine'}")
    print(
        f"\nrun {result.folder.name}: {result.step} steps done"
        f"\n  model     {result.model}    (conclugen.load(path).embed(batch))"
        f"\n  plots     {result.folder.plots}"
        f"\n  MLflow    run {result.mlflow_run_id} in {result.tracking_uri}"
        f"\n  open it   mlflow ui --backend-store-uri {result.tracking_uri}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
