"""The progress line of a job over clips: `120/15,000 clips  3.10 clips/s  left 01:19:57`."""

from __future__ import annotations

import time

from conclugen.common.durations import clock

_EVERY = 2.0  # seconds between lines


class ClipProgress:
    """Prints a line about every two seconds. total: clips of the whole job; already: done by an earlier start, which
    count as done but not for the speed; quiet: prints nothing."""

    def __init__(self, total: int, already: int = 0, quiet: bool = False) -> None:
        self._total, self._already, self._quiet = total, already, quiet
        self._began = self._shown = time.monotonic()

    def show(self, done: int, last: bool = False) -> None:
        """done: clips of this start; last: print whenever the last line was."""
        now = time.monotonic()
        if self._quiet or (now - self._shown < _EVERY and not last):
            return
        self._shown = now
        print(self.line(done, now - self._began), flush=True)

    def line(self, done: int, seconds: float) -> str:
        """The line after so many clips in so many seconds; without the time left where nothing is done yet."""
        line = f"{self._already + done:,}/{self._total:,} clips  {done / max(seconds, 1e-9):.2f} clips/s"
        if not done:
            return line
        return f"{line}  left {clock((self._total - self._already - done) * seconds / done)}"
