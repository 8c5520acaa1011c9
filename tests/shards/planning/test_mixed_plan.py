"""The mixed plan against a slow version that deals slot by slot, and its promises about shares, seeks and size."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shards.planning.mixed_plan import MixedPlan
from shards.planning.plan import Cursor
from tests.shards.planning.test_plan import _Work
from tests.shards.slow_mixture import slow_mixture
from tests.shards.slow_plan import expand

NAMES = ("vox", "own", "tv-1", "a")


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """A few corpora of very different sizes, so that small ones end many times, with weights in up to three stages."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    counts = {name: draw(st.lists(st.integers(0, 23), min_size=1, max_size=4).filter(any)) for name in names}
    weights = st.fixed_dictionaries({name: st.integers(0, 9) for name in names}).filter(lambda w: any(w.values()))
    starts = [0, *draw(st.lists(st.integers(1, 12), max_size=2, unique=True))]
    stages = {step: draw(weights) for step in starts}
    assume(all(any(stage[name] for stage in stages.values()) for name in names))
    return {
        "counts": counts,
        "weights": stages,
        "seed": draw(st.integers(-(10**30), 10**30)),
        "global_batch": draw(st.integers(1, 40)),
        "chunk_rows": draw(st.integers(1, 9)),
    }


def plan_of(problem: dict[str, Any]) -> MixedPlan:
    """The plan; a problem with a corpus too small for it is not tried."""
    try:
        return MixedPlan(**problem)
    except ValueError as error:
        assert "largest share" in str(error) or "fewer than one global batch" in str(error)
        assume(False)
        raise AssertionError from error


@given(problems())
@settings(deadline=None, max_examples=40)
def test_batches_equal_the_slow_version_for_any_number_of_workers(problem: dict) -> None:
    plan, steps = plan_of(problem), 12
    expected = slow_mixture(
        problem["counts"], problem["weights"], problem["seed"], plan.global_batch, plan.chunk_rows, steps
    )
    given_so_far = dict.fromkeys(plan.names, 0)
    for number, rows in enumerate(expected):
        cursor = plan.cursor_at(number)
        assert plan.global_step(cursor) == number and plan.advance(Cursor(), number) == cursor
        assert plan.batch_rows(cursor) == len(rows)
        assert plan.rows_before(number) == given_so_far
        for world in range(1, 6):
            local = plan.local_batch(world)
            parts = [expand(plan.rows(cursor.epoch, cursor.step, rank, world)) for rank in range(world)]
            full = [part + [None] * (local - len(part)) for part in parts]
            # Ranks in sequence: the global order, padding only at the tail.
            assert [row for part in full for row in part][: plan.global_batch] == rows
        for shard, _ in rows:
            given_so_far[plan.names[int(np.searchsorted(plan.first_shard, shard, side="right")) - 1]] += 1


@given(problems(), st.data())
@settings(deadline=None, max_examples=40)
def test_a_window_is_the_steps_one_by_one(problem: dict, data: st.DataObject) -> None:
    plan = plan_of(problem)
    start = plan.cursor_at(data.draw(st.integers(0, 40)))
    steps, world = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 4))
    rank = data.draw(st.integers(0, world - 1))
    window = plan.window(start, steps, rank, world)
    assert window.local_batch == plan.local_batch(world) and len(window.filled) == steps
    for i in range(steps):
        at = plan.advance(start, i)
        ranges = MixedPlan(**problem).rows(at.epoch, at.step, rank, world)
        assert window.ranges(i) == ranges
        assert window.filled[i] == len(expand(ranges))


