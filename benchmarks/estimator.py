"""How well the cost of a step is predicted on this machine: its constants, measured of single kernels, and for steps of
several presets and sizes the seconds that `conclugen.training.step_cost` makes of them beside those that pass.

No step is used to measure the constants. On a CPU seconds are those of the processor, with one thread: what other
programs do to the clock is not part of a step. Every step has rows of its own: those of a batch that is learned by
heart have scores whose exponentials underflow, over which a CPU takes twenty times as long. The largest error is
printed, and on a CPU one above --most ends with status 1.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.parts import synchronize
from benchmarks.step import WIDTHS, random_batch
from conclugen import presets
from conclugen.config import PretrainConfig
from conclugen.training import step_cost
from conclugen.training.pretrainer import Pretrainer
from conclugen.training.step_cost import Kernel, Machine

# Rows, inputs and outputs of the linear maps by which the rate of products is measured, so many maps of each that they
# are in no cache; and rows, R, P and H of the steps.
_MAPS, _COPIES = ((384, 2560, 640), (640, 640, 1280), (896, 640, 384)), 8
# What is predicted by default was not looked at when this model of a CPU was made. That was done in sight of
# contrast_generative:improved and simclr:paper at 256x512x128x256, 512x1024x256x512 and 1024x768x256x512.
SIZES = ("384x640x192x320", "640x1280x320x384", "896x896x160x640")
PRESETS = ("contrast_only:paper", "generative_only:improved", "conclugen:improved")
_MIB = 1 << 20
_BLOCK_BYTES = 1 << 18  # of integers that are drawn at a time


@dataclass(frozen=True)
class Cpu(Machine):
    """A processor waits for what it starts: a launch is added to the work. fresh: bytes/s at which memory is taken for
    results, part of which the system clears page by page; cache: bytes/s of integers that stay in it."""

    fresh: float = math.inf
    cache: float = math.inf

    def seconds(self, kernel: Kernel) -> float:
        if kernel.drawn:
            return self.launch + kernel.bytes / self.cache
        products = kernel.flops / self.flops[kernel.precision] if kernel.flops else 0.0
        return self.launch + max(products, kernel.bytes / self.memory) + kernel.fresh / self.fresh


def seconds_of(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The least of some runs."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    found = []
    for _ in range(repeats + 1):
        synchronize(device)
        begin = clock()
        run()
        synchronize(device)
        found.append(clock() - begin)
    return min(found[1:])


def measured_machine(device: torch.device, precisions: Sequence[str], repeats: int = 5) -> Machine:
    """This machine's constants, each of single kernels."""

    def product_rate(dtype: torch.dtype) -> float:
        """Of what a linear map multiplies, forward and backward."""
        maps = [
            [torch.ones(shape, dtype=dtype, device=device) for shape in ((n, k), (m, k), (n, m))]
            for n, k, m in _MAPS
            for _ in range(_COPIES)
        ]

        def multiply() -> None:
            for x, weight, gradient in maps:
                x @ weight.T
                gradient @ weight
                gradient.T @ x

        flops = sum(kernel.flops * n for kernel, n in kernels_of(multiply).items())
        return flops / seconds_of(multiply, device, repeats)

    flops = {name: product_rate(getattr(torch, name)) for name in precisions}
    flops = {"float32": flops.get("float32", math.nan), **flops}
    flops["tf32"] = flops["float32"]  # which a CPU does not have
    x = torch.zeros(16 * _MIB // 4, device=device)
    memory = 2 * x.nbytes / seconds_of(lambda: x.mul_(1.0), device, repeats)
    one = torch.ones(1, device=device, requires_grad=True)

    def chain() -> None:
        y = one
        for _ in range(200):
            y = y * one
        y.backward()

    launch = seconds_of(chain, device, repeats) / sum(kernels_of(chain).values())
    shared: dict[str, Any] = {
        "flops": flops,
        "memory": memory,
        "launch": launch,
        "product_share": 1.0,
        "memory_share": 1.0,
    }
    if device.type != "cpu":
        total = torch.cuda.mem_get_info(device)[1]
        return Machine(torch.cuda.get_device_name(device), holds=total, inside=math.inf, **shared)
    part = x[: len(x) // 4].clone().requires_grad_()

    def keep() -> None:  # results that are kept and given back as in the passes of a step
        y = part
        for _ in range(12):
            y = (y * part).relu()
        y.sum().backward()
        part.grad = None

    kept = kernels_of(keep)
    waited = seconds_of(keep, device, repeats)
    waited -= sum(n * (launch + kernel.bytes / memory) for kernel, n in kept.items())
    taken = sum(n * kernel.fresh for kernel, n in kept.items())
    number = torch.arange(_BLOCK_BYTES // 8)

    def mix() -> None:
        for _ in range(64):
            number.mul_(3)
            number.bitwise_xor_(5)

    cache = sum(n * kernel.bytes for kernel, n in kernels_of(mix).items()) / seconds_of(mix, device, repeats)
    return Cpu("this CPU", holds=0, inside=math.inf, fresh=taken / max(waited, 1e-9), cache=cache, **shared)


def kernels_of(run: Callable[[], Any]) -> Counter[Kernel]:
    with step_cost.counting() as counter:
        run()
    return counter.kernels()


def configuration(preset: str, size: str, precision: str) -> PretrainConfig:
    """preset: NAME:RECIPE. size: rows, R, P and H, with x between them."""
    name, _, recipe = preset.partition(":")
    numbers = size.split("x")
    if name not in presets.PRESETS or len(numbers) != 4 or not all(n.isdigit() for n in numbers):
        raise ValueError(f"found {preset!r} and {size!r}, expected PRESET:RECIPE and ROWSxRxPxH")
    rows, representation, projection, hidden = map(int, numbers)
    sizes = {"representation_dim": representation, "projection_dim": projection, "reconstruction_hidden_dim": hidden}
    return presets.build(name, recipe or "improved", global_batch=rows, precision=precision, model=sizes)


def measured_step(config: PretrainConfig, device: torch.device, repeats: int) -> float:
    """Seconds of a step on random features, all tasks active."""
    widths = {m: WIDTHS[m] for m in config.required_modalities}
    moments = {m: ([0.0] * d, [1.0] * d) for m, d in widths.items()} if config.model.standardize else None
    pretrainer = Pretrainer(config, widths, 1, moments, device)
    pretrainer.step_number = 1 + max(pretrainer.model.task(n).begins(t) for n, t in config.tasks.active.items())
    batches = (random_batch(config.global_batch, str(device), seed) for seed in range(repeats + 2))
    pretrainer.step(next(batches))
    rows = list(batches)
    return seconds_of(lambda: pretrainer.step(rows.pop()), device, repeats)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), metavar="PRESET:RECIPE")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="ROWSxRxPxH")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5, help="steps and kernels of which the fastest counts")
    parser.add_argument("--most", type=float, default=0.3, help="largest error of a prediction")
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")


