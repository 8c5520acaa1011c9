"""Turns what the workers report into journal records, on the Train controller: one place, whatever restarts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal


class ReportCallback(UserCallback):
    """Appends each report to the run's journal.

    The controller runs on the driver's node, so the journal is a local file of both: the driver tails it for the
    progress line and for MLflow. Steps that a restart repeats are dropped by the journal.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._journal: Journal | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if self._journal is None:
            self._journal = Journal(RunFolder(self._folder).journal)
        first = metrics[0]
        for record in first["steps"]:
            values = dict(record)
            self._journal.metrics(values.pop("step"), values, series="train")
        if "validation" in first:
            self._journal.metrics(first["step"], first["validation"], series="validation")
        damaged = [sample for report in metrics for sample in report["damage"]]
        if damaged:
            with RunFolder(self._folder).quarantine.open("a") as file:
                file.writelines(json.dumps(sample) + "\n" for sample in damaged)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            print(f"rank {rank} failed: {error}", flush=True)
