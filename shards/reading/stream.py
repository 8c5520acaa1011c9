"""The batches of one rank, read by one process: the plan's order, a reader's rows, a thread that reads ahead."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from shards.planning.plan import Cursor, Plan, Range, Window
from shards.reading.mixed_reader import MixedReader
from shards.reading.reader import Reader
from shards.reading.rows import Memory, Rows
from shards.reading.stream_counters import StreamCounters

# Pieces planned at once. A window of a plan of small chunks has many pieces a step, one of large chunks few.
PIECES_PLANNED = 50_000

Item = TypeVar("Item")

RowReader = Reader | MixedReader


class Allocates(Protocol):
    """What memory for batches is asked of."""

    def allocate(self, size: int, views: bool = False, memory: Memory | None = None) -> Rows: ...


def stream(
    reader: RowReader,
    plan: Plan,
    rank: int,
    world: int,
    cursor: Cursor,
    steps: int,
    prefetch: int = 2,
    memory: Memory | None = None,
) -> Iterator[Rows]:
    """`steps` batches of exactly ceil(global_batch / world) rows each, from `cursor` on, over epoch borders.

    Rows that a batch lacks are padding at its tail (row -1, nothing present). With `prefetch` > 0 a thread reads ahead;
    memory then is (prefetch + 2) batches: those waiting, the one being read, the one in use. From a remote store the
    batches ahead are fetched side by side, so that latency is paid once and not for each. A batch's memory is used
    again only when nothing refers to its arrays any more, so batches may be kept. Closing the iterator ends the
    thread.

    Raises ValueError at once where plan, reader, rank or steps don't fit together, and from the iterator what the
    reader raises (ShardError, CorruptionError).

    Where `Reader.pitch` allows it, features are views on whole samples, `Rows.raw`: nothing is copied after reading.
    memory: what batches lie in, for instance pinned for a GPU; features then have no gaps, and are copied there out of
    a buffer in the processor's cache.
    """
    check_fit(reader, plan, rank, world, steps)
    batches = RowMemory(reader, plan.local_batch(world), kept=prefetch + 3, memory=memory)
    steps_read = _steps(reader, plan, rank, world, cursor, steps)
    if prefetch <= 0:
        return (_read(reader, batches, *step) for step in steps_read)
    if reader.is_local:
        counters = StreamCounters()
        return ReadAhead(_read_counted(reader, batches, steps_read, counters), prefetch, counters)
    return ReadAhead(_read_side_by_side(reader, batches, steps_read, prefetch), 1)


def check_fit(reader: RowReader, plan: Plan, rank: int, world: int, steps: int) -> None:
    """ValueError unless the plan was made for the rows that the reader reads, and the numbers are in range."""
    if plan.counts.shape != reader.counts.shape or (plan.counts != reader.counts).any():
        raise ValueError(
            f"the plan is of {plan.total_rows} rows in {len(plan.counts)} shards, the reader of "
            f"{int(reader.counts.sum())} in {len(reader.counts)}: make the plan from the same view, "
            "EpochPlan(counts=view.counts, ...)"
        )
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank}; expected 0 <= rank < world, with world={world}")
    if steps < 0:
        raise ValueError(f"steps is {steps}; expected >= 0")


def windows(
    plan: Plan, rank: int, world: int, cursor: Cursor, steps: int, size: int
) -> Iterator[tuple[Cursor, Window]]:
    """The rank's part of the plan in windows of `size` steps (the last one shorter), with their first cursors."""
    for at in range(0, steps, size):
        start = plan.advance(cursor, at)
        yield start, plan.window(start, min(size, steps - at), rank, world)


