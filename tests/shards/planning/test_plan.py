"""The epoch plan against a slow version in Python integers, and its promises about order."""

from __future__ import annotations

import itertools
import json
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.planning.plan import REMAINDERS, Cursor, EpochPlan
from tests.shards.slow_plan import Row, expand, slow_batches


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    counts = draw(st.lists(st.integers(0, 23), min_size=1, max_size=7).filter(any))
    remainder = draw(st.sampled_from(REMAINDERS))
    most = sum(counts) if remainder != "pad" else 40
    return {
        "counts": counts,
        "seed": draw(st.integers(-(10**30), 10**30)),
        "global_batch": draw(st.integers(1, most)),
        "chunk_rows": draw(st.integers(1, 9)),
        "remainder": remainder,
    }


@given(problems())
@settings(deadline=None, max_examples=80)
def test_batches_equal_the_slow_version_for_any_number_of_workers(problem: dict) -> None:
    plan = EpochPlan(**problem)
    expected = slow_batches(
        problem["counts"],
        problem["seed"],
        problem["global_batch"],
        problem["chunk_rows"],
        problem["remainder"],
        epochs=3,
    )
    steps = [plan.steps_in(epoch) for epoch in range(3)]
    assert [sum(e == epoch for e, _ in expected) for epoch in range(3)] == steps
    cursor = Cursor()
    for number, (epoch, rows) in enumerate(expected):
        assert cursor.epoch == epoch and cursor.step == number - sum(steps[:epoch])
        assert plan.global_step(cursor) == number and plan.cursor_at(number) == cursor
        assert plan.batch_rows(cursor) == len(rows)
        for world in range(1, 6):
            local = plan.local_batch(world)
            parts = [expand(plan.rows(cursor.epoch, cursor.step, rank, world)) for rank in range(world)]
            assert all(len(part) <= local for part in parts)
            full = [part + [None] * (local - len(part)) for part in parts]
            # Ranks in sequence, cut to the batch: the global order, padding only at the tail.
            assert [row for part in full for row in part if row is not None] == rows
            flat = [row for part in full for row in part][: plan.global_batch]
            assert flat == rows + [None] * (plan.global_batch - len(rows))
        cursor = plan.advance(cursor, 1)


@given(problems(), st.data())
@settings(deadline=None, max_examples=100)
def test_a_window_is_the_steps_one_by_one(problem: dict, data: st.DataObject) -> None:
    plan = EpochPlan(**problem)
    start = plan.cursor_at(data.draw(st.integers(0, 3 * plan.steps_in(0))))
    steps, world = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    rank = data.draw(st.integers(0, world - 1))
    window = plan.window(start, steps, rank, world)
    for i in range(steps):
        at = plan.advance(start, i)
        ranges = EpochPlan(**problem).rows(at.epoch, at.step, rank, world)
        assert window.ranges(i) == ranges
        assert window.filled[i] == len(expand(ranges))
    assert window.local_batch == plan.local_batch(world)


