"""What a benchmark measured: medians with their spread, a table, a JSON report, a plot."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RATIOS = (
    ("own_process", "readinto", 0.5),
    ("own_process_one_thread", "readinto", None),
    ("readinto_batch", "readinto", None),
    ("own_process", "webdataset", 40),
    ("own_process", "streaming", None),
    ("own_ray_object_store", "read_webdataset", 5),
    ("own_ray_worker_read", "read_webdataset", 20),
    ("own_ray_object_store", "ray_put_get", None),
    ("own_ray_object_store_2", "own_ray_object_store", None),
    ("own_ray_worker_read_2", "own_ray_worker_read", None),
)


@dataclass(frozen=True)
class Measured:
    """samples: a second, in steady state. start: seconds to the first batch. cpu_samples: samples a second of this
    process's CPU time, which says more than samples on a machine that others use; None where other processes work."""

    samples: float
    start: float
    cpu_samples: float | None = None


def measure(
    batches: Iterator[int],
    seconds: float,
    most: int | None = None,
    own_cpu: bool = True,
    settling: float | None = None,
) -> Measured:
    """Consume the batches' sizes for so long, or until `most` samples; the rate counts from the first batch on.

    Before counting starts, `settling` seconds pass (by default a quarter of the time) where the samples aren't limited.
    Closes the iterator.
    """
    begin = time.perf_counter()
    try:
        total = next(batches)
        start = time.perf_counter() - begin
        settle = 0.0 if most else seconds / 4 if settling is None else settling
        counted, since, cpu = 0, time.perf_counter(), time.process_time()
        for size in batches:
            total += size
            counted += size
            now = time.perf_counter()
            if settle and now - begin - start > settle:
                settle, counted, since, cpu = 0.0, 0, now, time.process_time()
            elif not settle and (now - since > seconds or (most and total >= most)):
                break
        elapsed, used = time.perf_counter() - since, time.process_time() - cpu
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    if not counted:
        raise ValueError("fewer than two batches were measured; give more rows, more seconds or smaller batches")
    return Measured(counted / elapsed, start, counted / used if own_cpu and used else None)


def summary(runs: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Medians by method at the top; beside them spreads, start-ups, samples by CPU time, and ratios of medians.

    A ratio is the median of the rounds' own ratios, for what disturbs a round disturbs both of its sides.
    """
    medians = {name: statistics.median(one.samples for one in each) for name, each in runs.items()}
    return {
        **{name: round(value, 1) for name, value in medians.items()},
        "spread": {
            name: [round(min(r.samples for r in each), 1), round(max(r.samples for r in each), 1)]
            for name, each in runs.items()
        },
        "start_seconds": {name: round(statistics.median(r.start for r in each), 3) for name, each in runs.items()},
        "samples_per_cpu_second": {
            name: round(statistics.median(r.cpu_samples for r in each if r.cpu_samples), 1)
            for name, each in runs.items()
            if all(r.cpu_samples for r in each)
        },
        "ratios": {
            f"{ours}/{peer}": round(
                statistics.median(a.samples / b.samples for a, b in zip(runs[ours], runs[peer], strict=True)), 3
            )
            for ours, peer, _ in RATIOS
            if ours in runs and peer in runs
        },
    }


def table(report: Mapping[str, Any], sample_bytes: int) -> str:
    """The report as Markdown."""
    lines = [
        "| method | samples/s | lowest | highest | GB/s | samples a CPU second | first batch, s | peak memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (low, high) in report["spread"].items():
        rate, by_cpu = report[name], report["samples_per_cpu_second"].get(name)
        memory = report.get("peak_memory_mb", {}).get(name)
        lines.append(
            f"| `{name}` | {rate:,.0f} | {low:,.0f} | {high:,.0f} | {rate * sample_bytes / 1e9:.2f} "
            f"| {'' if by_cpu is None else f'{by_cpu:,.0f}'} | {report['start_seconds'][name]:.2f} "
            f"| {'' if memory is None else f'{memory:,.0f}'} |"
        )
    aims = {f"{ours}/{peer}": aim for ours, peer, aim in RATIOS}
    lines += ["", "| ratio | measured | aim |", "|---|---|---|"]
    lines += [
        f"| {name} | {value:.3g} | {'' if aims[name] is None else aims[name]} |"
        for name, value in report["ratios"].items()
    ]
    return "\n".join(lines)


def plot(cases: Sequence[Mapping[str, Any]], path: str) -> None:
    """Bars of samples/s, lowest to highest as a line on each, one panel a case (dtype, warm or cold), as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(cases), figsize=(5.5 * len(cases), 4.5), squeeze=False, sharey=True)
    for axis, case in zip(axes[0], cases, strict=True):
        names = list(case["spread"])[::-1]
        values = [case[name] for name in names]
        colours = ["#3465a4" if name.startswith("own") else "#999999" for name in names]
        axis.barh(names, values, color=colours)
        for place, name in enumerate(names):
            axis.plot(case["spread"][name], [place, place], color="black", linewidth=1)
            axis.annotate(f" {case[name]:,.0f}", (case["spread"][name][1], place), va="center", fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 2, max(values) * 8)
        axis.set_xlabel("samples/s, median of the rounds")
        axis.set_title(f"{case['dtype']}, {case['state']}, {case['sample_bytes'] / 1000:.1f} kB a sample", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch", "ray", "webdataset", "pyarrow", "xxhash")},
    }
