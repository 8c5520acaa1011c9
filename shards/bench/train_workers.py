"""Ray for a benchmark: started and stopped, memory that its processes take, and streams in several workers."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray

from shards.bench.methods import OwnMethods
from shards.bench.report import Measured, measure
from shards.manifest import Manifest


@contextmanager
def running(num_cpus: int, store_bytes: int) -> Iterator[None]:
    """The Ray that runs already, or one of its own that is stopped at the end."""
    own = not ray.is_initialized()
    if own:
        ray.init(
            # "local": never a Ray that something else started on this machine.
            "local", num_cpus=num_cpus, include_dashboard=False, logging_level="ERROR", object_store_memory=store_bytes,
            log_to_driver=False,
        )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def measure_workers(manifest: Manifest, batch: int, payload: str, world: int, seconds: float) -> Measured:
    """The ranks' streams side by side, each in an actor of its own as a training worker is: samples/s of all."""

    @ray.remote(num_cpus=1)
    class Worker:
        def ready(self) -> bool:
            return True

        def read(self, rank: int) -> Measured:
            methods = OwnMethods(manifest, batch)
            return measure(methods._own_ray(payload, rank, world), seconds, own_cpu=False)

    workers = [Worker.remote() for _ in range(world)]  # type: ignore[attr-defined]
    ray.get([worker.ready.remote() for worker in workers])
    results = ray.get([worker.read.remote(rank) for rank, worker in enumerate(workers)])
    for worker in workers:
        ray.kill(worker)
    return Measured(sum(one.samples for one in results), max(one.start for one in results))


class PeakMemory:
    """Most memory in use while the block ran, in MB above what was in use before: this process and its children
    (private pages), and the object store (pages in /dev/shm, which other programs may change as well)."""

    def __enter__(self) -> PeakMemory:
        self._before = _in_use()
        self._most = [0.0, 0.0]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            now = _in_use()
            self._most = [max(most, a - b) for most, a, b in zip(self._most, now, self._before, strict=True)]

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def processes_mb(self) -> float:
        return self._most[0] / 1e6

    @property
    def store_mb(self) -> float:
        return self._most[1] / 1e6


def _in_use() -> tuple[float, float]:
    own = psutil.Process()
    private = 0
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):
            memory = process.memory_info()
            private += memory.rss - memory.shared
    shm = Path("/dev/shm")  # noqa: S108 - where Ray's object store lies on Linux
    return float(private), float(shutil.disk_usage(shm).used if shm.exists() else 0)


def wait_idle(seconds: float = 0.5) -> None:
    """Let executions that were stopped hand their memory back before the next method runs."""
    time.sleep(seconds)
