"""Every job and command of the project, by name: those of `conclugen`, and a few that are typed as modules alone."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from conclugen.common import commands as front
from conclugen.common.options import Command
from shards.commands import COMMANDS

# What takes long to import: neither help nor a refusal may.
HEAVY = ("torch", "ray", "mlflow", "pandas", "sklearn", "scipy", "matplotlib", "av", "cv2", "pyarrow")
# Commands of `python -m shards`.
SHARDS = tuple(COMMANDS)
_TOOLS = {
    "sweep replay": "tuning.sweep.replay",
    "author_features": "shards.adapters.author_features",
}
JOBS = (*(name for name in front.registered().entries if name not in SHARDS), *_TOOLS)


def load(name: str) -> Command:
    """The command of that name; OptionsError for none."""
    if name in _TOOLS:
        tool: Command = import_module(_TOOLS[name]).COMMAND
        return tool
    return front.load(name)


def commands() -> Iterator[Command]:
    """All of them."""
    for name in (*JOBS, *SHARDS):
        yield load(name)
