"""A whole corpus to Parquet through Ray Data: clip shards by way of the run's encoders, or feature shards as they are.

Each shard becomes a Parquet file of its name, written when all its rows have come; killed, the job continues with those
that are missing. A row for each clip: key, shard, row, `embedding` (list of float32), `p.<class>`,
`present.<modality>`, `reason` (why a clip has no embedding; null for the others).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from conclugen.common import uris
from conclugen.common.atomic import atomic_path
from conclugen.common.ending import resumable
from ray_jobs import ray_cluster
from ray_jobs.embedding.model import RunModel
from ray_jobs.extraction.extract import Resources, data_settings, feature_dataset, once
from ray_jobs.extraction.plan import Extraction
from ray_jobs.run_folder import RunFolder
from shards import Manifest, Reader, View

_ROWS = 2048


@dataclass
class RowEmbedder:
    """The run's model, opened where it is used, and applied to rows."""

    folder: str
    evaluation: str | None
    fusion: str
    _model: RunModel | None = field(default=None, repr=False)

    @property
    def model(self) -> RunModel:
        """Opened at the first use, in the worker."""
        if self._model is None:
            self._model = RunModel.open(RunFolder(self.folder), evaluation=self.evaluation)
        return self._model

    def columns(self, features: dict[str, np.ndarray]) -> dict[str, pa.Array]:
        """Columns of the result for features with NaN rows where a modality is missing."""
        rows = len(next(iter(features.values())))
        present = {name: ~np.isnan(x).any(axis=1) for name, x in features.items()}
        usable = np.any(list(present.values()), axis=0)
        embeddings, probabilities = self.model.represent(features, self.fusion)
        width = embeddings.shape[1]
        offsets = np.arange(rows + 1, dtype=np.int32) * width
        lists = pa.ListArray.from_arrays(offsets, embeddings.reshape(-1), mask=pa.array(~usable))
        columns = {"embedding": lists}
        if probabilities is not None and self.model.probe is not None:
            for number, name in enumerate(self.model.probe.classes):
                columns[f"p.{name}"] = pa.array(probabilities[:, number], mask=~usable)
        return columns | {f"present.{name}": pa.array(there) for name, there in present.items()}


class _EmbedTables:
    """Tables of encoded clips to rows of the result; made once in each process."""

    def __init__(self, rows: RowEmbedder) -> None:
        uris.scrub_output()
        self._rows = rows
        assert rows.model is not None  # loaded here, not while the first block waits

    def __call__(self, table: pa.Table) -> pa.Table:
        model, count = self._rows.model, table.num_rows
        spoiled = table["reason"].is_valid().to_pylist()
        columns: dict[str, list[np.ndarray | None]] = {}
        for name in table.column_names:
            if name.startswith("out."):
                data = zip(table[name].to_pylist(), spoiled, strict=True)
                columns[name.removeprefix("out.")] = [
                    None if value is None or bad else np.frombuffer(value, np.float32) for value, bad in data
                ]
        made = self._rows.columns(model.features(columns, count))
        own = {name: table[name] for name in ("key", "shard", "row", "reason")}
        return pa.table(own | made)


class _EmbedRanges:
    """Ranges of feature shards to rows of the result; made once in each process."""

    def __init__(self, rows: RowEmbedder, manifest: Manifest, ranges: list[tuple[int, int, int]]) -> None:
        uris.scrub_output()
        self._rows, self._ranges = rows, ranges
        composition = {name: rows.model.modalities[name] for name in rows.model.embedder.modalities}
        self._reader = Reader(
            manifest, View.everything(manifest), modalities=composition, labels=(), max_corrupt_share=1
        )

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        return pa.concat_tables([self._one(*self._ranges[int(number)]) for number in batch["id"]])

    def _one(self, shard: int, start: int, stop: int) -> pa.Table:
        before = len(list(self._reader.corrupt))
        read = self._reader.read(shard, start, stop)
        corrupt = {item.row: item.reason for item in list(self._reader.corrupt)[before:]}
        features = {m: np.where(read.present[m][:, None], x, np.nan) for m, x in read.features.items()}
        made = self._rows.columns(features)
        keys = self._reader.metadata(shard)["key"].slice(start, stop - start)
        count = stop - start
        numbers = {"shard": np.full(count, shard, np.int32), "row": np.arange(start, stop, dtype=np.int32)}
        usable = np.any(list(read.present.values()), axis=0)
        reasons = [
            corrupt.get(int(row), None if there else "nothing of it is what the model takes")
            for row, there in zip(read.row, usable, strict=True)
        ]
        return pa.table({"key": keys, **numbers, "reason": pa.array(reasons, pa.string()), **made})