@given(problems())
@settings(deadline=None, max_examples=30)
def test_every_row_once_an_epoch_of_its_corpus_and_shares_in_every_window(problem: dict) -> None:
    plan, steps = plan_of(problem), 60
    window = plan.window(Cursor(), steps)
    rows = [expand(window.ranges(i)) for i in range(steps)]
    assert all(len(batch) == plan.global_batch for batch in rows)
    for i, name in enumerate(plan.names):
        first, end = plan.first_shard[i], plan.first_shard[i + 1]
        own = [row for batch in rows for row in batch if first <= row[0] < end]
        every = sorted((int(first) + s, i) for s, n in enumerate(problem["counts"][name]) for i in range(n))
        for epoch in range(len(own) // len(every)):
            assert sorted(own[epoch * len(every) : (epoch + 1) * len(every)]) == every
        taken = np.array([sum(first <= shard < end for shard, _ in batch) for batch in rows])
        borders = [*sorted(step for step in problem["weights"] if step < steps), steps]
        for begin, stop in itertools.pairwise(borders):
            share = plan.shares_at(begin)[name] * plan.global_batch
            drift = np.concatenate([[0], np.cumsum(taken[begin:stop] - share)])
            assert drift.max() - drift.min() <= plan.error(name) + 1e-9  # every window within the stage
            assert plan.error(name) < 3.36


def test_order_is_pinned() -> None:
    """Golden values: a change of the order would break every checkpoint's cursor."""
    plan = MixedPlan({"b": [5, 9, 3], "a": [40, 2]}, {"b": 1, "a": 2}, seed=3, global_batch=7, chunk_rows=3)
    assert [[tuple(r) for r in plan.rows(0, step)] for step in range(2)] == [
        [(0, 35, 38), (0, 8, 10), (3, 4, 6)],
        [(0, 10, 11), (0, 17, 20), (3, 6, 7), (3, 0, 1), (2, 0, 1)],
    ]
    assert plan.digest == "0e90b9fb8408e4181e79bbdb0e3e6643"


def test_the_order_in_which_corpora_are_named_changes_nothing() -> None:
    counts, weights = {"a": [40], "b": [30]}, {"a": 3, "b": 2}
    one = MixedPlan(counts, weights, 1, 8)
    two = MixedPlan(dict(reversed(counts.items())), dict(reversed(weights.items())), 1, 8)
    assert one.digest == two.digest and one.rows(0, 3) == two.rows(0, 3)


def test_digest_is_the_identity_of_the_order() -> None:
    base: dict[str, Any] = {
        "counts": {"a": [40], "b": [30]},
        "weights": {"a": 3, "b": 2},
        "seed": 1,
        "global_batch": 8,
        "chunk_rows": 2,
    }
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 2},
        {"counts": {"a": [40], "c": [30]}, "weights": {"a": 3, "c": 2}},
        {"counts": {"a": [20, 20], "b": [30]}},
        {"weights": {"a": 2, "b": 3}},
        {"weights": {0: {"a": 3, "b": 2}, 5: {"a": 1, "b": 1}}},
        {"weights": {0: {"a": 3, "b": 2}, 6: {"a": 1, "b": 1}}},
        {"global_batch": 9},
        {"chunk_rows": 3},
        {"epoch_rows": 80},
    ]
    digests = {MixedPlan(**{**base, **change}).digest for change in changes}
    assert len(digests) == len(changes)
    assert MixedPlan(**{**base, "weights": {0: {"b": 2, "a": 3}}}).digest in digests


def test_corpora_of_equal_sizes_are_permuted_apart() -> None:
    plan = MixedPlan({"a": [4000], "b": [4000]}, {"a": 1, "b": 1}, seed=0, global_batch=400, chunk_rows=1)
    rows = expand(plan.rows(0, 0))
    a, b = ([i for shard, i in rows if shard == s] for s in (0, 1))
    assert len(a) == len(b) == 200 and sum(x == y for x, y in zip(a, b, strict=True)) < 5


