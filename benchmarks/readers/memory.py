"""Memory that what is measured takes at its peak."""

from __future__ import annotations

import shutil
import threading
from contextlib import suppress
from pathlib import Path

import psutil


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
