"""What a step costs on many GPUs, from arithmetic: computation, bytes read, bytes of each collective, the checkpoint.

Sizes are exact: parameters are counted in the model, operations as by `bench`, and collectives as the step makes them
(a test counts those of real ranks). Times are estimates, sizes over the rates that are given; parts that can overlap
(the gradients' all-reduce with the backward pass, reading with everything) are shown, and not added up.
A ring moves (W - 1) / W of what is gathered, scattered or exchanged through each rank, twice that of what is summed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import command_line
from benchmarks.flops import similarity_flops, step_flops
from conclugen import checkpoint, presets
from conclugen.config import RECIPES, PretrainConfig
from conclugen.model import Model
from conclugen.pretrainer import Pretrainer

WIDTHS = {"video": 4096, "audio": 1024, "text": 768}
_FLOAT, _LONG = 4, 8
_LISTED = ("contrastive", "clustering", "reconstruction")  # those whose collectives are written down here
# What goes through each rank's link, as a multiple of (W - 1) / W and of the collective's size.
_PASSES = {"gather": 1, "scatter": 1, "exchange": 1, "sum": 2}


@dataclass(frozen=True)
class Collective:
    """kind: gather, scatter, exchange or sum. bytes: of the larger tensor on one rank: what was gathered, is
    scattered, or for the others what each rank has."""

    name: str
    kind: str
    bytes: int

    def moved(self, world: int) -> float:
        """Bytes through each rank's link, in one direction."""
        return _PASSES[self.kind] * self.bytes * (world - 1) / world


