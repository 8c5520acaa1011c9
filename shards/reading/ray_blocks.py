"""Rows as Arrow tables and back: what read tasks put into Ray's object store, and what the consumer makes of it.

Needs no Ray. Where `Reader.pitch` allows it, a table carries whole samples, one binary value each, over the memory they
were read into; otherwise features are fixed-size lists over the arrays' own memory. Either way the only copies are the
one into the object store and the one out of it, into the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from shards.errors import CorruptionLog
from shards.format.raw_columns import column_view
from shards.planning.plan import Range
from shards.reading.rows import Rows
from shards.reading.stream import RowMemory, RowReader, merged

PADDING_SHARD = -1


class TaskReader:
    """The reader of one process that runs tasks; the memory of one task's rows is used again by the next."""

    def __init__(self, reader: RowReader) -> None:
        self._reader = reader
        self._size = -1
        self._memory: RowMemory

    def table(self, pieces: np.ndarray) -> pa.Table:
        """The rows of the (pieces, 3) shard, start, stop; PADDING_SHARD makes rows of padding."""
        reader, size = self._reader, int((pieces[:, 2] - pieces[:, 1]).sum())
        if size != self._size:
            self._size, self._memory = size, RowMemory(reader, size, kept=1)
        rows = self._memory.take()
        reader.corrupt = CorruptionLog(len(reader), 1.0)  # of this task alone
        for ranges, part in _unpadded(pieces, rows):
            reader.read_ranges(merged(ranges), out=part)
        self._memory.give(rows)
        return _table(rows, {entry.row: (entry.key, entry.reason) for entry in reader.corrupt})


def _unpadded(pieces: np.ndarray, rows: Rows) -> Iterator[tuple[list[Range], Rows]]:
    """Ranges up to a padding and as many rows as both need: padding may lie between the steps of a task."""
    ranges: list[Range] = []
    start = at = 0
    for shard, first, stop in pieces.tolist():
        at += stop - first
        if shard != PADDING_SHARD:
            ranges.append(Range(shard, first, stop))
        else:
            yield ranges, rows.part(start, at)
            ranges, start = [], at
    if start < at:
        yield ranges, rows.part(start, at)


def _table(rows: Rows, found: dict[int, tuple[str, str]]) -> pa.Table:
    corrupt = [found.get(row, (None, None)) for row in rows.row.tolist()] if found else [(None, None)] * len(rows)
    columns: dict[str, pa.Array] = {"row": pa.array(rows.row)}
    if rows.group is not None:
        columns["group"] = pa.array(rows.group)
    columns |= {f"present.{name}": pa.array(array) for name, array in rows.present.items()}
    columns |= {f"label.{name}": _column(array) for name, array in rows.labels.items()}
    if rows.raw is not None:
        kind = pa.binary(rows.raw.shape[1])
        columns["raw"] = pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(rows.raw)])
    else:
        columns |= {f"features.{name}": _column(array) for name, array in rows.features.items()}
    columns["corrupt.key"] = pa.array([key for key, _ in corrupt], pa.string())
    columns["corrupt.reason"] = pa.array([reason for _, reason in corrupt], pa.string())
    return pa.table(columns)


def _column(array: np.ndarray) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def places_table(pieces: np.ndarray) -> pa.Table:
    """Shard and position of every row of the pieces."""
    lengths = pieces[:, 2] - pieces[:, 1]
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
    return pa.table({"shard": np.repeat(pieces[:, 0], lengths), "position": np.repeat(pieces[:, 1], lengths) + within})


def fill(rows: Rows, table: pa.Table, offsets: dict[str, int]) -> None:
    """Copy the table into the batch's memory. offsets: where each modality begins in a sample, for whole samples."""
    targets = {"row": rows.row}
    if rows.group is not None:
        targets["group"] = rows.group
    targets |= {f"present.{name}": array for name, array in rows.present.items()}
    targets |= {f"label.{name}": array for name, array in rows.labels.items()}
    if "raw" in table.column_names:
        at = 0
        for chunk in table["raw"].chunks:
            raw = np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, chunk.type.byte_width)
            part = raw[chunk.offset : chunk.offset + len(chunk)]
            for name, array in rows.features.items():
                array[at : at + len(chunk)] = column_view(part, offsets[name], array.shape[1], array.dtype)
            at += len(chunk)
    else:
        targets |= {f"features.{name}": array for name, array in rows.features.items()}
    for name, target in targets.items():
        at = 0
        for chunk in table[name].chunks:
            flat = chunk.flatten() if target.ndim == 2 else chunk
            target[at : at + len(chunk)] = flat.to_numpy(zero_copy_only=False).reshape(len(chunk), *target.shape[1:])
            at += len(chunk)


def ranges_of(table: pa.Table) -> list[Range]:
    """Runs of consecutive positions of one shard; padding, which is at the tail, is left out."""
    shard, position = table["shard"].to_numpy(), table["position"].to_numpy()
    filled = int((shard != PADDING_SHARD).sum())
    if filled == 0:
        return []
    shard, position = shard[:filled], position[:filled]
    border = np.flatnonzero((np.diff(shard) != 0) | (np.diff(position) != 1)) + 1
    starts, ends = np.concatenate([[0], border]), np.concatenate([border, [filled]]) - 1
    runs = zip(shard[starts].tolist(), position[starts].tolist(), (position[ends] + 1).tolist(), strict=True)
    return [Range(*run) for run in runs]
