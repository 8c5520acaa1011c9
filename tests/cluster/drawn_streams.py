"""Whole runs through Ray Data, drawn: a data set, a plan, and starts with other numbers of workers from any cursor.

What they must read is told by the slow plan of `tests.shards.slow_plan` and by the samples' numbers, without any of the
code that reads.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from shards.format.manifest import Manifest
from shards.format.schema import Column, Sample, Schema
from shards.format.writer import ShardWriter
from shards.planning.plan import REMAINDERS, Cursor, EpochPlan
from shards.planning.view import View
from shards.reading.ray_source import PAYLOADS, Execution, stream
from shards.reading.reader import Reader
from shards.reading.rows import Rows
from tests.cluster.slow_view import SlowView
from tests.shards.slow_plan import slow_batches

PADDING = -1
EPOCHS = 20  # beyond any drawn run's end


@dataclass(frozen=True)
class Run:
    """One training run: its data, its plan, where its first start begins, and (workers, steps made) of each start."""

    rows: int
    shard_bytes: int
    mask_seed: int
    share: float
    options: dict[str, Any]
    first: int
    starts: list[tuple[int, int]]
    payload: str
    execution: Execution

    @property
    def mask(self) -> np.ndarray:
        """(rows,) bool: the view; at least one row."""
        mask = np.random.default_rng(self.mask_seed).random(self.rows) < self.share
        mask[self.mask_seed % self.rows] = True
        return mask


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Small ones, whose starts lie around the borders of epochs as often as not."""
    rows, mask_seed = draw(st.integers(8, 160)), draw(st.integers(0, 10**6))
    share = draw(st.sampled_from([0.4, 0.8, 1.0]))
    half = Run(rows, 0, mask_seed, share, {}, 0, [], "", Execution())
    selected, remainder = int(half.mask.sum()), draw(st.sampled_from(REMAINDERS))
    options: dict[str, Any] = {
        "seed": draw(st.integers(0, 10**6)),
        "global_batch": draw(st.integers(max(1, selected // 12), selected if remainder != "pad" else selected + 5)),
        "chunk_rows": draw(st.integers(1, 9)),
        "remainder": remainder,
    }
    plan = EpochPlan([selected], **options)
    starts = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3))
    border = plan.start_of_epoch(draw(st.integers(0, 2))) + draw(st.integers(-3, 1))
    return Run(
        rows,
        draw(st.sampled_from([20_480, 51_200, 10**6])),
        mask_seed,
        share,
        options,
        max(0, border),
        starts,
        draw(st.sampled_from(PAYLOADS)),
        # Tasks of a few rows cut steps into parts, others hold many steps; short windows give many borders of windows.
        Execution(task_bytes=32 * draw(st.sampled_from([9, 400])), window_tasks=draw(st.sampled_from([6, 64]))),
    )


def values_of(row: int) -> dict[str, np.ndarray | None]:
    """The features of the sample with this number; every seventh has no `b`."""
    return {
        "a": row + np.arange(3, dtype=np.float32) / 4,
        "b": None if row % 7 == 3 else -row - np.arange(5, dtype=np.float32) / 8,
    }


def write(folder: Path, run: Run) -> Manifest:
    schema = Schema((Column("a", 3), Column("b", 5)), {"one": ("a",), "two": ("b",)})
    with ShardWriter(folder, schema, max_shard_bytes=run.shard_bytes) as writer:
        for row in range(run.rows):
            writer.append(Sample(f"k{row}", values_of(row)))
    assert writer.manifest is not None
    return writer.manifest


def expected(run: Run, manifest: Manifest) -> list[list[int]]:
    """Rows of the run's batches, in their order."""
    before = manifest.rows_before
    selected = [np.flatnonzero(run.mask[a:b]) + a for a, b in itertools.pairwise(before)]
    o = run.options
    batches = slow_batches(
        [len(rows) for rows in selected], o["seed"], o["global_batch"], o["chunk_rows"], o["remainder"], EPOCHS
    )
    end = run.first + sum(steps for _, steps in run.starts)
    assert end <= len(batches)
    return [[int(selected[s][i]) for s, i in rows] for _, rows in batches[run.first : end]]


def consumed(run: Run, manifest: Manifest) -> list[list[int]]:
    """Rows that the run's starts read through Ray Data, by global batch, all workers' parts together.

    Each start is given up before its stream's end, as a killed one is, and the next one knows its last cursor only.
    Which worker takes its next batch when is drawn, so that some are ahead of others.
    """
    view = View.where(manifest, run.mask)
    state = EpochPlan(view.counts, **run.options).cursor_at(run.first).to_dict()
    batches: list[list[int]] = []
    for world, steps in run.starts:
        slow = SlowView(manifest, view.name, view._bits, view.rule)
        plan, cursor = EpochPlan(view.counts, **run.options), Cursor.from_dict(state)
        parts: list[list[Rows]] = [[] for _ in range(world)]
        turns = [rank for rank in range(world) for _ in range(steps)]
        random.Random(f"{run.mask_seed} {world} {steps}").shuffle(turns)
        with contextlib.ExitStack() as stack:
            streams = [
                stack.enter_context(
                    stream(Reader(manifest, slow), plan, rank, world, cursor, steps + 2, run.payload, run.execution)
                )
                for rank in range(world)
            ]
            for rank in turns:
                parts[rank].append(next(streams[rank]))
        for step in zip(*parts, strict=True):
            batches.append(check_and_join(step, plan))
        last = parts[0][-1].cursor
        assert last is not None
        state = plan.advance(last, 1).to_dict()
    return batches


def check_and_join(parts: tuple[Rows, ...], plan: EpochPlan) -> list[int]:
    """The rows of one global batch without padding; every value of every sample is as it was written."""
    assert len({part.cursor for part in parts}) == 1
    assert {len(part.row) for part in parts} == {plan.local_batch(len(parts))}
    row = np.concatenate([part.row for part in parts])
    filled = int((row != PADDING).sum())
    assert (row[filled:] == PADDING).all(), "padding lies at the end of the batch only"
    for modality, column in (("one", "a"), ("two", "b")):
        x = np.concatenate([part.features[modality] for part in parts])
        present = np.concatenate([part.present[modality] for part in parts])
        assert not present[filled:].any()
        for i in range(filled):
            value = values_of(int(row[i]))[column]
            assert present[i] == (value is not None)
            assert value is None or np.array_equal(x[i], value)
    return [int(n) for n in row[:filled]]
