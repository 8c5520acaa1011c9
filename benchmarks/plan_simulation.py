"""The epoch plan of many ranks, made and checked on one machine without reading data.

For each number of ranks every rank's part of the plan is made, as that rank would make it, and compared:

balance  every rank has the same number of steps, and full batches but for padding at the end of the global batch
order    the ranks' rows, one rank after the other, are the global batch of one rank, row for row; no row twice an epoch
load     no shard has more chunks in one step than where chunks fall at random (as many as are exceeded once in 10^6
         such epochs); and, without a limit, the range reads and shards of a rank in a step, and the most reads of all
         ranks that meet in one shard, for a chunk that several ranks share is read in parts

Ends with status 1 where one of them does not hold. The rows are those of a data set, or of shards that are made up.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command_line
from shards.format.manifest import Manifest
from shards.planning.plan import Cursor, EpochPlan, Int64, Window
from shards.planning.view import View

_ROWS_AT_ONCE = 1 << 22  # rows that are compared at a time
_RARE = 1e-6


class BrokenPromiseError(Exception):
    """A plan whose ranks differ, repeat rows or crowd a shard: which, and where."""


@dataclass(frozen=True)
class Load:
    """What one number of ranks means for storage, over the steps that were simulated.

    rows: smallest and largest of a rank in a step. reads: ranges of a rank in a step, mean and most. shards: different
    ones of a rank in a step, mean. hottest: most reads of all ranks that meet in one shard in one step. plan_seconds:
    of the slowest rank, for all steps simulated.
    """

    ranks: int
    local_batch: int
    steps: int
    rows: tuple[int, int]
    reads: float
    most_reads: int
    shards: float
    hottest: int
    plan_seconds: float


@dataclass(frozen=True)
class Simulation:
    """steps: checked. hottest_chunks: most chunks of one shard in one step; hottest_random: how many chance gives at
    most, but for once in 10^6."""

    steps: int
    hottest_chunks: int
    hottest_random: int
    loads: list[Load]


def simulate(plan: EpochPlan, ranks: list[int], steps: int | None = None, epoch: int = 0) -> Simulation:
    """The load of each number of ranks, after balance and order were found to hold.

    Args:
        steps: Checked, spread over the epoch in runs; None: all of it.

    Raises:
        BrokenPromiseError: where the plan breaks a promise.
    """
    total = plan.steps_in(epoch)
    runs = list(_runs(plan, epoch, total if steps is None else min(steps, total)))
    simulated = sum(length for _, length in runs)
    check_each_row_once(plan, runs)
    most, random = check_spread(plan, runs, simulated)
    return Simulation(simulated, most, random, [_load(plan, world, runs, simulated) for world in ranks])


def check_each_row_once(plan: EpochPlan, runs: list[tuple[Cursor, int]]) -> None:
    """No row is in two of the steps (where the remainder is not carried over into them), nor in one twice."""
    before = np.cumsum(plan.counts) - plan.counts
    seen = np.zeros(plan.total_rows, bool)
    carried = plan.remainder == "carry"
    for start, length in runs:
        rows = _rows(plan.window(start, length), before)
        if carried and start.step == 0:  # the first batch may end the epoch before
            rows = rows[plan.global_batch :]
        _promised(not bool(seen[rows].any()), f"a row that was in an earlier step is in one from {start} on")
        seen[rows] = True
        _promised(len(np.unique(rows)) == len(rows), f"a row is twice in the steps from {start} on")


def check_spread(plan: EpochPlan, runs: list[tuple[Cursor, int]], simulated: int) -> tuple[int, int]:
    """Most chunks of one shard in one step, and the number that chance does not exceed."""
    shards, chunks, most = len(plan.counts), 0, 0
    for start, length in runs:
        window = plan.window(start, length)
        chunks += len(window.shard)
        most = max(most, int(np.unique(window.step * shards + window.shard, return_counts=True)[1].max()))
    share = float(plan.counts.max()) / plan.total_rows
    random = rare_most(chunks / simulated * share, shards * simulated)
    _promised(most <= random, f"{most} chunks of one step lie in one shard, more than the {random} of chance")
    return most, random


def _runs(plan: EpochPlan, epoch: int, steps: int) -> Iterator[tuple[Cursor, int]]:
    """Runs of consecutive steps, `steps` in all, that are compared at once: apart, and spread over the epoch."""
    left_out, length = plan.steps_in(epoch) - steps, max(1, min(steps, _ROWS_AT_ONCE // plan.global_batch))
    count = -(-steps // length)
    for i in range(count):
        first = i * length + i * left_out // max(1, count - 1)
        yield Cursor(epoch, first), min(length, steps - i * length)


def _promised(holds: bool, broken: str) -> None:
    """Not an assert: those are left out under `python -O`, and this is what the command is for."""
    if not holds:
        raise BrokenPromiseError(broken)


def _load(plan: EpochPlan, world: int, runs: list[tuple[Cursor, int]], simulated: int) -> Load:
    before = np.cumsum(plan.counts) - plan.counts
    local, shards = plan.local_batch(world), len(plan.counts)
    fewest, most = local, 0
    reads, most_reads, touched, hottest = 0, 0, 0, 0
    seconds = np.zeros(world)
    for start, length in runs:
        parts = []
        for rank in range(world):
            begin = time.perf_counter()
            parts.append(plan.window(start, length, rank, world))
            seconds[rank] += time.perf_counter() - begin
        equal = all(len(part.filled) == length for part in parts)
        _promised(equal, f"ranks of {world} have different numbers of steps")
        filled = np.stack([part.filled for part in parts])
        _check_padding(plan, start, filled, local)
        _check_order(plan, start, length, parts, before)
        fewest, most = min(fewest, int(filled.min())), max(most, int(filled.max()))
        for part in parts:
            in_step = np.bincount(part.step, minlength=length)
            reads, most_reads = reads + int(in_step.sum()), max(most_reads, int(in_step.max()))
            touched += len(np.unique(part.step * shards + part.shard))
        meeting = np.concatenate([part.step * shards + part.shard for part in parts])
        hottest = max(hottest, int(np.unique(meeting, return_counts=True)[1].max()))
    steps = simulated * world
    return Load(
        world, local, simulated, (fewest, most), reads / steps, most_reads, touched / steps, hottest,
        float(seconds.max()),
    )  # fmt: skip


def _check_padding(plan: EpochPlan, start: Cursor, filled: Int64, local: int) -> None:
    """Rank r holds the batch's rows from r * local on: all ranks are full but those at its end."""
    world, length = filled.shape
    whole = plan.window(start, length).filled
    expected = np.clip(whole - np.arange(world)[:, None] * local, 0, local)
    equal = bool((filled == expected).all())
    _promised(equal, f"{world} ranks are not equally full in the steps from {start} on")


