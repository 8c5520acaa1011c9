"""`conclugen COMMAND`: every command of the project by its name (`python -m conclugen` is the same)."""

from __future__ import annotations

import signal
import sys

# An interrupt ends the command without a trace until `main` takes it: imports take a while on a busy machine.
if (__name__ == "__main__" or sys.argv[0].endswith("/conclugen")) and signal.getsignal(
    signal.SIGINT
) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Sequence
from dataclasses import replace

from conclugen.common import commands, ending, plugins, uris
from conclugen.common.extras import MissingExtraError
from conclugen.common.options import GOOD, WRONG_INPUT
from conclugen.common.revision import version
from conclugen.common.tables import visible

_HELP = ("-h", "--help", "--help-all", "help")
_NEEDS_NOTHING = {*_HELP, "--print-config"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 2 for an unknown one, or where libraries of it are missing."""
    with ending.stoppable():
        try:
            return _main(arguments)
        except KeyboardInterrupt as stop:  # before the command has begun
            print(f"\n{ending.message(stop)}", file=sys.stderr)
            return ending.status()


def _main(arguments: Sequence[str] | None) -> int:
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in _HELP and not (name == "help" and rest):
        print(_listed())
        return GOOD
    if name == "--version":
        print(f"{plugins.OWN} {version()}")
        return GOOD
    if name == "help":
        name, rest = rest[0], ["--help"]
    try:
        command = commands.load(name)
        if not _NEEDS_NOTHING.intersection(rest):
            commands.require(name)
    except ValueError as error:
        print(f"error: {visible(uris.scrub(error))}", file=sys.stderr)
        return WRONG_INPUT
    return replace(command, called=f"{plugins.OWN} {name}").main(rest)


def _listed() -> str:
    """Each command with what it does, in a line; of one that lacks libraries what to install."""
    found = commands.registered()
    width = max(map(len, found.entries), default=0)
    lines = ["usage: conclugen COMMAND [options]", ""]
    for name in found.entries:
        try:
            about = (commands.load(name).job.__doc__ or "").partition("\n")[0]
        except MissingExtraError:
            about = ""
        except ValueError as error:
            about = f"({error})"
        if absent := commands.missing(name):
            about = f'{about} (pip install "{plugins.OWN}[{",".join(absent)}]")'.lstrip()
        lines.append(f"  {name:<{width}}  {about}")
    lines += [
        "",
        "Begin with `conclugen demo`; with clips of your own, `conclugen run FOLDER`.",
        "`conclugen COMMAND --help` lists the options of one, `conclugen doctor` says what is installed.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