def run(args: argparse.Namespace) -> int:
    if args.repeats < 1:
        raise ValueError(f"--repeats: must be at least 1, got {args.repeats}")
    configs = {(p, s): configuration(p, s, args.precision) for p in args.presets for s in args.sizes}
    device = torch.device(args.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        machine = measured_machine(device, list(dict.fromkeys(["float32", args.precision])), args.repeats)
        cases = []
        for (preset, size), config in configs.items():
            widths = {m: WIDTHS[m] for m in config.required_modalities}
            begin = time.process_time()
            cost = step_cost.count(config, widths, memory=machine.holds or None)
            traced = time.process_time() - begin
            predicted = step_cost.estimate(cost, machine).step
            measured = measured_step(config, device, args.repeats)
            cases.append(
                {"preset": preset, "size": size, "kernels": cost.launches, "gflop": cost.flops / 1e9}
                | {"predicted": predicted, "measured": measured, "ratio": predicted / measured, "traced": traced}
            )
    finally:
        torch.set_num_threads(threads)
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in machine.flops.items())
    print(f"{machine.name}: {rates}; {machine.memory / 1e9:.1f} GB/s; {machine.launch * 1e6:.1f} us a kernel", end="")
    if isinstance(machine, Cpu):
        print(f"; {machine.fresh / 1e9:.1f} GB/s of fresh memory, {machine.cache / 1e9:.1f} GB/s of integers", end="")
    print("\n")
    print("| preset | rows x R x P x H | kernels | GFLOP | predicted, ms | measured, ms | ratio | traced in, s |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases:
        print(
            f"| {case['preset']} | {case['size'].replace('x', ' x ')} | {case['kernels']:,} | {case['gflop']:,.1f} | "
            f"{1e3 * case['predicted']:.1f} | {1e3 * case['measured']:.1f} | {case['ratio']:.2f} | "
            f"{case['traced']:.1f} |"
        )
    worst = max(abs(case["ratio"] - 1) for case in cases)
    typical = statistics.median(abs(case["ratio"] - 1) for case in cases)
    print(f"\nerror of a prediction: {typical:.0%} in the middle, {worst:.0%} at most")
    if args.json:
        report = {"machine": dataclasses.asdict(machine), "cases": cases, "largest_error": worst}
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(device.type == "cpu" and worst > args.most)


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("estimator", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
