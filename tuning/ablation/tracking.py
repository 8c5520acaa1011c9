"""The MLflow runs of an ablation: a parent, and nested under it a run for each cell.

Everything is written to journals first (the parent's in the ablation's folder, the others in `runs/<key>` below it),
and one thread of the background sends them; a server that cannot be reached delays nothing and is told of it all later.
Writing a cell again changes nothing, so a restart just writes every finished one.
"""

import logging
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.mlflow_environment import public_uri
from ray_jobs.tracking.mlflow_sink import flush_journal
from tuning.ledger import Record

_log = logging.getLogger(__name__)
_FLUSH_S = 15.0  # for one journal, as long as work goes on; what fails is tried again at the end
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}


class CellRuns:
    """Journals of an ablation and the thread that sends them.

    folder: the ablation's. params, tags: of the parent run.
    """

    def __init__(
        self,
        folder: Path,
        tracking_uri: str,
        *,
        experiment: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        self.folder, self._uri = folder, tracking_uri
        self.parent = Journal(folder / "journal.jsonl", experiment=experiment, name=name)
        self.parent.status("RUNNING")
        self.parent.params(params)
        self.parent.tags(tags)
        self._waiting: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._deadline = float("inf")
        self._unsent: list[Path] = []
        self._waiting.put(self.parent.path)
        self._thread = threading.Thread(target=self._send, name="cell-runs", daemon=True)
        self._thread.start()

    def cell(self, record: Record, name: str) -> None:
        """Write a finished or failed cell as a run of its own and hand it to the sender."""
        identity = self.parent.identity
        path = self.folder / "runs" / record.key / "journal.jsonl"
        with Journal(path, experiment=identity.experiment, name=name, parent=identity.run_id) as journal:
            journal.params(record.configuration)
            tags = {key: " ".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in record.tags.items()}
            journal.tags(tags | ({"reason": record.reason} if record.reason else {}))
            cost = {f"cost/{key}": value for key, value in record.cost.items()}
            if record.status == "finished":
                journal.metrics(0, {**record.metrics, **cost})
            journal.status(_STATUS[record.status])
        self._waiting.put(path)

    def close(self, status: str, timeout_s: float = 60.0) -> list[Path]:
        """Write the parent's status, send what is left within a time; the journals that could not all be sent."""
        self.parent.status(status)
        self.parent.close()
        self._waiting.put(self.parent.path)
        self._deadline = time.monotonic() + timeout_s
        self._waiting.put(None)
        self._thread.join(timeout_s + 2 * _FLUSH_S)
        if self._unsent:
            _log.warning(
                "%d run(s) did not reach MLflow at %s; they are sent at the next start, or by: "
                "python -m ray_jobs.tracking %s --tracking-uri %s",
                len(self._unsent),
                public_uri(self._uri),
                self.folder,
                public_uri(self._uri),
            )
        return list(self._unsent)

    def _send(self) -> None:
        again: list[Path] = []
        while (path := self._waiting.get()) is not None:
            if not self._flushed(path):
                again.append(path)
        self._unsent = [path for path in dict.fromkeys(again) if not self._flushed(path)]

    def _flushed(self, path: Path) -> bool:
        left = self._deadline - time.monotonic()
        if left <= 0:
            return False
        try:
            flush_journal(path, self._uri, min(_FLUSH_S, left))
        except Exception as error:
            _log.warning("%s: %s: %s", path, type(error).__name__, error)
            return False
        return True
