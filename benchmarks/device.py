"""`python -m benchmarks.device`: everything that only a GPU can tell, in one go of at most ten minutes.

Checks that what holds on a CPU holds on the device, steps at the published sizes, eager and compiled, beside what
`conclugen.training.step_cost` predicts, the copy of a snapshot, batches on their way to the device, and encoders. Needs
`conclugen` alone: no Ray, no data. A part that fails is reported and the others continue; one that would begin after
`--seconds` is left out. The exit status is 1 where a check or a part failed.

    python -m benchmarks.device --json device.json          on a GPU
    python -m benchmarks.device --small                     the same parts on any machine, in seconds

Times are medians after a warm-up; each compiled step is reported with the seconds of its first one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import command_line, memory
from benchmarks.parts import synchronize
from conclugen import export, presets
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.encoders import registry
from conclugen.encoders.encoder import FRAMES, MEL, WAVE, EncoderInfo
from conclugen.training import checkpoint, step_cost
from conclugen.training.prefetch import prefetch
from conclugen.training.pretrainer import Pretrainer

WIDTHS = {"video": 4096, "audio": 1024, "text": 768}
_FULL = {"representation_dim": 4096, "projection_dim": 512, "reconstruction_hidden_dim": 1024}
_SMALL = {"representation_dim": 32, "projection_dim": 16, "reconstruction_hidden_dim": 16}
_SMALL_WIDTHS = {"video": 24, "audio": 16, "text": 8}
_WARM_UP = 10  # steps: they fill the queue of clustering
_CLIP_S, _CLIPS, _SMALL_CLIPS = 3.0, 32, 2


@dataclass(frozen=True)
class Sizes:
    """What is measured. batches: rows of a step; steps: of a measurement."""

    widths: Mapping[str, int]
    model: Mapping[str, int]
    batches: tuple[int, ...]
    cases: tuple[tuple[str, bool], ...]
    steps: int
    clips: int


FULL = Sizes(
    WIDTHS,
    _FULL,
    (4096, 32768),
    (("float32", False), ("bfloat16", False), ("float32", True), ("bfloat16", True)),
    20,
    _CLIPS,
)
SMALL = Sizes(_SMALL_WIDTHS, _SMALL, (64,), (("float32", False), ("bfloat16", False)), 2, _SMALL_CLIPS)


@dataclass
class Report:
    """What was found, by part, as plain data; told: lines to print; failed: parts and checks."""

    device: torch.device
    sizes: Sizes
    deadline: float
    found: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() >= self.deadline

    def tell(self, line: str = "") -> None:
        print(line, flush=True)

    def rows(self, head: str, rows: Sequence[Sequence[Any]]) -> None:
        """A table in Markdown; head: names of the columns, divided by `|`."""
        columns = head.split("|")
        for row in (columns, ["---"] * len(columns), *rows):
            self.tell("| " + " | ".join(str(cell).strip() for cell in row) + " |")


# ---------------------------------------------------------------------------------------------------------- checks


def checks(report: Report) -> None:
    """What tests prove on a CPU, on the device."""
    wanted: dict[str, Callable[[torch.device], str]] = {
        "a step gives the CPU's losses, gradients and update": _as_on_the_cpu,
        "bfloat16 gives them within its rounding": _within_bfloat16,
        "embeddings are those of the CPU": _embeds,
        "a checkpoint reads back to the bit, and continues": _reads_back,
        "a snapshot is of its moment while steps go on": _of_its_moment,
        "batches arrive unchanged and in order": _arrives,
        "a steady step does not wait for the device": _never_waits,
    }
    if report.device.type == "cuda":
        wanted["compiled steps give the eager losses"] = _compiled
        wanted["so they do with every kernel tuned"] = _autotuned
    results = []
    for name, check in wanted.items():
        if report.out_of_time:
            results.append((name, "left out: no time"))
            continue
        try:
            results.append((name, f"ok: {check(report.device)}"))
        except Exception as error:
            traceback.print_exc()
            report.failed.append(name)
            results.append((name, f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:200]}"))
    report.found["checks"] = dict(results)
    report.rows("check | result", results)


def _config(precision: str = "float32", compiled: bool = False, rows: int = 48, **more: Any) -> PretrainConfig:
    return presets.build(
        "conclugen",
        "improved",
        **{
            "global_batch": rows,
            "precision": precision,
            "compile": compiled,
            "model": {**_SMALL},
            "tasks": {"clustering": {"clusters": 4, "queue_batches": 2, "start_epoch": 0}},
            **more,
        },
    )


def _pretrainer(config: PretrainConfig, device: torch.device, widths: Mapping[str, int] = _SMALL_WIDTHS) -> Pretrainer:
    moments = {m: (np.zeros(d), np.ones(d)) for m, d in widths.items()}
    return Pretrainer(config, widths, 10**6, moments if config.model.standardize else None, device)


def _batch(rows: int, widths: Mapping[str, int], seed: int, device: torch.device | str = "cpu") -> Batch:
    """Rows with a signal that modalities share, a tenth of each modality missing."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((rows, 4))
    features, present = {}, {}
    for number, (name, width) in enumerate(widths.items()):
        mixed = shared @ np.random.default_rng(number).standard_normal((4, width)) + rng.standard_normal((rows, width))
        there = rng.random(rows) >= 0.1
        features[name] = torch.from_numpy((mixed * there[:, None]).astype(np.float32)).to(device)
        present[name] = torch.from_numpy(there).to(device)
    row = torch.arange(seed * rows, (seed + 1) * rows, device=device)
    return Batch(features, present, row, group=row // 8)


def _losses(config: PretrainConfig, device: torch.device, steps: int = 4) -> tuple[list[float], Pretrainer]:
    pretrainer = _pretrainer(config, device)
    found = []
    for step in range(steps):
        found.append(float(pretrainer.step(_batch(config.global_batch, _SMALL_WIDTHS, step, device))["loss"]))
    return found, pretrainer


def _apart(found: Any, expected: Any, most: float) -> str:
    """How far two lists of numbers are apart, of the largest; AssertionError where by more than `most`."""
    mine, theirs = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    apart = float(np.abs(mine - theirs).max() / np.abs(theirs).max())
    assert apart <= most, f"apart by {apart:.2g} of the largest, expected at most {most:.2g}"
    return f"apart by {apart:.1g}"


def _as_on_the_cpu(device: torch.device) -> str:
    with _exact_products():
        mine, on_device = _losses(_config(), device)
        theirs, on_cpu = _losses(_config(), torch.device("cpu"))
        _apart(mine, theirs, 1e-4)
        state, expected = on_device.state()[0], on_cpu.state()[0]
        heads = [name for name in expected if name.startswith("model/heads.")]
        assert heads
        # A parameter moves by the learning rate in whatever direction its gradient has: tiny ones may differ in sign.
        moved = [
            float((state[name].cpu() - expected[name]).abs().mean() / expected[name].abs().mean()) for name in heads
        ]
        assert max(moved) < 1e-3, f"parameters are apart by {max(moved):.2g}"
        return f"losses {_apart(mine, theirs, 1e-4)}, parameters by {max(moved):.1g}"


def _within_bfloat16(device: torch.device) -> str:
    mine, _ = _losses(_config("bfloat16"), device)
    theirs, _ = _losses(_config(), torch.device("cpu"))
    return _apart(mine, theirs, 0.03)


def _compiled(device: torch.device) -> str:
    mine, _ = _losses(_config("bfloat16", compiled=True), device)
    theirs, _ = _losses(_config("bfloat16"), device)
    return _apart(mine, theirs, 0.03)


def _autotuned(device: torch.device) -> str:
    """Inductor's tuning of matrix products reads torch's switches of TF32, and was refused by them once."""
    import torch._inductor.config as inductor

    with inductor.patch(max_autotune=True):
        torch._dynamo.reset()
        return _compiled(device)


def _embeds(device: torch.device) -> str:
    with tempfile.TemporaryDirectory() as folder:
        export.save(Path(folder) / "model", _pretrainer(_config(), device))
        batch = _batch(100, _SMALL_WIDTHS, 3)
        with _exact_products():
            found, expected = (
                export.load(Path(folder) / "model", where).embed(batch) for where in (str(device), "cpu")
            )
    return _apart(found, expected, 1e-5)


def _reads_back(device: torch.device) -> str:
    config = _config()
    _, before = _losses(config, device, 3)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write(Path(folder) / "state", checkpoint.snapshot(before, {}, {}, memory=checkpoint.HostMemory()))
        after = _pretrainer(config, device)
        checkpoint.load(Path(folder) / "state").restore(after)
    mine, theirs = after.state()[0], before.state()[0]
    differing = [name for name in theirs if not torch.equal(mine[name].cpu(), theirs[name].cpu())]
    assert not differing and set(mine) == set(theirs), f"differing: {differing[:3]}"
    batch = _batch(config.global_batch, _SMALL_WIDTHS, 9, device)
    return _apart([float(after.step(batch)["loss"])], [float(before.step(batch)["loss"])], 1e-6)


def _of_its_moment(device: torch.device) -> str:
    """Its copies pass beside the steps that follow."""
    config, memory = _config(), checkpoint.HostMemory()
    pretrainer = _pretrainer(config, device)
    batches = [_batch(config.global_batch, _SMALL_WIDTHS, seed, device) for seed in range(2)]
    for _ in range(5):
        pretrainer.step(batches[0])
        expected = {name: x.clone() for name, x in pretrainer.state()[0].items()}
        state = checkpoint.snapshot(pretrainer, {}, {}, memory=memory)
        for batch in batches:
            pretrainer.step(batch)
        found = state.tensors
        differing = [name for name, x in expected.items() if not torch.equal(found[name], x.cpu())]
        assert not differing and set(found) == set(expected), f"differing: {differing[:3]}"
    return "5 snapshots, 2 steps behind each"


def _arrives(device: torch.device) -> str:
    sent = [_batch(64, _SMALL_WIDTHS, seed) for seed in range(6)]
    for expected, found in zip(sent, prefetch(iter(sent), device), strict=True):
        assert torch.equal(found.row.cpu(), expected.row)
        for name, x in expected.features.items():
            assert found.features[name].device.type == device.type and torch.equal(found.features[name].cpu(), x)
    return f"{len(sent)} batches"


def _never_waits(device: torch.device) -> str:
    """torch reports whatever makes the host wait for the device."""
    pretrainer = _pretrainer(_config("bfloat16"), device)
    batch = _batch(48, _SMALL_WIDTHS, 0, device)
    for _ in range(3):
        pretrainer.step(batch)
    if device.type != "cuda":
        return "nothing to wait for here"
    torch.cuda.set_sync_debug_mode("error")
    try:
        pretrainer.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no copy, no look at a number"


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Products in float32 without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# ----------------------------------------------------------------------------------------------------------- steps


def steps(report: Report) -> None:
    """Seconds of a step at each size, eager and compiled, beside the prediction for the eager one."""
    sizes, device, rows = report.sizes, report.device, []
    machine = step_cost.known_machine(report.found["machine"]["device"])
    report.found["steps"] = []
    for batch in sizes.batches:
        data = _batch(batch, sizes.widths, 1, device)
        for precision, compiled in sizes.cases:
            if report.out_of_time:
                rows.append((batch, precision, "compiled" if compiled else "eager", *["left out: no time"], *[""] * 5))
                continue
            one = _step_case(report, batch, precision, compiled, data, machine)
            report.found["steps"].append(one)
            predicted = one["predicted_seconds"]
            rows.append(
                (
                    f"{batch:,}",
                    precision,
                    "compiled" if compiled else "eager",
                    f"{1e3 * one['seconds']:.2f}",
                    f"{one['samples_per_second']:,.0f}",
                    "" if predicted is None else f"{1e3 * predicted:.2f}",
                    "" if predicted is None else f"{one['seconds'] / predicted:.2f}",
                    "" if one["mfu"] is None else f"{one['mfu']:.1%}",
                    f"{one['first_step_seconds']:.1f}",
                )
            )
    report.rows(
        "rows | precision | mode | ms a step | samples/s | predicted eager, ms | measured / that | MFU | first step, s",
        rows,
    )


def _step_case(
    report: Report, batch: int, precision: str, compiled: bool, data: Batch, machine: step_cost.Machine | None
) -> dict[str, Any]:
    sizes, device = report.sizes, report.device
    config = _config(precision, compiled, rows=batch, model=dict(sizes.model), tasks={"clustering": {"start_epoch": 0}})
    pretrainer = _pretrainer(config, device, sizes.widths)
    begin = time.perf_counter()
    pretrainer.step(data)
    synchronize(device)
    first = time.perf_counter() - begin
    for _ in range(_WARM_UP):
        pretrainer.step(data)
    synchronize(device)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(sizes.steps):
            pretrainer.step(data)
        synchronize(device)
        seconds.append((time.perf_counter() - begin) / sizes.steps)
    median = statistics.median(seconds)
    cost = step_cost.count(config, sizes.widths)
    predicted = None if machine is None else step_cost.estimate(cost, machine).step
    del pretrainer
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {
        "rows": batch,
        "precision": precision,
        "compiled": compiled,
        "seconds": median,
        "spread": [min(seconds), max(seconds)],
        "samples_per_second": batch / median,
        "first_step_seconds": first,
        "predicted_seconds": predicted,
        "flops": cost.flops,
        "kernels": cost.launches,
        "mfu": None if machine is None else cost.flops / median / machine.flops["bfloat16"],
    }


# --------------------------------------------------------------------------------------------- snapshots and batches


def snapshots(report: Report) -> None:
    """Seconds in which training stands still for a checkpoint, into fresh memory and into what is kept, and until its
    copies are there: on a GPU they pass beside training."""
    sizes, device = report.sizes, report.device
    config = _config("bfloat16", rows=sizes.batches[0], model=dict(sizes.model))
    pretrainer = _pretrainer(config, device, sizes.widths)
    pretrainer.step(_batch(sizes.batches[0], sizes.widths, 1, device))
    kept, seconds, there, size = checkpoint.HostMemory(), [], [], 0
    for _ in range(4):
        synchronize(device)
        begin = time.perf_counter()
        state = checkpoint.snapshot(pretrainer, {}, {}, memory=kept)
        seconds.append(time.perf_counter() - begin)
        size = sum(x.nbytes for x in state.tensors.values())
        there.append(time.perf_counter() - begin)
    again, all_there = statistics.median(seconds[1:]), statistics.median(there[1:])
    report.found["snapshot"] = {
        "bytes": size,
        "first_seconds": seconds[0],
        "seconds": again,
        "there_seconds": all_there,
    }
    report.rows(
        "MB | first, s | again, s | all there after, s | GB/s",
        [
            (
                f"{size / 1e6:,.1f}",
                f"{seconds[0]:.3f}",
                f"{again:.4f}",
                f"{all_there:.4f}",
                f"{size / all_there / 1e9:.2f}",
            )
        ],
    )


def batches(report: Report) -> None:
    """GB/s of batches from pageable memory to the device, alone and beside a step."""
    sizes, device = report.sizes, report.device
    rows = sizes.batches[0]
    sent = [_batch(rows, sizes.widths, seed) for seed in range(3)]
    size = sum(x.nbytes for x in sent[0].features.values())
    count = 6 * sizes.steps

    def source() -> Iterator[Batch]:
        for number in range(count):
            yield sent[number % len(sent)]

    synchronize(device)
    begin = time.perf_counter()
    for _ in prefetch(source(), device):
        pass
    synchronize(device)
    alone = (time.perf_counter() - begin) / count
    pretrainer = _pretrainer(_config("bfloat16", rows=rows, model=dict(sizes.model)), device, sizes.widths)
    there = sent[0] if device.type == "cpu" else _batch(rows, sizes.widths, 0, device)
    rates = {}
    for name, feed in (("on the device", None), ("sent", source)):
        for _ in range(3):
            pretrainer.step(there)
        synchronize(device)
        begin = time.perf_counter()
        if feed is None:
            for _ in range(count):
                pretrainer.step(there)
        else:
            for one in prefetch(feed(), device):
                pretrainer.step(one)
        synchronize(device)
        rates[name] = (time.perf_counter() - begin) / count
    report.found["prefetch"] = {"bytes": size, "seconds": alone, "step_seconds": rates}
    report.rows(
        "MB a batch | ms, alone | GB/s | ms a step, batch on the device | ms a step, batches sent",
        [
            (
                f"{size / 1e6:,.1f}",
                f"{1e3 * alone:.2f}",
                f"{size / alone / 1e9:.2f}",
                f"{1e3 * rates['on the device']:.2f}",
                f"{1e3 * rates['sent']:.2f}",
            )
        ],
    )


# -------------------------------------------------------------------------------------------------------- encoders


def encoders(report: Report, names: Sequence[str]) -> None:
    """Clips of three seconds a second, by encoder; those whose library or weights are not here are named."""
    rows = []
    report.found["encoders"] = {}
    for name in registry.resolve(names):
        if report.out_of_time:
            rows.append((name, "left out: no time"))
            continue
        try:
            encoder = registry.create(name, device=str(report.device))
        except (ImportError, ValueError, OSError) as error:
            rows.append((name, f"not here: {str(error).splitlines()[0][:120]}"))
            continue
        clips = [_clip(encoder.info, seed) for seed in range(report.sizes.clips)]
        encoder.encode(clips[: max(1, len(clips) // 4)])
        synchronize(report.device)
        begin = time.perf_counter()
        found = encoder.encode(clips)
        seconds = time.perf_counter() - begin
        assert found.shape == (len(clips), encoder.info.width) and np.isfinite(found).all(), name
        report.found["encoders"][name] = {"clips": len(clips), "seconds": seconds}
        rows.append((name, f"{len(clips) / seconds:,.1f}"))
    report.rows("encoder | clips/s", rows)


def _clip(info: EncoderInfo, seed: int) -> Any:
    """Input of three seconds, as the encoder takes it."""
    rng, takes = np.random.default_rng(seed), info.takes
    if takes.kind == FRAMES:
        size = takes.size or (224, 224)
        return rng.integers(0, 256, (max(1, round(_CLIP_S * takes.rate)), *size, 3), dtype=np.uint8)
    if takes.kind == WAVE:
        return (0.1 * rng.standard_normal(round(_CLIP_S * takes.rate))).astype(np.float32)
    if takes.kind == MEL:
        return rng.random((128, round(_CLIP_S * 100)), dtype=np.float32)
    return "and that is what I told them when they asked me about it the other day"


# ------------------------------------------------------------------------------------------------------------- all


def machine_of(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else memory.processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--small", action="store_true", help="sizes that any machine does in seconds")
    parser.add_argument("--seconds", type=float, default=540.0, help="after which no part begins")
    parser.add_argument("--batch", type=int, nargs="+", help="rows of a step, in the place of 4096 and 32768")
    parser.add_argument("--encoders", nargs="+", help="encoders, or sets of them; with --small those of the tests")
    parser.add_argument("--json", metavar="FILE", help="also write what was found to this file")


def run(args: argparse.Namespace) -> int:
    """Measure and print; ValueError for numbers and names that make no measurement."""
    if not args.seconds > 0:
        raise ValueError(f"--seconds: found {args.seconds:g}, expected a number above 0")
    if args.batch and min(args.batch) < 16:
        raise ValueError(f"--batch: found {min(args.batch)}, expected 16 or more")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: found cuda, and torch sees no GPU here; give --device cpu --small")
    names = args.encoders or (["random"] if args.small else [*registry.SETS["offline"]])
    registry.resolve(names)
    sizes = SMALL if args.small else FULL
    if args.batch:
        sizes = dataclasses.replace(sizes, batches=tuple(args.batch))
    report = Report(device, sizes, time.monotonic() + args.seconds)
    report.found["machine"] = machine_of(device)
    report.tell(", ".join(f"{name} {value}" for name, value in report.found["machine"].items()))
    parts: dict[str, Callable[[], None]] = {
        "checks": lambda: checks(report),
        "steps": lambda: steps(report),
        "snapshots": lambda: snapshots(report),
        "batches on their way": lambda: batches(report),
        "encoders": lambda: encoders(report, names),
    }
    for name, part in parts.items():
        report.tell(f"\n## {name}\n")
        if report.out_of_time:
            report.tell("left out: no time")
            continue
        try:
            part()
        except Exception:
            report.failed.append(name)
            report.tell(traceback.format_exc())
        if args.json:  # after each part: a machine that is taken away takes nothing along
            text = json.dumps({**report.found, "failed": report.failed}, indent=2) + "\n"
            Path(args.json).write_text(text, encoding="utf-8")
    report.tell(f"\nfailed: {', '.join(report.failed)}" if report.failed else "\nnothing failed")
    return 1 if report.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("device", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
