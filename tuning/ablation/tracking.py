"""The MLflow runs of an ablation: a parent, and nested under it a run for each cell.

Everything is written to journals first (the parent's in the ablation's folder, the others in `runs/<key>` below it),
and sent in the background (`tuning.nested_runs`). Writing a cell again changes nothing, so a restart just writes every
finished one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_jobs.tracking.journal import Journal
from tuning.ledger import Record
from tuning.nested_runs import JOURNAL, NestedRunsSink

_STATUS = {"finished": "FINISHED", "failed": "FAILED"}


class CellRuns:
    """Journals of an ablation, and what sends them.

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
        self._cells = folder / "runs"
        self.parent = Journal(folder / JOURNAL, experiment=experiment, name=name)
        self.parent.params(params)
        self.parent.tags(tags)
        self._sink = NestedRunsSink(folder, self._cells, tracking_uri)

    def cell(self, record: Record, name: str) -> None:
        """Write a finished or failed cell as a run of its own, to be sent."""
        identity = self.parent.identity
        path = self._cells / record.key / JOURNAL
        with Journal(path, experiment=identity.experiment, name=name, parent=identity.run_id) as journal:
            journal.params(record.configuration)
            tags = {key: " ".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in record.tags.items()}
            journal.tags(tags | ({"reason": record.reason} if record.reason else {}))
            cost = {f"cost/{key}": value for key, value in record.cost.items()}
            if record.status == "finished":
                journal.metrics(0, {**record.metrics, **cost})
            journal.status(_STATUS[record.status])
        self._sink.ended(path)

    def close(self, timeout_s: float = 60.0) -> list[Path]:
        """Send what is left within a time; the journals that could not all be sent."""
        self.parent.close()
        return [] if self._sink.close(timeout_s) else self._sink.unsent()