def _check_order(plan: EpochPlan, start: Cursor, length: int, parts: list[Window], before: Int64) -> None:
    whole = plan.window(start, length)
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("shard", "start", "stop", "step"))
    shard, begin, stop, step = columns
    by_step = np.argsort(step, kind="stable")  # ranks stay in order within a step
    joined = Window(shard[by_step], begin[by_step], stop[by_step], step[by_step], whole.filled, plan.global_batch)
    same = np.array_equal(_rows(joined, before), _rows(whole, before))
    _promised(same, f"{len(parts)} ranks read other rows than one, or in another order, in the steps from {start} on")


def _rows(window: Window, before: Int64) -> Int64:
    """Every row of a window, one by one, counted over all shards."""
    lengths = window.stop - window.start
    first = before[window.shard] + window.start
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - lengths), lengths)


def rare_most(mean: float, draws: int) -> int:
    """The smallest k that none of `draws` Poisson numbers of this mean exceeds, but for once in 10^6.

    By the union bound, so that the draws need not be independent.
    """
    k, tail = math.ceil(mean), 1.0
    while tail * draws > _RARE:
        k += 1
        log_first = k * math.log(mean) - mean - math.lgamma(k + 1)
        tail = math.exp(log_first) / (1 - mean / (k + 1))  # the terms from k on, by a geometric series
    return k - 1


