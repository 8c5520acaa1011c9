"""`python -m benchmarks.step`: what a pretraining step costs, on random features that are on the device already.

Every round measures every case once, one after the other, so that drift of the machine affects all of them alike. The
first case is the plain one: `paper`, float32, eager, TF32 off. FLOPs are those of the matrix products that the step
needs (`benchmarks.flops`); utilisation is beside one large matrix product of the same dtype in the same run, or
beside `--peak`.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line, memory, plots
from benchmarks.flops import step_flops
from benchmarks.parts import part_seconds, synchronize
from conclugen import compilation, presets
from conclugen.batch import Batch
from conclugen.config import PRECISIONS, RECIPES, PretrainConfig
from conclugen.training.pretrainer import Pretrainer

WIDTHS = {"video": 4096, "audio": 1024, "text": 768, "video_3d": 2048}
MODES = ("eager", "compiled")
_GROUP = 8


@dataclass
class Case:
    """One configuration and what was measured of it: seconds of a step by round, seconds of each part by round, bytes
    of parameters and optimiser state, largest bytes that a step takes besides, seconds of the first step, and what
    torch.compile did."""

    name: str
    config: PretrainConfig
    pretrainer: Pretrainer | None = None
    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    state_bytes: int = 0
    step_bytes: int = 0
    first_step: float = 0.0
    compiled: compilation.Counts | None = None

    def build(self, args: argparse.Namespace, batch: Batch) -> None:
        """Make the pretrainer and run it until queue and optimiser are as in the middle of a run."""
        standardization = {m: ([0.0] * d, [1.0] * d) for m, d in WIDTHS.items()}
        self.pretrainer = Pretrainer(
            self.config, WIDTHS, 10**6, standardization if self.config.model.standardize else None, args.device
        )
        before = compilation.counts()
        begin = time.perf_counter()
        self.pretrainer.step(batch)
        synchronize(self.pretrainer.device)
        self.first_step = time.perf_counter() - begin
        for _ in range(args.warmup - 1):
            self.pretrainer.step(batch)
        if self.config.compile:
            self.compiled = compilation.counts().since(before)
        self.state_bytes = sum(x.numel() * x.element_size() for x in self.pretrainer.state()[0].values())
        with memory.Peak(self.pretrainer.device) as peak:
            self.pretrainer.step(batch)
        self.step_bytes = peak.bytes

    def measure(self, batch: Batch, steps: int) -> None:
        """One round: `steps` steps without a pause, then the parts once."""
        assert self.pretrainer is not None
        synchronize(self.pretrainer.device)
        begin = time.perf_counter()
        for _ in range(steps):
            self.pretrainer.step(batch)
        synchronize(self.pretrainer.device)
        self.seconds.append((time.perf_counter() - begin) / steps)
        if self.pretrainer.model.shared_tasks:
            self.parts.append(part_seconds(self.pretrainer, batch))

    def report(self, peaks: dict[str, float]) -> dict[str, Any]:
        """Medians, spread, and what follows from them."""
        median = statistics.median(self.seconds)
        flops = step_flops(self.config, WIDTHS)
        rate = sum(flops.values()) / median
        parts = {name: statistics.median(p[name] for p in self.parts) for name in (self.parts[0] if self.parts else {})}
        whole = sum(parts.values())
        return {
            "recipe": self.config.recipe,
            "precision": self.config.precision,
            "compiled": self.config.compile,
            "batch": self.config.global_batch,
            "step_seconds": median,
            "step_seconds_spread": [min(self.seconds), max(self.seconds)],
            "samples_per_second": self.config.global_batch / median,
            "flops": flops,
            "flops_per_second": rate,
            "utilisation": rate / peaks[self.config.precision],
            "state_bytes": self.state_bytes,
            "step_bytes": self.step_bytes,
            "first_step_seconds": self.first_step,
            "part_seconds": parts,
            "part_shares": {name: seconds / whole for name, seconds in parts.items()},
            "compile": None if self.compiled is None else vars(self.compiled),
        }


def cases(args: argparse.Namespace) -> list[Case]:
    """The plain case of each batch first, then the others that were asked for."""
    found: dict[str, Case] = {}
    for batch in args.batch:
        wanted = [("paper", "float32", "eager")]
        wanted += [(r, p, m) for r in args.recipes for p in args.precisions for m in args.modes]
        for recipe, precision, mode in wanted:
            name = f"{recipe} {precision} {mode} B{batch}"
            found[name] = Case(name, configuration(args, recipe, precision, mode == "compiled", batch))
    return list(found.values())


def configuration(args: argparse.Namespace, recipe: str, precision: str, compiled: bool, batch: int) -> PretrainConfig:
    """The preset at the sizes of the command line, all tasks active from the first step on."""
    tasks = {"clustering": {"start_epoch": 0}} if "clustering" in presets.PRESETS[args.preset][1] else {}
    return presets.build(
        args.preset,
        recipe,
        global_batch=batch,
        precision=precision,
        compile=compiled,
        model={
            "representation_dim": args.representation,
            "projection_dim": args.projection,
            "reconstruction_hidden_dim": args.hidden,
        },
        tasks=tasks,
    )


def random_batch(rows: int, device: str, seed: int = 1) -> Batch:
    """Standard normal features of all modalities, all present, eight rows of a group."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.arange(rows, device=device)
    return Batch(
        features={m: torch.randn(rows, d, generator=generator).to(device) for m, d in WIDTHS.items()},
        present={m: torch.ones(rows, dtype=torch.bool, device=device) for m in WIDTHS},
        row=row,
        group=row // _GROUP,
    )


