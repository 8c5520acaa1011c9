"""What is not there of a run and of all that is nested under it, for reports and summaries: work that was not done,
records that were not sent, files and names that the tracking server has refused."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conclugen.common.reading import inside, read_mapping
from ray_jobs.tracking.journal import JournalError, read_identity, read_records
from ray_jobs.tracking.journal_sender import refused

JOURNAL = "journal.jsonl"
_NESTED = ("runs", "trials")  # of an ablation's cells, of a sweep's trials
_LARGEST_STATE = 16 << 20
_SHOWN = 3
_UNFINISHED = {
    "RUNNING": "is being run, or was killed",
    "KILLED": "was interrupted",
    "FAILED": "ended with an error, or with parts of it that failed",
}


@dataclass(frozen=True)
class Standing:
    """status: of the run itself, None where it has none; unsent: names of runs of which a server may lack something;
    refused: `NAME: KIND: reason` of each record that a server has refused permanently."""

    status: str | None
    unsent: tuple[str, ...]
    refused: tuple[str, ...]

    def lines(self, command: str = "the same command continues with the rest") -> list[str]:
        """What is missing, in sentences; none where nothing is."""
        lines = []
        if self.status in _UNFINISHED:
            lines.append(f"It {_UNFINISHED[self.status]} ({self.status}): not all of it was run; {command}.")
        if self.unsent:
            lines.append(f"Not all has reached MLflow of {_listed(self.unsent)}; conclugen track sends it.")
        if self.refused:
            lines.append(f"MLflow has refused {len(self.refused)} record(s), which it lacks: {_listed(self.refused)}.")
        return lines


def standing(folder: Path) -> Standing:
    """Of the run in a folder, and of those nested under it, as their files say; an empty one where there is no run."""
    journals = [folder / JOURNAL, *(path for name in _NESTED for path in sorted(folder.glob(f"{name}/*/{JOURNAL}")))]
    status, unsent, declined = None, [], []
    for number, journal in enumerate(journals):
        with contextlib.suppress(OSError, JournalError, ValueError):  # not there, or nothing that can be believed
            inside(folder, journal.relative_to(folder))
            name = read_identity(journal).name
            if number == 0:
                for record, _ in read_records(journal):
                    status = record["status"] if record["kind"] == "status" else status
            if not _is_sent(journal):
                unsent.append(name)
            declined += [f"{name}: {line}" for line in refused(journal)]
    return Standing(status, tuple(unsent), tuple(declined))


def refusals(folder: Path) -> list[str]:
    """One line of what a server has refused, or none."""
    return replace(standing(folder), status=None, unsent=()).lines()


def _is_sent(journal: Path) -> bool:
    """Whether a sender has noted that a server has all of it."""
    size = journal.stat().st_size
    for state in journal.parent.glob(f"{journal.stem}.mlflow-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            said = read_mapping(state, _LARGEST_STATE)
            if int(said["offset"]) >= size and not said["deferred"]:
                return True
    return False


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(names[:_SHOWN]) + more
