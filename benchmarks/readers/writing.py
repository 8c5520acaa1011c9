"""Speed around reading: packer beside `tar`, `verify` beside `sha256sum` and a bare xxh3, planner at 10^9 samples."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.readers.methods import write_shards
from shards.format.manifest import TAR_SUFFIX, Manifest
from shards.planning.plan import Cursor, EpochPlan
from shards.verification.check import verify

_READ_BYTES = 8 * 1024**2


def measure_writing(manifest: Manifest, folder: Path, rows: int, dtype: str, rounds: int) -> dict[str, float]:
    """GB/s of shard bytes, medians of interleaved rounds. Everything is in the page cache; writers end with a sync."""
    paths = [manifest.path(name + TAR_SUFFIX) for name in manifest.shards["name"].to_pylist()]
    size = sum(Path(path).stat().st_size for path in paths)
    small = max(1, min(rows, 4096))
    members = folder / "extracted"
    members.mkdir()
    _run("tar", "-xf", paths[0], "-C", str(members))
    first = Path(paths[0]).stat().st_size

    def pack() -> float:
        packed = write_shards(folder / "packed", small, dtype)
        written = sum(Path(packed.path(name + TAR_SUFFIX)).stat().st_size for name in packed.shards["name"].to_pylist())
        shutil.rmtree(folder / "packed")
        return written

    def tar() -> float:
        _run("tar", "-cf", str(folder / "again.tar"), "-C", str(members), ".")
        _run("sync", str(folder / "again.tar"))
        (folder / "again.tar").unlink()
        return first

    def check() -> float:
        assert not verify(manifest.folder)
        return size

    def sha256() -> float:
        _run("sha256sum", *paths)
        return size

    def xxh3() -> float:
        buffer = memoryview(bytearray(_READ_BYTES))
        for path in paths:
            digest = xxhash.xxh3_64()
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as `readinto` is measured
                while got := file.readinto(buffer):
                    digest.update(buffer[:got])
        return size

    ways: dict[str, Callable[[], float]] = {
        "pack": pack, "tar": tar, "verify": check, "sha256sum": sha256, "xxh3": xxh3,
    }  # fmt: skip
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            done = way()
            speeds[name].append(done / (time.perf_counter() - begin) / 1e9)
    shutil.rmtree(members)
    return {name: round(statistics.median(values), 3) for name, values in speeds.items()}


def measure_planner(rows: int = 10**9, batch: int = 4096, shard_rows: int = 10_000, world: int = 64) -> dict[str, Any]:
    """Seconds and bytes to plan an epoch, then to find one rank's part of a step anywhere in it."""
    counts = np.full(rows // shard_rows, shard_rows)

    def make() -> EpochPlan:
        plan = EpochPlan(counts, seed=0, global_batch=batch)
        plan.rows(1, 0, 0, world)
        return plan

    begin = time.perf_counter()
    make()
    build = time.perf_counter() - begin
    tracemalloc.start()  # a second time, because it slows down what it watches
    plan = make()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    steps = np.linspace(0, plan.steps_in(1) - 1, 200).astype(int).tolist()
    begin = time.perf_counter()
    for step in steps:
        plan.rows(1, step, step % world, world)
    seek = (time.perf_counter() - begin) / len(steps)
    begin = time.perf_counter()
    window = plan.window(Cursor(1, 0), 1000, 0, world)
    ahead = (time.perf_counter() - begin) / 1000
    return {
        "rows": rows,
        "chunks": rows // plan.chunk_rows,
        "epoch_seconds": round(build, 2),
        "held_mb": round(held / 1e6),
        "peak_mb": round(peak / 1e6),
        "seek_microseconds": round(seek * 1e6, 1),
        "step_in_window_microseconds": round(ahead * 1e6, 2),
        "pieces_a_step": round(len(window.shard) / 1000, 1),
    }


def table(writing: dict[str, float], planner: dict[str, Any]) -> str:
    """Both as Markdown."""
    lines = ["| writing and checking | GB/s |", "|---|---|"]
    lines += [f"| `{name}` | {value:.2f} |" for name, value in writing.items()]
    lines += [
        "",
        f"Planner, {planner['rows']:,} rows in {planner['chunks']:,} chunks: an epoch's table in "
        f"{planner['epoch_seconds']} s, {planner['held_mb']:,} MB held, {planner['peak_mb']:,} MB at the peak; "
        f"a step anywhere in it {planner['seek_microseconds']} us, in a window of 1,000 steps "
        f"{planner['step_in_window_microseconds']} us.",
    ]
    return "\n".join(lines)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - fixed commands on own files
