"""Sends the journals of a run and of all that is nested under it to MLflow: a sweep and its trials, an ablation and its
cells.

One background thread serves them all, the parent first. Each journal is sent exactly once, as ever
(`ray_jobs.tracking.journal_sender`); an unreachable server makes this thread wait and nothing else. What is missing at
the end is sent by the next start, or by `python -m ray_jobs.tracking FOLDER`.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ray_jobs.tracking.background_sender import BackgroundSender
from ray_jobs.tracking.journal import JournalError
from ray_jobs.tracking.journal_sender import JournalSender, SenderBusyError
from ray_jobs.tracking.mlflow_environment import connect

JOURNAL = "journal.jsonl"
_LOOK_EVERY_S = 2.0


class NestedRunsSink(BackgroundSender):
    """Mirrors the journals of a folder until it is closed: its own, and those of the folders below `children`.

    Args:
        folder: of the parent run; its journal exists.
        children: folder of the children's folders, which may come later.
        tracking_uri: MLflow tracking URI.
        interval_s: pause between looks at the journals.
    """

    def __init__(self, folder: Path, children: Path, tracking_uri: str, interval_s: float = _LOOK_EVERY_S) -> None:
        super().__init__(tracking_uri, name="nested-runs-sink", interval_s=interval_s)
        self._folder, self._children, self._uri = folder, children, tracking_uri
        # One client serves all journals: making one opens the store again.
        self._connect = functools.cache(connect)
        self._senders: dict[Path, JournalSender] = {}
        self._sent: dict[Path, int] = {}
        self._ended: set[Path] = set()
        self.start()

    @property
    def run_id(self) -> str | None:
        """The server's id of the parent run, once it is known there."""
        sender = self._senders.get(self._folder / JOURNAL)
        return None if sender is None else sender.run_id

    def ended(self, journal: Path) -> None:
        """Nothing more is written to a child's journal: it can be let go once it is sent."""
        self._ended.add(journal)

    def close(self, timeout_s: float = 120.0) -> bool:
        """Send what is left and stop, within a time. Returns whether everything arrived."""
        return super().close(timeout_s)

    def unsent(self) -> list[Path]:
        """Journals of which something has not arrived for certain."""
        return [journal for journal in self._journals() if self._sent.get(journal) != journal.stat().st_size]

    def send_new(self) -> bool:
        """A child's journal that can't be read, or that another process sends, holds up no other; it is reported at the
        end, and tried again. Raises JournalError, SenderBusyError for it, and whatever the server's absence raises."""
        error: JournalError | SenderBusyError | None = None
        for journal in self._journals():
            try:
                if not self._send(journal):
                    return False
            except (JournalError, SenderBusyError) as raised:
                if journal.parent == self._folder:
                    raise  # children name their parent's run
                error = error or raised
        if error is not None:
            raise error
        return True

    def _send(self, journal: Path) -> bool:
        """Whether all that the journal has by now was sent; False where time ran out."""
        ended = journal in self._ended
        size = journal.stat().st_size
        if self._sent.get(journal) != size:
            sender = self._senders.get(journal)
            if sender is None:
                sender = self._senders[journal] = JournalSender(journal, self._uri, self._connect)
            while sender.send_some():
                self.arrived()
                if self.out_of_time:
                    return False
            self._sent[journal] = size
        if ended and journal in self._senders:  # each sender holds a file open
            self._senders.pop(journal).close()
        return True

    def release(self) -> None:
        for sender in self._senders.values():
            sender.close()

    def unsent_message(self) -> str:
        return (
            f"{len(self.unsent())} run(s) of {self._folder} did not reach MLflow at {self.public_uri} in full; what is "
            "missing is sent at the next start, or by: "
            f"conclugen track {self._folder} --tracking-uri {self.public_uri}"
        )

    def _journals(self) -> list[Path]:
        return [self._folder / JOURNAL, *sorted(self._children.glob(f"*/{JOURNAL}"))]
