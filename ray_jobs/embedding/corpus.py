"""A whole corpus to Parquet through Ray Data: clip shards by way of the run's encoders, or feature shards as they are.

A row for each clip: key, shard, row, `embedding` (list of float32), `p.<class>`, `present.<modality>`, `reason`
(why a clip has no embedding; null for the others).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from ray_jobs.embedding.model import RunModel
from ray_jobs.extraction.extract import Resources, data_settings, feature_dataset
from ray_jobs.extraction.plan import Extraction
from ray_jobs.run_folder import RunFolder
from shards import Manifest, Reader, View

_ROWS = 2048


@dataclass
class RowEmbedder:
    """The run's model, opened where it is used, and applied to rows."""

    folder: str
    label: str | None
    fusion: str
    _model: RunModel | None = field(default=None, repr=False)

    @property
    def model(self) -> RunModel:
        """Opened at the first use, in the worker."""
        if self._model is None:
            self._model = RunModel.open(RunFolder(self.folder), self.label)
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
    """In an actor: tables of encoded clips to rows of the result."""

    def __init__(self, rows: RowEmbedder) -> None:
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
    """In an actor: ranges of feature shards to rows of the result."""

    def __init__(self, rows: RowEmbedder, manifest: Manifest, ranges: list[tuple[int, int, int]]) -> None:
        self._rows, self._ranges = rows, ranges
        composition = {name: rows.model.modalities[name] for name in rows.model.embedder.modalities}
        self._reader = Reader(
            manifest, View.everything(manifest), modalities=composition, labels=(), max_damaged_share=1
        )

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        return pa.concat_tables([self._one(*self._ranges[int(number)]) for number in batch["id"]])

    def _one(self, shard: int, start: int, stop: int) -> pa.Table:
        before = len(list(self._reader.damage))
        read = self._reader.read(shard, start, stop)
        damaged = {item.row: item.reason for item in list(self._reader.damage)[before:]}
        features = {m: np.where(read.present[m][:, None], x, np.nan) for m, x in read.features.items()}
        made = self._rows.columns(features)
        keys = self._reader.metadata(shard)["key"].slice(start, stop - start)
        count = stop - start
        numbers = {"shard": np.full(count, shard, np.int32), "row": np.arange(start, stop, dtype=np.int32)}
        usable = np.any(list(read.present.values()), axis=0)
        reasons = [
            damaged.get(int(row), None if there else "nothing of it is what the model takes")
            for row, there in zip(read.row, usable, strict=True)
        ]
        return pa.table({"key": keys, **numbers, "reason": pa.array(reasons, pa.string()), **made})


def embed_clips(plan: Extraction, rows: RowEmbedder, resources: Resources, out: Path) -> tuple[int, int]:
    """Clip shards to Parquet files in `out`; (rows, rows without an embedding). RuntimeError where rows were lost."""
    dataset = feature_dataset(plan, list(range(len(plan.clips))), resources)
    return _write(dataset, _EmbedTables, (rows,), resources, out, plan.clips.rows)


def embed_features(manifest: Manifest, rows: RowEmbedder, resources: Resources, out: Path) -> tuple[int, int]:
    """As `embed_clips`, of feature shards."""
    ranges = [
        (shard, start, min(start + _ROWS, int(count)))
        for shard, count in enumerate(manifest.counts)
        for start in range(0, int(count), _ROWS)
    ]
    with data_settings(resources):
        dataset = ray.data.range(len(ranges), override_num_blocks=len(ranges))
    return _write(dataset, _EmbedRanges, (rows, manifest, ranges), resources, out, manifest.rows)


def _write(
    dataset: Any, actor: type[Any], arguments: tuple[Any, ...], resources: Resources, out: Path, expected: int
) -> tuple[int, int]:
    numpy_batches = actor is _EmbedRanges
    dataset = dataset.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="numpy" if numpy_batches else "pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=resources.actors.get("model", 1)),
        num_cpus=resources.cpus,
    )
    dataset.write_parquet(str(out))
    table = pq.read_table(out, columns=["key", "reason"])
    if table.num_rows != expected:
        raise RuntimeError(f"{expected} clips came in, but {out} holds {table.num_rows} rows")
    return table.num_rows, table.num_rows - table["reason"].null_count
