"""The command line that most benchmarks share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from conclugen.common import ending


def main(
    name: str,
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse and run `python -m benchmarks.<name>`; returns the exit status: what `run` gives, 2 for wrong input, 130 or
    143 where it was told to stop. An interrupt and a termination both leave `run` by KeyboardInterrupt, so that what it
    has made of the machine (processes, network namespaces, folders) is taken back."""
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        with ending.stoppable(), ending.interrupt_first():
            return run(options)
    except KeyboardInterrupt as stop:
        print(f"\n{parser.prog}: {ending.message(stop)}", file=sys.stderr)
        return ending.status()
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
