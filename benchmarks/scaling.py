"""What a step costs on many GPUs: kernels, operations, bytes and collectives counted from the code that runs it
(`conclugen.training.step_cost`), and seconds that a machine's rates make of them; bytes read, and the checkpoint.

Sizes are exact for the eager step. Times are estimates: no kernel is faster than its launch, its bytes or its
operations; the losses' collectives are added up, the gradients' sum beside the backward pass is added where it takes
longer than that. A ring moves (W - 1) / W of what is gathered, scattered or exchanged through each rank, twice that of
what is summed.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from conclugen import presets
from conclugen.config import RECIPES, PretrainConfig
from conclugen.training import checkpoint, step_cost
from conclugen.training.model import Model
from conclugen.training.pretrainer import Pretrainer
from conclugen.training.step_cost import MACHINES, Machine, StepCost

WIDTHS = {"video": 4096, "audio": 1024, "text": 768}
_FLOAT = 4


def parameters(model: Model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def bare_model(config: PretrainConfig, widths: Mapping[str, int]) -> Model:
    """The model without memory for its numbers."""
    with torch.device("meta"):
        return Model(config, widths)


def state_bytes(model: Model) -> int:
    """Of a checkpoint's tensors: parameters, both moments of AdamW, and buffers, the queue of clustering among them."""
    kept = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    return kept + 2 * parameters(model) * _FLOAT


def sizes_table(costs: Sequence[StepCost]) -> str:
    """What is counted, as Markdown."""
    lines = [
        "| GPUs | global batch | rows a GPU | kernels | TFLOP | GB moved in memory | GB in use | MB of the losses "
        "through a link | MB of gradients |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        losses = sum(each.moved(cost.world) for each in cost.collectives)
        gradients = step_cost.Collective("sum", cost.gradients).moved(cost.world)
        lines.append(
            f"| {cost.world} | {cost.world * cost.rows:,} | {cost.rows:,} | {cost.launches:,} | "
            f"{cost.flops / 1e12:.2f} | {cost.bytes / 1e9:.1f} | {cost.peak / 1e9:.1f} | {losses / 1e6:,.0f} | "
            f"{gradients / 1e6:,.0f} |"
        )
    return "\n".join(lines)


def times_table(costs: Sequence[StepCost], machine: Machine, networks: Sequence[float], row_bytes: int) -> str:
    """A step's milliseconds on each network (Gbit/s), and in brackets those of the losses' collectives and of gradients
    that nothing hides, as Markdown. The last columns are of the last network."""
    lines = [
        "| GPUs | global batch | rows a GPU | computation, ms | "
        + " | ".join(f"step at {each:g} Gbit/s, ms" for each in networks)
        + " | samples/s | GB/s a node reads | utilisation |",
        "|---|---|---|---|" + "---|" * (len(networks) + 3),
    ]
    for cost in costs:
        found = [step_cost.estimate(cost, on_network(machine, each)) for each in networks]
        last = found[-1]
        read = cost.rows * min(cost.world, machine.node) * row_bytes / last.step
        lines.append(
            f"| {cost.world} | {cost.world * cost.rows:,} | {cost.rows:,} | {1e3 * last.compute:.1f} | "
            + " | ".join(f"{1e3 * e.step:.1f} ({1e3 * e.blocking:.1f} + {1e3 * e.exposed:.1f})" for e in found)
            + f" | {cost.world * cost.rows / last.step:,.0f} | {read / 1e9:.1f} | "
            f"{cost.flops / last.step / machine.flops['bfloat16']:.0%} |"
        )
    return "\n".join(lines)


def on_network(machine: Machine, gbit: float) -> Machine:
    return dataclasses.replace(machine, between=gbit * 1e9 / 8)


def facts(cost: StepCost, machine: Machine, networks: Sequence[float]) -> dict[str, Any]:
    """Of one size, for the report."""
    counted = {"world": cost.world, "rows": cost.rows, "kernels": cost.launches, "flops": cost.flops}
    counted |= {"bytes": cost.bytes, "peak": cost.peak, "gradients_bytes": cost.gradients}
    found = {f"{gbit:g}": step_cost.estimate(cost, on_network(machine, gbit)) for gbit in networks}
    return counted | {"seconds": {gbit: {"step": e.step, **asdict(e)} for gbit, e in found.items()}}


def measure_checkpoint(config: PretrainConfig, widths: Mapping[str, int], folder: str | None) -> dict[str, float]:
    """Bytes of a whole checkpoint, seconds of the copy that training waits for, and of writing it to `folder`."""
    fitted = {m: (torch.zeros(w).numpy(), torch.ones(w).numpy()) for m, w in widths.items()}
    pretrainer = Pretrainer(config, widths, 100, fitted if config.model.standardize else None)
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=folder) as place:
        begin = time.perf_counter()
        state = checkpoint.snapshot(pretrainer, {"epoch": 0, "step": 0}, {})
        copied = time.perf_counter()
        checkpoint.write(Path(place) / "state", state)
        written = time.perf_counter()
        size = sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())
    return {"bytes": size, "copy_seconds": copied - begin, "write_seconds": written - copied}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="conclugen", choices=presets.PRESETS)
    parser.add_argument("--recipe", default="improved", choices=RECIPES)
    parser.add_argument("--machine", nargs="+", default=["H100"], choices=MACHINES)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 32768], help="rows of the global batch")
    parser.add_argument("--representation", type=int, default=4096, help="R")
    parser.add_argument("--projection", type=int, default=512, help="P")
    parser.add_argument("--hidden", type=int, default=1024, help="H, of the reconstruction")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--compression", default="none", choices=("none", "bfloat16"), help="of gradients between ranks"
    )
    parser.add_argument(
        "--network", type=float, nargs="+", default=[400.0], help="Gbit/s of a GPU's link to other nodes"
    )
    parser.add_argument("--node", type=int, help="GPUs of a node; as the machine usually has them")
    parser.add_argument("--feature-bytes", type=int, default=4, choices=(2, 4), help="of a number as stored")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="also write one checkpoint there, and measure it")
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")


