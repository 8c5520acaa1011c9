"""`python -m benchmarks.encoders`: the CPU seconds of a clip in each encoder, one thread, one clip at a time.

Every encoder has a process of its own, which waits while another is measured; every round measures all of them.
--beside COMMIT puts an older state of the project there, out of this repository, in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import command_line
from benchmarks.beside import HERE, ROOT, Child, older
from conclugen.encoders import registry

_WORKER = Path(__file__).with_name("worker.py")


@dataclass
class Case:
    """state: of the project; clips: CPU seconds of each, by round; facts: width, CPU seconds until it was loaded, and
    the process's largest memory with one clip."""

    encoder: str
    state: str
    child: Child
    clips: list[list[float]] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return statistics.median(statistics.median(each) for each in self.clips)


def table(cases: Sequence[Case]) -> str:
    """For people, in Markdown: each encoder, and all of them together, in each state."""
    heads = ["encoder", "state", "CPU ms a clip", "lowest", "highest", "clips/s a core", "width", "loaded in, CPU s"]
    lines = [f"| {' | '.join(heads)} | peak, MiB |", "|" + "---|" * (len(heads) + 1)]
    for case in cases:
        rounds = [1e3 * statistics.median(each) for each in case.clips]
        facts = case.facts
        lines.append(
            f"| {case.encoder} | {case.state} | {1e3 * case.seconds:,.1f} | {min(rounds):,.1f} | {max(rounds):,.1f} | "
            f"{1 / max(case.seconds, 1e-9):,.1f} | {facts['width']:,.0f} | {facts['starts']:.1f} | "
            f"{facts['peak_mib']:,.0f} |"
        )
    whole = {state: total(cases, state) for state in dict.fromkeys(case.state for case in cases)}
    lines += [
        f"| all | {state} | {1e3 * sum_s:,.1f} | | | {1 / max(sum_s, 1e-9):,.1f} | | | |"
        for state, sum_s in whole.items()
    ]
    return "\n".join(lines)


def total(cases: Sequence[Case], state: str) -> float:
    """CPU seconds of a clip in all encoders."""
    return sum(case.seconds for case in cases if case.state == state)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoders", nargs="+", default=["offline"], help="names or sets that need no weights")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a clip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=3, help="of a round")
    parser.add_argument("--beside", metavar="COMMIT", help="also measure this state of the project")
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")


def run(args: argparse.Namespace) -> int:
    for name in ("rounds", "clips"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: must be at least 1, got {getattr(args, name)}")
    if not 0 < args.seconds <= 600:
        raise ValueError(f"--seconds: must be above 0 and at most 600, got {args.seconds:g}")
    names = registry.resolve(args.encoders)
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(older(args.beside))
        states = {HERE: ROOT, **({args.beside: tree} if tree is not None else {})}
        cases: list[Case] = []
        for encoder in names:
            for state, where in states.items():
                child = Child(f"{encoder}, {state}", where, _WORKER, [encoder, args.seconds])
                stack.callback(child.close)
                cases.append(Case(encoder, state, child, facts=child.answer()))
        for _ in range(args.rounds):
            for case in cases:
                case.child.ask(args.clips)
                case.clips.append(case.child.answer())
    print(table(cases))
    report: dict[str, Any] = {
        "settings": {"seconds": args.seconds, "rounds": args.rounds, "clips": args.clips},
        "cases": [{"encoder": c.encoder, "state": c.state, "clips": c.clips, **c.facts} for c in cases],
    }
    if args.beside:
        report["ratio"] = total(cases, HERE) / total(cases, args.beside)
        print(f"\nall encoders: {report['ratio']:.2f} of the CPU time at {args.beside}")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("encoders", __doc__, add_arguments, run, arguments)
