"""Many hostile results folders: `python -m tests.campaigns.results_fuzz --cases 660 --seed 0`.

Cases run in processes of their own, some dozens in each, with bounds of time and memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import Counter

from tests.campaigns.results_fuzz.campaign import KINDS, Result, block

_BLOCK = 44


def table(results: list[Result]) -> str:
    """A row for each kind of damage, and the sum."""
    lines = ["| damage | cases | read | refused in a line | wrong, other |", "|---|---|---|---|---|"]
    for name in [*KINDS, "all"]:
        counts = Counter(result.outcome for result in results if name in (result.kind, "all"))
        numbers = [sum(counts.values()), counts["read"], counts["refused"], counts["defect"]]
        lines.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.results_fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=660)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    numbers = list(range(given.cases))
    blocks = [(given.seed, numbers[at : at + _BLOCK]) for at in range(0, len(numbers), _BLOCK)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = [result for done in pool.starmap(block, blocks, chunksize=1) for result in done]
    print(table(results))
    defects = [result for result in results if result.outcome == "defect"]
    for result in defects:
        print(f"seed {result.seed}, case {result.case}, {result.kind} ({result.file}): {result.error}")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
