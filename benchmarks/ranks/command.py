"""`python -m benchmarks.ranks`: a step on several ranks beside a plain DistributedDataParallel loop of the same model.

Every case has processes of its own, which wait while another is measured; every round measures every case once. On one
machine the processor's time is compared (user and system, of all ranks): other programs change it little. With --rate
each rank has a network namespace, whose interface is held to that rate, and the clock is compared.

--beside COMMIT puts an older state of the project there, out of this repository.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command_line
from benchmarks.beside import ROOT, Child, older
from benchmarks.namespaces import INTERFACE, Namespaces

_WORKER = Path(__file__).with_name("worker.py")
PLAIN = "plain DDP"
CASES: dict[str, dict[str, Any]] = {
    PLAIN: {"peer": True},
    "this code": {},
    "bf16 gradients": {"options": {"gradient_compression": "bfloat16"}},
    "PCGrad": {"tasks": {"gradients": "pcgrad"}},
    "PCGrad, bf16 gradients": {
        "tasks": {"gradients": "pcgrad"},
        "options": {"gradient_compression": "bfloat16"},
    },
}


@dataclass
class Case:
    """tree: the code that runs. What the processes get: peer, options and tasks of the configuration."""

    name: str
    tree: Path = ROOT
    peer: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)

    def start(self, args: argparse.Namespace, machines: Namespaces | None) -> None:
        """Start a process for each rank, and wait until all are warm."""
        address = "127.0.0.1" if machines is None else machines.address(0)
        told: dict[str, Any] = {"peer": self.peer, "options": self.options, "tasks": self.tasks}
        told |= {"rows": args.rows, "world": args.ranks, "sizes": args.sizes, "meet": f"tcp://{address}:{_port()}"}
        told |= {"widths": dict(args.widths)}
        told["interface"] = "" if machines is None else INTERFACE
        environment = {"GLOO_SOCKET_IFNAME": "lo" if machines is None else INTERFACE}
        for rank in range(args.ranks):
            before = list if machines is None else partial(machines.command, rank)
            about = f"{self.name}: rank {rank}"
            self.children.append(Child(about, self.tree, _WORKER, told | {"rank": rank}, environment, before))
        for child in self.children:
            child.answer()

    def measure(self, steps: int) -> None:
        """One round: a step's CPU seconds and bytes of all ranks, and the seconds of the slowest."""
        for child in self.children:
            child.ask(steps)
        found = [child.answer() for child in self.children]
        sums = {name: sum(each[name] for each in found) / steps for name in ("cpu", "bytes")}
        self.rounds.append(sums | {"wall": max(each["wall"] for each in found) / steps})

    def end(self) -> None:
        for child in self.children:
            child.close()


def _port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ratios(case: Case, base: Case, what: str) -> list[float]:
    """Beside `base`, round by round."""
    return [own[what] / other[what] for own, other in zip(case.rounds, base.rounds, strict=True)]


def table(cases: Sequence[Case], what: str) -> str:
    """Each case beside the first, as Markdown. what: cpu or wall."""
    title = {"cpu": "CPU ms a step, all ranks", "wall": "ms a step"}[what]
    lines = [
        f"| case | {title} | lowest | highest | beside {cases[0].name} | MB sent a step |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        values = [1e3 * each[what] for each in case.rounds]
        beside = ratios(case, cases[0], what)
        sent = statistics.median(each["bytes"] for each in case.rounds) / 1e6
        lines.append(
            f"| {case.name} | {statistics.median(values):,.1f} | {min(values):,.1f} | {max(values):,.1f} | "
            f"{statistics.median(beside):.2f} ({min(beside):.2f} to {max(beside):.2f}) | {sent:,.1f} |"
        )
    return "\n".join(lines)


def width(text: str) -> tuple[str, int]:
    """NAME=WIDTH of a modality."""
    name, _, number = text.partition("=")
    if not name or not number.isdigit() or not int(number):
        raise argparse.ArgumentTypeError(f"must be NAME=WIDTH, got {text!r}")
    return name, int(number)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", default=[PLAIN, "this code"], choices=CASES)
    parser.add_argument("--beside", metavar="COMMIT", help="also measure this state of the project")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=256, help="of a rank")
    parser.add_argument("--sizes", type=int, nargs=3, default=[512, 256, 512], metavar=("R", "P", "H"))
    parser.add_argument(
        "--widths", type=width, nargs="+", metavar="NAME=WIDTH", help="of the features",
        default=[("video", 4096), ("audio", 1024), ("text", 768)],
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of a round; 50 hold one that measures tasks' shares")
    parser.add_argument("--rate", help="of each rank's network, as tc takes it: 60mbit")
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")


def run(args: argparse.Namespace) -> int:
    for name in ("ranks", "rows", "rounds", "steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: must be at least 1, got {getattr(args, name)}")
    what = "cpu" if args.rate is None else "wall"
    with contextlib.ExitStack() as stack:
        machines = None if args.rate is None else stack.enter_context(Namespaces(args.ranks, args.rate))
        cases = [Case(name, **CASES[name]) for name in dict.fromkeys(args.cases)]
        tree = stack.enter_context(older(args.beside))
        if tree is not None:
            cases.append(Case(str(args.beside), tree))
        for case in cases:
            stack.callback(case.end)
            case.start(args, machines)  # one after the other: a warm-up is work too
        for _ in range(args.rounds):
            for case in cases:
                case.measure(args.steps)
    print(table(cases, what))
    if args.json:
        report = {"settings": vars(args), "cases": {case.name: case.rounds for case in cases}}
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("ranks", __doc__, add_arguments, run, arguments)