def product_rate(precision: str, device: str, size: int, repeats: int = 5) -> float:
    """FLOP/s of one large square matrix product, the best of some."""
    dtype = getattr(torch, precision)
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        synchronize(a.device)
        begin = time.perf_counter()
        a @ b
        synchronize(a.device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [
        f"{'case':<36}{'ms/step':>10}{'lowest':>10}{'highest':>10}{'samples/s':>12}{'TFLOP/s':>9}{'of peak':>9}"
        f"{'state MB':>10}{'step MB':>10}{'x plain':>9}"
    ]
    for name, case in report["cases"].items():
        low, high = case["step_seconds_spread"]
        lines.append(
            f"{name:<36}{case['step_seconds'] * 1e3:>10.2f}{low * 1e3:>10.2f}{high * 1e3:>10.2f}"
            f"{case['samples_per_second']:>12,.0f}{case['flops_per_second'] / 1e12:>9.3f}{case['utilisation']:>9.1%}"
            f"{case['state_bytes'] / 1e6:>10.0f}{case['step_bytes'] / 1e6:>10.0f}{case['speedup']:>9.2f}"
        )
    names = list(dict.fromkeys(name for case in report["cases"].values() for name in case["part_shares"]))
    lines += ["", f"{'share of the parts':<36}" + "".join(f"{name:>16}" for name in names)]
    for name, case in report["cases"].items():
        lines.append(f"{name:<36}" + "".join(f"{case['part_shares'].get(part, 0):>16.1%}" for part in names))
    for name, case in report["cases"].items():
        if case["compile"] is not None:
            done = case["compile"]
            lines.append(
                f"{name}: {done['graphs']} graphs, {done['breaks']} breaks, {done['recompiles']} recompiles; "
                f"first step {case['first_step_seconds']:.1f} s"
            )
    lines += [f"peak {name}: {rate / 1e12:.3f} TFLOP/s" for name, rate in report["peak_flops_per_second"].items()]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gpu = torch.cuda.is_available()
    parser.add_argument("--preset", default="conclugen", choices=list(presets.PRESETS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=PRECISIONS)
    parser.add_argument(
        "--modes", nargs="+", default=list(MODES if gpu else MODES[:1]), choices=MODES, help="compiled: torch.compile"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[256], help="rows of a step; the paper's: 4096")
    parser.add_argument("--representation", type=int, default=512, help="R; the paper's: 4096")
    parser.add_argument("--projection", type=int, default=256, help="P")
    parser.add_argument("--hidden", type=int, default=512, help="H, of the reconstruction")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case")
    parser.add_argument("--steps", type=int, default=2, help="steps of a measurement")
    parser.add_argument("--warmup", type=int, default=9, help="steps before; 9 fill the queue of clustering")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--threads", type=int, help="of a CPU; default: torch's choice")
    parser.add_argument("--peak", type=float, help="TFLOP/s to compare with (H200, bfloat16: 989); default: measured")
    parser.add_argument("--json", help="also write the report to this file")
    parser.add_argument("--plot", help="also draw samples/s by case into this .svg file")


def run(args: argparse.Namespace) -> int:
    """Measure and print; ValueError for numbers that make no measurement."""
    for name in ("rounds", "steps", "warmup"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected 1 or more")
    if args.plot and not args.plot.endswith(".svg"):
        raise ValueError(f"--plot: found {args.plot!r}, expected a name that ends in .svg")
    if args.threads:
        torch.set_num_threads(args.threads)
    measured = cases(args)
    batches = {rows: random_batch(rows, args.device) for rows in args.batch}
    for case in measured:
        case.build(args, batches[case.config.global_batch])
    for _ in range(args.rounds):
        for case in measured:
            case.measure(batches[case.config.global_batch], args.steps)
    size = 8192 if args.device.startswith("cuda") else 1024
    used = {case.config.precision for case in measured}
    peaks = {p: args.peak * 1e12 if args.peak else product_rate(p, args.device, size) for p in PRECISIONS if p in used}
    report = make_report(measured, peaks, args)
    print(table(report))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        rates = {name: case["samples_per_second"] for name, case in report["cases"].items()}
        plots.bars(rates, "samples a second").savefig(args.plot)
    return 0


def make_report(measured: Sequence[Case], peaks: dict[str, float], args: argparse.Namespace) -> dict[str, Any]:
    """All cases by name, each beside the plain one of its batch; settings and machine."""
    reports = {case.name: case.report(peaks) for case in measured}
    for case in reports.values():
        plain = reports[f"paper float32 eager B{case['batch']}"]
        case["speedup"] = plain["step_seconds"] / case["step_seconds"]
    names = ("preset", "representation", "projection", "hidden", "rounds", "steps", "warmup", "device")
    gpu = args.device.startswith("cuda")
    return {
        "cases": reports,
        "peak_flops_per_second": peaks,
        "settings": {**{name: getattr(args, name) for name in names}, "peak_given": args.peak},
        "machine": {
            "device": torch.cuda.get_device_name() if gpu else memory.processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("step", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
