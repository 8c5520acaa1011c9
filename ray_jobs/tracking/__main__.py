"""`python -m ray_jobs.tracking FOLDER`: send to MLflow what it missed of the runs below a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conclugen.common import uris
from ray_jobs.tracking.destination import uri_of_run
from ray_jobs.tracking.journal import JournalError, read_identity
from ray_jobs.tracking.journal_sender import SenderBusyError
from ray_jobs.tracking.mlflow_sink import flush_journal


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.tracking", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, or a folder of runs")
    parser.add_argument("--tracking-uri", help="MLflow tracking URI; default: where each run is tracked")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for each run (default 60)")
    arguments = parser.parse_args(argv)
    journals = sorted(arguments.folder.rglob("journal.jsonl"))
    if not journals:
        print(f"{arguments.folder}: no journal.jsonl here or below", file=sys.stderr)
        return 1
    failed = 0
    for journal in journals:
        try:
            name = read_identity(journal).name
            uri = uri_of_run(journal.parent, arguments.tracking_uri)
            print(f"{name}: run {flush_journal(journal, uri, arguments.timeout)} at {uris.public(uri)} is complete")
        except (JournalError, SenderBusyError, TimeoutError, ValueError) as error:
            print(f"error: {uris.scrub(error)}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
