"""Cases in child processes, so that a crash is a result too, with its case's number."""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

from tests.campaigns.shard_fuzz.runner import MEMORY, Result, run_case
from tests.campaigns.shard_fuzz.targets import targets

BLOCK = 250  # cases of one child


def _child(seed: int, cases: list[int], repair_every: int, results: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Path(results).open("a") as lines:
        made = targets(Path(folder) / "made")
        for case in cases:
            print(json.dumps({"seed": seed, "begun": case}), file=lines, flush=True)
            result = run_case(seed, case, made, Path(folder) / "case", case % repair_every == 0, MEMORY)
            print(json.dumps(result.to_dict()), file=lines, flush=True)


def run(seed: int, cases: int, repair_every: int, results: Path) -> list[Result]:
    """Run what `results` does not hold yet, and return all of this seed."""
    context = multiprocessing.get_context("spawn")
    while True:
        done, begun = read(results, seed)
        for case in begun - set(done):  # a child died of it
            result = Result(seed, case, "?", "?", "", "defect", error="the process died")
            with results.open("a") as lines:
                print(json.dumps(result.to_dict()), file=lines)
            done[case] = result
        todo = [case for case in range(cases) if case not in done]
        if not todo:
            return [done[case] for case in sorted(done)]
        child = context.Process(target=_child, args=(seed, todo[:BLOCK], repair_every, str(results)))
        child.start()
        child.join()
        if not read(results, seed)[1] & set(todo):
            raise RuntimeError(f"a child process ended with {child.exitcode} before its first case")
        print(f"{len(done) + len(todo[:BLOCK])} of {cases} cases", file=sys.stderr, flush=True)


def read(results: Path, seed: int) -> tuple[dict[int, Result], set[int]]:
    """Results by number of the case, and the numbers of all cases that were begun."""
    done: dict[int, Result] = {}
    begun: set[int] = set()
    for line in results.read_text().splitlines() if results.exists() else ():
        record = json.loads(line)
        if record["seed"] != seed:
            continue
        if "begun" in record:
            begun.add(record["begun"])
        else:
            done[record["case"]] = Result(**record)
    return done, begun