def planner_cost(counts: Int64, batch: int, chunk_rows: int | None) -> dict[str, float]:
    """Seconds to make one epoch's table, and MB that it holds and takes: what each rank spends once an epoch."""

    def make() -> EpochPlan:
        plan = EpochPlan(counts, seed=0, global_batch=batch, chunk_rows=chunk_rows)
        plan.rows(0, 0)
        return plan

    begin = time.perf_counter()
    make()
    seconds = time.perf_counter() - begin
    tracemalloc.start()  # a second time, because it slows down what it watches
    plan = make()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del plan
    return {"seconds": round(seconds, 2), "held_mb": round(held / 1e6, 1), "peak_mb": round(peak / 1e6, 1)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--folder", help="a data set; without one, shards are made up")
    parser.add_argument("--view", default="everything", help="of the data set")
    parser.add_argument("--rows", type=int, default=53_000_000, help="made up: VoxCeleb2 a hundred times")
    parser.add_argument("--shard-rows", type=int, default=10_000, help="rows of a made-up shard")
    parser.add_argument("--sample-bytes", type=int, default=27_648, help="of a made-up sample in its shard")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512], help="numbers of ranks")
    parser.add_argument("--batch", type=int, default=4096, help="rows of the global batch")
    parser.add_argument("--chunk-rows", type=int, help="default: 1/16 of the batch, at most 64")
    parser.add_argument("--remainder", default="drop", help="drop, pad or carry")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="check so many steps, spread over the epoch (default: all)")
    parser.add_argument("--json", metavar="FILE", help="also write the result to this file")


def run(args: argparse.Namespace) -> int:
    """Simulate, print, and return 0, or 1 where the plan breaks a promise."""
    if args.folder:
        manifest = Manifest.open(args.folder)
        counts = View.open(manifest, args.view).counts
        sample_bytes = int(manifest.shards["stride"].to_numpy().max()) or args.sample_bytes
    else:
        if min(args.rows, args.shard_rows) < 1:
            raise ValueError("--rows and --shard-rows must be positive")
        whole, rest = divmod(args.rows, args.shard_rows)
        counts, sample_bytes = np.array([args.shard_rows] * whole + [rest] * (rest > 0)), args.sample_bytes
    if min(args.ranks) < 1 or (args.steps is not None and args.steps < 1):
        raise ValueError("--ranks and --steps must be positive")
    plan = EpochPlan(counts, args.seed, args.batch, args.chunk_rows, args.remainder)
    cost = planner_cost(counts, args.batch, args.chunk_rows)
    try:
        simulation = simulate(plan, args.ranks, args.steps)
    except BrokenPromiseError as broken:
        print(f"broken promise: {broken}")
        return 1
    print(table(plan, simulation, cost, sample_bytes))
    if args.json:
        result: dict[str, Any] = {"plan": repr(plan), "planner": cost, **asdict(simulation)}
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def table(plan: EpochPlan, simulation: Simulation, cost: dict[str, float], sample_bytes: int) -> str:
    """For people, in Markdown."""
    steps = simulation.steps
    lines = [
        f"{plan.total_rows:,} rows in {len(plan.counts):,} shards, batches of {plan.global_batch:,}, chunks of "
        f"{plan.chunk_rows}: {plan.steps_in(0):,} steps an epoch, {steps:,} of them checked. An epoch's table takes a "
        f"rank {cost['seconds']} s, {cost['held_mb']} MB held, {cost['peak_mb']} MB at the peak. "
        f"Most chunks of one shard in a step: {simulation.hottest_chunks} (at random at most "
        f"{simulation.hottest_random}).",
        "",
        "| ranks | rows of a rank | MB a rank and step | range reads, mean | most | kB a read | shards, mean "
        "| reads in the hottest shard | us to plan a step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for load in simulation.loads:
        low, high = load.rows
        bytes_read = load.local_batch * sample_bytes
        lines.append(
            f"| {load.ranks} | {high:,}{'' if low == high else f' (padded from {low:,})'} | {bytes_read / 1e6:.2f} "
            f"| {load.reads:.1f} | {load.most_reads} | {bytes_read / load.reads / 1e3:,.0f} | {load.shards:.1f} "
            f"| {load.hottest} | {load.plan_seconds / load.steps * 1e6:.1f} |"
        )
    lines += ["", "Balance and order hold: equal steps on every rank, and together the global batch, row for row."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("plan_simulation", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
