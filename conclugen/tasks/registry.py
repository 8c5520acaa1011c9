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
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

from conclugen import fields, tasks
from conclugen.common import plugins
from conclugen.common.plugins import OWN, Registry
from conclugen.tasks.base import Inputs, Task

GROUP = "conclugen.tasks"
RESERVED = (
    "divisor",
    "weighting",
    "gradients",
    "learned_weight_lr",
    "gradnorm_alpha",
    "share_band",
    "share_every",
)
"""Options beside the tasks in `TasksConfig`."""


def registered() -> Mapping[str, type[Task]]:
    """Every task by name, in a fixed order."""
    return _registry().entries


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
    """Why a task is not known, and what to do. provided: the package that had it, where that is known."""
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


def collect(builtin: Iterable[type[Task]], points: Iterable[EntryPoint]) -> Registry[type[Task]]:
    """The registry of built-in tasks and entry points. Raises ValueError where a built-in one is not a proper task."""
    found: dict[str, type[Task]] = {}
    for task in sorted(builtin, key=lambda task: (task.order, task.name)):
        _check(task, task.name, found, own=True)
        found[task.name] = task
    return plugins.collect("task", found, points, _take)


def _take(name: str, point: EntryPoint, known: Mapping[str, type[Task]]) -> type[Task]:
    task: type[Task] = point.load()
    _check(task, name, known, own=False)
    return task


@functools.lru_cache(maxsize=1)
def _registry() -> Registry[type[Task]]:
    return plugins.warned(collect(plugins.classes_in(tasks, Task), plugins.installed(GROUP)))


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
