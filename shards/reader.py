"""Reads ranges of rows from shards as arrays: seekable, verified, vectorised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash

from shards.damage import Damage, DamageLog, ShardError
from shards.index import ShardIndex, read_table
from shards.index_store import IndexCache, load_index, read_index_bytes
from shards.layout import NPY_HEADER_BYTES, SlotLayout
from shards.manifest import Manifest, ShardEntry
from shards.member import MemberError, parse_npy
from shards.rows import Rows
from shards.storage import Storage

# Rows are read, hashed and copied in blocks that stay in a core's cache between the three.
_BLOCK_BYTES = 2 << 20
_RESTORE = "Restore the shard from its source, or run `python -m shards verify FOLDER --repair` to go on without it"
_CHECKSUM_DIFFERS = "checksum differs from the index"
_PRESENCE_DIFFERS = "presence in the index and NaN in the payload disagree"
_NPY_WORDS = NPY_HEADER_BYTES // 8


class Selection(Protocol):
    """The part of `shards.View` that reading needs."""

    @property
    def counts(self) -> np.ndarray: ...

    @property
    def rows(self) -> int: ...

    def indices(self, shard: int) -> np.ndarray: ...


class Reader:
    """Row ranges of a data set.

    view: rows to select (default all); positions then count the selected rows of a shard. modalities: a sequence
    that selects from the manifest's modalities, or a mapping that composes new ones of its columns; a modality is
    present where all its columns are. labels: names to return, None for all of the manifest's. dtype: float type of
    all features (default: as stored; a modality of several dtypes has their common one). max_damaged_share and
    quarantine: see `DamageLog`. index_cache_bytes bounds the memory for indexes, which a data set read in random order
    wants to hold whole (about 25 bytes a sample).

    Pickled, it is a few hundred bytes and the view: files, caches and the damage log stay behind.
    """

    def __init__(
        self,
        manifest: Manifest,
        view: Selection | None = None,
        modalities: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        max_damaged_share: float = 0.001,
        quarantine: Callable[[Damage], None] | None = None,
        dtype: str | None = None,
        index_cache_bytes: int = 256 * 1024**2,
    ) -> None:
        self._options = (modalities, labels, max_damaged_share, quarantine, dtype, index_cache_bytes)
        self.manifest = manifest
        self.view = view
        schema = manifest.schema
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
        self.damage = DamageLog(manifest.rows if view is None else view.rows, max_damaged_share, quarantine)
        self._label_shapes = {label.name: (label.shape, label.numpy_dtype) for label in chosen}
        self._pieces = self._compile()
        self._storage = Storage(manifest)
        self._indexes = IndexCache(index_cache_bytes)
        self._memory = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Reader, (self.manifest, self.view, *self._options))

    def __len__(self) -> int:
        return self.damage.total_rows

    def over(self, view: Selection | None) -> Reader:
        """A reader of another selection with the same options (and a damage log of its own)."""
        return Reader(self.manifest, view, *self._options)

    @property
    def counts(self) -> np.ndarray:
        """(S,) int64 rows that can be read of each shard."""
        return self.manifest.counts if self.view is None else self.view.counts

    # Reading

    def allocate(self, size: int) -> Rows:
        """Memory for `size` rows, all of them padding, to pass (or a `part` of it) to `read`."""
        rows = self._uninitialised(size)
        rows.clear()
        return rows

    def read(self, shard: int, start: int, stop: int, out: Rows | None = None) -> Rows:
        """Rows [start, stop) of the shard's selection, verified; into `out` (of exactly that many rows) if given.

        A damaged sample has nothing present, zero features and missing labels, and is added to `damage`. Raises
        ShardError for a structural fault, DamageError beyond max_damaged_share, IndexError for a range out of bounds.
        """
        if not 0 <= shard < len(self.manifest):
            raise IndexError(f"shard number {shard}, expected 0..{len(self.manifest) - 1}")
        available = int(self.counts[shard])
        if not 0 <= start <= stop <= available:
            raise IndexError(f"rows [{start}, {stop}) of shard {shard}, which has {available} selected rows")
        if out is None:
            out = self._uninitialised(stop - start)
        elif len(out) != stop - start:
            raise ValueError(f"out has {len(out)} rows, expected {stop - start}")
        if start == stop:
            return out
        entry = self.manifest.entry(shard)
        index = self._index(shard, entry)
        picked = self._picked(shard, start, stop, entry)
        np.add(picked, self.manifest.rows_before[shard], out=out.row)
        self._fill_from_index(index, picked, out)
        self.damage.rows_read += stop - start
        read = self._read_slots if index.layout is not None else self._read_members
        bad = read(entry, index, picked, out)
        for modality, there in out.present.items():
            if not there.all():
                out.features[modality][~there] = 0
        if bad:
            self._quarantine(entry, bad, picked, out)
        return out

    def read_ranges(self, ranges: Iterable[tuple[int, int, int]], size: int | None = None) -> Rows:
        """The (shard, start, stop) ranges one after another as one batch, padded to `size` rows."""
        ranges = [(shard, start, stop) for shard, start, stop in ranges]
        total = sum(stop - start for _, start, stop in ranges)
        size = total if size is None else size
        if size < total:
            raise ValueError(f"size is {size}, but the ranges hold {total} rows")
        rows, at = self._uninitialised(size), 0
        for shard, start, stop in ranges:
            self.read(shard, start, stop, out=rows.part(at, at + stop - start))
            at += stop - start
        rows.part(total, size).clear()
        return rows

    def metadata(self, shard: int) -> pa.Table:
        """The shard's index (all its rows, not the view's): key, `label.<name>`, group, text, `meta.<name>`."""
        entry = self.manifest.entry(shard)
        return read_table(entry.name, self._index_bytes(entry))

    # Parts of a read

    def _picked(self, shard: int, start: int, stop: int, entry: ShardEntry) -> np.ndarray:
        """(n,) int64 row numbers within the shard."""
        if self.view is None:
            return np.arange(start, stop, dtype=np.int64)
        picked = np.asarray(self.view.indices(shard))[start:stop]
        if len(picked) != stop - start or picked.min() < 0 or picked.max() >= entry.count:
            raise ShardError(entry.name, "the view selects rows that the shard does not have; make the view anew")
        return picked

    def _fill_from_index(self, index: ShardIndex, picked: np.ndarray, out: Rows) -> None:
        number = {name: i for i, name in enumerate(self.manifest.schema.column_names)}
        for modality, members in self.modalities.items():
            out.present[modality][:] = index.present[picked, number[members[0]]]
            for member in members[1:]:
                out.present[modality][:] &= index.present[picked, number[member]]
        for name in self.labels:
            out.labels[name][:] = index.labels[name][picked]
        if out.group is not None and index.group is not None:
            out.group[:] = index.group[picked]

    def _read_slots(self, entry: ShardEntry, index: ShardIndex, picked: np.ndarray, out: Rows) -> dict[int, str]:
        """Fixed stride: one range read, one checksum for each row, one strided copy for each column."""
        assert index.layout is not None
        stride = index.layout.stride
        bad: dict[int, str] = {}
        step = max(1, _BLOCK_BYTES // stride)
        expected, present = index.checksums[picked], index.present[picked]
        for start in range(0, len(picked), step):
            stop = min(start + step, len(picked))
            buffer = self._buffer((stop - start) * stride)
            self._storage.read_into(entry, _runs(picked[start:stop], stride), buffer)
            sums = [xxhash.xxh3_64_intdigest(buffer[at : at + stride]) for at in range(0, len(buffer), stride)]
            intact = np.array(sums, np.uint64) == expected[start:stop]
            self._check_headers(entry, index.layout, buffer, picked[start:stop], intact)
            there = self._presence_agrees(index.layout, buffer, present[start:stop])
            for i in np.flatnonzero(~(intact & there)).tolist():
                bad[start + i] = _PRESENCE_DIFFERS if intact[i] else _CHECKSUM_DIFFERS
            for modality, dtype, width, offset, left in self._pieces:
                view = np.ndarray((stop - start, width), dtype, buffer, offset, (stride, dtype.itemsize))
                out.features[modality][start:stop, left : left + width] = view
        return bad

    def _check_headers(
        self, entry: ShardEntry, layout: SlotLayout, buffer: memoryview, rows: np.ndarray, intact: np.ndarray
    ) -> None:
        """Refuse a sample that was written with another width or dtype: the shard is not this schema's."""
        for column, offset, header in zip(layout.columns, layout.npy_offsets, layout.npy_headers, strict=True):
            found = np.ndarray((len(rows), _NPY_WORDS), np.uint64, buffer, offset, (layout.stride, 8))
            differs = found != header.view(np.uint64)
            if not differs.any():
                continue
            strange = np.flatnonzero(differs.any(axis=1) & intact)
            if len(strange):
                raise ShardError(
                    entry.name,
                    f"column {column.name!r} has another width or dtype than the manifest says",
                    sample=self._key(entry, int(rows[strange[0]])),
                    expected=_describe(header.tobytes()),
                    found=_describe(found[strange[0]].tobytes()),
                    remedy=_RESTORE,
                )

    def _presence_agrees(self, layout: SlotLayout, buffer: memoryview, present: np.ndarray) -> np.ndarray:
        """(n,) bool: the first and last number of every column are NaN exactly where the index says it is missing.

        The writer stores columns wholly NaN or wholly finite, and the checksum covers what it stored, so two numbers
        tell; `python -m shards verify` looks at all of them.
        """
        agrees = np.ones(len(present), bool)
        for i, (column, offset) in enumerate(zip(layout.columns, layout.payload_offsets, strict=True)):
            dtype = column.numpy_dtype
            steps = (layout.stride, column.nbytes - dtype.itemsize)
            ends = np.ndarray((len(present), 2), dtype, buffer, offset, steps)
            wrong = np.isnan(ends) == present[:, i : i + 1]
            if wrong.any():
                agrees &= ~wrong.any(axis=1)
        return agrees

    def _read_members(self, entry: ShardEntry, index: ShardIndex, picked: np.ndarray, out: Rows) -> dict[int, str]:
        """Foreign shards: each member where the index found it, its npy header parsed anew."""
        assert index.members is not None
        bad: dict[int, str] = {}
        schema = self.manifest.schema
        for i, row in enumerate(picked.tolist()):
            places = [(int(offset), int(size)) for offset, size in index.members[row] if offset >= 0]
            buffer = self._buffer(sum(size for _, size in places))
            self._storage.read_into(entry, places, buffer)
            if xxhash.xxh3_64_intdigest(buffer) != int(index.checksums[row]):
                bad[i] = _CHECKSUM_DIFFERS
                continue
            arrays: dict[str, np.ndarray | None] = {}
            at = 0
            for number, column in enumerate(schema.columns):
                size = int(index.members[row, number, 1])
                arrays[column.name] = None
                if size < 0:
                    continue
                try:
                    values = parse_npy(buffer[at : at + size], column)
                except MemberError as error:
                    raise ShardError(
                        entry.name,
                        f"column {column.name!r}: {error}",
                        sample=self._key(entry, row),
                        expected=f"{column.dtype} ({column.width},)",
                        remedy="Run `python -m shards index` on the folder again",
                    ) from None
                at += size
                if np.isfinite(values).all() != index.present[row, number]:
                    bad[i] = _PRESENCE_DIFFERS
                arrays[column.name] = values if index.present[row, number] else None
            for modality, members in self.modalities.items():
                if all(arrays[name] is not None for name in members):
                    np.concatenate(
                        [arrays[name] for name in members], out=out.features[modality][i], casting="same_kind"
                    )
        return bad

    def _quarantine(self, entry: ShardEntry, bad: Mapping[int, str], picked: np.ndarray, out: Rows) -> None:
        """Clear damaged rows but for their row number, and only then log them: the log may stop the reading."""
        for i in bad:
            number = int(out.row[i])
            out.part(i, i + 1).clear()
            out.row[i] = number
        keys = self._keys(entry)
        for i, reason in bad.items():
            key = keys[int(picked[i])].as_py()
            self.damage.add(Damage(entry.name, key, int(out.row[i]), reason))

    # Indexes and memory

    def _index(self, shard: int, entry: ShardEntry) -> ShardIndex:
        index = self._indexes.get(shard)
        if index is None:
            index = load_index(self.manifest, entry)
            self._indexes.put(shard, index)
        return index

    def _index_bytes(self, entry: ShardEntry) -> bytes:
        return read_index_bytes(self.manifest, entry)

    def _keys(self, entry: ShardEntry) -> pa.ChunkedArray:
        return read_table(entry.name, self._index_bytes(entry), ["key"])["key"]

    def _key(self, entry: ShardEntry, row: int) -> str:
        return self._keys(entry)[row].as_py()

    def _compile(self) -> list[tuple[str, np.dtype, int, int, int]]:
        """(modality, dtype, width, offset in a slot, first element in the modality) of each column to be copied."""
        columns = self.manifest.columns
        offsets = dict(zip(self.manifest.schema.column_names, SlotLayout(columns, 1).payload_offsets, strict=True))
        pieces = []
        for modality, members in self.modalities.items():
            left = 0
            for name in members:
                column = self.manifest.schema.column(name)
                pieces.append((modality, column.numpy_dtype, column.width, offsets[name], left))
                left += column.width
        return pieces

    def _uninitialised(self, size: int) -> Rows:
        return Rows.uninitialised(size, self.widths, self.dtypes, self._label_shapes, self.manifest.schema.grouped)

    def _buffer(self, size: int) -> memoryview:
        """`size` bytes of memory that this thread uses again and again."""
        memory = getattr(self._memory, "array", None)
        if memory is None or len(memory) < size:
            memory = self._memory.array = np.empty(max(size, _BLOCK_BYTES), np.uint8)
        return memory.data[:size]


def _runs(rows: np.ndarray, stride: int) -> list[tuple[int, int]]:
    """(offset, length) in bytes of each run of consecutive rows."""
    if int(rows[-1]) - int(rows[0]) == len(rows) - 1:
        return [(int(rows[0]) * stride, len(rows) * stride)]
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [len(rows)]])
    return [(int(rows[a]) * stride, int(b - a) * stride) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def _describe(header: bytes) -> str:
    """What an npy header says, for a message."""
    return header[10:].decode("latin-1").strip()
