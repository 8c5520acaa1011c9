"""A run's journal as TensorBoard event files, written while the run continues. The journal stays the truth: every
attempt writes them again from the beginning, so that a repeated step is there once."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager
from pathlib import Path

from tensorboardX import SummaryWriter

from conclugen.common import uris
from ray_jobs.tracking.journal import read_records, tracked_name

_log = logging.getLogger(__name__)
_EVENTS = "events.out.tfevents.*"
_LOOKS_EVERY_S = 2.0


class TensorboardSink(AbstractContextManager["TensorboardSink"]):
    """Writes a journal's metrics, and its configuration as text, in a background thread. Nothing it meets reaches the
    training: after an error it says so once and stops.

    Args:
        journal: Path of the journal, which need not be there yet.
        folder: Where the event files go; those of earlier attempts are replaced.
    """

    def __init__(self, journal: Path, folder: Path) -> None:
        self._journal, self._folder = journal, folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tensorboard-sink", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30.0)

    def _run(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for old in self._folder.glob(_EVENTS):
                old.unlink()
            # A file of its own for each attempt, flushed when we say so.
            with SummaryWriter(str(self._folder), flush_secs=3600) as writer:
                offset = 0
                while True:
                    last_look = self._stop.is_set()
                    offset = self._write_from(writer, offset)
                    writer.flush()
                    if last_look:
                        return
                    self._stop.wait(_LOOKS_EVERY_S)
        except Exception as error:  # a full disk, a folder that is gone
            _log.warning("%s: TensorBoard's files are not complete (%s)", self._folder, uris.scrub(error))

    def _write_from(self, writer: SummaryWriter, offset: int) -> int:
        """Write the records from a byte offset on; where the next one begins."""
        if not self._journal.exists():
            return offset
        for record, following in read_records(self._journal, offset):
            seconds = record["time"] / 1e3
            if record["kind"] == "metrics":
                for name, value in record["values"].items():
                    writer.add_scalar(tracked_name(record["series"], name), value, record["step"], seconds)
            elif record["kind"] == "params":
                lines = [f"    {name}: {value}" for name, value in sorted(record["values"].items())]
                writer.add_text("configuration", "\n".join(lines), 0, seconds)
            offset = following
        return offset
