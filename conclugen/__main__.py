"""`python -m conclugen COMMAND`: bench."""

import argparse
import sys
from collections.abc import Sequence

from conclugen import bench


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 well, 2 wrong input."""
    parser = argparse.ArgumentParser("python -m conclugen", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    subparser = subparsers.add_parser(
        "bench",
        help="time, FLOPs and memory of a pretraining step",
        description=bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_arguments(subparser)
    options = parser.parse_args(arguments)
    try:
        return bench.run(options)
    except (ValueError, OSError) as error:
        print(f"python -m conclugen {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
