"""The commands behind `conclugen NAME`: entry points, of this project and of any package that adds some.

    [project.entry-points."conclugen.commands"]
    pretrain = "ray_jobs.pretrain:COMMAND [data,evaluation,train]"

The value is a `Command`; the extras that the command needs follow it. The project's own are those of its
installed metadata, and in a clone those of the clone's pyproject.toml, installed or not.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

from conclugen.common import extras, plugins, uris
from conclugen.common.names import did_you_mean
from conclugen.common.options import Command, OptionsError
from conclugen.common.revision import CLONE

GROUP = "conclugen.commands"


def registered() -> plugins.Registry[EntryPoint]:
    """Name -> entry point, in alphabetical order; none is imported."""
    others = [point for point in plugins.installed(GROUP) if point.dist is None or point.dist.name != plugins.OWN]
    own = {point.name: point for point in sorted(_own(), key=lambda point: point.name)}
    return plugins.collect("command", own, others, lambda name, point, known: point)


def load(name: str) -> Command:
    """The command of that name. OptionsError for an unknown one; MissingExtraError where it can't be imported because
    libraries are missing."""
    found = registered()
    if name not in found.entries:
        if name in found.problems:
            raise OptionsError(found.problems[name])
        raise OptionsError(f"unknown command {name!r}; {did_you_mean(name, found.entries)}")
    point = found.entries[name]
    if found.providers[name] == plugins.OWN:
        try:
            command = point.load()
        except ImportError:  # MissingExtraError among them
            require(name)  # names all that is missing, not the first library alone
            raise
        assert isinstance(command, Command)
        return command
    try:
        command = point.load()
        if not isinstance(command, Command):
            raise TypeError(f"it is {type(command).__name__}, expected a Command of conclugen.common.options")
    except (Exception, SystemExit) as cause:
        raise OptionsError(plugins.unusable("command", point, cause)) from cause
    return command


def extras_of(name: str) -> tuple[str, ...]:
    """The extras that one of the project's own commands needs; those of others are not known here."""
    found = registered()
    return tuple(found.entries[name].extras) if found.providers.get(name) == plugins.OWN else ()


def missing(name: str) -> dict[str, list[str]]:
    """Extra -> its libraries that are not installed, of what the command needs."""
    absent = {extra: extras.absent(extra) for extra in extras_of(name)}
    return {extra: libraries for extra, libraries in absent.items() if libraries}


def require(name: str) -> None:
    """Raise MissingExtraError, one line with all extras, where the command needs libraries that are not installed."""
    if absent := missing(name):
        libraries = ", ".join(library for of in absent.values() for library in of)
        raise extras.MissingExtraError(
            f'conclugen {name} needs {libraries}, not installed: pip install "{plugins.OWN}[{",".join(absent)}]"'
        )


def typed(arguments: Sequence[str] | str) -> str:
    """`conclugen ARGUMENTS` as it can be typed here: by its script where the shell finds that of this Python, else by
    the script's path, or as a module."""
    rest = arguments if isinstance(arguments, str) else shlex.join(arguments)
    script = Path(sys.executable).with_name(plugins.OWN)
    found = shutil.which(plugins.OWN)
    if found is not None and Path(found).parent == script.parent:
        return f"{plugins.OWN} {rest}"
    if script.is_file():
        return f"{_short(script)} {rest}"
    python = shutil.which("python")
    known = python is not None and Path(python).parent == script.parent
    return f"{'python' if known else _short(Path(sys.executable))} -m {plugins.OWN} {rest}"


def given() -> str:
    """The command line of this process, without the secrets of addresses."""
    python, *rest = sys.orig_argv or [sys.executable]
    if rest[:2] == ["-m", plugins.OWN]:
        rest = [plugins.OWN, *rest[2:]]
    elif rest and Path(rest[0]).name == plugins.OWN:
        rest = [plugins.OWN, *rest[1:]]
    else:
        rest = [Path(python).name, *rest]
    return str(uris.scrub(shlex.join(rest)))


def given_name() -> str:
    """The command of this process without its options, such as `conclugen pretrain`; of another script its name."""
    first, *rest = shlex.split(given())
    if first == plugins.OWN:
        return " ".join([first, *rest[:1]])
    if rest[:1] == ["-m"]:
        return " ".join([first, *rest[:2]])
    return Path(rest[0]).name if rest and not rest[0].startswith("-") else first


def tell_next(arguments: str | Sequence[str]) -> None:
    """The last line of a job: the command that one would type now, as text or as words that are quoted here."""
    print(f"next: {typed(arguments)}", flush=True)


def _short(path: Path) -> str:
    here = Path.cwd()
    return shlex.quote(os.fspath(path.relative_to(here) if path.is_relative_to(here) else path))


def _own() -> Sequence[EntryPoint]:
    try:
        project = tomllib.loads(CLONE.read_text("utf-8"))["project"]
        if project["name"] == plugins.OWN:
            points = project["entry-points"][GROUP].items()
            return [EntryPoint(name, value, GROUP) for name, value in points]
    except (OSError, KeyError, ValueError):
        pass  # no clone: what is beside the packages there is something else, or nothing
    try:
        return list(importlib.metadata.distribution(plugins.OWN).entry_points.select(group=GROUP))
    except importlib.metadata.PackageNotFoundError:
        return []
