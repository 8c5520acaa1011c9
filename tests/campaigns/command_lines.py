"""How long `--help` and a misspelt option take for every command, beside the import of a configuration library.

    python -m tests.campaigns.command_lines     # --limit: status 1 where one is beyond 1.5 x that import + 0.5 s

The fastest of three processes counts: what else the machine does only makes one slower.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

from conclugen.common.options import FAILED, GOOD, Command
from tests import jobs


@dataclass(frozen=True)
class TimesJob:
    """Seconds of `--help` and of a misspelt option for every command, as a table.

    Attributes:
        repeat: Processes of which the fastest counts.
        limit: End with status 1 where a command takes longer than 1.5 x the import of jsonargparse, and 0.5 s.
    """

    repeat: int = 3
    limit: bool = False


def seconds(arguments: list[str], repeat: int) -> float:
    """Of the fastest of some processes of this interpreter."""
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        taken.append(time.perf_counter() - began)
    return min(taken)


def run(job: TimesJob) -> int:
    allowed = 1.5 * seconds(["-c", "import jsonargparse"], job.repeat) + 0.5
    print(f"allowed: {allowed:.2f} s\n\n| command | --help | a misspelt option |\n|---|---|---|")
    slow = 0
    for command in jobs.commands():
        module = ["-m", *command.name.split()]
        times = [seconds([*module, *arguments], job.repeat) for arguments in (["--help"], ["--no-such-option", "1"])]
        slow += max(times) > allowed
        print(f"| {command.name} | {times[0]:.2f} | {times[1]:.2f} |", flush=True)
    return FAILED if job.limit and slow else GOOD


COMMAND = Command("tests.campaigns.command_lines", TimesJob, run)


if __name__ == "__main__":
    sys.exit(COMMAND.main())
