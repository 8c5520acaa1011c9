"""Job: pretrain on feature shards, tracked and resumable. `python -m ray_jobs.pretrain --help`."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from conclugen.common import uris
from conclugen.common.commands import tell_next
from conclugen.common.options import GOOD, PARTIAL, Command
from ray_jobs.run_config import DEFAULT_OUTPUT, PretrainJob, gpu_profile, preset_with
from ray_jobs.tracking.mlflow_environment import ui_command

if TYPE_CHECKING:
    from ray_jobs.training.pretraining import PretrainResult
    from ray_jobs.training.worker import Attempt
    from shards.errors import CorruptSample


def pretrain(job: PretrainJob, train: Callable[[Attempt], None] | None = None) -> PretrainResult:
    """Run or resume a pretraining run to its end. One job at a time: a second one under its name is refused.

    Args:
        train: What each worker runs; None: `ray_jobs.training.worker.train`.

    Raises:
        ValueError: input or configuration that cannot work, found before any worker starts.
        RunFailedError: training failed; one line with rank, step and cause. Checkpoints stay.
    """
    from ray_jobs.training import pretraining  # torch, Ray: not before a wrong option has been refused

    return pretraining.pretrain(job, train)


def run(job: PretrainJob) -> int:
    result = pretrain(job)
    corrupt = result.folder.quarantined()
    if corrupt:
        each = f" ({_by_corpus(corrupt)})" if job.data.sources else ""
        listed = result.folder.path / "quarantine"
        print(f"\n{len(corrupt)} corrupt sample(s) were left out{each}, listed in {listed}")
    print(
        f"\nrun {result.folder.name}: {result.step} steps done"
        f"\n  model     {result.model}    (conclugen.load(path).embed(batch))"
        f"\n  plots     {result.folder.plots}"
        f"\n  MLflow    run {result.mlflow_run_id} in {uris.public(result.tracking_uri)}"
        f"\n  open it   {ui_command(result.tracking_uri)}"
    )
    for line in result.refused:
        print(f"MLflow refused {line}")
    model = job.run.registered_model
    if model is not None and any(line.startswith("model:") for line in result.refused):
        print(f"the model was not registered as {model!r}; fix the cause, and the same command registers it")
    if result.unsent:
        print(f"not all of it reached MLflow; it is sent by: conclugen track {result.folder.path}")
    tell_next(_next(job))
    return PARTIAL if corrupt or result.refused or (result.unsent and model is not None) else GOOD


def _by_corpus(corrupt: Sequence[CorruptSample]) -> str:
    """How many of each corpus; `shards.reading.mixed_reader` names shards CORPUS/SHARD."""
    counts = Counter(sample.shard.partition("/")[0] for sample in corrupt)
    return ", ".join(f"{name} {counts[name]}" for name in sorted(counts))


def _next(job: PretrainJob) -> str:
    """How well a label is predicted, where there is one and a view to test on; else the embeddings. Of a mixture, of
    the corpus that has the most weight."""
    from shards import Manifest, View

    folder = job.data.folder
    if sources := job.data.sources:
        folder = sources[max(sorted(sources), key=lambda name: sources[name].weight or 0)].folder
    where = f"--run {job.run.name} --data {shlex.quote(folder)}"
    if job.run.output != DEFAULT_OUTPUT:
        where += f" --output {shlex.quote(job.run.output)}"
    with contextlib.suppress(OSError, ValueError):  # the run is finished, and no hint makes it fail
        manifest = Manifest.open(folder)
        label = job.data.label or next((label.name for label in manifest.labels), None)
        if label is not None and "test" in View.names(manifest):
            return f"evaluate --label {label} {where}"
    return f"embed {where}"


COMMAND = Command(
    "ray_jobs.pretrain",
    PretrainJob,
    run,
    short={
        "run": "run.name",
        "output": "run.output",
        "data": "data.folder",
        "preset": "pretrain.preset",
        "recipe": "pretrain.recipe",
        "modalities": "pretrain.modalities",
        "epochs": "pretrain.epochs",
        "batch": "pretrain.global_batch",
        "lr": "pretrain.optimizer.lr",
        "seed": "pretrain.seed",
        "workers": "run.workers",
        "gpu": "run.gpu",
        "view": "data.view",
        "label": "data.label",
        "tracking-uri": "run.tracking_uri",
    },
    shown=(
        *("data", "run", "output", "preset", "recipe", "modalities", "epochs", "batch", "lr", "seed", "workers", "gpu"),
        *("view", "label"),
    ),
    bare="data",
    built={"pretrain": preset_with},
    implied=gpu_profile,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
