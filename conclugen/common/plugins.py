"""What a family of extensions (tasks, protocols, encoders) consists of: the project's own, and what other installed
packages name by an entry point of the family's group.

Built-in ones come first, in their order, then others by name. An entry point that does not serve is left out whole,
with one line that says why; it never breaks the rest. Data and configuration files add nothing: packages are what is
installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import MappingProxyType, ModuleType
from typing import Generic, TypeVar

from conclugen.common import uris

OWN = "conclugen"

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """entries: by name, in order. providers: name -> the package (with its version, where it is another one) that has
    it. problems: name -> one line, why it is left out."""

    entries: Mapping[str, T]
    providers: Mapping[str, str]
    problems: Mapping[str, str]


def collect(
    kind: str,
    builtin: Mapping[str, T],
    points: Iterable[EntryPoint],
    take: Callable[[str, EntryPoint, Mapping[str, T]], T],
) -> Registry[T]:
    """The registry of built-in extensions and entry points.

    Args:
        kind: What one of them is called, such as "task".
        builtin: By name, in order.
        points: Of other packages.
        take: (name, entry point, those found before) -> the extension; raises ValueError where it does not serve.
    """
    found = dict(builtin)
    providers = dict.fromkeys(found, OWN)
    problems: dict[str, str] = {}
    by_name: dict[str, list[EntryPoint]] = {}
    for point in points:
        by_name.setdefault(point.name, []).append(point)
    for name in sorted(by_name):
        first, *others = sorted(by_name[name], key=package_of)
        packages = ", ".join(package_of(point) for point in (first, *others))
        if name in found:
            problems[f"{name} of {packages}"] = (
                f"{kind} {name!r} of {packages} is left out: {OWN} has {_a(kind)} of this name; rename it or uninstall "
                f"{packages}"
            )
        elif others:
            problems[name] = f"{kind} {name!r} is registered twice, by {packages}: uninstall one of them"
        else:
            try:
                found[name] = take(name, first, MappingProxyType(found))
                providers[name] = packages
            except (Exception, SystemExit) as cause:
                problems[name] = unusable(kind, first, cause)
    return Registry(MappingProxyType(found), MappingProxyType(providers), MappingProxyType(problems))


def installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group."""
    return tuple(importlib.metadata.entry_points(group=group))


def package_of(point: EntryPoint) -> str:
    """The package that names an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def unusable(kind: str, point: EntryPoint, cause: BaseException) -> str:
    """One line about an entry point that can't be loaded, or is not a proper extension."""
    return (
        f"{kind} {point.name!r} of {package_of(point)} ({point.value}) can't be used: {reason(cause)}; fix, update or "
        "uninstall that package"
    )


def reason(cause: BaseException) -> str:
    """What an extension's own error says, in one line."""
    said = " ".join(uris.scrub(cause).split()) or type(cause).__name__
    return said if isinstance(cause, ValueError) else f"{type(cause).__name__}: {said}"


def warned(registry: Registry[T]) -> Registry[T]:
    """The registry, after a warning for each problem."""
    for problem in registry.problems.values():
        logging.getLogger("conclugen").warning("warning: %s", problem)
    return registry


def classes_in(package: ModuleType, base: type[T]) -> list[type[T]]:
    """The classes derived from `base` that the files of a package's folder define, but for `base` itself."""
    found: list[type[T]] = []
    for listed in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{listed.name}")
        own = (value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__)
        found += [value for value in own if isinstance(value, type) and issubclass(value, base) and value is not base]
    return found


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
