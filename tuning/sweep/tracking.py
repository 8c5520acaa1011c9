"""Sends the journals of a whole sweep to MLflow: one background thread for all of them, the parent's first.

Each journal is sent exactly once, as ever (`ray_jobs.tracking.journal_sender`); an unreachable server makes this thread
wait and nothing else. What is missing at the end is sent by the next start, or by `python -m ray_jobs.tracking FOLDER`.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from pathlib import Path

from ray_jobs.tracking.journal_sender import JournalSender
from ray_jobs.tracking.mlflow_environment import connect, public_uri
from ray_jobs.tracking.mlflow_sink import pause_before_retry
from tuning.sweep.folder import SweepFolder

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 2.0


class SweepSink:
    """Mirrors the journals below a sweep's folder until it is closed.

    Args:
        folder: of the sweep; its own journal exists.
        tracking_uri: MLflow tracking URI.
    """

    def __init__(self, folder: SweepFolder, tracking_uri: str, interval_s: float = _LOOK_EVERY_S) -> None:
        self._folder, self._uri, self._interval_s = folder, tracking_uri, interval_s
        # One client serves all journals: making one opens the store again.
        self._connect = functools.cache(connect)
        self._senders: dict[Path, JournalSender] = {}
        self._sent: dict[Path, int] = {}
        self._ended: set[Path] = set()
        self._stop = threading.Event()
        self._deadline = float("inf")
        self._complete = False
        self._thread = threading.Thread(target=self._work, name="sweep-sink", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The server's id of the sweep's own run, once it is known there."""
        sender = self._senders.get(self._folder.journal)
        return None if sender is None else sender.run_id

    def ended(self, journal: Path) -> None:
        """Nothing more is written to a trial's journal: it can be let go once it is sent."""
        self._ended.add(journal)

    def close(self, timeout_s: float = 120.0) -> bool:
        """Send what is left and stop, within a time. Returns whether everything arrived."""
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._thread.join(timeout_s)
        if not self._complete:
            _log.warning(
                "not all of the sweep reached MLflow at %s; it is sent when the sweep is started again, or by: "
                "python -m ray_jobs.tracking %s --tracking-uri %s",
                public_uri(self._uri),
                self._folder.path,
                public_uri(self._uri),
            )
        return self._complete

    def _work(self) -> None:
        failures = 0
        while True:
            last_look = self._stop.is_set()
            try:
                whole = self._send_all()
                if failures:
                    _log.warning("MLflow at %s: sending goes on", public_uri(self._uri))
                failures, pause = 0, self._interval_s
                if last_look and whole:
                    self._complete = True
                    break
            except Exception as error:
                failures += 1
                if failures == 1:
                    _log.warning(
                        "MLflow at %s: %s: %s; tried again", public_uri(self._uri), type(error).__name__, error
                    )
                pause = pause_before_retry(failures)
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            if self._stop.is_set():
                time.sleep(min(pause, left) if failures else 0.0)
            else:
                self._stop.wait(pause)
        for sender in self._senders.values():
            sender.close()

    def _send_all(self) -> bool:
        """Send what is new in every journal. Returns False where time ran out."""
        for journal in (self._folder.journal, *sorted(self._folder.trials.glob("*/journal.jsonl"))):
            ended = journal in self._ended
            size = journal.stat().st_size
            if self._sent.get(journal) == size:
                continue
            sender = self._senders.get(journal)
            if sender is None:
                sender = self._senders[journal] = JournalSender(journal, self._uri, self._connect)
            while sender.send_some():
                if time.monotonic() > self._deadline:
                    return False
            self._sent[journal] = size
            if ended:
                sender.close()
                del self._senders[journal]
        return True
