"""`python -m shards COMMAND`: check, pack, index, convert-pickle, verify, stats, split."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from conclugen.common.names import nearest
from conclugen.common.options import GOOD, WRONG_INPUT
from shards.commands import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return COMMANDS[name].main(rest)
    if name in ("-h", "--help", "--help-all"):
        print("usage: python -m shards COMMAND [options]\n")
        for known, command in COMMANDS.items():
            print(f"  {known:<15} {(command.job.__doc__ or '').partition(chr(10))[0]}")
        print("\npython -m shards COMMAND --help lists the options of one.")
        return GOOD
    print(f"error: unknown command {name!r}{nearest(name, COMMANDS)}; allowed: {', '.join(COMMANDS)}", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
