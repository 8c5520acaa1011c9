"""What makes runs readable in MLflow: a description and where they come from, the data they took, and tables of detail
beside the dozen of metrics that its comparison shows.

Everything goes through the journal, like all that is tracked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conclugen.common import commands
from conclugen.common.atomic import write_json
from ray_jobs.tracking.journal import Journal

MOST_METRICS = 12
"""Of an evaluation, a cell or a trial: more than these nobody compares side by side."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TABLES = "mlflow.loggedArtifacts"


def standard_tags(kind: str, description: str, commit: str | None) -> dict[str, str]:
    """Tags that MLflow knows: what it shows as description, source and version. kind: of run, to filter by.

    commit: as `running_revision` gives it; the tag `commit` says whether the clone differed from it.
    """
    tags = {
        "kind": kind,
        "command": commands.given(),
        "mlflow.note.content": description,
        "mlflow.source.name": commands.given_name(),  # its pages show what follows the last `/`
        "mlflow.source.type": "LOCAL",
    }
    if commit is not None:
        tags["commit"] = commit
        if found := _COMMIT.match(commit):
            tags["mlflow.source.git.commit"] = found[0]
    return tags


def table(journal: Journal, path: Path, target: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table to a file of the journal's folder, in the form that MLflow shows and compares, and have it sent as
    `<target>/<name>`. Numbers that are not finite are empty."""
    write_json(path, {"columns": list(columns), "data": [[_plain(cell) for cell in row] for row in rows]}, indent=None)
    journal.artifact(path, target=target)
    note_table(journal, f"{target}/{path.name}" if target else path.name)


def note_table(journal: Journal, artifact: str) -> None:
    """Tell MLflow that an artifact is a table."""
    try:
        known = json.loads(journal.tag(_TABLES) or "[]")
    except ValueError:
        known = []
    entry = {"path": artifact, "type": "table"}
    if entry not in known:
        journal.tags({_TABLES: json.dumps([*known, entry])})


def few(values: Mapping[str, float]) -> dict[str, float]:
    """The first dozen of them: callers name the most telling first."""
    return dict(list(values.items())[:MOST_METRICS])


def _plain(cell: Any) -> Any:
    if isinstance(cell, float) and (cell != cell or cell in (float("inf"), float("-inf"))):
        return None
    return cell