def embed_clips(plan: Extraction, rows: RowEmbedder, resources: Resources, out: Path) -> tuple[int, int]:
    """Clip shards to Parquet files in `out`; (rows, rows without an embedding). RuntimeError where rows were lost."""
    parts = _Parts.of(plan.clips, out)
    if parts.todo:
        parts.write(_mapped(feature_dataset(plan, parts.todo, resources), _EmbedTables, (rows,), resources))
    return parts.counted()


def embed_features(manifest: Manifest, rows: RowEmbedder, resources: Resources, out: Path) -> tuple[int, int]:
    """As `embed_clips`, of feature shards."""
    parts = _Parts.of(manifest, out)
    ranges = [
        (shard, start, min(start + _ROWS, parts.counts[shard]))
        for shard in parts.todo
        for start in range(0, parts.counts[shard], _ROWS)
    ]
    if ranges:
        with data_settings(resources):
            # As many at once as of what is done for them, with which they are fused.
            at_once = None if "model" in resources.actors else ray_cluster.processes()
            dataset = ray.data.range(len(ranges), concurrency=at_once, override_num_blocks=len(ranges))
        parts.write(_mapped(dataset, _EmbedRanges, (rows, manifest, ranges), resources))
    return parts.counted()


def part_of(out: Path, shard: str) -> Path:
    """The file with the embeddings of a shard's rows."""
    return out / f"{shard}.parquet"


@dataclass
class _Parts:
    """The files of a corpus: one for each shard. names, counts: of the shards and their rows; todo: shards that have no
    whole file."""

    out: Path
    names: list[str]
    counts: list[int]
    todo: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, manifest: Any, out: Path) -> _Parts:
        names = [manifest.entry(shard).name for shard in range(len(manifest))]
        parts = cls(out, names, [int(count) for count in manifest.counts])
        parts.todo = [shard for shard, count in enumerate(parts.counts) if count and parts._rows(shard) != count]
        return parts

    def path(self, shard: int) -> Path:
        return part_of(self.out, self.names[shard])

    def _rows(self, shard: int) -> int:
        """Rows of a shard's file, -1 where there is none that can be read."""
        try:
            return int(pq.read_metadata(self.path(shard)).num_rows)
        except (OSError, pa.ArrowException):
            return -1

    def write(self, dataset: Any) -> None:
        """Take the rows of all shards to do as they come. RuntimeError where some never do."""
        waiting: dict[int, list[pa.Table]] = {}
        done = len(self.names) - len(self.todo)

        def words() -> str:
            return f"{done} of {len(self.names)} shards are embedded; the same command continues with the rest"

        with resumable(words):
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                for shard in pc.unique(table["shard"]).to_pylist():
                    own = waiting.setdefault(shard, [])
                    own.append(table.filter(pc.equal(table["shard"], shard)))
                    if sum(part.num_rows for part in own) == self.counts[shard]:
                        whole = pa.concat_tables(waiting.pop(shard), promote_options="permissive").sort_by("row")
                        with atomic_path(self.path(shard)) as temporary:
                            pq.write_table(whole, temporary)
                        done += 1
        if done != len(self.names):
            raise RuntimeError(f"{len(self.names) - done} of {len(self.names)} shards did not come whole")

    def counted(self) -> tuple[int, int]:
        """(rows, rows without an embedding) of all files."""
        rows = without = 0
        for shard, count in enumerate(self.counts):
            if count:
                reasons = pq.read_table(self.path(shard), columns=["reason"])["reason"]
                rows, without = rows + len(reasons), without + len(reasons) - reasons.null_count
        if rows != sum(self.counts):
            raise RuntimeError(f"{sum(self.counts)} clips came in, but {self.out} holds {rows} rows")
        return rows, without


@dataclass(frozen=True)
class _InTasks:
    """A callable class applied in tasks, whose processes keep what it made of its arguments."""

    kind: type[Any]
    arguments: tuple[Any, ...]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self, batch: Any) -> Any:
        uris.scrub_output()
        return once(self.token, lambda: self.kind(*self.arguments))(batch)


def _mapped(dataset: Any, kind: type[Any], arguments: tuple[Any, ...], resources: Resources) -> Any:
    """`kind` applied where its rows are made, or in actors of its own where some are asked for (`--actors model=N`)."""
    options = {"batch_size": None, "batch_format": "numpy" if kind is _EmbedRanges else "pyarrow"}
    if "model" not in resources.actors:
        tasks = ray.data.TaskPoolStrategy(ray_cluster.processes())
        return dataset.map_batches(_InTasks(kind, arguments), **options, num_cpus=resources.cpus, compute=tasks)
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=resources.actors["model"])
    return dataset.map_batches(kind, fn_constructor_args=arguments, **options, compute=pool, num_cpus=resources.cpus)
