"""`python -m shards bench`: samples per second of this package's readers beside their peers, on the same new shards.

Every round measures every method once, one after the other, so that a change of the machine's mood meets all of them.
Streams are measured in steady state: from the end of the first fifth of the batches to the last one; start-up is
reported apart. Every method ends with torch tensors of `--batch` rows, except `readinto`, which only reads the bytes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from shards.manifest import TAR_SUFFIX, Manifest
from shards.plan import Cursor, EpochPlan
from shards.reader import Reader
from shards.schema import FLOAT_DTYPES, Column, Sample, Schema, did_you_mean
from shards.stream import stream
from shards.writer import ShardWriter

WIDTHS = {"video": 4096, "audio": 1024, "text": 768}
_SHARD_BYTES = 64 * 1024**2
_READ_BYTES = 8 * 1024**2
_RATIOS = (
    ("own_process", "readinto"),
    ("own_process", "webdataset"),
    ("own_ray_object_store", "read_webdataset"),
    ("own_ray_worker_read", "read_webdataset"),
    ("own_ray_object_store", "ray_put_get"),
)


@dataclass(frozen=True)
class Measured:
    """samples: a second, in steady state.  start: seconds to the first batch."""

    samples: float
    start: float


class Bench:
    """The shards and the methods; each method reads all samples `epochs` times."""

    def __init__(self, manifest: Manifest, batch: int, epochs: int) -> None:
        self.manifest, self.batch, self.epochs = manifest, batch, epochs
        self.plan = EpochPlan(manifest.counts, seed=0, global_batch=batch, remainder="carry")
        self.steps = max(5, self.plan.start_of_epoch(epochs))
        self.paths = [manifest.path(name + TAR_SUFFIX) for name in manifest.shards["name"].to_pylist()]

    def readinto(self) -> Measured:
        """The limit: every shard's bytes into one buffer that is used again and again."""
        buffer = bytearray(_READ_BYTES)
        begin = time.perf_counter()
        for _ in range(self.epochs):
            for path in self.paths:
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the plain call is what is measured
                    while file.readinto(buffer):
                        pass
        return Measured(self.epochs * self.manifest.rows / (time.perf_counter() - begin), 0.0)

    def own_process(self) -> Measured:
        """This package's stream in one process and one thread, all checksums on."""
        reader = Reader(self.manifest)
        return _steady(self._own(lambda: stream(reader, self.plan, 0, 1, Cursor(), self.steps, prefetch=0)), self.steps)

    def own_ray_object_store(self) -> Measured:
        """The same executed by Ray Data; tasks read, rows travel through the object store."""
        return self._own_ray("object_store")

    def own_ray_worker_read(self) -> Measured:
        """The same executed by Ray Data; this process reads what the plan names."""
        return self._own_ray("worker")

    def _own_ray(self, payload: str) -> Measured:
        from shards import ray_source

        reader = Reader(self.manifest)
        steps = self.steps * (3 if payload == "worker" else 1)
        return _steady(self._own(lambda: ray_source.stream(reader, self.plan, 0, 1, Cursor(), steps, payload)), steps)

    def _own(self, batches: Callable[[], Iterable[Any]]) -> Iterator[int]:
        import torch

        for rows in batches():
            tensors = [torch.from_numpy(array) for array in rows.features.values()]
            yield len(tensors[0])

    def webdataset(self) -> Measured:
        """The `webdataset` package, decoded, batched, as tensors; no checksums, no order of an epoch. The JSON members
        are left out, which is faster than to decode them."""
        import torch
        import webdataset

        pipeline = (
            webdataset.WebDataset(
                self.paths * self.epochs,
                shardshuffle=False,
                empty_check=False,
                select_files=lambda name: name.endswith(".npy"),
            )
            .decode()
            .to_tuple(*(f"{name}.npy" for name in WIDTHS))
            .batched(self.batch, partial=False)
        )

        def batches() -> Iterator[int]:
            for columns in pipeline:
                tensors = [torch.as_tensor(array) for array in columns]
                yield len(tensors[0])

        return _steady(batches(), self.epochs * self.manifest.rows // self.batch)

    def read_webdataset(self) -> Measured:
        """`ray.data.read_webdataset` and `iter_batches`."""
        import ray
        import torch

        dataset = ray.data.read_webdataset(self.paths * self.epochs, suffixes=[f"{name}.npy" for name in WIDTHS])

        def batches() -> Iterator[int]:
            for columns in dataset.iter_batches(batch_size=self.batch, drop_last=True, batch_format="numpy"):
                tensors = [torch.as_tensor(columns[f"{name}.npy"]) for name in WIDTHS]
                yield len(tensors[0])

        return _steady(batches(), self.epochs * self.manifest.rows // self.batch)

    def ray_put_get(self) -> Measured:
        """A batch's bytes put into Ray's object store, got again and copied out: what the store itself costs."""
        import ray

        batch = np.ones((self.batch, sum(WIDTHS.values())), dtype=self.manifest.columns[0].dtype)
        out = np.empty_like(batch)

        def batches() -> Iterator[int]:
            for _ in range(self.steps):
                np.copyto(out, ray.get(ray.put(batch)))
                yield self.batch

        return _steady(batches(), self.steps)

    def forget_pages(self) -> None:
        """Drop the shards from the page cache."""
        for path in self.paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


METHODS = (
    "readinto",
    "own_process",
    "own_ray_object_store",
    "own_ray_worker_read",
    "webdataset",
    "read_webdataset",
    "ray_put_get",
)
_NEED_RAY = {"own_ray_object_store", "own_ray_worker_read", "read_webdataset", "ray_put_get"}


def _steady(batches: Iterator[int], expected: int) -> Measured:
    """Consume the batches' sizes; the rate counts from the end of the first fifth on."""
    begin = time.perf_counter()
    first = warm = begin
    samples = seen = 0
    for size in batches:
        seen += 1
        if seen == 1:
            first = time.perf_counter()
        if seen <= max(1, expected // 5):
            warm = time.perf_counter()
        else:
            samples += size
    end = time.perf_counter()
    assert samples and seen == expected, f"{seen} batches, expected {expected}"
    return Measured(samples / (end - warm), first - begin)


def write_shards(folder: str | os.PathLike[str], rows: int, dtype: str) -> Manifest:
    """Shards of random features, as wide as the published ones."""
    schema = Schema(tuple(Column(name, width, dtype) for name, width in WIDTHS.items()))
    values = np.random.default_rng(0).standard_normal((257, sum(WIDTHS.values()))).astype(dtype)
    edges = np.cumsum([0, *WIDTHS.values()])
    with ShardWriter(folder, schema, max_shard_bytes=_SHARD_BYTES) as writer:
        for i in range(rows):
            row = values[i % len(values)]
            columns = {name: row[edges[j] : edges[j + 1]] for j, name in enumerate(WIDTHS)}
            writer.append(Sample(f"clip{i:09d}", columns, text="what was said in it"))
    assert writer.manifest is not None
    return writer.manifest


def measure(bench: Bench, methods: Iterable[str], rounds: int, cold: bool) -> dict[str, list[Measured]]:
    """Every method once a round, after one round that does not count."""
    results: dict[str, list[Measured]] = {method: [] for method in methods}
    for number in range(rounds + 1):
        for method, measured in results.items():
            if cold:
                bench.forget_pages()
            gc.collect()
            one = getattr(bench, method)()
            if number:
                measured.append(one)
    return results


def summary(results: dict[str, list[Measured]]) -> dict[str, Any]:
    """Medians, spreads and start-ups by method, and the ratios of medians that have both sides."""
    medians = {name: statistics.median(one.samples for one in runs) for name, runs in results.items()}
    return {
        **{name: round(value, 1) for name, value in medians.items()},
        "spread": {
            name: [round(min(r.samples for r in runs), 1), round(max(r.samples for r in runs), 1)]
            for name, runs in results.items()
        },
        "start_seconds": {name: round(statistics.median(r.start for r in runs), 3) for name, runs in results.items()},
        "ratios": {
            f"{ours}/{peer}": round(medians[ours] / medians[peer], 3)
            for ours, peer in _RATIOS
            if ours in medians and peer in medians
        },
    }


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch", "ray", "webdataset", "pyarrow", "xxhash")},
    }


def table(report: dict[str, Any], sample_bytes: int) -> str:
    """The report for people."""
    lines = [f"{'method':<22}{'samples/s':>12}{'lowest':>12}{'highest':>12}{'GB/s':>8}{'first batch s':>15}"]
    for name in report["spread"]:
        low, high = report["spread"][name]
        rate = report[name]
        lines.append(
            f"{name:<22}{rate:>12,.0f}{low:>12,.0f}{high:>12,.0f}{rate * sample_bytes / 1e9:>8.2f}"
            f"{report['start_seconds'][name]:>15.2f}"
        )
    lines += [f"{name}: {value:.2f}" for name, value in report["ratios"].items()]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=8192, help="samples to write (8,192 are 230 MB in float32)")
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, default="float32")
    parser.add_argument("--batch", type=int, default=1024, help="rows of a batch")
    parser.add_argument("--epochs", type=int, default=4, help="times that each method reads all samples")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each method, after one to warm up")
    parser.add_argument(
        "--cold", action="store_true", help="drop the shards from the page cache before each measurement"
    )
    parser.add_argument("--skip", nargs="*", default=[], metavar="METHOD", help=f"leave out: {', '.join(METHODS)}")
    parser.add_argument("--folder", help="where to make the temporary folder (default: the system's)")
    parser.add_argument("--json", help="also write the report to this file")


