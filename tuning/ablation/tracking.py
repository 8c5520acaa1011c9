"""The MLflow runs of an ablation: a parent, and nested under it a run for each cell.

Everything is written to journals first (the parent's in the ablation's folder, the others in `runs/<key>` below it),
and sent in the background (`tuning.nested_runs`). Writing a cell again changes nothing, so a restart just writes every
finished one.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.tracking import described
from ray_jobs.tracking.journal import Journal
from tuning.ledger import WITH_RAW, Record
from tuning.nested_runs import JOURNAL, NestedRunsSink

_NUMBERS = "numbers.table.json"
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}


class CellRuns:
    """Journals of an ablation, and what sends them.

    folder: the ablation's. params, tags: of the parent run. inputs: the data sets, each cell's by its tag `dataset`.
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
        inputs: Sequence[Mapping[str, object]] = (),
    ) -> None:
        self._cells, self._inputs = folder / "runs", inputs
        self.parent = Journal(folder / JOURNAL, experiment=experiment, name=name)
        self.parent.params(params)
        self.parent.tags(tags)
        self.parent.inputs(inputs)
        self._sink = NestedRunsSink(folder, self._cells, tracking_uri)

    def cell(self, record: Record, name: str, seconds: float = 0.0) -> None:
        """Write a finished or failed cell as a run of its own, to be sent, which began and ended when the cell did.

        seconds: that a failed cell took, whose record has no costs.
        """
        identity = self.parent.identity
        path = self._cells / record.key / JOURNAL
        ended = record.time or time.time()
        began = ended - record.cost.get("seconds", seconds)
        with Journal(path, experiment=identity.experiment, name=name, parent=identity.run_id, began=began) as journal:
            tasks = record.tags.get("tasks") or []
            combination = "+".join(tasks if isinstance(tasks, list) else [str(tasks)]) or record.tags.get(
                "system", "none"
            )
            # What differs first of all, under a name that is first where runs are compared.
            journal.params({"combination": combination, **record.configuration})
            tags = {key: " ".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in record.tags.items()}
            tags["kind"] = "cell"
            journal.tags(tags | ({"reason": record.reason} if record.reason else {}))
            journal.inputs([each for each in self._inputs if each["name"] == record.tags.get("dataset")])
            if record.status == "finished":
                journal.metrics(0, compared(record))
                described.table(journal, path.with_name(_NUMBERS), "", ("measure", "value"), _numbers(record))
            journal.status(_STATUS[record.status], ended)
        self._sink.ended(path)

    def close(self, timeout_s: float = 60.0) -> list[Path]:
        """Send what is left within a time; the journals that could not all be sent."""
        self.parent.close()
        return [] if self._sink.close(timeout_s) else self._sink.unsent()


def compared(record: Record) -> dict[str, float]:
    """The dozen of numbers that cells are compared by: the score at every share of labels, alone and beside raw
    features, the others of classes with the most labels, retrieval and cost."""
    score = str(record.tags.get("score", "accuracy"))
    shares = sorted((name.partition("@")[2] for name in record.metrics if name.startswith(f"{score}@")), key=float)
    names = [f"{score}@{share}" for share in reversed(shares)]
    names += [f"{WITH_RAW}{name}" for name in names]
    if shares:
        names += [f"{other}@{shares[-1]}" for other in ("accuracy", "uar", "f1_macro") if other != score]
    names += [name for name in record.metrics if name.startswith("recall@10/")]
    found = {name: record.metrics[name] for name in names if name in record.metrics}
    cost = {f"cost/{key}": record.cost[key] for key in ("cpu_seconds", "seconds") if key in record.cost}
    return described.few({**dict(list(found.items())[: described.MOST_METRICS - len(cost)]), **cost})


def _numbers(record: Record) -> list[tuple[str, float]]:
    """All of them: classes, units, costs."""
    found = {**record.metrics, **{f"cost/{key}": value for key, value in record.cost.items()}}
    found |= {f"{metric}/{unit}": value for metric, own in record.groups.items() for unit, value in own.items()}
    return list(found.items())