def test_positions_beyond_64_bits() -> None:
    plan = MixedPlan({"a": [1000, 24], "b": [77]}, {"a": 5, "b": 1}, seed=5, global_batch=24)
    late = plan.cursor_at(10**25)
    assert plan.global_step(late) == 10**25 and sum(plan.rows_before(10**25).values()) == 24 * 10**25
    assert len(expand(plan.rows(late.epoch, late.step))) == 24
    assert Cursor.from_dict(json.loads(json.dumps(late.to_dict()))) == late


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"counts": {}}, ["at least one corpus"]),
        ({"counts": {"a": [0, 0], "b": [30]}}, ["corpus 'a'", "no rows"]),
        ({"counts": {"a": [40], "b": [-1]}}, ["corpus 'b'", "-1"]),
        ({"counts": {"a": [40], "b": [3]}}, ["corpus 'b'", "found 3 rows, expected at least 4", "lower its weight"]),
        ({"weights": {"a": 1, "b": 0}}, ["corpus 'b'", "weight of 0", "leave the corpus out"]),
        ({"weights": {"a": 1}}, ["corpus 'b'", "weight of None"]),
        ({"weights": {"a": 1, "b": 1, "c": 1}}, ["corpus 'c'", "no rows"]),
        ({"weights": {"a": 1, "b": -2}}, ["corpus 'b'", "-2"]),
        ({"weights": {"a": 1, "b": 0.5}}, ["corpus 'b'", "0.5"]),
        ({"weights": {"a": 2**30, "b": 1}}, ["2**30", "whole_weights"]),
        ({"weights": {3: {"a": 1, "b": 1}}}, ["begin at step 3", "from step 0"]),
        ({"weights": {0: {"a": 1, "b": 1}, 5: {"a": 0, "b": 0}}}, ["from step 5", "add up to 0"]),
        ({"seed": "x"}, ["seed", "'x'"]),
        ({"global_batch": 0}, ["global_batch", "0"]),
        ({"global_batch": 71, "weights": {"a": 40, "b": 30}}, ["70 rows", "71"]),
        ({"epoch_rows": 0}, ["epoch_rows", "0"]),
    ],
)
def test_errors_name_the_corpus_and_the_remedy(change: dict, words: list[str]) -> None:
    good: dict[str, Any] = {"counts": {"a": [40], "b": [30]}, "weights": {"a": 3, "b": 2}, "seed": 0}
    with pytest.raises(ValueError) as caught:
        MixedPlan(**{"global_batch": 8, **good, **change})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_steps_and_ranks() -> None:
    plan = MixedPlan({"a": [40], "b": [30]}, {"a": 3, "b": 2}, 0, 8)
    for call, word in [
        (lambda: plan.rows(0, 8), "0 to 7"),
        (lambda: plan.rows(0, 0, 2, 2), "rank is 2"),
        (lambda: plan.window(Cursor(), 0), "steps is 0"),
        (lambda: plan.advance(Cursor(0, 1), -2), "global_step is -1"),
    ]:
        with pytest.raises(ValueError, match=word):
            call()


@pytest.mark.parametrize(
    ("shards", "rows"), [(10**4, 10**7), pytest.param(10**6, 10**9, marks=pytest.mark.slow)], ids=["large", "vast"]
)
def test_a_large_mixture_is_built_by_whole_arrays_and_a_seek_looks_at_few_chunks(shards: int, rows: int) -> None:
    """Twenty corpora, weighted unlike their sizes; nothing is done for each row or each shard by itself."""
    corpora = 20
    sizes = np.arange(1, corpora + 1)
    counts = {
        f"c{i:02}": np.full(int(shards * n / sizes.sum()) + 1, rows // shards) for i, n in enumerate(sizes.tolist())
    }
    MixedPlan({"a": [5]}, {"a": 1}, 0, 1).rows(0, 0)  # what is done once in a process
    with _Work("plan") as build:
        plan = MixedPlan(counts, {name: corpora - i for i, name in enumerate(counts)}, seed=0, global_batch=4096)
    with _Work("tables") as table:
        plan.rows(0, 0)
    with _Work("seek") as seek:
        # Corpora are heavier than large: the smallest ones have begun further epochs by then.
        last = plan.rows(0, 7, 1, 2)
    with _Work("far") as far:
        before = plan.rows_before(10**12)
    assert len(expand(last)) == 2048 and sum(before.values()) == 4096 * 10**12
    assert build.calls < 5000 and build.peak_mb < 1 + 100e-6 * shards
    assert table.calls < 1000 * corpora and table.peak_mb < 10 + 400e-6 * shards
    assert seek.calls < 500 * corpora and seek.peak_mb < 1 and far.calls < 1000
