"""Job: send to MLflow what it missed. `python -m ray_jobs.tracking --help`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from conclugen.common import uris
from conclugen.common.ending import resumable
from conclugen.common.options import FAILED, GOOD, Command


@dataclass(frozen=True)
class FlushJob:
    """Send to MLflow what it missed of the runs below a folder.

    Attributes:
        output: A run's folder, or a folder of runs; given without an option.
        tracking_uri: MLflow tracking URI; none: where each run is tracked.
        timeout: Seconds for each run.
    """

    output: Path
    tracking_uri: str | None = None
    timeout: float = 60.0


def run(job: FlushJob) -> int:
    from ray_jobs.tracking.destination import uri_of_run
    from ray_jobs.tracking.journal import JournalError, read_identity
    from ray_jobs.tracking.journal_sender import SenderBusyError
    from ray_jobs.tracking.mlflow_environment import ui_command
    from ray_jobs.tracking.mlflow_sink import IncompleteError, flush_journal

    journals = sorted(job.output.rglob("journal.jsonl"))
    if not journals:
        raise ValueError(f"output: {job.output}: no journal.jsonl here or below")
    status, tried = GOOD, 0
    waiting: list[Path] = []  # runs whose parent may be sent behind them
    with resumable(lambda: f"{tried} of {len(journals)} runs were processed; the same command sends the rest"):
        for journal in chain(journals, waiting):
            try:
                name = read_identity(journal).name
                uri = uri_of_run(journal.parent, job.tracking_uri)
                print(f"{name}: run {flush_journal(journal, uri, job.timeout)} at {uris.public(uri)} is complete")
            except IncompleteError as error:
                if tried < len(journals):
                    waiting.append(journal)
                else:
                    print(f"error: {uris.scrub(error)}", file=sys.stderr)
                    status = FAILED
            except (JournalError, SenderBusyError, TimeoutError, OSError, ValueError) as error:
                print(f"error: {uris.scrub(error)}", file=sys.stderr)
                status = FAILED
            tried += 1
    if status == GOOD:
        print(f"next: {ui_command(uris.public(uri))}")
    return status


COMMAND = Command("ray_jobs.tracking", FlushJob, run, bare="output")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
