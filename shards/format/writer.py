"""Writes samples as fixed-stride shards with their indexes, and the manifest last.

The bytes depend on the samples, the schema, the shard size and the shuffle seed only.
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from conclugen.common.atomic import atomic_file, write_bytes
from conclugen.common.locks import folder_held
from shards.access import LOCAL_RESULT, refuse_url
from shards.errors import ShardError
from shards.format import publication
from shards.format.index import INDEX_SUFFIX, IndexRows, content_digest, encode_index
from shards.format.layout import SampleLayout, archive_bytes
from shards.format.manifest import MANIFEST_NAME, TAR_SUFFIX, Manifest, ShardEntry, plain_info
from shards.format.publication import Publication
from shards.format.record import Record, decode, encode
from shards.format.schema import Sample, Schema, check_name

DEFAULT_MAX_SHARD_BYTES = 256 * 1024**2
_WRITE_BLOCK = 2 * 1024**2  # filled, hashed and written while it lies in a cache
_DRAW_BLOCK = 1 << 18  # numbers drawn at once


def shuffled_order(count: int, seed: int) -> np.ndarray:
    """(count,) int64 permutation, a function of (count, seed) that will not change: numpy keeps the raw PCG64 stream
    stable."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable").astype(np.int64)


def shuffled_start(count: int, seed: int, length: int) -> np.ndarray:
    """(min(length, count),) int64, the start of `shuffled_order(count, seed)`: memory grows with `length` only."""
    stream = np.random.PCG64(seed)
    drawn, numbers = np.empty(0, np.uint64), np.empty(0, np.int64)
    for start in range(0, count, _DRAW_BLOCK):
        block = stream.random_raw(min(_DRAW_BLOCK, count - start))
        # Of equal draws the earlier comes first, so one that equals the last of a full start is out.
        near = np.flatnonzero(block < drawn[-1]) if 0 < length == len(drawn) else np.arange(len(block))
        drawn = np.concatenate([drawn, block[near]])
        order = np.argsort(drawn, kind="stable")[:length]
        drawn, numbers = drawn[order], np.concatenate([numbers, start + near])[order]
    return numbers


def write_shard(folder: str | os.PathLike[str], name: str, schema: Schema, samples: Iterable[Sample]) -> ShardEntry:
    """Write one shard and its index into an existing local folder, for writers that run side by side.

    Each file appears whole or not at all. `Manifest.assemble(folder, entries)` makes a data set of such shards, and
    finds keys that occur in more than one of them. All samples of the shard are held in memory.
    """
    records, seen = [], set()
    for sample in samples:
        record = encode(schema, sample)
        if record.key in seen:
            raise ShardError(name, "key occurs twice; rename one", sample=sample.key)
        seen.add(record.key)
        records.append(record)
    return _write_records(Path(folder), name, schema, records)


