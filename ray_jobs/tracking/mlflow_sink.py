"""Mirrors a journal to MLflow: in the background while a run goes on (`MlflowSink`), or now (`flush_journal`)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_jobs.tracking.journal_sender import JournalSender, SenderBusyError
from ray_jobs.tracking.mlflow_environment import connect, public_uri

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class MlflowSink:
    """Sends a journal to MLflow in a background thread. Nothing it meets reaches the training.

    Args:
        journal: path of the journal (`Journal.path`); the run's identity and experiment stand in its first record.
        tracking_uri: see `JournalSender`.
        interval_s: pause between looks at the journal.
    """

    def __init__(
        self,
        journal: str | Path,
        tracking_uri: str,
        *,
        interval_s: float = 2.0,
        connect_to: Callable[[str], Any] = connect,
    ) -> None:
        self._sender = JournalSender(Path(journal), tracking_uri, connect_to)
        self._uri = public_uri(tracking_uri)
        self._journal = Path(journal)
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._deadline = float("inf")
        self._complete = False
        self._thread = threading.Thread(target=self._work, name="mlflow-sink", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The server's id of the run, once it is known there."""
        return self._sender.run_id

    def close(self, timeout_s: float = 30.0) -> bool:
        """Send what is left and stop, within a time. Returns whether everything arrived.

        What did not arrive is sent by the next sink on this journal, or by `python -m ray_jobs.tracking FOLDER`.
        """
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._thread.join(timeout_s)
        if not self._complete:
            _log.warning(
                "%s: not all of it reached MLflow at %s; it is sent when the run goes on, or by: "
                "python -m ray_jobs.tracking %s --tracking-uri %s",
                self._journal,
                self._uri,
                self._journal.parent,
                self._uri,
            )
        return self._complete

    def __enter__(self) -> MlflowSink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        failures = 0
        while True:
            last_look = self._stop.is_set()
            try:
                while self._sender.send_some() and time.monotonic() < self._deadline:
                    failures = self._recovered(failures)
                failures = self._recovered(failures)
                if last_look:
                    self._complete = time.monotonic() < self._deadline
                    break
                pause = self._interval_s
            except Exception as error:
                failures += 1
                if failures == 1:
                    _log.warning("MLflow at %s: %s: %s; will be tried again", self._uri, type(error).__name__, error)
                pause = pause_before_retry(failures)
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            if self._stop.is_set():
                time.sleep(min(pause, left) if failures else 0.0)
            else:
                self._stop.wait(pause)
        self._sender.close()

    def _recovered(self, failures: int) -> int:
        if failures:
            _log.warning("MLflow at %s: sending goes on after %d failed attempts", self._uri, failures)
        return 0


def flush_journal(journal: str | Path, tracking_uri: str, timeout_s: float = 60.0) -> str:
    """Send what a server has missed of a journal, now, in this thread. Returns the run's id on the server.

    Raises: TimeoutError naming the last error when the server could not take everything in time; SenderBusyError.
    """
    sender = JournalSender(Path(journal), tracking_uri)
    deadline = time.monotonic() + timeout_s
    failures = 0
    try:
        while True:
            try:
                while sender.send_some():
                    failures = 0
                assert sender.run_id is not None
                return sender.run_id
            except SenderBusyError:
                raise
            except Exception as error:
                failures += 1
                pause = pause_before_retry(failures)
                if time.monotonic() + pause > deadline:
                    raise TimeoutError(
                        f"{journal}: {sender.unsent_bytes} bytes could not be sent to {public_uri(tracking_uri)} "
                        f"within {timeout_s:g} s; last error: {type(error).__name__}: {error}"
                    ) from error
                time.sleep(pause)
    finally:
        sender.close()


def pause_before_retry(failures: int) -> float:
    """Seconds to wait after the n-th failure in a row: doubling from 0.5 to at most 30."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures - 1, 10))
