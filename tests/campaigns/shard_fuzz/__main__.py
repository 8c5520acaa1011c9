"""Many damaged data sets: `python -m tests.campaigns.shard_fuzz --cases 2000 --seed 0 --results fuzz.jsonl`.

Cases run in child processes with a limit on memory and time, so that a crash is a result too, with its case's number.
The table goes to the terminal, or into a document between `<!-- fuzz: begin -->` and `<!-- fuzz: end -->`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from tests.campaigns.shard_fuzz.campaign import run
from tests.campaigns.shard_fuzz.runner import OUTCOMES, Result

BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"


def table(results: list[Result]) -> str:
    """A row for each kind of damage, and the sum."""
    kinds = sorted({result.kind for result in results})
    heads = [
        "damage",
        "cases",
        "read exactly",
        "refused",
        "quarantined",
        "read as sealed, told by verify",
        "wrong, other",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name in [*kinds, "all"]:
        own = [result for result in results if name in (result.kind, "all")]
        counts = Counter(result.outcome for result in own)
        numbers = [len(own), *(counts[outcome] for outcome in OUTCOMES), counts["defect"]]
        lines.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


def _write_into(document: Path, text: str) -> None:
    before, rest = document.read_text().split(BEGIN)
    after = rest.split(END)[1]
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.shard_fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("fuzz.jsonl"), help="continues where it stopped")
    parser.add_argument(
        "--repair-every", type=int, default=4, metavar="N", help="repair is tried after every N-th case"
    )
    parser.add_argument("--table", type=Path, metavar="DOCUMENT", help="write the table into this document")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = run(args.seed, args.cases, args.repair_every, args.results)
    text = table(results)
    repairs = Counter(result.repaired for result in results if result.repaired is not None)
    text += f"\n\nRepaired after {sum(repairs.values())} of them: " + ", ".join(
        f"{n} {what}" for what, n in repairs.most_common()
    )
    text += "."
    print(text)
    if args.table is not None:
        _write_into(args.table, text)
    defects = [result for result in results if result.outcome == "defect"]
    for result in defects:
        print(f"seed {result.seed}, case {result.case}, {result.kind} ({result.target}; {result.note}): {result.error}")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
