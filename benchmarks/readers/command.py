"""Samples per second of the project's readers beside their peers, on the same new shards.

Every round measures every method once, one after the other, so that a change of the machine's load meets all of them.
Streams are measured in steady state, from the first batch (warm: from a quarter of the time, through Ray from 2 s) on;
start-up is reported apart. Every method ends with torch tensors of `--batch` rows, except `readinto`, which only reads
the bytes.
What goes through Ray is consumed in Ray Train workers, `read_webdataset` and the plain put and get as well: in one, or
with `_2` in two side by side, which share a global batch twice as large. They start once, which is reported apart, and
wait while other methods are measured. On top of a CPU for each of them Ray has one for each core, for tasks that read.
Cold: files are dropped from the page cache before each measurement, which then ends after one pass over them.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import command_line
from benchmarks.readers import remote as bench_remote
from benchmarks.readers import writing as bench_writing
from benchmarks.readers.memory import PeakMemory
from benchmarks.readers.methods import WIDTHS, OwnMethods, forget_pages, write_shards
from benchmarks.readers.peers import MosaicStreaming, PeerMethods
from benchmarks.readers.report import Measured, machine, measure, plot, summary, table
from conclugen.common.names import did_you_mean
from shards.format.manifest import Manifest
from shards.format.schema import FLOAT_DTYPES

if TYPE_CHECKING:
    from benchmarks.readers.train_workers import TrainWorkers

# Consumed in so many Ray Train workers, by the method of this name.
IN_TRAIN_WORKERS = {
    "own_ray_object_store": ("own_ray_object_store", 1),
    "own_ray_worker_read": ("own_ray_worker_read", 1),
    "own_ray_object_store_2": ("own_ray_object_store", 2),
    "own_ray_worker_read_2": ("own_ray_worker_read", 2),
    "read_webdataset": ("read_webdataset", 1),
    "ray_put_get": ("ray_put_get", 1),
}
METHODS = (
    "readinto",
    "readinto_batch",
    "own_process",
    "own_process_one_thread",
    "own_process_ahead",
    "own_process_copied",
    "own_kept_host",
    "own_kept_device",
    "webdataset",
    "webdataset_loader",
    "streaming",
    "streaming_loader",
    *IN_TRAIN_WORKERS,
)
STATES = ("warm", "cold")
_NEED_PEER_PYTHON = frozenset({"streaming", "streaming_loader"})
_NOT_COLD = frozenset({"ray_put_get"})  # reads no file
_LOADER_WORKERS = 2
_RAY_SECONDS = 3.0  # factor on --seconds: executions come and go in windows, which must average out
_STORE_BYTES = 4 * 1024**3
_ENDS_WITHIN_S = 0.5  # executions that were stopped hand their memory back


class Case:
    """All methods on shards of one dtype, from pages that are cached (warm) or dropped before (cold)."""

    def __init__(
        self,
        args: argparse.Namespace,
        folder: Path,
        dtype: str,
        mosaic: MosaicStreaming | None = None,
        workers: Mapping[int, TrainWorkers] | None = None,
    ) -> None:
        self.args, self.dtype, self.mosaic, self.workers = args, dtype, mosaic, workers or {}
        self.own = OwnMethods(Manifest.open(folder), args.batch)
        self.peers = PeerMethods(self.own.paths, args.batch, _LOADER_WORKERS)

    def run(self, method: str, cold: bool) -> Measured:
        """One measurement of one method."""
        if cold:
            forget_pages([*self.own.paths, *(self.mosaic.paths if self.mosaic else [])])
        gc.collect()
        most = self.args.rows if cold else None
        seconds = self.args.seconds * (_RAY_SECONDS if method in IN_TRAIN_WORKERS else 1)
        if method in _NEED_PEER_PYTHON:
            assert self.mosaic is not None
            return self.mosaic.read(seconds, _LOADER_WORKERS if method == "streaming_loader" else 0, most)
        if method in IN_TRAIN_WORKERS:
            from benchmarks.readers.ray_methods import measure_in

            name, world = IN_TRAIN_WORKERS[method]
            return measure_in(self.workers[world], self.own.manifest, self.args.batch, name, seconds, most)
        batches = getattr(self.own if hasattr(self.own, method) else self.peers, method)()
        return measure(batches, seconds, most, own_cpu="loader" not in method)

    def peak_memory(self, methods: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
        """MB of processes and of object store that each method took, in a run that doubles as its warm-up."""
        processes: dict[str, float] = {}
        store: dict[str, float] = {}
        for method in methods:
            with PeakMemory() as peak:
                self.run(method, cold=False)
            processes[method], store[method] = round(peak.processes_mb), round(peak.store_mb)
            if method in IN_TRAIN_WORKERS:
                time.sleep(_ENDS_WITHIN_S)
        return processes, {name: value for name, value in store.items() if name in IN_TRAIN_WORKERS}

    def report(self, state: str, methods: Sequence[str]) -> dict[str, Any]:
        cold = state == "cold"
        methods = [method for method in methods if not (cold and (method in _NOT_COLD or method.endswith("_2")))]
        memory = {} if cold else dict(zip(("peak_memory_mb", "peak_store_mb"), self.peak_memory(methods), strict=True))
        runs: dict[str, list[Measured]] = {method: [] for method in methods}
        for _ in range(self.args.rounds):
            for method, measured in runs.items():
                measured.append(self.run(method, cold))
        sample_bytes = sum(WIDTHS.values()) * np.dtype(self.dtype).itemsize
        return {**summary(runs), **memory, "dtype": self.dtype, "state": state, "sample_bytes": sample_bytes}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--rows", type=int, default=16384, help="samples to write (16,384 are 450 MB in float32)")
    parser.add_argument("--dtype", nargs="+", choices=FLOAT_DTYPES, default=["float32", "float16"])
    parser.add_argument("--state", nargs="+", choices=STATES, default=list(STATES), help="of the page cache")
    parser.add_argument("--batch", type=int, default=1024, help="rows of a batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each measurement (thrice through Ray)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each method, after one to warm up")
    parser.add_argument("--skip", nargs="*", default=[], metavar="METHOD", help=f"leave out: {', '.join(METHODS)}")
    parser.add_argument("--peer-python", metavar="PYTHON", help="a Python with mosaicml-streaming, to measure it too")
    parser.add_argument("--no-remote", action="store_true", help="leave the simulated remote store out")
    parser.add_argument("--latency", type=float, default=0.05, help="of the simulated store, seconds a request")
    parser.add_argument("--bandwidth", type=float, default=400e6, help="of the simulated store, bytes/s in all")
    parser.add_argument("--no-writing", action="store_true", help="leave packer, verify and planner out")
    parser.add_argument("--plan-rows", type=int, default=10**9, help="samples that the planner is measured with")
    parser.add_argument("--folder", help="where to make the temporary folder (default: the system's)")
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")
    parser.add_argument("--plot", metavar="FILE", help="also draw it into this PNG file")


def run(args: argparse.Namespace) -> int:
    """Write shards into a temporary folder, measure, print; ValueError for sizes that make no measurement."""
    for name in args.skip:
        if name not in METHODS:
            raise ValueError(f"--skip {name!r}, {did_you_mean(name, METHODS)}")
    if min(args.rows, args.batch, args.rounds) < 1 or args.seconds <= 0:
        raise ValueError("--rows, --batch, --rounds and --seconds must be positive")
    if args.rows < 4 * args.batch:
        raise ValueError(f"{args.rows} rows are fewer than four batches of {args.batch}; give more rows")
    methods = [name for name in METHODS if name not in args.skip]
    if not args.peer_python:
        methods = [name for name in methods if name not in _NEED_PEER_PYTHON]
    report: dict[str, Any] = {"cases": [], "settings": {**vars(args)}, "machine": machine()}

    with tempfile.TemporaryDirectory(prefix="shards-bench-", dir=args.folder) as folder:
        mosaics = {dtype: _write(args, Path(folder) / dtype, dtype, methods) for dtype in args.dtype}
        worlds = sorted({IN_TRAIN_WORKERS[name][1] for name in methods if name in IN_TRAIN_WORKERS})
        with _train_workers(worlds) as workers:
            if workers:
                report["train_workers_start_seconds"] = {n: round(w.start_seconds, 1) for n, w in workers.items()}
                took = (f"{n}: {seconds} s" for n, seconds in report["train_workers_start_seconds"].items())
                _say(f"Start of Ray Train's workers, by their number: {', '.join(took)}")
            for dtype in args.dtype:
                case = Case(args, Path(folder) / dtype / "shards", dtype, mosaics[dtype], workers)
                for state in args.state:
                    report["cases"].append(one := case.report(state, methods))
                    _say(f"{dtype}, {state} page cache, {one['sample_bytes'] / 1000:.1f} kB a sample:")
                    _say(table(one, one["sample_bytes"]))
        dtype, data = args.dtype[0], Path(folder) / args.dtype[0]
        if not args.no_remote:
            report["remote"] = bench_remote.measure_remote(
                str(data / "shards"), args.batch, args.latency, args.bandwidth, 2 * args.seconds
            )
            _say(bench_remote.table(report["remote"]))
        if not args.no_writing:
            manifest = Manifest.open(data / "shards")
            report["writing"] = bench_writing.measure_writing(manifest, data, args.rows, dtype, args.rounds)
            report["planner"] = bench_writing.measure_planner(args.plan_rows)
            _say(bench_writing.table(report["writing"], report["planner"]))
    report = {**report["cases"][0], **report}  # the first case's methods are at the top
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        plot(report["cases"], args.plot)
    return 0


def _say(text: str) -> None:
    print(text, end="\n\n", flush=True)


def _write(args: argparse.Namespace, data: Path, dtype: str, methods: Sequence[str]) -> MosaicStreaming | None:
    """Shards of this dtype, and the same samples in MosaicML Streaming's format where that is measured."""
    own = OwnMethods(write_shards(data / "shards", args.rows, dtype), args.batch)
    if not _NEED_PEER_PYTHON & set(methods):
        return None
    return MosaicStreaming(args.peer_python, own.paths, data, dtype, args.batch)


def _train_workers(worlds: Sequence[int]) -> AbstractContextManager[Mapping[int, TrainWorkers]]:
    """Groups of so many workers; without any, Ray is not even imported."""
    if not worlds:
        return nullcontext({})
    from benchmarks.readers.train_workers import running

    return running(worlds, _STORE_BYTES)


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("readers", __doc__, add_arguments, run, arguments)
