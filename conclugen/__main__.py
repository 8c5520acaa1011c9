"""`python -m conclugen COMMAND`: bench, memory, scale."""

import argparse
import sys
from collections.abc import Sequence

from conclugen.bench import command, contrastive_memory, scaling

COMMANDS = {
    "bench": (command, "time, FLOPs and memory of a pretraining step"),
    "scale": (scaling, "bytes and time of a step on many GPUs, by arithmetic"),
    "memory": (contrastive_memory, "memory of the contrastive loss by rows of the batch"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 well, 2 wrong input."""
    parser = argparse.ArgumentParser("python -m conclugen", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(subparser)
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command][0].run(options)
    except (ValueError, OSError) as error:
        print(f"python -m conclugen {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
