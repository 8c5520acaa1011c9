"""The simulation of many ranks: what it reports of small plans, and that it finds plans that break a promise."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.plan_simulation import BrokenPromiseError, main, rare_most, simulate
from shards.planning.plan import Cursor, EpochPlan, Window

COUNTS = np.array([90, 0, 117, 40, 101])


@pytest.mark.parametrize("remainder", ["drop", "pad", "carry"])
def test_loads_are_those_of_a_count_by_hand(remainder: str) -> None:
    plan = EpochPlan(COUNTS, seed=3, global_batch=50, chunk_rows=8, remainder=remainder)
    epoch = 1
    found = simulate(plan, [1, 3, 50], epoch=epoch)
    assert found.steps == plan.steps_in(epoch)
    for load in found.loads:
        reads = [plan.rows(epoch, step, rank, load.ranks) for step in range(found.steps) for rank in range(load.ranks)]
        assert load.reads == pytest.approx(np.mean([len(each) for each in reads]))
        assert load.most_reads == max(len(each) for each in reads)
        assert load.shards == pytest.approx(np.mean([len({piece.shard for piece in each}) for each in reads]))
        rows = [sum(piece.stop - piece.start for piece in each) for each in reads]
        assert load.rows == (min(rows), max(rows)) and load.local_batch == math.ceil(50 / load.ranks)
        in_step = [reads[i : i + load.ranks] for i in range(0, len(reads), load.ranks)]
        meetings = [[piece.shard for each in step for piece in each] for step in in_step]
        assert load.hottest == max(each.count(shard) for each in meetings for shard in set(each))


def test_some_steps_stand_for_all() -> None:
    plan = EpochPlan([1000] * 50, seed=0, global_batch=64)
    assert simulate(plan, [4], steps=9).steps == 9
    assert simulate(plan, [4], steps=10**6).steps == plan.steps_in(0)


@pytest.mark.parametrize("remainder", ["drop", "carry"])
def test_runs_do_not_overlap_where_nearly_all_steps_are_checked(
    remainder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.plan_simulation._ROWS_AT_ONCE", 4 * 64)
    plan = EpochPlan([64] * 10, seed=0, global_batch=64, chunk_rows=4, remainder=remainder)
    assert plan.steps_in(0) == 10
    for steps in range(10, 0, -1):
        assert simulate(plan, [4], steps=steps).steps == steps


class Broken(EpochPlan):
    """A plan whose ranks of a larger world are wrong in one way."""

    fault = ""

    def window(self, start: Cursor, steps: int, rank: int = 0, world: int = 1) -> Window:
        whole = super().window(start, steps, rank, world)
        if world == 1 and self.fault == "repeats":
            return super().window(Cursor(start.epoch, 0), steps, 0, 1)
        if world == 1 and self.fault == "one shard":
            return Window(whole.shard * 0, whole.start, whole.stop, whole.step, whole.filled, whole.local_batch)
        if world == 1 or rank != 1:
            return whole
        if self.fault == "row moved":
            return Window(whole.shard, whole.start + 1, whole.stop + 1, whole.step, whole.filled, whole.local_batch)
        if self.fault == "ranks swapped":
            return super().window(start, steps, 2, world)
        if self.fault == "step missing":
            return super().window(start, steps - 1, rank, world)
        if self.fault == "row missing":
            return Window(whole.shard, whole.start, whole.stop, whole.step, whole.filled - 1, whole.local_batch)
        return whole


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("row moved", "other rows than one"),
        ("ranks swapped", "other rows than one"),
        ("step missing", "different numbers of steps"),
        ("row missing", "not equally full"),
        ("repeats", "a row that was in an earlier step"),
        ("one shard", "chunks of one step lie in one shard|a row is twice|earlier step"),
    ],
)
def test_a_broken_promise_is_found(fault: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.plan_simulation._ROWS_AT_ONCE", 5 * 64)
    plan = Broken([100] * 40, seed=0, global_batch=64, chunk_rows=4)
    simulate(plan, [4])
    plan.fault = fault
    with pytest.raises(BrokenPromiseError, match=told):
        simulate(plan, [4])


BROKEN_COMMAND = """
import sys
import benchmarks.plan_simulation as simulation
from benchmarks.plan_simulation import main
from tests.benchmarks.test_plan_simulation import Broken
Broken.fault = "ranks swapped"
simulation.EpochPlan = Broken
sys.exit(main("--rows 4000 --shard-rows 100 --batch 64 --ranks 4".split()))
"""


@pytest.mark.parametrize("options", [[], ["-O"]])
def test_the_command_tells_of_a_broken_promise_also_where_asserts_are_left_out(options: list[str]) -> None:
    done = subprocess.run([sys.executable, *options, "-c", BROKEN_COMMAND], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("broken promise: 4 ranks read other rows"), done


@pytest.mark.parametrize(("mean", "draws"), [(0.05, 100), (3.0, 10_000), (40.0, 10**7)])
def test_the_bound_of_chance_is_the_poisson_distribution_s(mean: float, draws: int) -> None:
    """Against the distribution summed up term by term."""
    bound = rare_most(mean, draws)

    def tail(first: int) -> float:
        return sum(math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(first, first + 400))

    assert tail(bound + 1) * draws <= 1.01e-6
    assert tail(bound - 1) * draws > 1e-6


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    arguments = ["--rows", "20011", "--shard-rows", "500", "--batch", "256", "--ranks", "8", "24", "--json", str(out)]
    assert main([*arguments]) == 0
    text = capsys.readouterr().out
    assert "20,011 rows in 41 shards" in text and "| 24 | 11 (padded from 3) |" in text
    result: dict[str, Any] = json.loads(out.read_text())
    assert [load["ranks"] for load in result["loads"]] == [8, 24] and result["steps"] == 78
    assert main(["--rows", "0"]) == 2