def merged(ranges: list[Range]) -> list[Range]:
    """Ranges that continue each other joined into one, in the same order."""
    joined: list[Range] = []
    for piece in ranges:
        if joined and joined[-1].shard == piece.shard and joined[-1].stop == piece.start:
            joined[-1] = Range(piece.shard, joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined


def placed(rows: Rows, reader: RowReader, cursor: Cursor) -> Rows:
    """The batch with its corpus numbers and its place in the plan; arrays are shared, dictionaries are not (see
    `RowMemory`)."""
    return replace(
        rows,
        features=dict(rows.features),
        present=dict(rows.present),
        labels=dict(rows.labels),
        corpus=reader.corpus_of(rows.row),
        cursor=cursor,
    )


class RowMemory:
    """Batches' memory, handed out again once nobody holds any of its arrays.

    Fresh memory costs a page fault for each 4 KiB, which takes as long as reading the rows. CPython's reference counts
    say whether an array is in use, which are compared with those of a batch that nobody has seen yet: views (numpy lets
    a view of a view refer to the array that owns the memory), tensors made by `torch.from_numpy` and dictionaries of a
    batch that was handed out all count.

    memory: of what kind it is, by default numpy's own. Such memory goes to a device without a copy, which wants
    features without gaps (never views), and is held for one batch longer, that on its way.
    """

    def __init__(
        self, reader: Allocates, size: int, kept: int, views: bool = True, memory: Memory | None = None
    ) -> None:
        self._reader, self._size, self._memory = reader, size, memory
        self._kept, self._views = (kept, views) if memory is None else (kept + 1, False)
        self._batches: list[Rows] = []
        self._alone: list[int] = []
        self._lock = threading.Lock()

    def take(self) -> Rows:
        """Memory for one batch, with any content."""
        with self._lock:
            for place, rows in enumerate(self._batches):
                if _references(rows) == self._alone:
                    return self._batches.pop(place)
        rows = self._reader.allocate(self._size, self._views, self._memory)
        self._alone = self._alone or _references(rows)
        return rows

    def give(self, rows: Rows) -> None:
        """Watch a batch that was filled and is handed out now."""
        with self._lock:
            self._batches = [*self._batches[-(self._kept - 1) :], rows]


def _references(rows: Rows) -> list[int]:
    """How often each array of the batch, and each that owns the memory of some, is referred to."""
    arrays = [rows.row, *rows.features.values(), *rows.present.values(), *rows.labels.values()]
    if rows.group is not None:
        arrays.append(rows.group)
    if rows.raw is not None:
        arrays.append(rows.raw)
    arrays += [array.base for array in arrays if array.base is not None]
    return [sys.getrefcount(arrays[i]) for i in range(len(arrays))]


def _steps(
    reader: RowReader, plan: Plan, rank: int, world: int, cursor: Cursor, steps: int
) -> Iterator[tuple[list[Range], Cursor]]:
    """Ranges and place of each batch."""
    size = max(1, PIECES_PLANNED * plan.chunk_rows // plan.local_batch(world))
    for start, window in windows(plan, rank, world, cursor, steps, size):
        for i in range(len(window.filled)):
            yield merged(window.ranges(i)), plan.advance(start, i)


def _read(reader: RowReader, memory: RowMemory, ranges: list[Range], cursor: Cursor) -> Rows:
    rows = memory.take()
    reader.read_ranges(ranges, out=rows)
    batch = placed(rows, reader, cursor)
    memory.give(rows)  # not before somebody refers to its arrays, or another thread would take them
    return batch


def _read_counted(
    reader: RowReader,
    memory: RowMemory,
    steps: Iterator[tuple[list[Range], Cursor]],
    counters: StreamCounters,
) -> Iterator[Rows]:
    for step in steps:
        with counters.while_reading():
            rows = _read(reader, memory, *step)
        yield rows
        del rows  # or this frame would hold a batch while the next one is read


def _read_side_by_side(
    reader: RowReader, memory: RowMemory, steps: Iterator[tuple[list[Range], Cursor]], depth: int
) -> Iterator[Rows]:
    """The batches in order, up to `depth` of them being fetched at once."""
    waiting: deque[Future[Rows]] = deque()
    with ThreadPoolExecutor(depth, "shards-batch") as pool:
        try:
            for step in steps:
                waiting.append(pool.submit(_read, reader, memory, *step))
                if len(waiting) == depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Channel:
    """What a thread of `ReadAhead` shares with its consumer; it holds no reference to the `ReadAhead` itself."""

    def __init__(self, depth: int) -> None:
        self.waiting: queue.Queue[tuple[Any, BaseException | None, bool]] = queue.Queue(maxsize=depth)
        self.stop = threading.Event()

    def put(self, item: Any, error: BaseException | None = None, last: bool = False) -> bool:
        """False where the consumer has gone meanwhile."""
        while not self.stop.is_set():
            try:
                self.waiting.put((item, error, last), timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def fill(self, source: Iterator[Any]) -> None:
        error: BaseException | None = None
        try:
            for item in source:
                if not self.put(item):
                    break
                del item  # or this frame would hold a batch while the next one is made
        except BaseException as caught:  # handed to the consumer, whatever it is
            error = caught
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
        self.put(None, error, last=True)


class ReadAhead(Iterator[Item]):
    """The items of `source`, made by a thread up to `depth` ahead; its error is raised after the items before it.

    The thread starts at once. It stops at the source's next item when the iterator is closed or collected; as a
    context manager it is closed at the end of the block. `counters` tells how full its queue was whenever an item was
    asked for; a source that is given the same one adds what it was busy with.
    """

    def __init__(self, source: Iterator[Item], depth: int, counters: StreamCounters | None = None) -> None:
        self.counters = StreamCounters() if counters is None else counters
        self.counters.capacity = depth
        self._channel = _Channel(depth)
        self._ended = False
        self._thread = threading.Thread(
            target=self._channel.fill, args=(source,), name="shards-read-ahead", daemon=True
        )
        self._thread.start()

    def __next__(self) -> Item:
        if self._ended:
            raise StopIteration
        counters = self.counters
        counters.asked += 1
        counters.ready += self._channel.waiting.qsize()
        begin = time.perf_counter()
        item, error, last = self._channel.waiting.get()
        counters.starved += time.perf_counter() - begin
        if not last:
            return item
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def __enter__(self) -> ReadAhead[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._ended = True
        self._channel.stop.set()
        self._thread.join()

    def __del__(self) -> None:
        channel = getattr(self, "_channel", None)
        if channel is not None:
            channel.stop.set()
