"""Every task there is: those of this folder, and those that other installed packages name.

A package adds a task in its pyproject.toml:

    [project.entry-points."conclugen.tasks"]
    margin = "my_package.margin:Margin"

Tasks are registered once, when they are first asked for, and stay the same in a process: built-in ones first, in their
`order`, then others by name. An entry point that can't be registered is reported in one line and left out whole; to use
its name raises the same line. Data and configuration files register nothing: packages are what is installed.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import logging
import pkgutil
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from conclugen import fields, tasks
from conclugen.tasks.base import Inputs, Task

GROUP = "conclugen.tasks"
OWN = "conclugen"
RESERVED = ("divisor", "weighting", "gradients", "learned_weight_lr", "gradnorm_alpha")
"""Options that stand beside the tasks in `TasksConfig`."""


@dataclasses.dataclass(frozen=True)
class Registry:
    """tasks: by name, in order. providers: name -> the package that has it. problems: name -> why it is left out."""

    tasks: Mapping[str, type[Task]]
    providers: Mapping[str, str]
    problems: Mapping[str, str]


def registered() -> Mapping[str, type[Task]]:
    """Every task by name, in a fixed order."""
    return _registry().tasks


def get(name: str) -> type[Task]:
    """The task of a name. Raises ValueError, naming the remedy, where there is none."""
    known = registered()
    if name not in known:
        raise ValueError(unknown(name))
    return known[name]


def provider(name: str) -> str:
    """The package (with its version, where it is another one) that has a task."""
    return _registry().providers[name]


def providers(names: Iterable[str]) -> dict[str, str]:
    """Of these tasks those of other packages -> package, with its version."""
    return {name: provider(name) for name in names if provider(name) != OWN}


def unknown(name: object, provided: str = "") -> str:
    """Why there is no such task, and what to do. provided: the package that had it, where that is known."""
    problem = _registry().problems.get(str(name))
    if problem is not None:
        return problem
    known = registered()
    if provided:
        return f"task {name!r} comes from {provided}, which is not installed here: install it"
    return (
        f"no installed package provides task {name!r}{fields.nearest(name, known)}; there are {', '.join(known)}; "
        "install the package that provides it"
    )


def problems() -> Mapping[str, str]:
    """Name -> one line, for each entry point that was left out."""
    return _registry().problems


def inputs(configs: Mapping[str, Any], modalities: tuple[str, ...]) -> dict[str, Inputs]:
    """What each task reads; configs: name -> configuration.

    Raises ValueError where the modalities can't serve a task, or one of them would be learned by none.
    """
    found = {name: registered()[name].inputs(config, modalities) for name, config in configs.items()}
    if all(reads.views for reads in found.values()):
        used = {view.modality for reads in found.values() for view in reads.views}
        fields.require(
            set(modalities) == used,
            "modalities",
            modalities,
            f"only {', '.join(map(repr, sorted(used)))}: {' and '.join(found)} uses no other",
        )
    return found


def serve(tasks: Iterable[str], modalities: tuple[str, ...]) -> bool:
    """Whether these tasks, as they come, can learn these modalities."""
    try:
        inputs({name: get(name).adapted(get(name).Config(), modalities) for name in tasks}, modalities)
    except ValueError:
        return False
    return True


def collect(builtin: Iterable[type[Task]], points: Iterable[importlib.metadata.EntryPoint]) -> Registry:
    """The registry of built-in tasks and entry points. Raises ValueError where a built-in one is no proper task."""
    found: dict[str, type[Task]] = {}
    providers: dict[str, str] = {}
    problems: dict[str, str] = {}
    for task in sorted(builtin, key=lambda task: (task.order, task.name)):
        _check(task, task.name, found, own=True)
        found[task.name], providers[task.name] = task, OWN
    by_name: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in points:
        by_name.setdefault(point.name, []).append(point)
    for name in sorted(by_name):
        first, *others = sorted(by_name[name], key=_package)
        packages = ", ".join(_package(point) for point in (first, *others))
        if name in found:
            problems[f"{name} of {packages}"] = (
                f"task {name!r} of {packages} is left out: conclugen has a task of this name; rename it or uninstall "
                f"{packages}"
            )
        elif others:
            problems[name] = f"task {name!r} is registered twice, by {packages}: uninstall one of them"
        else:
            try:
                task = first.load()
                _check(task, name, found, own=False)
            except (Exception, SystemExit) as cause:
                reason = " ".join(str(cause).split()) or type(cause).__name__
                kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
                problems[name] = (
                    f"task {name!r} of {packages} ({first.value}) can't be used: {kind}{reason}; mend, update or "
                    "uninstall that package"
                )
            else:
                found[name], providers[name] = task, packages
    return Registry(MappingProxyType(found), MappingProxyType(providers), MappingProxyType(problems))


@functools.lru_cache(maxsize=1)
def _registry() -> Registry:
    registry = collect(_builtin(), importlib.metadata.entry_points(group=GROUP))
    for problem in registry.problems.values():
        logging.getLogger("conclugen").warning("warning: %s", problem)
    return registry


def _builtin() -> list[type[Task]]:
    """The tasks that the files of this folder define."""
    found = []
    for listed in pkgutil.iter_modules(tasks.__path__):
        module = importlib.import_module(f"{tasks.__name__}.{listed.name}")
        own = (value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__)
        found += [value for value in own if isinstance(value, type) and issubclass(value, Task) and value is not Task]
    return found


def _package(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _check(task: Any, name: str, known: Mapping[str, type[Task]], own: bool) -> None:
    """Raise ValueError where a task lacks something that the project derives from it, or takes what another has."""
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise ValueError(f"it is {task!r}, expected a class derived from conclugen.tasks.Task")
    for attribute in ("name", "title"):
        value = getattr(task, attribute, None)
        fields.require(isinstance(value, str) and bool(value), f"{task.__name__}.{attribute}", value, "a text")
    fields.require(task.name == name, f"{task.__name__}.name", task.name, f"{name!r}, as its entry point is called")
    fields.require(name.isidentifier(), f"{task.__name__}.name", name, "letters, digits and _ only")
    fields.require(name not in RESERVED, f"{task.__name__}.name", name, "another: an option of `tasks` has this one")
    _check_config(task)
    for other in known.values():
        taken = {searched.name for searched in other.searched} & {searched.name for searched in task.searched}
        remedy = f"other names than those of {other.name!r}"
        fields.require(not taken, f"{task.__name__}.searched", sorted(taken), remedy)
        for preset in () if own else other.presets.keys() & task.presets.keys():
            raise ValueError(f"{task.__name__}.presets: {preset!r} is a variant of {other.name!r}; choose another name")


def _check_config(task: type[Task]) -> None:
    config = getattr(task, "Config", None)
    place = f"{task.__name__}.Config"
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ValueError(f"{place}: found {config!r}, expected a frozen dataclass")
    fields.require(vars(config)["__dataclass_params__"].frozen, place, "a dataclass that can change", "a frozen one")
    listed = {field.name: field for field in dataclasses.fields(config)}
    fields.require("weight" in listed, place, sorted(listed), "a field `weight` among them")
    told = "\n".join(base.__doc__ or "" for base in config.__mro__ if dataclasses.is_dataclass(base))
    undocumented = [field for field in listed if not re.search(rf"^\s+{field}: \S", told, re.MULTILINE)]
    fields.require(not undocumented, place, undocumented, "an entry `name: text` for each field under `Attributes:`")
    for field in listed.values():
        kinds = ("identity", "schedulable", "free")
        fields.choose(f"{place}.{field.name}: metadata kind", field.metadata.get("kind"), kinds)
    try:
        config()
    except TypeError as cause:
        raise ValueError(f"{place}: {cause}; every field needs a default") from cause
