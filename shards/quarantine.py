"""What a job over clips could not use: listed by name with the reason, counted, and told by the exit status."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conclugen.common.atomic import write_json, write_text

FILE_NAME, SUMMARY_NAME = "quarantine.jsonl", "summary.json"
# The exit status of a job: every clip was used; or some are in the list.
COMPLETE, QUARANTINED = 0, 3


def write_list(
    folder: Path, entries: Sequence[Mapping[str, Any]], missing: Sequence[Mapping[str, Any]] = ()
) -> dict[str, int]:
    """Write `quarantine.jsonl`, also where it is empty; reason -> number of entries. missing: what is listed behind
    them and not counted, for it may be missing."""
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in (*entries, *missing))
    write_text(folder / FILE_NAME, lines)
    return dict(Counter(str(entry["reason"]) for entry in entries))


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`: the last thing that a job does."""
    write_json(folder / SUMMARY_NAME, summary, indent=1, sort_keys=False)


def exit_status(counts: Mapping[str, int]) -> int:
    """counts: of `write_list`."""
    return QUARANTINED if counts else COMPLETE


def lines(folder: Path, counts: Mapping[str, int], reasons: Mapping[str, str]) -> Iterable[str]:
    """For people: how many for which reason, and where the names are. Nothing where nothing is listed."""
    yield from (f"  {count:>8} {reason}: {reasons[reason]}" for reason, count in sorted(counts.items()))
    if counts:
        yield f"  names and reasons: {folder / FILE_NAME}"
