"""Peak memory of the contrastive loss and its gradient, by rows of the batch.

In blocks, as in training, and with the whole matrix of similarities as one block up to `--whole` rows. One pair of
modalities, float32, one rank.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line, plots
from benchmarks.memory import Peak, give_back_what_is_freed
from benchmarks.parts import synchronize
from conclugen.latents import Latents, Presence
from conclugen.tasks.contrastive import Contrastive, ContrastiveConfig


def measure(rows: int, projection: int, block_rows: int | None, device: torch.device) -> dict[str, float]:
    """bytes beyond the projections themselves, and seconds, of one loss with its gradient."""
    z_MBP = torch.randn(2, rows, projection, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    there = torch.ones(2, rows, dtype=torch.bool, device=device)
    presence = Presence(there, there, torch.arange(rows, device=device), None, 0)
    loss = Contrastive(ContrastiveConfig(temperature=0.1, block_rows=block_rows)).to(device)
    latents = Latents(("a", "b"), {}, {}, z_MBP, presence, 0, 0)
    synchronize(device)
    begin = time.perf_counter()
    with Peak(device) as peak:
        loss(latents).backward()
    return {"bytes": peak.bytes, "seconds": time.perf_counter() - begin}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gpu = torch.cuda.is_available()
    parser.add_argument("--batch", nargs="+", type=int, default=[2048, 4096, 8192], help="rows; up to 131072 and more")
    parser.add_argument("--whole", type=int, default=8192, help="most rows for which the whole matrix is tried")
    parser.add_argument("--projection", type=int, default=64, help="P")
    parser.add_argument("--block-rows", type=int, help="default: as in training, by the size of the batch")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--json", help="also write the report to this file")
    parser.add_argument("--plot", help="also draw memory by rows into this .svg file")


def run(args: argparse.Namespace) -> int:
    """Measure and print; ValueError for numbers that make no measurement."""
    if min(args.batch) < 2:
        raise ValueError(f"--batch: found {min(args.batch)}, expected 2 rows or more")
    if args.plot and not args.plot.endswith(".svg"):
        raise ValueError(f"--plot: found {args.plot!r}, expected a name that ends in .svg")
    device = torch.device(args.device)
    give_back_what_is_freed()
    measure(64, args.projection, None, device)  # what is loaded at the first use is not counted
    report: dict[str, dict[str, Any]] = {"in blocks": {}, "whole matrix": {}}
    print(f"{'rows':>8}{'blocks MB':>12}{'s':>8}{'whole MB':>12}{'s':>8}")
    for rows in args.batch:
        blocks = report["in blocks"][str(rows)] = measure(rows, args.projection, args.block_rows, device)
        line = f"{rows:>8,}{blocks['bytes'] / 1e6:>12,.0f}{blocks['seconds']:>8.1f}"
        if rows <= args.whole:
            whole = report["whole matrix"][str(rows)] = measure(rows, args.projection, rows, device)
            line += f"{whole['bytes'] / 1e6:>12,.0f}{whole['seconds']:>8.1f}"
        print(line, flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        series = {
            name: [(float(rows), one["bytes"] / 1e6) for rows, one in by_rows.items() if one["bytes"]]
            for name, by_rows in report.items()
        }
        drawn = {name: points for name, points in series.items() if points}
        plots.lines(drawn, "Peak memory of the contrastive loss", "rows of the global batch", "MB").savefig(args.plot)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("contrastive_memory", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