def collectives(config: PretrainConfig, model: Model, world: int) -> list[Collective]:
    """Those of one step with all tasks active, in its order; ValueError for a task whose collectives are not listed."""
    modalities, tasks = len(config.modalities), config.tasks
    if unlisted := sorted(set(tasks.active) - set(_LISTED)):
        raise ValueError(f"no estimate of {', '.join(unlisted)}: its collectives are not listed, expected of {_LISTED}")
    rows = world * config.local_batch(world)
    P = config.model.projection_dim
    pairs = 1 if modalities == 2 else modalities
    grouped = tasks.contrastive is not None and tasks.contrastive.negatives != "all"
    found = [Collective("presence and groups", "gather", rows * (-(-modalities // 8) + grouped * _LONG))]
    if model.projection is not None:
        channels = max(1, config.model.representation_dim // config.model.projection_shrink)
        moments = world * modalities * (2 * channels + 1) * _FLOAT
        found += [
            Collective("batch norm's moments", "gather", moments),
            Collective("gradient of the moments", "scatter", moments),
        ]
    if tasks.contrastive is not None:
        projections, sums = rows * modalities * P * _FLOAT, pairs * rows * _FLOAT
        found += [
            Collective("projections", "gather", projections),
            Collective("gradient of the projections", "scatter", projections),
            Collective("log-sums of columns", "exchange", sums),
            Collective("gradient of the log-sums", "exchange", sums),
        ]
    if tasks.clustering is not None:
        K = tasks.clustering.clusters
        found.append(Collective("cluster features", "gather", rows * K * _FLOAT))
    found.append(Collective("losses", "sum", len(tasks.active) * _FLOAT))
    return [*found, Collective("gradients of parameters", "sum", parameters(model) * _FLOAT)]


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


@dataclass(frozen=True)
class Rates:
    """What a machine does. peak, tf32: FLOP/s of a GPU in bfloat16 and in TF32, in which similarities are multiplied
    out; utilisation: share of both that matrix products reach over a step; inside, between: bytes/s of a GPU's link to
    its node's others and to other nodes, in one direction; memory: bytes/s of a GPU's own; node: GPUs of one;
    feature_bytes: of one number as stored."""

    peak: float = 989e12
    tf32: float = 494.5e12
    utilisation: float = 0.45
    inside: float = 450e9
    between: float = 50e9
    memory: float = 3.35e12
    node: int = 8
    feature_bytes: int = 4


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of one step. compute: matrix products, of which similarities: those of the contrastive losses.
    kmeans: on every rank alike. blocking: collectives that nothing overlaps. gradients: their all-reduce,
    which runs beside the backward pass of all but the similarities, after which the first gradient is there. step:
    compute + kmeans + blocking + what the backward pass does not cover of the gradients. node_read: bytes/s that a node
    reads to keep up with that. bound: what takes longest."""

    world: int
    global_batch: int
    compute: float
    similarities: float
    kmeans: float
    blocking: float
    gradients: float
    step: float
    moved: float
    node_read: float
    bound: str


def estimate(config: PretrainConfig, widths: Mapping[str, int], world: int, rates: Rates) -> Estimate:
    """One step on so many GPUs."""
    model = bare_model(config, widths)
    link = rates.inside if world <= rates.node else rates.between
    made = collectives(config, model, world) if world > 1 else []
    flops = step_flops(config, widths)
    dense = sum(flops.values()) - similarity_flops(flops) * 3 // 4
    heads = dense / world / (rates.peak * rates.utilisation)
    similarities = similarity_flops(flops) / world / (rates.tf32 * rates.utilisation)
    compute = heads + similarities
    *others, gradients = [each.moved(world) / link for each in made] or [0.0]
    kmeans = _kmeans_bytes(config) / rates.memory
    # The backward pass is two thirds of the products; what it does not cover of the gradients' sum is waited for.
    exposed = max(0.0, gradients - heads * 2 / 3)
    step = compute + kmeans + sum(others) + exposed
    parts = {"compute": compute, "k-means": kmeans, "collectives of the losses": sum(others), "gradients": exposed}
    row_bytes = sum(widths[m] for m in config.modalities) * rates.feature_bytes
    gpus = min(world, rates.node)
    return Estimate(
        world,
        config.global_batch,
        compute,
        similarities,
        kmeans,
        sum(others),
        gradients,
        step,
        sum(each.moved(world) for each in made),
        config.local_batch(world) * gpus * row_bytes / step,
        max(parts, key=lambda name: parts[name]),
    )


def _kmeans_bytes(config: PretrainConfig) -> float:
    """What all iterations read and write: pool, unit vectors, scores and membership, of K numbers a row each; a GPU
    runs every iteration."""
    clustering = config.tasks.clustering
    if clustering is None:
        return 0.0
    rows = (clustering.queue_batches + 1) * config.global_batch
    return 6.0 * rows * clustering.clusters * _FLOAT * clustering.max_iterations


def table(estimates: list[Estimate], rates: Rates) -> str:
    """For people, in Markdown."""
    lines = [
        "| GPUs | global batch | rows a GPU | compute, ms | of it similarities, ms | k-means, ms "
        "| losses' collectives, ms | gradients, ms | step, ms | samples/s | MB through a link | GB/s a node reads "
        "| longest |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for e in estimates:
        times = (e.compute, e.similarities, e.kmeans, e.blocking, e.gradients, e.step)
        lines.append(
            f"| {e.world} | {e.global_batch:,} | {-(-e.global_batch // e.world):,} | "
            + " | ".join(f"{1e3 * seconds:.2f}" for seconds in times)
            + f" | {e.global_batch / e.step:,.0f} | {e.moved / 1e6:,.0f} | {e.node_read / 1e9:.1f} | {e.bound} |"
        )
    return "\n".join(lines)


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
    rates = Rates()
    parser.add_argument("--preset", default="conclugen", choices=[name for name in presets.PRESETS if name != "simclr"])
    parser.add_argument("--recipe", default="improved", choices=RECIPES)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 32768], help="rows of the global batch")
    parser.add_argument("--representation", type=int, default=4096, help="R")
    parser.add_argument("--projection", type=int, default=512, help="P")
    parser.add_argument("--hidden", type=int, default=1024, help="H, of the reconstruction")
    parser.add_argument("--peak", type=float, default=rates.peak / 1e12, help="TFLOP/s of a GPU (H100, bfloat16)")
    parser.add_argument("--tf32", type=float, default=rates.tf32 / 1e12, help="TFLOP/s of a GPU in TF32 (similarities)")
    parser.add_argument("--utilisation", type=float, default=rates.utilisation, help="share of both, over a step")
    parser.add_argument("--inside", type=float, default=rates.inside / 1e9, help="GB/s of a GPU's link in its node")
    parser.add_argument("--between", type=float, default=rates.between / 1e9, help="GB/s of a GPU's link to others")
    parser.add_argument("--memory", type=float, default=rates.memory / 1e12, help="TB/s of a GPU's memory")
    parser.add_argument("--node", type=int, default=rates.node, help="GPUs of a node")
    parser.add_argument("--feature-bytes", type=int, default=4, choices=(2, 4), help="of a number as stored")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="also write one checkpoint there, and measure it")
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")


def run(args: argparse.Namespace) -> int:
    """Estimate and print; ValueError for numbers that make no estimate."""
    for name in ("peak", "tf32", "utilisation", "inside", "between", "memory", "node", *("gpus", "batch")):
        given = getattr(args, name)
        if min(given if isinstance(given, list) else [given]) <= 0:
            raise ValueError(f"--{name}: found {given}, expected numbers above 0")
    rates = Rates(
        args.peak * 1e12, args.tf32 * 1e12, args.utilisation, args.inside * 1e9, args.between * 1e9,
        args.memory * 1e12, args.node, args.feature_bytes,
    )  # fmt: skip
    sizes = {
        "representation_dim": args.representation,
        "projection_dim": args.projection,
        "reconstruction_hidden_dim": args.hidden,
    }
    configs = [
        presets.build(args.preset, args.recipe, global_batch=rows, model=sizes, precision="bfloat16")
        for rows in args.batch
    ]
    widths = {m: WIDTHS[m] for m in configs[0].required_modalities}
    estimates = [estimate(config, widths, world, rates) for config in configs for world in args.gpus]
    model = bare_model(configs[0], widths)
    report: dict[str, Any] = {
        "parameters": parameters(model),
        "state_bytes": [state_bytes(bare_model(config, widths)) for config in configs],
        "estimates": [asdict(e) for e in estimates],
        "rates": asdict(rates),
    }
    print(f"{report['parameters'] / 1e6:.1f} M parameters; a checkpoint's tensors, by batch: ", end="")
    print(", ".join(f"{size / 1e6:,.0f} MB" for size in report["state_bytes"]), end="\n\n")
    print(table(estimates, rates))
    world = max(args.gpus)
    if world > 1:
        print(f"\n| collective, {world} ranks, batch {configs[-1].global_batch:,} | kind | MB | MB through a link |")
        print("|---|---|---|---|")
        for each in collectives(configs[-1], model, world):
            print(f"| {each.name} | {each.kind} | {each.bytes / 1e6:.3f} | {each.moved(world) / 1e6:.3f} |")
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