def run(args: argparse.Namespace) -> int:
    """Write shards into a temporary folder, measure, print; ValueError for sizes that make no measurement."""
    for name in args.skip:
        if name not in METHODS:
            raise ValueError(f"--skip {name!r}, {did_you_mean(name, METHODS)}")
    if min(args.rows, args.batch, args.rounds, args.epochs) < 1 or args.epochs * args.rows < 10 * args.batch:
        raise ValueError(
            f"rows {args.rows} x epochs {args.epochs} make fewer than ten batches of {args.batch}; give more rows"
        )
    if args.rows < args.batch:
        raise ValueError(f"rows is {args.rows}, fewer than one batch of {args.batch}; give more rows")
    methods = [method for method in METHODS if method not in args.skip]
    os.environ["WDS_SECURE"] = "1"  # `webdataset` then unpickles nothing
    with tempfile.TemporaryDirectory(prefix="shards-bench-", dir=args.folder) as folder:
        manifest = write_shards(Path(folder) / "data", args.rows, args.dtype)
        with _ray(bool(_NEED_RAY & set(methods))):
            results = measure(Bench(manifest, args.batch, args.epochs), methods, args.rounds, args.cold)
    sample_bytes = sum(WIDTHS.values()) * np.dtype(args.dtype).itemsize
    report = {
        **summary(results),
        "settings": {
            "rows": args.rows,
            "dtype": args.dtype,
            "batch": args.batch,
            "epochs": args.epochs,
            "rounds": args.rounds,
            "cold": args.cold,
            "sample_bytes": sample_bytes,
        },
        "machine": machine(),
    }
    print(table(report, sample_bytes))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


class _ray:  # noqa: N801 - a context manager
    """Ray for the block: the running one, or one of its own that is stopped at the end."""

    def __init__(self, needed: bool) -> None:
        self.needed, self.own = needed, False

    def __enter__(self) -> None:
        if self.needed:
            import ray

            if not ray.is_initialized():
                ray.init(num_cpus=max(2, os.cpu_count() or 2), include_dashboard=False, logging_level="ERROR")
                self.own = True
            ray.data.DataContext.get_current().enable_progress_bars = False

    def __exit__(self, *_: object) -> None:
        if self.own:
            import ray

            ray.shutdown()
