"""Where the time of a stream of batches goes: what its consumer met at the queue, and what its thread was busy with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StreamCounters:
    """Counters of a stream that only grow; each is written by one thread and may be read by any.

    Attributes:
        capacity: Batches that the queue holds.
        asked: Batches that the consumer asked for.
        ready: Batches that were in the queue when it asked, added up: `ready / asked` is the mean depth.
        starved: Seconds that it waited because there were none.
        fetching: Seconds that the reading thread waited for Ray Data; 0 in one process.
        reading: Seconds in which it read rows, or copied them out of the object store.
        reading_cpu: CPU seconds of those: far fewer mean that it waited for storage or for a core.
    """

    capacity: int = 0
    asked: int = 0
    ready: int = 0
    starved: float = 0.0
    fetching: float = 0.0
    reading: float = 0.0
    reading_cpu: float = 0.0

    @contextmanager
    def while_fetching(self) -> Iterator[None]:
        """The block waits for Ray Data."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.fetching += time.perf_counter() - begin

    @contextmanager
    def while_reading(self) -> Iterator[None]:
        """The block reads or copies the rows of a batch."""
        begin, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.reading_cpu += time.thread_time() - cpu
            self.reading += time.perf_counter() - begin
