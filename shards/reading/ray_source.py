"""The batches of `shards.reading.stream`, read by tasks of Ray Data: the same rows in the same batches for any world
size.

Each rank has a stream of its own over its own part of the plan, so there is no coordinator and no barrier between
ranks. The plan is executed in windows of a bounded number of read tasks, each window one Ray Data execution that
preserves order; the next one is started when the current one's last rows wait in the store, so its start-up is hidden.
`iter_batches` cuts blocks into batches again, so the size of a task is free. Tasks run on the node of the process that
takes their rows: the store is read there, once, and need be reachable from nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from conclugen.common.extras import needed_for
from conclugen.common.names import did_you_mean
from shards.errors import CorruptSample, ShardError
from shards.planning.plan import Cursor, Plan, Range, Window
from shards.reading.ray_blocks import PADDING_SHARD, TaskReader, fill, places_table, ranges_of
from shards.reading.rows import PADDING_ROW, Memory, Rows
from shards.reading.stream import ReadAhead, RowMemory, RowReader, check_fit, placed, windows
from shards.reading.stream_counters import StreamCounters

with needed_for("reading through Ray Data"):
    import ray
    from ray.data import Datasource, ExecutionResources, ReadTask
    from ray.data.block import BlockMetadata

PAYLOADS = ("object_store", "worker")
_MOST_STEPS_PER_TASK = 32  # with small rows: enough to hide a task's cost, and a first batch is soon there
_PLACE_BYTES = 16
_NODE = "ray.io/node-id"  # the label by which Ray names each node
_READERS_KEPT = 4
# Two executions side by side are what is meant here; Ray reports that, and the end of each, on the console.
_CHATTER = ("logging", "progress", "execution.streaming_executor")


@dataclass(frozen=True)
class Execution:
    """How Ray Data executes one rank's stream.

    tasks: read tasks that run at once. read_cpus: CPUs that each of them reserves. The default is none: training
    workers may then reserve every CPU of the cluster and reading still continues, bounded by `tasks`. Give a positive
    number where reads shall go to nodes with free CPUs; then that many must be free, or the stream raises RuntimeError
    after `patience` seconds, where Ray Data alone would wait for ever.
    task_bytes: features that one task reads. window_tasks: tasks of one execution. store_bytes: object store memory
    that Ray Data plans with for one execution; two run side by side while one window gives way to the next, and at full
    speed up to twice as much as both was seen in use. prefetch: batches made ahead.
    """

    tasks: int = 2
    read_cpus: float = 0.0
    task_bytes: int = 64 * 1024**2
    window_tasks: int = 64
    store_bytes: int = 512 * 1024**2
    prefetch: int = 2
    patience: float = 10.0

    def __post_init__(self) -> None:
        for name in ("tasks", "task_bytes", "window_tasks", "store_bytes", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"Execution.{name} is {getattr(self, name)}; expected at least 1")
        if self.read_cpus < 0:
            raise ValueError(f"Execution.read_cpus is {self.read_cpus}; expected 0 or more")


DEFAULT = Execution()


def stream(
    reader: RowReader,
    plan: Plan,
    rank: int,
    world: int,
    cursor: Cursor,
    steps: int,
    payload: str = "object_store",
    execution: Execution = DEFAULT,
    memory: Memory | None = None,
) -> ReadAhead[Rows]:
    """What `shards.reading.stream.stream` yields, executed by Ray Data; one stream over as many epochs as `steps`
    reach.

    payload: "object_store": tasks read and check the bytes, blocks carry the rows. "worker": tasks hand out places
    only, and this process reads the bytes: less copying, but its own CPU. memory: what batches lie in, by default
    numpy's.
    Corrupt samples that tasks meet are added to `reader.corrupt` here, so quarantine and CorruptionError work as in one
    process (each rank counts the share of its own rows). Closing the iterator ends the execution at its next batch; a
    stream that is not used up must be closed before `ray.shutdown()`, which ends a process that still calls Ray.

    Raises ValueError at once for what doesn't fit together, RuntimeError without Ray or without the CPUs asked for, and
    from the iterator what the reader raises, wherever it ran (ShardError, CorruptionError).
    """
    check_fit(reader, plan, rank, world, steps)
    if payload not in PAYLOADS:
        raise ValueError(f"payload is {payload!r}, {did_you_mean(payload, PAYLOADS)}")
    if not ray.is_initialized():
        raise RuntimeError("Ray is not running: call ray.init() first, or use shards.reading.stream in one process")
    for name in _CHATTER:
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)
    _await_cpus(execution)
    source = _Stream(reader, plan, rank, world, payload, execution, memory)
    return ReadAhead(source.batches(cursor, steps), execution.prefetch, source.counters)


def _await_cpus(execution: Execution) -> None:
    deadline = time.monotonic() + execution.patience
    while execution.read_cpus > (free := ray.available_resources().get("CPU", 0.0)):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{free:g} of the cluster's {ray.cluster_resources().get('CPU', 0.0):g} CPUs are free, and read tasks "
                f"ask for {execution.read_cpus:g} each: leave CPUs to them, or give read_cpus=0"
            )
        time.sleep(0.1)


class _Stream:
    """One rank's stream: cuts the plan into tasks, executes windows of them, and turns tables into batches."""

    def __init__(
        self,
        reader: RowReader,
        plan: Plan,
        rank: int,
        world: int,
        payload: str,
        execution: Execution,
        memory: Memory | None = None,
    ) -> None:
        self.reader, self.plan, self.rank, self.world = reader, plan, rank, world
        self.payload, self.execution, self.counters = payload, execution, StreamCounters()
        self.local = plan.local_batch(world)
        self.row_bytes = _PLACE_BYTES
        if payload == "object_store":
            self.row_bytes = reader.pitch or reader.row_bytes
        step_bytes = self.local * self.row_bytes
        self.steps_per_task = max(1, min(_MOST_STEPS_PER_TASK, execution.task_bytes // step_bytes))
        self.tasks_per_step = max(1, -(-step_bytes // execution.task_bytes))
        self.window_steps = max(1, execution.window_tasks * self.steps_per_task // self.tasks_per_step)
        # Ray Data lets about half of `store_bytes` wait. When no more is left of a window its tasks have ended, and the
        # next window finds their processes free, where it would start two of its own and take their CPUs meanwhile.
        self.last_steps = max(1, execution.store_bytes // (2 * step_bytes))
        # Rows from the object store are copied once in any case: then into memory without gaps.
        self.memory = RowMemory(reader, self.local, execution.prefetch + 3, views=payload == "worker", memory=memory)
        self.task_reader = ray.put(reader.for_tasks())
        self.here = ray.get_runtime_context().get_node_id()

    def batches(self, cursor: Cursor, steps: int) -> Iterator[Rows]:
        """All batches, window after window; the next one starts when `last_steps` of the current one are left."""
        parts = windows(self.plan, self.rank, self.world, cursor, steps, self.window_steps)
        current, following = None, self._start(parts)
        try:
            while following is not None:
                current, following = following, None
                start, window, tables = current
                length = len(window.filled)
                for i in range(length):
                    if length - i <= max(1, min(self.last_steps, length // 2 + 1)) and following is None:
                        following = self._start(parts)
                    with self.counters.while_fetching():
                        table = next(tables)
                    with self.counters.while_reading():
                        rows = self._rows(table)
                    del table
                    yield placed(rows, self.reader, self.plan.advance(start, i))
                    del rows  # or this frame would hold a batch while the next one is made
                tables.close()
        finally:
            for one in (current, following):
                if one is not None:
                    one[2].close()

    def _start(self, parts: Iterator[tuple[Cursor, Window]]) -> tuple[Cursor, Window, ReadAhead[pa.Table]] | None:
        for start, window in parts:
            return start, window, ReadAhead(self._execute(window), 1)
        return None

    def _execute(self, window: Window) -> Iterator[pa.Table]:
        """One Ray Data execution: the window's batches as Arrow tables of exactly `local` rows."""
        tasks = [self._task(pieces) for pieces in self._pieces(window)]
        dataset = ray.data.read_datasource(
            _PlannedRanges(tasks),
            num_cpus=self.execution.read_cpus,
            # Ray Data would spread tasks over all nodes, the head included, and most rows would cross the network a
            # second time. A task whose node is gone runs elsewhere, until its consumer is stopped as well.
            label_selector={_NODE: self.here},
            fallback_strategy=[{"label_selector": {_NODE: f"!{self.here}"}}],
            concurrency=min(self.execution.tasks, len(tasks)),
            override_num_blocks=len(tasks),
        )
        context = dataset.context  # the data set's own copy
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=self.execution.store_bytes
        )
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        try:
            yield from dataset.iter_batches(
                batch_size=self.local, batch_format="pyarrow", prefetch_batches=self.execution.prefetch
            )
        except Exception as error:
            raise _cause(error) from error

    def _pieces(self, window: Window) -> Iterator[np.ndarray]:
        """(pieces, 3) int64 of each task: shard, start, stop in the order of the rows; padding is of shard -1."""
        length = len(window.filled)
        if self.tasks_per_step == 1:
            for at in range(0, length, self.steps_per_task):
                steps = range(at, min(at + self.steps_per_task, length))
                yield np.array([piece for i in steps for piece in self._padded(window, i)], np.int64)
        else:
            part = -(-self.local // self.tasks_per_step)
            for i in range(length):
                step = self._padded(window, i)
                for at in range(0, self.local, part):
                    yield np.array(_cut(step, at, at + part), np.int64)

    def _padded(self, window: Window, step: int) -> list[Range]:
        missing = self.local - int(window.filled[step])
        return [*window.ranges(step), *([Range(PADDING_SHARD, 0, missing)] if missing else [])]

    def _task(self, pieces: np.ndarray) -> ReadTask:
        rows = int((pieces[:, 2] - pieces[:, 1]).sum())
        reader = self.task_reader

        def read_rows() -> Iterable[pa.Table]:
            return [_cached_reader(reader).table(pieces)]

        def name_places() -> Iterable[pa.Table]:
            return [places_table(pieces)]

        return ReadTask(
            read_rows if self.payload == "object_store" else name_places,
            BlockMetadata(num_rows=rows, size_bytes=rows * self.row_bytes, input_files=None, exec_stats=None),
        )

    def _rows(self, table: pa.Table) -> Rows:
        assert table.num_rows == self.local, f"a batch of {table.num_rows} rows, expected {self.local}"
        rows = self.memory.take()
        if self.payload == "object_store":
            fill(rows, table, self.reader.offsets)
            self._report_corrupt(rows, table)
        else:
            self.reader.read_ranges(ranges_of(table), out=rows)
        self.memory.give(rows)
        return rows

    def _report_corrupt(self, rows: Rows, table: pa.Table) -> None:
        self.reader.corrupt.rows_read += int((rows.row != PADDING_ROW).sum())
        reasons = table["corrupt.reason"]
        if reasons.null_count == len(reasons):
            return
        for i in np.flatnonzero(reasons.is_valid().to_numpy()):
            row = int(rows.row[i])
            shard = self.reader.shard_of(row)
            self.reader.corrupt.add(CorruptSample(shard, table["corrupt.key"][i].as_py(), row, reasons[i].as_py()))


class _PlannedRanges(Datasource):
    """Read tasks that are known in advance. Its name, without a leading underscore, is what Ray shows."""

    def __init__(self, tasks: list[ReadTask]) -> None:
        super().__init__()
        self._tasks = tasks

    def get_name(self) -> str:
        return "PlannedRanges"

    def estimate_inmemory_data_size(self) -> int:
        return sum(task.metadata.size_bytes or 0 for task in self._tasks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """The tasks in the plan's order, however many Ray would like: their number is part of the plan's execution."""
        return self._tasks


# ---- in the tasks -------------------------------------------------------------------------------------------------

_readers: OrderedDict[str, TaskReader] = OrderedDict()


def _cached_reader(reference: ray.ObjectRef) -> TaskReader:
    """The stream's reader, made once in each worker process, so that indexes and files stay open between tasks."""
    key = reference.hex()
    if key not in _readers:
        _readers[key] = TaskReader(ray.get(reference))
        if len(_readers) > _READERS_KEPT:
            _readers.popitem(last=False)
    return _readers[key]


# ---- in the consumer ----------------------------------------------------------------------------------------------


def _cut(ranges: list[Range], lo: int, hi: int) -> list[Range]:
    """Rows [lo, hi) of the ranges' concatenation."""
    pieces, at = [], 0
    for shard, start, stop in ranges:
        first, last = max(lo - at, 0), min(hi - at, stop - start)
        if first < last:
            pieces.append(Range(shard, start + first, start + last))
        at += stop - start
    return pieces


def _cause(error: BaseException) -> BaseException:
    """The reader's own error inside Ray's wrappers, or else the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        for candidate in (inner, getattr(inner, "cause", None)):
            if isinstance(candidate, ShardError) and type(candidate).__module__ == ShardError.__module__:
                return candidate
        inner = inner.__cause__
    return error