@given(problems())
@settings(deadline=None, max_examples=100)
def test_every_row_once_an_epoch(problem: dict) -> None:
    plan = EpochPlan(**problem)
    every = sorted((shard, i) for shard, count in enumerate(problem["counts"]) for i in range(count))
    epochs = 5
    if plan.remainder == "carry":
        # Over whole epochs of rows: all that was read so far is every row e times, and part of the next epoch.
        window = plan.window(Cursor(), plan.start_of_epoch(epochs))
        seen = expand([r for i in range(len(window.filled)) for r in window.ranges(i)])
        for epoch in range(len(seen) // len(every)):
            assert sorted(seen[epoch * len(every) : (epoch + 1) * len(every)]) == every
        return
    for epoch in range(epochs):
        seen = [row for step in range(plan.steps_in(epoch)) for row in expand(plan.rows(epoch, step))]
        assert len(set(seen)) == len(seen) and set(seen) <= set(every)
        missing = len(every) - len(seen)
        assert missing == (len(every) % plan.global_batch if plan.remainder == "drop" else 0)


def test_order_is_pinned() -> None:
    """Golden values: a change of the order would break every checkpoint's cursor."""
    plan = EpochPlan(np.array([5, 0, 7]), seed=127, global_batch=4, chunk_rows=3)
    assert [[tuple(r) for r in plan.rows(1, step)] for step in range(3)] == [
        [(0, 3, 5), (2, 5, 7)],
        [(2, 2, 5), (0, 0, 1)],
        [(0, 1, 3), (2, 0, 2)],
    ]
    assert plan.digest == "0835fc87e668d21a3f761909880f053e"


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[Row]:
        return expand(EpochPlan([400] * 5, seed, 2000, chunk_rows=8).rows(epoch, 0))

    orders = [order(0, 0), order(0, 1), order(1, 0), order(-1, 0), order(1 << 70, 0)]
    assert len({tuple(o) for o in orders}) == 5
    assert all(sorted(o) == sorted(orders[0]) for o in orders)
    # Not even the first row agrees for long: seeds are no shifts of each other.
    assert max(sum(a == b for a, b in zip(orders[0], o, strict=True)) for o in orders[1:]) < 60


def test_chunk_borders_move() -> None:
    """Rows d apart share a chunk in 1 - d/c of the epochs, wherever they lie; fixed borders: always or never."""
    c, epochs = 8, 400
    plan = EpochPlan([64], seed=3, global_batch=64, chunk_rows=c)
    together = np.zeros((64, 64))
    for epoch in range(epochs):
        for piece in plan.rows(epoch, 0):
            together[piece.start : piece.stop, piece.start : piece.stop] += 1
    for distance in (1, 3, 5, 7):
        share = np.diagonal(together, distance)[c : -2 * c] / epochs  # away from the shard's ends
        expected = 1 - distance / c
        assert np.abs(share - expected).max() < 5 * np.sqrt(expected * (1 - expected) / epochs)
    assert np.diagonal(together, c).max() == 0


def test_position_of_a_row_is_uniform_over_epochs() -> None:
    """Chi-square of the batch that a row falls into, over epochs, for rows at a shard's edge and in its middle."""
    batches, epochs = 10, 1500
    plan = EpochPlan([40, 60], seed=11, global_batch=10, chunk_rows=4)
    for target in ((0, 0), (0, 21), (1, 59)):
        seen = np.zeros(batches)
        for epoch in range(epochs):
            window = plan.window(Cursor(epoch), batches)
            hit = (window.shard == target[0]) & (window.start <= target[1]) & (target[1] < window.stop)
            seen[window.step[hit].item()] += 1
        chi_square = ((seen - epochs / batches) ** 2 / (epochs / batches)).sum()
        assert chi_square < 33.7  # 1 - 1e-4 quantile of chi-square with 9 degrees of freedom


def test_positions_beyond_32_bits() -> None:
    count, size = (1 << 40) + 5, 1 << 31
    plan = EpochPlan([3, count], seed=5, global_batch=size, chunk_rows=(1 << 31) - 1, remainder="pad")
    seen = [r for step in range(plan.steps_in(0)) for r in plan.rows(0, step)]
    assert sum(r.stop - r.start for r in seen) == count + 3
    second = sorted((r.start, r.stop) for r in seen if r.shard == 1)
    assert second[0][0] == 0 and second[-1][1] == count
    assert all(a[1] == b[0] for a, b in itertools.pairwise(second))
    carry = EpochPlan([1000, 24], seed=5, global_batch=24, remainder="carry")
    late = carry.cursor_at(10**25)  # 10**25 steps are beyond 64 bits, and cost nothing
    assert carry.global_step(late) == 10**25 and len(expand(carry.rows(late.epoch, late.step))) == 24


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_batch": 20}, ["12 rows", "20", "remainder='pad'"]),
        ({"global_batch": 20, "remainder": "carry"}, ["12 rows", "20"]),
        ({"global_batch": 0}, ["global_batch", "0"]),
        ({"global_batch": 2.0}, ["global_batch", "2.0"]),
        ({"chunk_rows": 0}, ["chunk_rows"]),
        ({"chunk_rows": 1 << 31}, ["chunk_rows"]),
        ({"seed": "a"}, ["seed", "'a'"]),
        ({"remainder": "dorp"}, ["dorp", "drop, pad, carry", "did you mean 'drop'"]),
        ({"counts": [3, -1]}, ["counts", "-1"]),
        ({"counts": [0.5]}, ["counts", "float64"]),
        ({"counts": [[3]]}, ["counts", "(1, 1)"]),
        ({"counts": [0, 0]}, ["no rows"]),
        ({"counts": [1 << 61, 1 << 61, 1 << 61]}, ["2**62"]),
    ],
)
def test_errors_name_the_field_and_the_remedy(change: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        EpochPlan(**{"counts": [5, 7], "seed": 0, "global_batch": 4, **change})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_errors_of_steps_ranks_and_cursors() -> None:
    plan = EpochPlan([5, 7], seed=0, global_batch=4)
    for call, word in [
        (lambda: plan.rows(0, 3), "0 to 2"),
        (lambda: plan.rows(0, 0, 2, 2), "rank is 2"),
        (lambda: plan.window(Cursor(), 0), "steps is 0"),
        (lambda: plan.advance(Cursor(0, 1), -2), "global_step is -1"),
        (lambda: Cursor(-1, 0), "Cursor.epoch is -1"),
        (lambda: Cursor(0, 1.5), "Cursor.step is 1.5"),  # type: ignore[arg-type]
        (lambda: Cursor.from_dict({"epoch": 1}), "epoch and step"),
        (lambda: EpochPlan([1 << 50], 0, 4, chunk_rows=1).rows(0, 0), "raise chunk_rows"),
    ]:
        with pytest.raises(ValueError, match=word):
            call()
    assert Cursor.from_dict(json.loads(json.dumps(Cursor(3, 4).to_dict()))) == Cursor(3, 4)


def test_digest_is_the_identity_of_the_order() -> None:
    base: dict[str, Any] = {"counts": [5, 7], "seed": 0, "global_batch": 4, "chunk_rows": 2, "remainder": "drop"}
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"counts": [7, 5]},
        {"global_batch": 5},
        {"chunk_rows": 3},
        {"remainder": "pad"},
    ]
    digests = {EpochPlan(**{**base, **change}).digest for change in changes}
    assert len(digests) == len(changes)
    assert EpochPlan(**{**base, "counts": np.array([5, 7], dtype=np.uint16)}).digest in digests


