"""The thread behind every sink: it sends, waits for a server that is away, and ends within a time when it is closed."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod

from conclugen.common import ending, uris

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class BackgroundSender(ABC):
    """Calls `send_new` every few seconds in a thread of its own until it is closed. No error leaves the thread: after
    one it waits, longer each time, and tries again.

    Args:
        tracking_uri: MLflow tracking URI, for messages.
        name: of the thread.
        interval_s: pause between looks at what is new.
    """

    def __init__(self, tracking_uri: str, *, name: str, interval_s: float) -> None:
        self.public_uri = uris.public(tracking_uri)
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._deadline = float("inf")
        self._failures = 0
        self._complete = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    @abstractmethod
    def send_new(self) -> bool:
        """Send what is new, calling `arrived` after each request; stop and return False when `out_of_time`."""

    @abstractmethod
    def release(self) -> None:
        """Let go of what the thread held, at its end."""

    @abstractmethod
    def unsent_message(self) -> str:
        """What did not arrive, and how it will."""

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Send what is left and stop, within a time (a job that was told to stop has little of it). Returns whether
        everything arrived."""
        timeout_s = ending.patience(timeout_s)
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._thread.join(timeout_s)
        if not self._complete:
            _log.warning("%s", self.unsent_message())
        return self._complete

    @property
    def complete(self) -> bool:
        """After `close`: whether everything arrived."""
        return self._complete

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() >= self._deadline

    def arrived(self) -> None:
        """A request was answered: the server is there (again)."""
        if self._failures:
            _log.warning("MLflow at %s: sending continues after %d failed attempts", self.public_uri, self._failures)
        self._failures = 0

    def _work(self) -> None:
        while True:
            last_look = self._stop.is_set()
            try:
                whole = self.send_new()
                self.arrived()
                if last_look:
                    self._complete = whole
                    break
                pause = self._interval_s
            except Exception as error:
                self._failures += 1
                if self._failures == 1:
                    reason = uris.scrub(f"{type(error).__name__}: {error}")
                    _log.warning("MLflow at %s: %s; will be tried again", self.public_uri, reason)
                pause = pause_before_retry(self._failures)
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            if self._stop.is_set():
                time.sleep(min(pause, left) if self._failures else 0.0)
            else:
                self._stop.wait(pause)
        self.release()


def pause_before_retry(failures: int) -> float:
    """Seconds to wait after the n-th failure in a row: doubling from 0.5 to at most 30."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures - 1, 10))