def _write_records(folder: Path, name: str, schema: Schema, records: Sequence[Record]) -> ShardEntry:
    if not records:
        raise ShardError(name, "has no samples; write at least one")
    layout = SampleLayout(schema.columns, max(len(record.text_json) for record in records))
    count, stride = len(records), layout.stride
    checksums = np.empty(count, np.uint64)
    step = max(1, _WRITE_BLOCK // stride)
    memory = np.zeros((min(step, count), stride), np.uint8)  # every sample is written over wholly but for its padding
    with atomic_file(folder / f"{name}{TAR_SUFFIX}") as file:
        for start in range(0, count, step):
            part = records[start : start + step]
            raw = memory[: len(part)]
            layout.fill(raw, [r.key for r in part], [r.payload for r in part], [r.text_json for r in part])
            checksums[start : start + step] = [xxhash.xxh3_64_intdigest(sample.data) for sample in raw]
            file.write(raw.data)
        file.write(bytes(archive_bytes(count, stride) - count * stride))
    rows = IndexRows.of_records(schema, records, layout.stride, checksums)
    layout_dict = layout.to_dict()
    data = encode_index(schema, layout_dict, rows)
    write_bytes(folder / f"{name}{INDEX_SUFFIX}", data)
    digest = content_digest(layout_dict, checksums)
    size = archive_bytes(count, stride)
    return ShardEntry(name, count, size, stride, digest, len(data), xxhash.xxh3_128_digest(data))


class ShardWriter:
    """Context manager that writes a data set into a local folder.

        with ShardWriter("out", schema, shuffle_seed=0) as writer:
            for sample in samples:
                writer.append(sample)
        writer.manifest

    With `shuffle_seed`, samples are put into one seeded global order, so that rows that lie together are strangers:
    they are first spooled to a file in the folder (as large as the data), then read back in that order; memory holds
    keys and one shard. A source with random access saves the spool: give its samples in `shuffled_order` and leave
    `shuffle_seed` out.

    Everything is written into a hidden folder inside `folder`, the manifest too, and published at the end
    (`shards.format.publication`), so an exception leaves neither manifest nor shards, and a writer that is killed while
    it publishes leaves a whole data set to whoever comes next. A folder that holds a data set already is refused unless
    `overwrite`; the old one is removed when the new one is whole. `notes` lists keys that had to be renamed. `info` is
    kept in the manifest (outside its digest); ValueError where JSON cannot hold it.

    of: what the data set is made of, JSON-able, by which a publication that was cut short is known again
    (`publication.finish_same`). views: called with the staged manifest; what it saves is published with the shards.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        schema: Schema,
        *,
        max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
        shuffle_seed: int | None = None,
        prefix: str = "part",
        overwrite: bool = False,
        info: Mapping[str, Any] | None = None,
        of: Mapping[str, Any] | None = None,
        views: Callable[[Manifest], None] = lambda manifest: None,
    ) -> None:
        refuse_url("--out", os.fspath(folder), LOCAL_RESULT)
        check_name("shard prefix", prefix)
        if max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes is {max_shard_bytes}, expected a positive number of bytes")
        self.folder, self.schema, self.prefix = Path(folder).absolute(), schema, prefix
        self.max_shard_bytes, self.shuffle_seed, self.overwrite = max_shard_bytes, shuffle_seed, overwrite
        self.info = plain_info(info or {})
        self.notes: list[str] = []
        self.entries: list[ShardEntry] = []
        self.manifest: Manifest | None = None
        self._keys: set[str] = set()
        self._pending: list[Record] = []
        self._longest_json = 0
        self._spool: _Spool | None = None
        self._of, self._views = of, views
        self._held: ExitStack | None = None
        self._staging = self.folder / publication.STAGING

    def __enter__(self) -> ShardWriter:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file, expected a folder")
        with ExitStack() as held:
            held.enter_context(folder_held(self.folder, "shards are being written here", "another folder"))
            publication.finish(self.folder)
            _refuse_occupied(self.folder, self.overwrite)
            publication.discard(self.folder)
            if self.shuffle_seed is not None:
                self._spool = _Spool(self._staging / "spool", self.schema)
            self._held = held.pop_all()
        return self

    def append(self, sample: Sample) -> None:
        """Add a sample. Raises ValueError, naming it, for what the schema refuses and for a key used before."""
        if self._held is None:
            raise ValueError("ShardWriter is used as a context manager: `with ShardWriter(...) as writer:`")
        record = encode(self.schema, sample)
        if record.key in self._keys:
            raise ValueError(f"sample key {sample.key!r} occurs twice; keys must differ: rename one")
        self._keys.add(record.key)
        if record.key != sample.key:
            self.notes.append(f"key {sample.key!r} was renamed to {record.key!r}")
        if self._spool is not None:
            self._spool.append(record)
        else:
            self._add(record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._held is not None
        with self._held:
            self._held = None
            try:
                if kind is None:
                    self._finish()
            finally:
                if self._spool is not None:
                    self._spool.close()
                if publication.pending(self.folder) is None:
                    shutil.rmtree(self._staging, ignore_errors=True)

    def _add(self, record: Record) -> None:
        longest = max(self._longest_json, len(record.text_json))
        stride = SampleLayout(self.schema.columns, longest).stride
        if self._pending and archive_bytes(len(self._pending) + 1, stride) > self.max_shard_bytes:
            self._flush()
            longest = len(record.text_json)
        self._longest_json = longest
        self._pending.append(record)

    def _flush(self) -> None:
        name = f"{self.prefix}-{len(self.entries):06d}"
        self.entries.append(_write_records(self._staging, name, self.schema, self._pending))
        self._pending = []

    def _finish(self) -> None:
        if self._spool is not None:
            assert self.shuffle_seed is not None
            for number in shuffled_order(len(self._spool), self.shuffle_seed):
                self._add(self._spool.read(int(number)))
        if self._pending:
            self._flush()
        if not self.entries:
            raise ValueError(f"{self.folder}: no samples were appended; a data set needs at least one")
        info = self.info | ({} if self.shuffle_seed is None else {"shuffle_seed": self.shuffle_seed})
        # Keys were compared while they were appended.
        staged = Manifest.assemble(self._staging, self.entries, info, check_keys=False)
        self._views(staged)
        shards = [f"{entry.name}{suffix}" for entry in self.entries for suffix in (TAR_SUFFIX, INDEX_SUFFIX)]
        names = publication.staged_names(self._staging, shards)
        publication.publish(self.folder, Publication(names, self.overwrite, self._of, staged.digest))
        self.manifest = Manifest.open(self.folder)
        if self.manifest.digest != staged.digest:
            raise ShardError(
                MANIFEST_NAME,
                "is not the one that was just written: another process writes into this folder",
                expected=staged.digest,
                found=self.manifest.digest,
                remedy="Write to a folder of its own",
            )


def _refuse_occupied(folder: Path, overwrite: bool) -> None:
    if overwrite:
        return
    publication.refuse_unfinished(folder, "added to")
    if (folder / MANIFEST_NAME).exists():
        raise ValueError(f"{folder} holds a data set already; choose another folder, or ask to overwrite it")
    stray = sorted(path.name for path in folder.iterdir() if path.name.endswith((TAR_SUFFIX, INDEX_SUFFIX)))
    if stray:
        raise ValueError(
            f"{folder} holds shards without a manifest ({stray[0]} and {len(stray) - 1} more); run "
            "`conclugen verify --repair` or `index` on them, choose another folder, or ask to overwrite"
        )


class _Spool:
    """Records in the order they came, in one file; read back in any order."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._schema = schema
        self._payload = sum(column.nbytes for column in schema.columns)
        self._ends = array("q", [0])
        self._file = path.open("w+b", buffering=1 << 20)
        self._flushed = False

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, record: Record) -> None:
        self._file.write(record.payload)
        self._file.write(record.text_json)
        self._ends.append(self._ends[-1] + len(record.payload) + len(record.text_json))

    def read(self, number: int) -> Record:
        if not self._flushed:
            self._file.flush()
            self._flushed = True
        start, end = self._ends[number], self._ends[number + 1]
        data = os.pread(self._file.fileno(), end - start, start)
        return decode(self._schema, data[: self._payload], data[self._payload :])

    def close(self) -> None:
        self._file.close()
