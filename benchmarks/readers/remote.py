"""Reading from a simulated remote store: range requests, each with a latency, over one link of limited bandwidth."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem

from benchmarks.readers.methods import ENDLESS, tensors_of
from shards.format.manifest import Manifest
from shards.planning.plan import Cursor, EpochPlan
from shards.reading.reader import Reader
from shards.reading.stream import stream

PROTOCOL = "simulated"


class SimulatedStore(AbstractFileSystem):
    """Local files behind a link. latency: seconds before a request's first byte; bandwidth: bytes a second that all
    requests share. Counts requests. Options travel in `storage_options`, as those of a real store."""

    protocol: ClassVar[str] = PROTOCOL
    cachable = True  # equal options are one store, and one link

    def __init__(self, latency: float = 0.05, bandwidth: float = 400e6, **options: Any) -> None:
        super().__init__(**options)
        self.latency, self.bandwidth = latency, bandwidth
        self.requests = 0
        self._lock = threading.Lock()
        self._link_free = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix(f"{PROTOCOL}://")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self._wait(0)
        return {"name": path, "size": Path(self._strip_protocol(path)).stat().st_size, "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        with Path(self._strip_protocol(path)).open("rb") as file:
            file.seek(start or 0)
            data = file.read(-1 if end is None else end - (start or 0))
        self._wait(len(data))
        return data

    def _wait(self, size: int) -> None:
        now = time.monotonic()
        with self._lock:
            self.requests += 1
            # The link sends one byte after another, whoever asked for it; latencies pass side by side.
            self._link_free = max(self._link_free, now + self.latency) + size / self.bandwidth
            until = self._link_free
        time.sleep(max(0.0, until - time.monotonic()))


@dataclass(frozen=True)
class RemoteRun:
    """One way to read. samples: a second; waited: share of the time in which the consumer waited for data."""

    name: str
    samples: float
    waited: float
    requests: float  # a batch


def measure_remote(
    folder: str, batch: int, latency: float, bandwidth: float, seconds: float, step: float | None = None
) -> dict[str, Any]:
    """Read with and without prefetch; the consumer works `step` seconds on a batch (by default 1.25 times what the
    link needs to carry one), and, once more, not at all. Returns limits (samples/s) and runs."""
    fsspec.register_implementation(PROTOCOL, SimulatedStore, clobber=True)
    options = {"latency": latency, "bandwidth": bandwidth}
    manifest = Manifest.open(f"{PROTOCOL}://{folder}", storage_options=options)
    sample_bytes = int(manifest.shards["stride"].to_numpy().max())
    step = 1.25 * batch * sample_bytes / bandwidth if step is None else step
    runs = []
    for name, connections, prefetch, work in (
        ("one connection, no prefetch", 1, 0, step),
        ("16 connections, no prefetch", 16, 0, step),
        ("64 connections, prefetch 2", 64, 2, step),
        ("64 connections, prefetch 4", 64, 4, step),
        ("64 connections, prefetch 4, no work", 64, 4, 0.0),
    ):
        plan = EpochPlan(manifest.counts, seed=0, global_batch=batch, remainder="carry")
        reader = Reader(manifest, connections=connections)
        for shard in range(len(manifest)):  # indexes are read once in a run, which is start-up
            reader.read(shard, 0, 1)
        store = manifest.filesystem
        batches = tensors_of(stream(reader, plan, 0, 1, Cursor(), ENDLESS, prefetch))
        next(batches)
        time.sleep(work)
        requests, begin, waited, samples, done = store.requests, time.perf_counter(), 0.0, 0, 0
        while time.perf_counter() - begin < seconds or done < 5:
            asked = time.perf_counter()
            samples += next(batches)
            waited += time.perf_counter() - asked
            done += 1
            time.sleep(work)
        elapsed = time.perf_counter() - begin
        per_batch = (store.requests - requests) / done
        batches.close()  # type: ignore[attr-defined]
        runs.append(RemoteRun(name, samples / elapsed, waited / elapsed, per_batch))
    return {
        "latency_seconds": latency,
        "bandwidth_bytes": bandwidth,
        "step_seconds": step,
        "limit_of_bandwidth": bandwidth / sample_bytes,
        "limit_of_work": batch / step,
        "runs": [vars(run) for run in runs],
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"Latency {result['latency_seconds'] * 1000:.0f} ms a request, "
        f"{result['bandwidth_bytes'] / 1e6:.0f} MB/s in all (limit {result['limit_of_bandwidth']:,.0f} samples/s), "
        f"{result['step_seconds'] * 1000:.0f} ms of work a batch (limit {result['limit_of_work']:,.0f} samples/s).",
        "",
        "| remote store | samples/s | consumer waits | requests a batch |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {run['name']} | {run['samples']:,.0f} | {run['waited']:.1%} | {run['requests']:.0f} |"
        for run in result["runs"]
    ]
    return "\n".join(lines)
