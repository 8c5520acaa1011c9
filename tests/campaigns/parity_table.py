"""Prints the parity table: `python -m tests.campaigns.parity_table [--steps 20] [--worlds 1 2 3 4]`.

For each case and number of gloo ranks W the largest difference of losses, gradients, weights, buffers and moments from
one process on the whole batch, in float64, over all steps and all ranks. The exit status is 1 beyond the bound.
"""

import argparse
from collections.abc import Sequence

import torch

from tests.distributed import parity, ranks
from tests.distributed.pool import Pool, pool


def row(workers: Pool, case: str, worlds: Sequence[int], steps: int) -> list[dict[str, float]]:
    """For each W the largest differences of the case on any rank: loss, gradient, weights."""
    arguments = (list(parity.BATCHES.values()), steps, parity.STEPS_PER_EPOCH)
    expected = parity.reference(parity.CASES[case], *arguments)
    cells = []
    for world in worlds:
        found = workers.run(world, ranks.train, parity.CASES[case], *arguments, timeout=600)
        differences = [parity.difference(f, expected) for f in found]
        cells.append({kind: max(d[kind] for d in differences) for kind in differences[0]})
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=parity.STEPS, help="optimiser steps of each case")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3, 4], help="numbers of ranks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    print(f"Each cell: loss / gradient / weights after {options.steps} steps.\n")
    print("| case | " + " | ".join(f"W = {world}" for world in options.worlds) + " |")
    print("|---" * (1 + len(options.worlds)) + "|")
    with pool(max(options.worlds)) as workers:
        for case in parity.CASES:
            cells = row(workers, case, options.worlds, options.steps)
            worst = max(worst, *(d for cell in cells for d in cell.values()))
            texts = [" / ".join(f"{d:.0e}" if d else "0" for d in cell.values()) for cell in cells]
            print(f"| {case} | " + " | ".join(texts) + " |", flush=True)
        alone = [parity.batch_norm_difference(workers, world) for world in options.worlds]
        worst = max(worst, *alone)
        print("| batch norm alone (12 rows) | " + " | ".join(f"{d:.0e}" if d else "0" for d in alone) + " |")
    print(f"\nLargest: {worst:.1e}; bound: {parity.TOLERANCE:.0e}.")
    return int(worst > parity.TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
