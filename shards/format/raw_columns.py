"""Fixed-stride samples in memory: read and hashed in blocks that stay in a core's cache, checked, seen as columns.

Samples lie in rows of a (n, pitch) array, where the pitch may be longer than their stride: shards of one data set
differ in stride (their longest JSON differs), never in where a column begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from shards.format.layout import NPY_HEADER_BYTES, SampleLayout
from shards.format.manifest import ShardEntry
from shards.format.schema import Schema
from shards.format.storage import Storage

# Read, then hashed at once: half of a common L2 cache. Remote stores count requests, not cache lines.
LOCAL_BLOCK_BYTES = 512 << 10
REMOTE_BLOCK_BYTES = 8 << 20
_NPY_WORDS = NPY_HEADER_BYTES // 8


def read_raw(storage: Storage, entry: ShardEntry, stride: int, rows: np.ndarray | slice, raw: np.ndarray) -> np.ndarray:
    """The shard's `rows` (ascending numbers, or a slice of them) into `raw` (n, pitch) uint8; (n,) uint64 xxh3_64 of
    each.

    Raises ShardError where the file is missing or of another size than the manifest says.
    """
    pitch = raw.shape[1]
    memory = raw.reshape(-1).data
    digest = xxhash.xxh3_64_intdigest
    sums: list[int] = []
    step = max(1, (LOCAL_BLOCK_BYTES if storage.is_local else REMOTE_BLOCK_BYTES) // pitch)
    for at in range(0, len(raw), step):
        end = min(at + step, len(raw))
        ranges = []
        for first, a, b in _runs(rows, at, end):
            if pitch == stride:
                buffers = [memory[a * pitch : b * pitch]]
            else:
                buffers = [memory[i * pitch : i * pitch + stride] for i in range(a, b)]
            ranges.append((first * stride, buffers))
        storage.read_into(entry, ranges)
        sums += [digest(memory[i : i + stride]) for i in range(at * pitch, end * pitch, pitch)]
    return np.array(sums, np.uint64)


def _runs(rows: np.ndarray | slice, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(number of the first row, place of the first, place after the last) of each run of neighbours in a block."""
    if isinstance(rows, slice):
        return [(rows.start + start, start, stop)]
    part = rows[start:stop]
    if int(part[-1]) - int(part[0]) == len(part) - 1:
        return [(int(part[0]), start, stop)]
    breaks = (np.flatnonzero(np.diff(part) != 1) + 1).tolist()
    edges = [0, *breaks, len(part)]
    return [(int(part[a]), start + a, start + b) for a, b in itertools.pairwise(edges)]


class RawColumns:
    """Where the columns lie in any sample of a schema, which of them must be copied, and what their headers say."""

    def __init__(self, schema: Schema, modalities: Mapping[str, Sequence[str]]) -> None:
        self._layout = SampleLayout(schema.columns, 1)
        self.payload = dict(zip(schema.column_names, self._layout.payload_offsets, strict=True))
        # (modality, dtype, width, offset in a sample, first element in the modality) of each column
        self.pieces: list[tuple[str, np.dtype, int, int, int]] = []
        for modality, members in modalities.items():
            left = 0
            for name in members:
                column = schema.column(name)
                self.pieces.append((modality, column.numpy_dtype, column.width, self.payload[name], left))
                left += column.width

    def copy(self, raw: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
        """The columns of n samples into `features` (n, D_m)."""
        for modality, dtype, width, offset, left in self.pieces:
            features[modality][:, left : left + width] = column_view(raw, offset, width, dtype)

    def strange_header(self, raw: np.ndarray, intact: np.ndarray) -> tuple[int, int] | None:
        """(row, column number) of an intact sample that was written with another width or dtype, if there is one."""
        layout = self._layout
        for number, (offset, header) in enumerate(zip(layout.npy_offsets, layout.npy_headers, strict=True)):
            differs = column_view(raw, offset, _NPY_WORDS, np.dtype(np.uint64)) != header.view(np.uint64)
            if differs.any():
                strange = np.flatnonzero(differs.any(axis=1) & intact)
                if len(strange):
                    return int(strange[0]), number
        return None

    def header(self, number: int, sample: np.ndarray | None = None) -> str:
        """What the npy header of a column says in a sample, or should say, for a message."""
        at = self._layout.npy_offsets[number]
        data = self._layout.npy_headers[number] if sample is None else sample[at : at + NPY_HEADER_BYTES]
        return data.tobytes()[10:].decode("latin-1").strip()

    def presence_agrees(self, raw: np.ndarray, present: np.ndarray) -> np.ndarray:
        """(n,) bool: the first and last number of every column are NaN exactly where `present` (n, C) says missing.

        The writer stores columns wholly NaN or wholly finite, and the checksum covers what it stored, so two numbers
        tell; `python -m shards verify` looks at all of them.
        """
        agrees = np.ones(len(raw), bool)
        for number, (column, offset) in enumerate(zip(self._layout.columns, self._layout.payload_offsets, strict=True)):
            dtype = column.numpy_dtype
            steps = (raw.strides[0], column.nbytes - dtype.itemsize)
            ends = np.ndarray((len(raw), 2), dtype, raw.data, offset, steps)
            wrong = np.isnan(ends) == present[:, number : number + 1]
            if wrong.any():
                agrees &= ~wrong.any(axis=1)
        return agrees


def column_view(raw: np.ndarray, offset: int, width: int, dtype: np.dtype) -> np.ndarray:
    """(n, width) of `dtype` in (n, pitch) uint8, from byte `offset` of each sample on; the same memory."""
    return raw[:, offset : offset + width * dtype.itemsize].view(dtype)
