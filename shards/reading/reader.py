"""Reads ranges of rows from shards as arrays: seekable, verified, vectorised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from conclugen.common import machine
from shards.errors import CHECKSUM_DIFFERS, PRESENCE_DIFFERS, REASONS, CorruptionLog, CorruptSample, ShardError
from shards.format.index import GROUP, ShardIndex, read_table
from shards.format.index_store import IndexCache, load_index, read_index_bytes
from shards.format.manifest import Manifest, ShardEntry
from shards.format.raw_columns import LOCAL_BLOCK_BYTES, REMOTE_BLOCK_BYTES, RawColumns, read_raw
from shards.format.storage import Storage
from shards.reading.rows import Memory, Rows
from shards.webdataset_import.member_columns import MemberColumns

# Features are handed out as views on whole samples where these are at most so much larger than the features in them.
_VIEW_OVERHEAD = 1.5
_LARGE = 64 << 20  # bytes of a batch, from which on shards are looked at before its memory is taken
_SHARED_OUT = 4 << 20  # bytes of a batch, from which on waking a second thread costs less than it saves
_RESTORE = "Restore the shard from its source, or run `conclugen verify FOLDER --repair` to continue without it"


class Selection(Protocol):
    """The part of `shards.View` that reading needs."""

    @property
    def counts(self) -> np.ndarray: ...

    @property
    def rows(self) -> int: ...

    def indices(self, shard: int) -> np.ndarray: ...


Part = tuple[int, int, int, int]  # shard, start, stop, place in the batch


class Reading:
    """One read under way: its parts may be fetched by several threads, each once, before `finish`."""

    def __init__(self, reader: Reader, parts: list[Part], out: Rows) -> None:
        self.parts, self._reader, self._out = parts, reader, out
        # What the index says of each row's columns, and what is wrong with the row (0 for nothing).
        self._stored = np.empty((len(out), len(reader.manifest.columns)), bool)
        self._wrong = np.zeros(len(out), np.uint8)

    def fetch(self, some: Sequence[Part]) -> None:
        """Read some of the parts."""
        for shard, start, stop, at in some:
            self._reader._read_part(shard, start, stop, at, self._out, self._stored, self._wrong)

    def finish(self) -> None:
        """Check what was fetched; log and clear what is corrupt."""
        self._reader._finish(self._out, self._stored, self._wrong)


class Reader:
    """Row ranges of a data set.

    view: rows to select (default all); positions then count the selected rows of a shard. modalities: a sequence
    that selects from the manifest's modalities, or a mapping that composes new ones of its columns; a modality is
    present where all its columns are. labels: names to return, None for all of the manifest's. dtype: float type of
    all features (default: as stored; a modality of several dtypes has their common one). max_corrupt_share and
    quarantine: see `CorruptionLog`. index_cache_bytes bounds the memory for indexes, of which random reads want to hold
    all (about 25 bytes a sample). connections: ranges fetched at once from a remote store, whose bytes
    wait in memory; those of a batch and of the batches ahead should be under way together. threads: ranges of a batch
    that are read and hashed at once from local files (default: 2, or 1 on a machine with one core). group: index column
    that is the rows' group, `group` or `meta.<name>`.

    Pickled, it is a few hundred bytes and the view: files, caches and the log of corrupt samples stay behind.
    """

    def __init__(
        self,
        manifest: Manifest,
        view: Selection | None = None,
        modalities: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        max_corrupt_share: float = 0.001,
        quarantine: Callable[[CorruptSample], None] | None = None,
        dtype: str | None = None,
        index_cache_bytes: int = 256 * 1024**2,
        connections: int = 64,
        threads: int | None = None,
        group: str = GROUP,
    ) -> None:
        self._options = (
            modalities, labels, max_corrupt_share, quarantine, dtype, index_cache_bytes, connections, threads, group,
        )  # fmt: skip
        self.manifest = manifest
        self.view = view
        schema = manifest.schema
        schema.check_group_column(group)
        self.group = group
        self.modalities = schema.resolve(modalities)
        chosen = schema.labels if labels is None else tuple(schema.label(name) for name in labels)
        self.labels = tuple(label.name for label in chosen)
        self.widths = {m: sum(schema.column(c).width for c in members) for m, members in self.modalities.items()}
        self.dtypes = {
            m: np.dtype(dtype) if dtype else np.result_type(*(np.dtype(schema.column(c).dtype) for c in members))
            for m, members in self.modalities.items()
        }
        if dtype is not None and np.dtype(dtype).kind != "f":
            raise ValueError(f"dtype is {dtype!r}, expected float16, float32 or float64")
        if connections < 1:
            raise ValueError(f"connections is {connections}, expected at least 1")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}, expected at least 1")
        self._connections, self._threads = connections, threads or min(2, machine.cores())
        self.corrupt = CorruptionLog(manifest.rows if view is None else view.rows, max_corrupt_share, quarantine)
        self._label_shapes = {label.name: (label.shape, label.numpy_dtype) for label in chosen}
        number = {name: i for i, name in enumerate(schema.column_names)}
        self._members_of = {m: [number[c] for c in members] for m, members in self.modalities.items()}
        self._columns = RawColumns(schema, self.modalities)
        self._members = MemberColumns(manifest, self.modalities)
        self._storage = Storage(manifest)
        self._indexes = IndexCache(index_cache_bytes)
        self._memory = threading.local()
        self._log_lock = threading.Lock()
        self._fetchers: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Reader, (self.manifest, self.view, *self._options))

    def __len__(self) -> int:
        return self.corrupt.total_rows

    def over(self, view: Selection | None) -> Reader:
        """A reader of another selection with the same options (and a log of its own)."""
        return Reader(self.manifest, view, *self._options)

    def for_tasks(self) -> Reader:
        """A reader of the same rows for tasks that run side by side, with no limit on corrupt samples: each sees a
        part of the rows; the log of this reader counts what all of them met."""
        dtypes = set(self.dtypes.values())
        return Reader(
            self.manifest,
            self.view,
            self.modalities,
            self.labels,
            max_corrupt_share=1.0,
            dtype=str(dtypes.pop()) if len(dtypes) == 1 else None,
            threads=1,
            group=self.group,
        )

    @property
    def is_local(self) -> bool:
        return self.manifest.is_local

    @property
    def grouped(self) -> bool:
        """Whether rows have groups."""
        return self.manifest.schema.grouped or self.group != GROUP

    def shard_of(self, row: int) -> str:
        """Name of the shard that holds a global row number."""
        return self._place(row)[0].name

    def corpus_of(self, row: np.ndarray) -> np.ndarray | None:
        """None: this is not a mixture of corpora."""
        return None

    @property
    def counts(self) -> np.ndarray:
        """(S,) int64 rows that can be read of each shard."""
        return self.manifest.counts if self.view is None else self.view.counts

    @cached_property
    def pitch(self) -> int:
        """Bytes of a row whose features are views on the whole sample, 0 where features are copied instead.

        They are copied where a modality is composed of several columns or has another dtype than stored, where one
        column serves two modalities, where a shard is imported, and where a sample is much larger than what is read.
        """
        strides = self.manifest.shards["stride"].to_numpy()
        columns = [members[0] for members in self.modalities.values() if len(members) == 1]
        as_stored = all(self.dtypes[m] == dtype for m, dtype, *_ in self._columns.pieces)
        if len(set(columns)) < len(self.modalities) or not as_stored or not strides.all():
            return 0
        pitch = int(strides.max())
        return pitch if pitch <= _VIEW_OVERHEAD * self.row_bytes else 0

    @property
    def offsets(self) -> dict[str, int]:
        """Byte of a sample at which each modality (of one column) begins."""
        return {modality: offset for modality, _, _, offset, _ in self._columns.pieces}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's features."""
        return sum(width * self.dtypes[name].itemsize for name, width in self.widths.items())

    # Reading

    def allocate(self, size: int, views: bool = False, memory: Memory | None = None) -> Rows:
        """Memory for `size` rows, all of them padding, to pass (or a `part` of it) to `read`; taken from `memory` where
        it is given.

        views: let the features be views on whole samples (`Rows.raw`) where `pitch` allows it. Reading then copies
        nothing once it has the bytes, but the features' rows do not follow each other without a gap.
        """
        rows = self._uninitialised(size, self.pitch if views else 0, memory)
        if rows.raw is not None:
            rows.raw[...] = 0
        rows.clear()
        return rows

    def read(self, shard: int, start: int, stop: int, out: Rows | None = None) -> Rows:
        """Rows [start, stop) of the shard's selection, verified; into `out` (of exactly that many rows) if given.

        A corrupt sample has nothing present, zero features and missing labels, and is added to `corrupt`.
        Raises ShardError for a structural fault, CorruptionError beyond max_corrupt_share, IndexError for a range out
        of bounds.
        """
        if out is not None and len(out) != stop - start:
            raise ValueError(f"out has {len(out)} rows, expected {stop - start}")
        return self.read_ranges([(shard, start, stop)], out=out)

    def read_ranges(
        self, ranges: Iterable[tuple[int, int, int]], size: int | None = None, out: Rows | None = None
    ) -> Rows:
        """The (shard, start, stop) ranges one after another as one batch, padded to `size` rows, or into `out`.

        Errors are those of `read`. From a remote store several ranges are fetched at once.
        """
        parts, total = self._parts(ranges)
        if out is not None:
            if out.raw is not None and out.raw.shape[1] != self.pitch:
                raise ValueError(f"out has samples of {out.raw.shape[1]} bytes, expected {self.pitch}: allocate() it")
            size = len(out)
        size = total if size is None else size
        if size < total:
            raise ValueError(f"size is {size}, but the ranges hold {total} rows")
        if out is None:
            if size * self.row_bytes > _LARGE:
                self._confirm({shard for shard, *_ in parts})
            out = self._uninitialised(size)
        reading = Reading(self, parts, out.part(0, total))
        self.side_by_side(reading.fetch, parts, total)
        reading.finish()
        if size > total:
            out.part(total, size).clear()
        return out

    def begin(self, ranges: Iterable[tuple[int, int, int]], out: Rows) -> Reading:
        """A read whose parts the caller fetches, side by side with those of other readers: into `out`, of exactly as
        many rows."""
        parts, total = self._parts(ranges)
        assert total == len(out)
        return Reading(self, parts, out)

    def still_corrupt(self, samples: Iterable[CorruptSample]) -> list[CorruptSample]:
        """Those of these samples, of any view, that are corrupt still: each is read again. Raises ShardError for a
        structural fault."""
        again = Reader(self.manifest, None, self._options[0], (), 1.0)
        places = []
        for sample in samples:
            shard = int(np.searchsorted(self.manifest.rows_before, sample.row, side="right")) - 1
            at = sample.row - int(self.manifest.rows_before[shard])
            places.append((shard, at, at + 1))
        again.read_ranges(places)
        return list(again.corrupt)

    def metadata(self, shard: int) -> pa.Table:
        """The shard's index (all its rows, not the view's): key, `label.<name>`, group, text, `meta.<name>`."""
        entry = self.manifest.entry(shard)
        return read_table(entry.name, read_index_bytes(self.manifest, entry))

    # Parts of a read

    def _parts(self, ranges: Iterable[tuple[int, int, int]]) -> tuple[list[tuple[int, int, int, int]], int]:
        """(shard, start, stop, place in the batch) of each range that has rows, and the number of all rows."""
        parts, at, counts = [], 0, self.counts
        for shard, start, stop in ranges:
            if not 0 <= shard < len(counts):
                raise IndexError(f"shard number {shard}, expected 0..{len(counts) - 1}")
            if not 0 <= start <= stop <= counts[shard]:
                raise IndexError(f"rows [{start}, {stop}) of shard {shard}, which has {counts[shard]} selected rows")
            if start < stop:
                parts.append((shard, start, stop, at))
                at += stop - start
        return parts, at

    def _finish(self, out: Rows, stored: np.ndarray, wrong: np.ndarray) -> None:
        if len(out) and out.raw is not None:
            self._check_raw(out.raw, out.row, stored, wrong)
        self._zero_missing(out, stored)
        with self._log_lock:
            self.corrupt.rows_read += len(out)
            if wrong.any():
                self._quarantine(wrong, out)

    def _confirm(self, shards: Iterable[int]) -> None:
        """Index and size of the shards agree with the manifest: before memory is taken for what it claims to hold."""
        for shard in shards:
            entry, _ = self._index(shard)
            self._storage.read_into(entry, [])  # of nothing: compares the file's size

    def side_by_side(
        self,
        fetch: Callable[[Sequence[tuple[int, int, int, int]]], None],
        parts: list[tuple[int, int, int, int]],
        total: int,
    ) -> None:
        """Fetch all parts; of several errors the first part's is raised, after which nothing more is fetched.

        Of local files each thread takes about as many rows, in one piece, and this thread takes the first: to read is
        to copy, and one core alone does not use the memory's bandwidth. From a remote store each part is a request.
        """
        local = self._storage.is_local
        count = min(len(parts), self._threads if local else self._connections)
        if count <= 1 or (local and total * self.row_bytes < _SHARED_OUT):
            fetch(parts)
            return
        with self._log_lock:
            if self._fetchers is None:
                self._fetchers = ThreadPoolExecutor(self._threads - 1 if local else self._connections, "shards-fetch")
        if local:
            shares: list[list[tuple[int, int, int, int]]] = [[] for _ in range(count)]
            for part in parts:
                shares[part[3] * count // total].append(part)
        else:
            shares = [[], *([part] for part in parts)]
        # A thread may hold on to what it ran for a while. Through this list it does not hold the batch's memory, which
        # `RowMemory` would then take for used.
        held = [fetch]

        def run(share: Sequence[tuple[int, int, int, int]]) -> None:
            held[0](share)

        waiting = [self._fetchers.submit(run, share) for share in shares[1:] if share]
        try:
            fetch(shares[0])
            for future in waiting:
                future.result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)  # nothing writes into the batch once the caller has it back
            held.clear()

    def _read_part(
        self, shard: int, start: int, stop: int, at: int, out: Rows, stored: np.ndarray, wrong: np.ndarray
    ) -> None:
        """One range into `out` from row `at` on: what the index says of its rows, their bytes, and checks that need the
        bytes at hand.

        Touches nothing but its rows of the arguments, and caches, so that parts may be read side by side.
        """
        entry, index = self._index(shard)
        rows = self._rows(shard, start, stop, entry)
        end = at + stop - start
        first = int(self.manifest.rows_before[shard])
        out.row[at:end] = np.arange(first + rows.start, first + rows.stop) if isinstance(rows, slice) else first + rows
        stored[at:end] = index.present[rows]
        for name in self.labels:
            out.labels[name][at:end] = index.labels[name][rows]
        if out.group is not None and index.group is not None:
            out.group[at:end] = index.group[rows]
        if index.layout is None:
            features = {name: array[at:end] for name, array in out.features.items()}
            self._members.read(self._storage, entry, index, rows, features, wrong[at:end])
        elif out.raw is not None:
            sums = read_raw(self._storage, entry, index.layout.stride, rows, out.raw[at:end])
            wrong[at:end][sums != index.checksums[rows]] = CHECKSUM_DIFFERS
        else:
            self._read_and_copy(entry, index, rows, out.part(at, end), stored[at:end], wrong[at:end])

    def _read_and_copy(
        self,
        entry: ShardEntry,
        index: ShardIndex,
        rows: np.ndarray | slice,
        out: Rows,
        stored: np.ndarray,
        wrong: np.ndarray,
    ) -> None:
        """Samples through a buffer that stays in a cache, from which their columns are copied."""
        assert index.layout is not None
        stride, checksums = index.layout.stride, index.checksums[rows]
        step = max(1, (LOCAL_BLOCK_BYTES if self._storage.is_local else REMOTE_BLOCK_BYTES) // stride)
        for at in range(0, len(out), step):
            block = slice(at, min(at + step, len(out)))
            raw = self._buffer((block.stop - at) * stride).reshape(-1, stride)
            some = slice(rows.start + at, rows.start + block.stop) if isinstance(rows, slice) else rows[block]
            sums = read_raw(self._storage, entry, stride, some, raw)
            wrong[block][sums != checksums[block]] = CHECKSUM_DIFFERS
            self._check_raw(raw, out.row[block], stored[block], wrong[block])
            self._columns.copy(raw, {name: array[block] for name, array in out.features.items()})

    def _check_raw(self, raw: np.ndarray, row: np.ndarray, stored: np.ndarray, wrong: np.ndarray) -> None:
        """Headers and presence of n samples; a header of another schema in an intact sample is an error."""
        intact = wrong == 0
        strange = self._columns.strange_header(raw, intact)
        if strange is not None:
            i, number = strange
            entry, place = self._place(int(row[i]))
            raise ShardError(
                entry.name,
                f"column {self.manifest.schema.column_names[number]!r} has another width or dtype than the manifest "
                "says",
                sample=self._keys(entry)[place].as_py(),
                expected=self._columns.header(number),
                found=self._columns.header(number, raw[i]),
                remedy=_RESTORE,
            )
        wrong[intact & ~self._columns.presence_agrees(raw, stored)] = PRESENCE_DIFFERS

    def _zero_missing(self, out: Rows, stored: np.ndarray) -> None:
        everything = stored.all()
        for modality, numbers in self._members_of.items():
            there = out.present[modality]
            if everything:
                there[:] = True
                continue
            np.all(stored[:, numbers], axis=1, out=there)
            if not there.all():
                out.features[modality][~there] = 0

    def _quarantine(self, wrong: np.ndarray, out: Rows) -> None:
        """Clear corrupt rows but for their row number, and only then log them: the log may stop the reading."""
        bad = np.flatnonzero(wrong).tolist()
        for i in bad:
            number = int(out.row[i])
            out.part(i, i + 1).clear()
            out.row[i] = number
        for i in bad:
            entry, place = self._place(int(out.row[i]))
            key = self._keys(entry)[place].as_py()
            self.corrupt.add(CorruptSample(entry.name, key, int(out.row[i]), REASONS[int(wrong[i])]))

    # Indexes and memory

    def _rows(self, shard: int, start: int, stop: int, entry: ShardEntry) -> np.ndarray | slice:
        """Numbers of the rows within the shard: (n,) int64, or a slice where all are selected."""
        if self.view is None or self.view.counts[shard] == entry.count:
            return slice(start, stop)
        rows = np.asarray(self.view.indices(shard))[start:stop]
        if len(rows) != stop - start or rows.min() < 0 or rows.max() >= entry.count:
            raise ShardError(entry.name, "the view selects rows that the shard does not have; make the view again")
        return rows

    def _index(self, shard: int) -> tuple[ShardEntry, ShardIndex]:
        found = self._indexes.get(shard)
        if found is None:
            entry = self.manifest.entry(shard)
            found = entry, load_index(self.manifest, entry, self.group)
            self._indexes.put(shard, *found)
        return found

    def _place(self, row: int) -> tuple[ShardEntry, int]:
        """The shard of a global row number, and the row's number in it."""
        shard = int(np.searchsorted(self.manifest.rows_before, row, side="right")) - 1
        return self.manifest.entry(shard), row - int(self.manifest.rows_before[shard])

    def _keys(self, entry: ShardEntry) -> pa.ChunkedArray:
        return read_table(entry.name, read_index_bytes(self.manifest, entry), ["key"])["key"]

    def _uninitialised(self, size: int, pitch: int = 0, memory: Memory | None = None) -> Rows:
        shapes = self._label_shapes
        return Rows.uninitialised(size, self.widths, self.dtypes, shapes, self.grouped, pitch, self.offsets, memory)

    def _buffer(self, size: int) -> np.ndarray:
        """(size,) uint8 of memory that this thread uses again and again."""
        memory = getattr(self._memory, "array", None)
        if memory is None or len(memory) < size:
            memory = self._memory.array = np.empty(max(size, LOCAL_BLOCK_BYTES), np.uint8)
        return memory[:size]