def run(args: argparse.Namespace) -> int:
    """Estimate and print; ValueError for numbers that make no estimate."""
    for name in ("network", "node", "gpus", "batch"):
        given = getattr(args, name)
        if given is not None and min(given if isinstance(given, list) else [given]) <= 0:
            raise ValueError(f"--{name}: found {given}, expected numbers above 0")
    sizes = {
        "representation_dim": args.representation,
        "projection_dim": args.projection,
        "reconstruction_hidden_dim": args.hidden,
    }
    options = {"model": sizes, "precision": args.precision, "gradient_compression": args.compression}
    configs = [presets.build(args.preset, args.recipe, global_batch=rows, **options) for rows in args.batch]
    widths = {m: WIDTHS.get(m, WIDTHS["video"]) for m in configs[0].required_modalities}
    model = bare_model(configs[0], widths)
    report: dict[str, Any] = {
        "parameters": parameters(model),
        "state_bytes": [state_bytes(bare_model(config, widths)) for config in configs],
        "machines": [],
    }
    print(f"{report['parameters'] / 1e6:.1f} M parameters; a checkpoint's tensors, by batch: ", end="")
    print(", ".join(f"{size / 1e6:,.0f} MB" for size in report["state_bytes"]))
    row_bytes = sum(widths[m] for m in configs[0].modalities) * args.feature_bytes
    costs: list[StepCost] = []
    for name in args.machine:
        machine = dataclasses.replace(MACHINES[name], node=args.node or MACHINES[name].node)
        costs = [step_cost.count(c, widths, world, machine.holds) for c in configs for world in args.gpus]
        print(f"\n{machine.name}, {machine.holds / 1e9:.0f} GB, {machine.node} a node\n")
        print(sizes_table(costs))
        print(f"\n{times_table(costs, machine, args.network, row_bytes)}")
        report["machines"].append(
            {"machine": asdict(machine), "estimates": [facts(cost, machine, args.network) for cost in costs]}
        )
    largest = costs[-1]
    if largest.world > 1:
        print(f"\n| collective, {largest.world} ranks, {largest.rows:,} rows each | MB | MB through a link |")
        print("|---|---|---|")
        gradients = step_cost.Collective("sum", largest.gradients)
        for name, each in [*((each.kind, each) for each in largest.collectives), ("gradients", gradients)]:
            print(f"| {name} | {each.bytes / 1e6:.3f} | {each.moved(largest.world) / 1e6:.3f} |")
    if args.checkpoint:
        report["checkpoint"] = measured = measure_checkpoint(configs[0], widths, args.checkpoint)
        print(
            f"\nOne checkpoint of {measured['bytes'] / 1e6:,.0f} MB: copied in {measured['copy_seconds']:.2f} s, "
            f"written in {measured['write_seconds']:.2f} s "
            f"({measured['bytes'] / measured['write_seconds'] / 1e9:.2f} GB/s)"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("scaling", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
