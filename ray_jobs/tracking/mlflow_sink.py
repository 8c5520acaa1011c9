"""Mirrors a journal to MLflow: in the background while a run continues (`MlflowSink`), or now (`flush_journal`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conclugen.common import uris
from ray_jobs.tracking.background_sender import BackgroundSender, pause_before_retry
from ray_jobs.tracking.journal_sender import JournalSender, SenderBusyError
from ray_jobs.tracking.mlflow_environment import connect


class MlflowSink(BackgroundSender):
    """Sends a journal to MLflow in a background thread. Nothing it meets reaches the training.

    Args:
        journal: path of the journal (`Journal.path`); its first record has the run's identity and experiment.
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
        super().__init__(tracking_uri, name="mlflow-sink", interval_s=interval_s)
        self._sender = JournalSender(Path(journal), tracking_uri, connect_to)
        self._journal = Path(journal)
        self.start()

    @property
    def run_id(self) -> str | None:
        """The server's id of the run, once it is known there."""
        return self._sender.run_id

    def close(self, timeout_s: float = 30.0) -> bool:
        """Send what is left and stop, within a time. Returns whether everything arrived.

        What did not arrive is sent by the next sink on this journal, or by `python -m ray_jobs.tracking FOLDER`.
        """
        return super().close(timeout_s)

    def __enter__(self) -> MlflowSink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send_new(self) -> bool:
        while self._sender.send_some():
            self.arrived()
            if self.out_of_time:
                return False
        return not self.out_of_time

    def release(self) -> None:
        self._sender.close()

    def unsent_message(self) -> str:
        return (
            f"{self._journal}: not all of it reached MLflow at {self.public_uri}; it is sent when the run goes on, or "
            f"by: conclugen track {self._journal.parent} --tracking-uri {self.public_uri}"
        )


class IncompleteError(ValueError):
    """All was sent, and the server does not have it."""


def flush_journal(journal: str | Path, tracking_uri: str, timeout_s: float = 60.0) -> str:
    """Send what a server has missed of a journal, now, in this thread. Returns the run's id on the server, which then
    says that it has the run, under its parent, with everything but what it refused.

    Raises: TimeoutError naming the last error when the server could not take everything in time; SenderBusyError;
        IncompleteError naming what the server lacks all the same.
    """
    sender = JournalSender(Path(journal), tracking_uri)
    again = False
    deadline = time.monotonic() + timeout_s
    failures = 0
    try:
        while True:
            try:
                while sender.send_some():
                    failures = 0
                lacking = sender.missing()
                if not lacking:
                    assert sender.run_id is not None
                    return sender.run_id
                if again:
                    raise IncompleteError(
                        f"{journal}: run {sender.run_id} at {uris.public(tracking_uri)} lacks {'; '.join(lacking)}"
                    )
                again = True
                sender.begin_again()
            except (SenderBusyError, IncompleteError):
                raise
            except Exception as error:
                failures += 1
                pause = pause_before_retry(failures)
                if time.monotonic() + pause > deadline:
                    raise TimeoutError(
                        f"{journal}: {sender.unsent_bytes} bytes could not be sent to {uris.public(tracking_uri)} "
                        f"within {timeout_s:g} s; last error: {type(error).__name__}: {uris.scrub(error)}"
                    ) from error
                time.sleep(pause)
    finally:
        sender.close()
