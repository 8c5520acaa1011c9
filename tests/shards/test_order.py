"""The order of samples as a run meets it: views, several workers that come and go, resumes at any step.

`test_plan.py` compares the plan with a slow version; here whole runs are put together from parts.
What becomes of an epoch's remainder: "drop" leaves rows % batch rows out of it (other ones in each epoch), "pad" fills
its last batch up with padding, "carry" opens the next epoch's first batch with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.planning.plan import REMAINDERS, Cursor, EpochPlan

PADDING = -1


@dataclass(frozen=True)
class Case:
    """A manifest's counts, a view on it (a mask for each shard), and the plan's options."""

    masks: list[np.ndarray]
    options: dict[str, Any]

    def plan(self) -> EpochPlan:
        return EpochPlan([int(mask.sum()) for mask in self.masks], **self.options)

    @property
    def selected(self) -> list[np.ndarray]:
        """Global row numbers of each shard's selection, as `View.indices` and `Manifest.rows_before` give them."""
        before = np.cumsum([0, *(len(mask) for mask in self.masks)])
        return [before[i] + np.flatnonzero(mask) for i, mask in enumerate(self.masks)]

    def batch(self, plan: EpochPlan, cursor: Cursor, world: int) -> list[int]:
        """Global rows of one batch, put together from all ranks and cut to its size."""
        rows: list[int] = []
        for rank in range(world):
            own = [n for s, a, b in plan.rows(cursor.epoch, cursor.step, rank, world) for n in self.selected[s][a:b]]
            rows += own + [PADDING] * (plan.local_batch(world) - len(own))
        assert set(rows[plan.global_batch :]) <= {PADDING}
        return rows[: plan.global_batch]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    seed = draw(st.integers(0, 2**32))
    counts = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    share = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    rng = np.random.default_rng(seed)
    masks = [rng.random(count) < share for count in counts]
    masks[int(rng.integers(len(masks)))][0] = True
    rows = sum(int(mask.sum()) for mask in masks)
    remainder = draw(st.sampled_from(REMAINDERS))
    most = rows if remainder != "pad" else rows + 9
    batch = draw(st.integers(1, most))
    return Case(
        masks, {"seed": seed, "global_batch": batch, "chunk_rows": draw(st.integers(1, 8)), "remainder": remainder}
    )


@given(cases(), st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=100)
def test_a_run_that_is_stopped_again_and_again_is_the_uninterrupted_one(
    case: Case, starts: list[tuple[int, int]]
) -> None:
    """Each start has its own number of workers, a plan made again, and the cursor that the last one left."""
    whole, cursor = case.plan(), Cursor()
    expected = []
    for _ in range(sum(steps for _, steps in starts)):
        expected.append(case.batch(whole, cursor, 1))
        cursor = whole.advance(cursor, 1)
    found, state = [], Cursor().to_dict()
    for world, steps in starts:
        plan, at = case.plan(), Cursor.from_dict(state)
        assert plan.digest == whole.digest
        for _ in range(steps):
            found.append(case.batch(plan, at, world))
            at = plan.advance(at, 1)
        state = at.to_dict()
    assert found == expected and Cursor.from_dict(state) == cursor


@given(cases(), st.integers(1, 4))
@settings(deadline=None, max_examples=100)
def test_an_epoch_is_the_view_once(case: Case, world: int) -> None:
    plan = case.plan()
    every = Counter(int(row) for rows in case.selected for row in rows)
    rows, size = plan.total_rows, plan.global_batch
    epochs = 3
    cursor, seen, by_epoch = Cursor(), [], [Counter() for _ in range(epochs + 1)]  # type: ignore[var-annotated]
    while cursor.epoch < epochs:
        batch = [row for row in case.batch(plan, cursor, world) if row != PADDING]
        seen += batch
        by_epoch[cursor.epoch].update(batch)
        cursor = plan.advance(cursor, 1)
    if plan.remainder == "carry":
        for epoch in range(epochs):
            assert Counter(seen[epoch * rows : (epoch + 1) * rows]) == every or len(seen) < (epoch + 1) * rows
        assert epochs * rows - len(seen) < size
    for counted in by_epoch[:epochs] if plan.remainder != "carry" else []:
        assert counted <= every
        left = (every - counted).total()
        assert left == (rows % size if plan.remainder == "drop" else 0)


@given(cases(), st.integers(0, 40))
@settings(deadline=None, max_examples=100)
def test_a_cursor_at_an_epochs_border_has_one_form(case: Case, step: int) -> None:
    """The last step of an epoch leads to step 0 of the next, never to a step that the epoch does not have."""
    plan = case.plan()
    cursor = plan.cursor_at(step)
    assert 0 <= cursor.step < plan.steps_in(cursor.epoch) and plan.global_step(cursor) == step
    after = plan.advance(cursor, 1)
    last = cursor.step == plan.steps_in(cursor.epoch) - 1
    assert after.step == (0 if last else cursor.step + 1) and after.epoch == cursor.epoch + last
    assert plan.advance(after, -1) == cursor


def test_what_is_dropped_differs_between_epochs() -> None:
    """Over epochs every row is read about equally often: no row is dropped for good."""
    plan, epochs = EpochPlan([30, 33], seed=1, global_batch=16, chunk_rows=1), 200
    counted: Counter[tuple[int, int]] = Counter()
    for epoch in range(epochs):
        for step in range(plan.steps_in(epoch)):
            counted.update((s, i) for s, a, b in plan.rows(epoch, step) for i in range(a, b))
    share = 48 / 63
    spread = 5 * (epochs * share * (1 - share)) ** 0.5
    assert len(counted) == 63 and all(abs(n - epochs * share) < spread for n in counted.values())
