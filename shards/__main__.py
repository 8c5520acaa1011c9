"""`python -m shards COMMAND`: check, pack, index, verify, stats, split."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "check": ("shards.check", "print a data set as it is understood, and what is doubtful; write nothing"),
    "pack": ("shards.packing.command", "write shards from .npz arrays or a folder of .npy files"),
    "index": ("shards.foreign.command", "make shards that other tools wrote readable"),
    "convert-pickle": ("shards.foreign.convert_pickle", "pickled feature files to .npz; nothing in them is executed"),
    "verify": ("shards.verification.command", "read everything and name all damage; repair the manifest"),
    "stats": ("shards.stats", "columns, presence, labels, groups, means and deviations"),
    "split": ("shards.split", "make views by group or by any column of the index"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 well, 1 damage found, 2 wrong input."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser("python -m shards", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        # Only the command that is asked for is imported: --help waits for none.
        if name in arguments[:1]:
            importlib.import_module(module).add_arguments(subparser)
    options = parser.parse_args(arguments)
    try:
        return importlib.import_module(COMMANDS[options.command][0]).run(options)
    except (ValueError, OSError) as error:
        print(f"python -m shards {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
