"""What a rank waits for: seconds without a batch, how full the input queue was, what its reader was busy with."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TypeVar

from torch.profiler import record_function

from shards.reading.stream_counters import StreamCounters

Item = TypeVar("Item")


@dataclass(frozen=True)
class InputTimes:
    """Counters of one rank's training since its first batch; the difference of two is what a period had.

    Attributes:
        seconds: Of training, pauses left out.
        steps: Batches that the loop was handed.
        waited: Seconds in which the loop had no batch.
        starved: Those of `waited` in which no batch was read yet; the rest was the way from the queue to the device.
        asked, ready, fetching, reading, reading_cpu: See `shards.reading.stream_counters.StreamCounters`.
        capacity: Batches that the input queue holds; no counter.
    """

    seconds: float = 0.0
    steps: int = 0
    waited: float = 0.0
    starved: float = 0.0
    asked: int = 0
    ready: int = 0
    fetching: float = 0.0
    reading: float = 0.0
    reading_cpu: float = 0.0
    capacity: int = 0

    def __sub__(self, before: InputTimes) -> InputTimes:
        mine, theirs = asdict(self), asdict(before)
        return InputTimes(**{name: mine[name] - theirs[name] for name in mine} | {"capacity": self.capacity})

    @property
    def wait_share(self) -> float:
        """Share of the time in which the loop waited for data, 0 to 1."""
        return min(1.0, self.waited / self.seconds) if self.seconds > 0 else 0.0

    @property
    def queue_depth(self) -> float:
        """Batches that were ready when one was asked for, on average."""
        return self.ready / self.asked if self.asked else 0.0


class InputGauge:
    """Around a loop over batches: measures it without changing it."""

    def __init__(self) -> None:
        self._counters = StreamCounters()
        self._steps, self._waited, self._paused = 0, 0.0, 0.0
        self._since = time.perf_counter()
        self._before = InputTimes()

    def timed(self, batches: Iterable[Item], counters: StreamCounters | None = None) -> Iterator[Item]:
        """Hand the batches through, and count from the first one on: it is start-up, which says nothing of the pace.

        counters: of the stream that the batches come from, where it has one.
        """
        self._counters = counters or StreamCounters()
        iterator = iter(batches)
        started = False
        while True:
            begin = time.perf_counter()
            with record_function("wait for data"):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            if not started:
                self._since, self._paused, started = time.perf_counter(), 0.0, True
                self._before = self._counted()
            else:
                self._waited += time.perf_counter() - begin
            self._steps += 1
            yield batch
            del batch  # or its memory could not be used again while the next one is made

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The block is not training: its time counts nowhere."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def times(self) -> InputTimes:
        """All counters up to now."""
        return self._counted() - self._before

    def _counted(self) -> InputTimes:
        counters = self._counters
        return InputTimes(
            time.perf_counter() - self._since - self._paused,
            self._steps,
            self._waited,
            counters.starved,
            counters.asked,
            counters.ready,
            counters.fetching,
            counters.reading,
            counters.reading_cpu,
            counters.capacity,
        )
