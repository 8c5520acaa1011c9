"""Embeddings as one NumPy archive beside the Parquet files, for what reads arrays: `numpy.load("embeddings.npz")`.

keys (n,) text; vectors (n, R') float32; of a corpus also speakers (n,) text, empty where the data name none, and of
each label `label.<name>`: (n,) names of classes, empty where a row has none, or numbers (n,) or (n, width), NaN where a
row has none. Of files, windows come separately: window_keys (m,), window_times (m, 2) seconds, window_vectors (m, R').
Rows without an embedding are left out. Nothing in it is an object, so nothing in it is executed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray

from conclugen.common.atomic import atomic_path
from shards.format.index import GROUP, read_table
from shards.format.index_store import read_index_bytes
from shards.format.manifest import Manifest
from shards.format.schema import Label

NAME = "embeddings.npz"


def write_files(table: pa.Table, path: Path) -> None:
    """Of embedded files: rows as `ray_jobs.embedding.embed` stores them."""
    whole = np.array(table["whole"].to_pylist(), bool)
    keys, vectors = _texts(table["path"].to_pylist()), _vectors(table["embedding"])
    times = np.array([table["start"].to_pylist(), table["end"].to_pylist()]).T
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            keys=keys[whole],
            vectors=vectors[whole],
            window_keys=keys[~whole],
            window_times=times[~whole],
            window_vectors=vectors[~whole],
        )


def write_corpus(manifest: Manifest, parts: Mapping[int, Path], width: int, out: Path) -> None:
    """Of a corpus; vectors go from file to file, a shard in memory at a time.

    manifest: of the shards, whose labels and speakers go along; parts: number of a shard -> its Parquet file; width:
    of a vector."""
    keys: list[str] = []
    speakers: list[str | None] = []
    labels: dict[str, list[Any]] = {label.name: [] for label in manifest.labels}
    for shard, path in sorted(parts.items()):
        table, entry = _embedded(path, ["key", "row", "embedding"]), manifest.entry(shard)
        index = read_table(entry.name, read_index_bytes(manifest, entry)).take(table["row"].combine_chunks())
        keys += table["key"].to_pylist()
        speakers += index[GROUP].to_pylist()
        for name, values in labels.items():
            values += index[f"label.{name}"].to_pylist()
    arrays = {"keys": _texts(keys), "speakers": _texts(speakers)}
    arrays |= {f"label.{label.name}": _label(label, labels[label.name]) for label in manifest.labels}
    vectors = (_vectors(_embedded(path, ["embedding"])["embedding"]) for _, path in sorted(parts.items()))
    with atomic_path(out / NAME) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            _store(archive, name, array.dtype, array.shape, [array])
        _store(archive, "vectors", np.dtype(np.float32), (len(keys), width), vectors)


def _store(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: Sequence[int], parts: Iterable[NDArray[Any]]
) -> None:
    """One array of these rows, as `numpy.savez` stores it."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        npy.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data.cast("B") if part.size else b"")


def _embedded(path: Path, columns: list[str]) -> pa.Table:
    """The rows of a shard that have an embedding."""
    table = pq.read_table(path, columns=columns)
    return table.filter(table["embedding"].is_valid())


def _label(label: Label, values: list[Any]) -> NDArray[Any]:
    if label.kind == "class":
        return _texts([None if value is None or value < 0 else label.classes[value] for value in values])
    missing = np.full(label.shape, np.nan)
    return np.array([missing if value is None else value for value in values], np.float64).reshape(-1, *label.shape)


def _vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """(n, R') of a column of lists that are equally long."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32, copy=False).reshape(len(column), -1 if len(column) else 0)


def _texts(values: Sequence[Any]) -> NDArray[np.str_]:
    return np.array(["" if value is None else str(value) for value in values], str)
