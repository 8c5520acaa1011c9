"""What Ray Data is told of tasks, and what comes back of their errors, without a running Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from shards.errors import ShardError
from shards.planning.plan import Cursor, EpochPlan
from shards.reading.ray_source import Execution, _cause, _Stream

BYTES = 10


def made(monkeypatch: pytest.MonkeyPatch, plan: EpochPlan, execution: Execution) -> _Stream:
    """One rank's stream of two, with rows of ten bytes."""
    context = SimpleNamespace(get_node_id=lambda: "0" * 56)
    monkeypatch.setattr(ray, "put", lambda reader: reader)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr("shards.reading.ray_source.RowMemory", lambda *_, **__: None)
    reader: Any = SimpleNamespace(pitch=0, row_bytes=BYTES, for_tasks=lambda: None)
    return _Stream(reader, plan, 1, 2, "object_store", execution)


@pytest.mark.parametrize("task_bytes", [3 * BYTES, 25 * BYTES, 1000 * BYTES])
def test_tasks_hold_the_plan_s_rows_once_in_its_order_and_say_how_many(
    monkeypatch: pytest.MonkeyPatch, task_bytes: int
) -> None:
    """Tasks of a part of a step, of a few steps, of all: with the padding of the last step of either epoch."""
    plan = EpochPlan([13, 0, 30], seed=1, global_batch=8, chunk_rows=4, remainder="pad")
    stream = made(monkeypatch, plan, Execution(task_bytes=task_bytes))
    steps, rows = 9, []
    for step in range(steps):  # row by row
        window = plan.window(plan.advance(Cursor(0, 0), step), 1, 1, 2)
        listed = [(piece.shard, i) for piece in window.ranges(0) for i in range(piece.start, piece.stop)]
        rows += listed + [(-1, i) for i in range(4 - len(listed))]
    tasks = list(stream._pieces(plan.window(Cursor(0, 0), steps, 1, 2)))
    assert len(tasks) == {3: 2 * steps, 25: -(-steps // 6), 1000: 1}[task_bytes // BYTES]
    found = [(int(s), i) for pieces in tasks for s, start, stop in pieces for i in range(start, stop)]
    assert [shard for shard, _ in found] == [shard for shard, _ in rows]
    assert [place for place in found if place[0] >= 0] == [place for place in rows if place[0] >= 0]
    for pieces in tasks:
        told = stream._task(pieces).metadata
        assert told.num_rows == sum(int(stop - start) for _, start, stop in pieces)
        assert told.size_bytes == BYTES * told.num_rows


@pytest.mark.parametrize("window_tasks", [1, 2, 64])
@pytest.mark.parametrize("store_bytes", [1, 3 * 80, 1 << 20])
def test_windows_follow_each_other_to_the_last_step(
    monkeypatch: pytest.MonkeyPatch, window_tasks: int, store_bytes: int
) -> None:
    """However few steps a window has, and however early or late the next one is begun."""
    plan = EpochPlan([13, 30], seed=1, global_batch=8, chunk_rows=4)
    execution = Execution(task_bytes=40, window_tasks=window_tasks, store_bytes=store_bytes)
    stream = made(monkeypatch, plan, execution)
    monkeypatch.setattr(stream, "_execute", lambda window: iter(window.filled))
    monkeypatch.setattr(stream, "_rows", lambda table: table)
    monkeypatch.setattr("shards.reading.ray_source.placed", lambda rows, reader, cursor: cursor)
    assert list(stream.batches(Cursor(0, 0), 7)) == [plan.advance(Cursor(0, 0), i) for i in range(7)]


def test_the_reader_s_own_error_is_found_inside_those_of_ray() -> None:
    own = ShardError("part-0", "is damaged")
    wrapped: Any = RuntimeError("task failed")
    wrapped.cause = own
    outer = RuntimeError("execution failed")
    outer.__cause__ = wrapped
    assert _cause(own) is own and _cause(wrapped) is own and _cause(outer) is own
    other = np.exceptions.AxisError("something else")
    assert _cause(other) is other
