"""What a job reads and where it writes: the parts of a job's configuration that are not the method's own.

The method's configuration is `conclugen.PretrainConfig`. Here are the data (identity of a run: its digests are
recorded with it) and the run itself (free: a run may be resumed with other values of these).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from conclugen import PretrainConfig, presets
from conclugen.common import paths, uris
from conclugen.common.names import check_corpus, did_you_mean
from conclugen.config import DEFAULT_PRESET, known_tasks
from conclugen.corpora import CorporaConfig
from ray_jobs.tracking.mlflow_environment import check_experiment, check_registered_name, check_tracking_uri

DEFAULT_OUTPUT = "outputs"
DEFAULT_RECIPE = "improved"
DEFAULT_VALIDATION_VIEW = "valid"
_LONGEST_NAME = 200  # bytes; a folder's name has 255, and files beside it are named after it


@dataclass(frozen=True)
class ShardsConfig:
    """Which shards a job reads, and which views of them.

    Attributes:
        folder: Folder (path or fsspec URL) that holds `manifest.parquet` and the shards.
        view: View to learn from; `everything` is every row.
        validation_view: Held-out view, on which pretraining measures its health and evaluation selects the fine-tuned
            head's epoch; None, or the default one where the data has none of its name: no such measure, and the epoch
            is selected on `view`.
        modalities: Composition of modalities from stored columns, e.g. `{"video": ["video_2d", "video_3d"]}`; None: the
            manifest's own.
        max_corrupt_share: Share of corrupt samples beyond which the job stops.
        split_unit: Column whose values have rows on one side of a split only: `group` (speakers, videos), `meta.NAME`,
            or `row`, every row by itself.
    """

    folder: str
    view: str = "train"
    validation_view: str | None = DEFAULT_VALIDATION_VIEW
    modalities: dict[str, tuple[str, ...]] | None = None
    max_corrupt_share: float = field(default=0.001, metadata={"was": "max_damaged_share"})
    split_unit: str = "group"

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", _placed("data.folder", self.folder))
        if not 0 <= self.max_corrupt_share <= 1:
            raise ValueError(f"data.max_corrupt_share: must be a share from 0 to 1, got {self.max_corrupt_share}")


@dataclass(frozen=True)
class SourceConfig:
    """One of several corpora that are mixed.

    Attributes:
        folder: Folder (path or fsspec URL) that holds `manifest.parquet` and the shards.
        view: View to learn from; `everything` is every row.
        validation_view: Held-out view, on which pretraining measures its health; None, or the default one where the
            corpus has none of its name: nothing is measured of this corpus.
        weight: Share of the rows of every batch, in proportion to the other corpora's.
        epochs: How often one epoch of the mixture passes through the corpus, which sets its weight by its size;
            without weight and epochs it is once.
        modalities: Composition of modalities from the corpus's own columns, e.g. `{"video": ["openface"]}`, whatever
            the others call theirs; None: its manifest's own. A modality of the run that is not there is missing.
        speaker: Column that says who speaks, `group` or `meta.NAME`.
        speakers: A name that corpora which share speakers have in common; None: equal names in two corpora are two
            speakers.
    """

    folder: str
    view: str = "train"
    validation_view: str | None = DEFAULT_VALIDATION_VIEW
    weight: float | None = None
    epochs: float | None = None
    modalities: dict[str, tuple[str, ...]] | None = None
    speaker: str = "group"
    speakers: str | None = None


@dataclass(frozen=True)
class DataConfig(ShardsConfig):
    """The shards of a training job, and how it reads them.

    Attributes:
        folder: Folder (path or fsspec URL) that holds `manifest.parquet` and the shards; empty with `sources`.
        label: Class label by which validation reports a quick nearest-neighbour accuracy, of each corpus that has it;
            None: label-free health only.
        remainder: What happens to the rows that do not fill an epoch's last global batch (`shards.EpochPlan`).
        chunk_rows: Consecutive rows read together; None: 1/16 of the global batch, at most 64.
        payload: `object_store`: Ray Data tasks read the bytes; `worker`: the plan travels through Ray Data and the
            training worker reads the bytes; `device`, `host`: all rows are read once at the start, onto each device or
            into memory that the workers of a node share, and a batch is one index; `auto`: on GPUs `device` or `host`
            where the rows fit, else `object_store`. Batches are the same bit for bit.
        rows_in: Of `device` and `host`: rows are kept as `stored`, or rounded to `float16`, in half the memory of
            float32.
        read_tasks: Ray Data tasks that read at once for each worker.
        prefetch: Batches that each worker has read ahead of the step.
        standardization_rows: Rows from which the input standardisation is fitted, at most.
        speaker: Column that says who speaks, `group` or `meta.NAME`: tasks whose negatives are of the same group take
            those of the same speaker.
        sources: Corpora that are mixed in the place of one folder, by name, e.g.
            `{vox: {folder: /data/vox, weight: 3}, own: {folder: /data/own, weight: 1}}` (docs/corpora.md).
        weights_from: Other weights from some step on, e.g. `{2000: {vox: 1, own: 1}}`; 0 leaves a corpus out.
    """

    folder: str = field(default="", metadata={"unless": "sources"})
    label: str | None = None
    remainder: Literal["drop", "pad", "carry"] = "drop"
    chunk_rows: int | None = None
    payload: Literal["auto", "object_store", "worker", "device", "host"] = "auto"
    rows_in: Literal["stored", "float16"] = "stored"
    read_tasks: int = 2
    prefetch: int = 2
    standardization_rows: int = 200_000
    speaker: str = "group"
    sources: dict[str, SourceConfig] | None = None
    weights_from: dict[str, dict[str, float]] | None = None

    def __post_init__(self) -> None:
        if not self.folder and not self.sources:
            raise ValueError("data.folder: missing; name a folder of shards, or several as data.sources")
        if self.sources:
            self._check_sources(self.sources)
        elif self.weights_from is not None:
            raise ValueError("data.weights_from: found weights, expected data.sources, whose weights they are")
        super().__post_init__()
        for name, least in (("standardization_rows", 2), ("chunk_rows", 1), ("read_tasks", 1), ("prefetch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"data.{name}: must be at least {least}, got {value}")
        if self.rows_in != "stored" and self.payload not in ("device", "host"):
            raise ValueError(
                f"data.rows_in: {self.rows_in} is of rows that are kept, and data.payload={self.payload} need not keep "
                "any; give data.payload=device or host, or leave rows_in out"
            )

    def weighted(self, weights: Mapping[str, float]) -> DataConfig:
        """The same data with other weights of these sources. Raises ValueError for a name of no source, and where
        weights are then given to some sources only."""
        sources = dict(self.sources or {})
        for name, weight in weights.items():
            if name not in sources:
                raise ValueError(f"weight of corpus {name!r}: {did_you_mean(name, sorted(sources))}")
            sources[name] = dataclasses.replace(sources[name], weight=weight, epochs=None)
        return dataclasses.replace(self, sources=sources)

    def of_corpus(self, name: str) -> DataConfig:
        """One of the sources as data of its own, without weights; `label` stays."""
        assert self.sources
        source = self.sources[name]
        own = {
            field_name: getattr(source, field_name)
            for field_name in ("folder", "view", "validation_view", "modalities", "speaker")
        }
        return dataclasses.replace(self, sources=None, weights_from=None, **own)

    def _check_sources(self, sources: Mapping[str, SourceConfig]) -> None:
        for name, own, plain in (
            ("folder", self.folder, ""),
            ("view", self.view, ShardsConfig.view),
            ("validation_view", self.validation_view, ShardsConfig.validation_view),
            ("modalities", self.modalities, None),
            ("speaker", self.speaker, DataConfig.speaker),
            ("remainder", self.remainder, DataConfig.remainder),
        ):
            if own != plain:
                where = f"give it to each source, data.sources.NAME.{name}"
                if name == "folder":
                    where = "it is of one folder; leave it out"
                if name == "remainder":
                    where = "corpora of a mixture run on, and leave no rows over; leave it out"
                raise ValueError(f"data.{name}: found {own!r} beside data.sources; {where}")
        folders: dict[str, str] = {}
        for name, source in sorted(sources.items()):
            where = f"data.sources.{name}"
            check_corpus(name, where)
            placed = _placed(f"{where}.folder", source.folder)
            object.__setattr__(source, "folder", placed)
            if placed in folders:
                raise ValueError(
                    f"{where}.folder: found {placed}, the folder of {folders[placed]!r} as well, expected each folder "
                    "once; make one view of the rows of both, or give one source more weight"
                )
            folders[placed] = name
            for field_name in ("weight", "epochs"):
                value = getattr(source, field_name)
                if value is not None and not (math.isfinite(value) and value > 0):
                    raise ValueError(
                        f"{where}.{field_name}: found {value:g}, expected a number above 0; leave the source out, or "
                        "let it join later (data.weights_from)"
                    )
            if source.weight is not None and source.epochs is not None:
                raise ValueError(f"{where}: found weight and epochs, expected one of them; leave the other out")
        weighted = sorted(name for name, source in sources.items() if source.weight is not None)
        if weighted and len(weighted) < len(sources):
            other = min(set(sources) - set(weighted))
            raise ValueError(
                f"data.sources.{other}: found no weight, expected one as {weighted[0]!r} has; give all sources a "
                "weight, or none"
            )
        for step, weights in (self.weights_from or {}).items():
            where = f"data.weights_from.{step}"
            if not step.isascii() or not step.isdigit() or int(step) < 1 or step != str(int(step)):
                raise ValueError(f"{where}: found {step!r}, expected the step from which these weights hold, 1 or more")
            for name in sorted({*sources, *weights}):
                if name not in weights or name not in sources:
                    found = "no weight" if name in sources else "a weight of no source"
                    raise ValueError(f"{where}.{name}: found {found}, expected one weight for each source")
                if not (math.isfinite(weights[name]) and weights[name] >= 0):
                    raise ValueError(f"{where}.{name}: found {weights[name]:g}, expected a number of 0 or more")
            if not any(weights.values()):
                raise ValueError(f"{where}: found weights of 0 only, expected one above 0")


@dataclass(frozen=True)
class RunConfig:
    """Name, place and resources of a run.

    Attributes:
        name: Name of the run; the same name resumes it.
        output: Folder of all runs; the run lives in `<output>/<name>`. Absolute, or below the current directory. With
            several nodes every one reaches it, or `storage` is given.
        storage: Where checkpoints lie, `<storage>/<name>`: an fsspec URL (`s3://bucket/folder`) or a path that every
            node reaches, and then no other folder need be shared; None: `checkpoints` in the run's folder.
        workers: Training workers (processes; on a GPU cluster: GPUs).
        min_workers: Fewest workers to continue with where nodes are lost, back to `workers` where they return; None:
            wait until all can be placed. The same samples are trained on in the same batches for any number.
        gpu: Train on GPUs, one per worker; in bfloat16 and compiled unless the options say otherwise.
        network_gbit: Gbit/s of a GPU's link to other nodes, for the estimate at the start of a run on GPUs; None: 10 is
            assumed, and said.
        cpus_per_worker: Logical CPUs that each worker reserves; also its number of threads.
        checkpoint_every: Optimiser steps between checkpoints, beside those by time; None: by time alone.
        checkpoint_every_s: Seconds between checkpoints, by rank 0's clock; None: by steps alone. It is more where the
            last one is not stored yet, or training would pause for more than 1 % of the time. What a failure can
            cost.
        keep_checkpoints: Checkpoints kept: the best by `keep_by`, and always the newest.
        keep_by: Validation metric by which the best are kept, for instance `validation/effective_rank/video`; None: the
            newest are kept.
        keep_order: Whether the largest or the smallest values of `keep_by` are the best.
        report_every: Steps between progress lines and tracked metrics (each step's values are kept).
        profile: Steps to trace (true: 5) soon after each start, into `profile/` in the run's folder: operations on CPU
            and GPU for chrome://tracing or Perfetto, and a table of the longest. The steps traced are slower.
        profile_ranks: Which ranks write a trace.
        max_failures: Restarts after failures that may pass (a lost process or node, storage out of reach). Errors that
            would come back, like corrupt data or a loss that is not finite, end the run at once.
        stall_timeout_s: Seconds without a finished step after which a rank is given up; the end of a lost rank's
            collectives is a little later. It must cover the slowest step, the first one, and a checkpoint.
        tracking_uri: MLflow tracking URI; None: a local SQLite file below `output`.
        experiment: MLflow experiment.
        tensorboard: Also write TensorBoard's event files, to `tensorboard/` in the run's folder.
        parent_run_id: MLflow run under which this one is nested.
        registered_model: Name under which the exported model is registered with MLflow; None: it is only logged.
        commit: Source revision, recorded as a tag; None: the clone's own, with `-dirty` where it was changed, or the
            version that is installed. A submitted job has no `.git`: give it at submission.
    """

    name: str
    output: str = DEFAULT_OUTPUT
    storage: str | None = None
    workers: int = 1
    min_workers: int | None = None
    gpu: bool = False
    network_gbit: float | None = None
    cpus_per_worker: int = 1
    checkpoint_every: int | None = None
    checkpoint_every_s: float | None = 300.0
    keep_checkpoints: int = 3
    keep_by: str | None = None
    keep_order: Literal["max", "min"] = "max"
    report_every: int = 20
    profile: bool | int = False
    profile_ranks: Literal["first", "all"] = "first"
    max_failures: int = 3
    stall_timeout_s: float = 900.0
    tracking_uri: str | None = None
    experiment: str = "conclugen"
    tensorboard: bool = False
    parent_run_id: str | None = None
    registered_model: str | None = None
    commit: str | None = field(default_factory=lambda: os.environ.get("CONCLUGEN_COMMIT"))

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name) or self.name.startswith("."):
            raise ValueError(
                f"run.name: {self.name!r} cannot name a folder; use letters, digits, -, _ and . (not first)"
            )
        if len(self.name.encode()) > _LONGEST_NAME:
            raise ValueError(
                f"run.name: {self.name[:40]!r}... is longer than {_LONGEST_NAME} bytes; choose a shorter one"
            )
        for name in ("workers", "cpus_per_worker", "checkpoint_every", "keep_checkpoints", "report_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"run.{name}: must be at least 1, got {value}")
        if self.checkpoint_every_s is not None and not 0 < self.checkpoint_every_s < math.inf:
            raise ValueError(
                f"run.checkpoint_every_s: must be null or more than 0 seconds, got {self.checkpoint_every_s}"
            )
        if self.network_gbit is not None and not 0 < self.network_gbit < math.inf:
            raise ValueError(f"run.network_gbit: must be null or more than 0 Gbit/s, got {self.network_gbit}")
        if self.max_failures < -1:
            raise ValueError(f"run.max_failures: must be at least 0 (-1: without limit), got {self.max_failures}")
        check_experiment("run.experiment", self.experiment)
        if self.tracking_uri is not None:
            check_tracking_uri(self.tracking_uri, "run.tracking_uri")
        if self.registered_model is not None:
            check_registered_name("run.registered_model", self.registered_model)
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"run.min_workers: must be 1 to run.workers ({self.workers}), got {self.min_workers}")
        if self.profile < 0:
            raise ValueError(f"run.profile: must be true, false or a number of steps, got {self.profile}")
        if not 0 < self.stall_timeout_s < math.inf:
            raise ValueError(f"run.stall_timeout_s: must be more than 0 seconds, got {self.stall_timeout_s}")
        if "://" in self.output:
            raise ValueError(
                f"run.output: {self.output!r} is a URL, and must be a folder that every node reaches; checkpoints "
                "alone can lie elsewhere: run.storage"
            )
        if self.storage is not None:
            uris.check("run.storage", self.storage)
        if self.storage is not None and "://" not in self.storage:  # workers have other current directories
            object.__setattr__(self, "storage", str(paths.absolute(self.storage, "run.storage")))

    @property
    def output_folder(self) -> Path:
        """`output`, absolute: workers and submitted jobs have other current directories."""
        return paths.absolute(self.output, "run.output")


@dataclass(frozen=True)
class PretrainJob:
    """Pretrain on feature shards, tracked and resumable.

    The presets' own sizes (batch 4096, representation 4096) are for 10^5 clips and a GPU.
    """

    pretrain: PretrainConfig
    data: DataConfig
    run: RunConfig

    def __post_init__(self) -> None:
        """Tells the method which corpora there are; it decides how to use them."""
        names = tuple(sorted(self.data.sources or ()))
        corpora = self.pretrain.corpora
        if not names and corpora != CorporaConfig():
            raise ValueError(
                "pretrain.corpora: found a choice, expected data.sources with the corpora that it is about"
            )
        if names and corpora.names != names:
            pretrain = dataclasses.replace(self.pretrain, corpora=dataclasses.replace(corpora, names=names))
            object.__setattr__(self, "pretrain", pretrain)


def _placed(field: str, folder: str) -> str:
    """A folder or URL, absolute: workers and submitted jobs have other current directories."""
    uris.check(field, folder)
    return str(paths.absolute(folder, field)) if folder and "://" not in folder else folder


# What float32 and eager costs beside GPU_PROFILE on an H100 at the published sizes, as counted in docs/scaling.md.
_FLOAT32_FACTOR = 4.8
GPU_PROFILE = {"pretrain.precision": "bfloat16", "pretrain.compile": True}
"""What training on GPUs means unless something else is said."""


def gpu_profile(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that follow from `run.gpu`, of what is given by dotted field."""
    return dict(GPU_PROFILE) if given.get("run.gpu") else {}


def gpu_lines(job: PretrainJob) -> list[str]:
    """What a job on GPUs says at its start of how it computes, and a warning where that is slow."""
    if not job.run.gpu:
        return []
    config = job.pretrain
    how = f"{config.precision}, {'compiled' if config.compile else 'eager'}"
    lines = [f"on GPUs: {how} (pretrain.precision, pretrain.compile)"]
    if config.precision != "bfloat16":
        lines.append(
            f"warning: a step in {config.precision} takes at least {_FLOAT32_FACTOR:g} times as long as in bfloat16 "
            "(as counted for an H100 at the published sizes), and a run keeps the precision that it began with: give "
            "pretrain.precision=bfloat16 under a new run.name"
        )
    return lines


def preset_with(fields: Mapping[str, Any]) -> PretrainConfig:
    """The preset and the recipe that plain data name, with the single fields that they hold laid over it."""
    rest = dict(known_tasks(fields))
    return presets.build(rest.pop("preset", DEFAULT_PRESET), rest.pop("recipe", DEFAULT_RECIPE), **rest)