def test_auto_chunk_rows() -> None:
    assert [EpochPlan([10**4], 0, g).chunk_rows for g in (1, 16, 100, 1024, 4096)] == [1, 1, 6, 64, 64]


class _Work:
    """Calls of functions, Python's and C's, and the peak of memory in MB while a block runs; the seconds are told."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> _Work:
        self.calls = 0
        self._start = time.perf_counter()
        tracemalloc.start()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self.peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        seconds = time.perf_counter() - self._start
        print(f"\n{self._what}: {self.calls} calls, {self.peak_mb:.1f} MB, {seconds:.3f} s", end="")

    def _count(self, frame: object, event: str, argument: object) -> None:
        self.calls += event in ("call", "c_call")


@pytest.mark.parametrize(
    ("shards", "rows"), [(10**4, 10**7), pytest.param(10**6, 10**9, marks=pytest.mark.slow)], ids=["large", "vast"]
)
def test_a_large_plan_is_built_by_whole_arrays_and_a_seek_looks_at_few_chunks(shards: int, rows: int) -> None:
    """Nothing is done for each row or each shard by itself, and nothing is kept for each row."""
    EpochPlan([5], seed=0, global_batch=1).rows(0, 0)  # what is done once in a process
    plan = EpochPlan(np.full(shards, rows // shards), seed=0, global_batch=4096)
    with _Work("table") as table:
        plan.rows(0, 0)
    with _Work("seek") as seek:
        last = plan.rows(0, plan.steps_in(0) - 1, 1, 2)
    assert len(expand(last)) == 2048
    kept = plan._table(0)
    size = sum(array.nbytes for array in (kept.order, kept.ends, kept.first_chunk, kept.phase)) / 1e6
    print(f"; {size:.1f} MB kept")
    assert table.calls < 1000 and table.peak_mb < 10 + 400e-6 * shards and size < 300e-6 * shards
    assert seek.calls < 500 and seek.peak_mb < 1
