"""The progress line of a job over clips: `120/15,000 clips  3.10 clips/s  left 01:19:57`."""

from __future__ import annotations

import time

from conclugen.common.durations import clock
from conclugen.common.screen import Progress


class ClipProgress:
    """Shows how far a job is, as `conclugen.common.screen` does. total: clips of the whole job; already: done by an
    earlier start, which count as done but not for the speed; quiet: shows nothing."""

    def __init__(self, total: int, already: int = 0, quiet: bool = False) -> None:
        self._total, self._already = total, already
        self._began, self._progress = time.monotonic(), Progress(quiet)

    def show(self, done: int, last: bool = False) -> None:
        """done: clips of this start; last: show it whenever the last line was."""
        share = (self._already + done) / self._total if self._total else 1.0
        self._progress.show(self.line(done, time.monotonic() - self._began), share, last)

    def line(self, done: int, seconds: float) -> str:
        """The line after so many clips in so many seconds; without the time left where nothing is done yet."""
        line = f"{self._already + done:,}/{self._total:,} clips  {done / max(seconds, 1e-9):.2f} clips/s"
        if not done:
            return line
        return f"{line}  left {clock((self._total - self._already - done) * seconds / done)}"
