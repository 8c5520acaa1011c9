"""All rows of a data set in memory: a batch then is one index by the rows of the plan, whatever the number of workers.

The memory may be that of one process, or be shared by the processes of a machine: it is read once, in parts that each
of them may take. Order, batches and values are those of `shards.reading.stream`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from shards.errors import ShardError
from shards.planning.plan import Cursor, Plan, Range
from shards.reading.rows import Memory, Rows
from shards.reading.stream import PIECES_PLANNED, ReadAhead, RowMemory, RowReader, check_fit, placed, windows
from shards.reading.stream_counters import StreamCounters

STORED, HALF = "stored", "float16"
PRECISIONS = (STORED, HALF)
PADDING = -1
_ALIGNMENT = 64
_BLOCK_BYTES = 64 << 20


class Resident:
    """Memory for all rows of a reader, in the order of its shards, and what is read into it.

    precision: "stored", or "float16" for features that are rounded to it (11 bits; half the memory of float32).
    memory: (bytes,) uint8 to use, `nbytes` of it; by default of this process. Its content is rows only where `read` has
    been, here or in a process that shares it.

    complete: set it where every row has every modality, here and wherever other ranks have theirs: batches then say so.

    Raises ValueError for a reader with labels, which are not kept.
    """

    def __init__(self, reader: RowReader, precision: str = STORED, memory: np.ndarray | None = None) -> None:
        if reader.labels:
            raise ValueError(f"labels {', '.join(reader.labels)}: not kept with resident rows; read without them")
        self.reader, self.precision = reader, precision
        self.total = int(reader.counts.sum())
        self.complete = False
        shapes = _shapes(reader, precision)
        if memory is None:
            memory = np.empty(nbytes(reader, precision), np.uint8)
        arrays, at, memory = {}, 0, np.asarray(memory)
        for name, (shape, dtype) in shapes.items():
            size = int(np.prod(shape)) * dtype.itemsize
            arrays[name] = memory[at : at + size].view(dtype).reshape(shape)
            at += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.rows = Rows(
            {m: arrays[f"features/{m}"] for m in reader.widths},
            {m: arrays[f"present/{m}"] for m in reader.widths},
            arrays["row"],
            {},
            arrays.get("group"),
        )

    def read(self, part: int = 0, parts: int = 1) -> Iterator[int]:
        """Read every `parts`-th block of rows, the `part`-th one first, as one of several processes does; yields the
        number of rows of each."""
        size = block_rows(self.reader)
        for start in range(part * size, self.total, parts * size):
            stop = min(start + size, self.total)
            read(self.reader, start, self.rows.part(start, stop))
            yield stop - start

    @property
    def lacks_nothing(self) -> bool:
        """Whether every row that was read has every modality."""
        return all(bool(present.all()) for present in self.rows.present.values())

    def allocate(self, size: int, views: bool = False, memory: Memory | None = None) -> Rows:
        """Memory for a batch of `size` rows, of any content."""
        return allocate(self.reader, self.precision, size, memory)

    def take(self, position: np.ndarray, out: Rows) -> None:
        """The rows at (B,) positions, copied into `out`; PADDING, at the end only, makes rows of padding."""
        filled = int((position != PADDING).sum())
        here, part = position[:filled], out.part(0, filled)
        for name, array in self.rows.features.items():
            np.take(array, here, axis=0, out=part.features[name], mode="clip")
            np.take(self.rows.present[name], here, out=part.present[name], mode="clip")
        np.take(self.rows.row, here, out=part.row, mode="clip")
        if part.group is not None and self.rows.group is not None:
            np.take(self.rows.group, here, out=part.group, mode="clip")
        out.part(filled, len(out)).clear()


@dataclass(frozen=True)
class Place:
    """Where the rows of one batch lie: (B,) int64 positions among all rows in the order of shards, PADDING at the end
    where it lacks some. `cursor` is the step that it is."""

    position: np.ndarray
    cursor: Cursor


def places(plan: Plan, rank: int, world: int, cursor: Cursor, steps: int) -> Iterator[Place]:
    """`steps` batches of this rank, from `cursor` on, over epoch borders."""
    first = np.cumsum(plan.counts) - plan.counts
    local = plan.local_batch(world)
    size = max(1, PIECES_PLANNED * plan.chunk_rows // local)
    for start, window in windows(plan, rank, world, cursor, steps, size):
        lengths = window.stop - window.start
        begins = first[window.shard] + window.start - (np.cumsum(lengths) - lengths)
        position = np.repeat(begins, lengths) + np.arange(int(lengths.sum()))
        at = 0
        for i, filled in enumerate(window.filled.tolist()):
            own = np.full(local, PADDING, np.int64)
            own[:filled] = position[at : at + filled]
            at += filled
            yield Place(own, plan.advance(start, i))


def stream(
    resident: Resident,
    plan: Plan,
    rank: int,
    world: int,
    cursor: Cursor,
    steps: int,
    prefetch: int = 2,
    memory: Memory | None = None,
) -> ReadAhead[Rows]:
    """What `shards.reading.stream.stream` yields, out of memory; a thread copies `prefetch` batches ahead. memory: what
    they lie in."""
    check_fit(resident.reader, plan, rank, world, steps)
    ahead = RowMemory(resident, plan.local_batch(world), kept=prefetch + 3, views=False, memory=memory)
    counters = StreamCounters()

    def batches() -> Iterator[Rows]:
        for place in places(plan, rank, world, cursor, steps):
            with counters.while_reading():
                rows = ahead.take()
                resident.take(place.position, rows)
                batch = placed(rows, resident.reader, place.cursor)
                if resident.complete:
                    batch = replace(batch, complete=plan.batch_rows(place.cursor))
                ahead.give(rows)
            del rows
            yield batch
            del batch  # or this frame would hold a batch while the next one is made

    return ReadAhead(batches(), prefetch, counters)


def nbytes(reader: RowReader, precision: str = STORED) -> int:
    """What all rows of the reader take."""
    sizes = (int(np.prod(shape)) * dtype.itemsize for shape, dtype in _shapes(reader, precision).values())
    return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)


def block_rows(reader: RowReader) -> int:
    """Rows that are read at a time."""
    return max(1, _BLOCK_BYTES // reader.row_bytes)


def allocate(reader: RowReader, precision: str, size: int, memory: Memory | None = None) -> Rows:
    """Memory for `size` rows, of any content."""
    return Rows.uninitialised(size, reader.widths, _dtypes(reader, precision), {}, reader.grouped, memory=memory)


def read(reader: RowReader, start: int, out: Rows) -> None:
    """Rows [start, start + len(out)) of all, verified, rounded where `out` has float16 and the reader has not. A
    corrupt row has nothing present, and is logged by the reader.

    Raises ShardError as the reader does, and for a feature that float16 does not hold.
    """
    ranges = ranges_between(reader.counts, start, start + len(out))
    if all(out.features[m].dtype == dtype for m, dtype in reader.dtypes.items()):
        reader.read_ranges(ranges, out=out)
        return
    exact = reader.read_ranges(ranges)
    for name, values in exact.features.items():
        with np.errstate(over="ignore"):
            out.features[name][...] = values
        too_large = np.isinf(out.features[name]) & np.isfinite(values)
        if too_large.any():
            i, j = np.argwhere(too_large)[0].tolist()
            raise ShardError(
                reader.shard_of(int(exact.row[i])),
                f"row {int(exact.row[i])}, modality {name!r}: feature {j} does not fit into float16",
                expected="65504 at most",
                found=f"{values[i, j]:g}",
                remedy="Keep rows as they are stored: data.rows_in=stored",
            )
        out.present[name][...] = exact.present[name]
    out.row[...] = exact.row
    if out.group is not None and exact.group is not None:
        out.group[...] = exact.group


def ranges_between(counts: np.ndarray, start: int, stop: int) -> list[Range]:
    """Rows [start, stop) of all, in the order of shards."""
    ends = np.cumsum(counts)
    shards = range(int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, stop, side="left")) + 1)
    first = ends - counts
    found = [(s, max(start - int(first[s]), 0), min(stop - int(first[s]), int(counts[s]))) for s in shards]
    return [Range(*piece) for piece in found if piece[1] < piece[2]]


def _dtypes(reader: RowReader, precision: str) -> dict[str, np.dtype]:
    return {m: np.dtype(np.float16) if precision == HALF else dtype for m, dtype in reader.dtypes.items()}


def _shapes(reader: RowReader, precision: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    total = int(reader.counts.sum())
    dtypes = _dtypes(reader, precision)
    found: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        f"features/{m}": ((total, width), dtypes[m]) for m, width in reader.widths.items()
    }
    found |= {f"present/{m}": ((total,), np.dtype(bool)) for m in reader.widths}
    found["row"] = (total,), np.dtype(np.int64)
    if reader.grouped:
        found["group"] = (total,), np.dtype(np.int64)
    return found
