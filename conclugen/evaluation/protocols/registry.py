"""Every evaluation protocol there is: those of this folder, and those that other installed packages name.

A package adds a protocol in its pyproject.toml:

    [project.entry-points."conclugen.protocols"]
    fatigue = "my_package.fatigue:Fatigue"

They are found once, when they are first asked for. One that is not properly made is reported in one line and left out;
to use its name raises the same line.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from conclugen.common import plugins, uris
from conclugen.common.names import did_you_mean
from conclugen.common.plugins import Registry
from conclugen.evaluation import protocols
from conclugen.evaluation.protocols.base import EvaluationProtocol, Material, Outcome, ProtocolOptions

GROUP = "conclugen.protocols"
ALL = "all"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Done:
    """One protocol's answer: an outcome, or why there is none."""

    name: str
    title: str
    outcome: Outcome | None
    reason: str = ""


def registered() -> Mapping[str, type[EvaluationProtocol]]:
    """Every protocol by name, in a fixed order."""
    return _registry().entries


def chosen(names: Iterable[str], config: ProtocolsConfig | None = None, field_: str = "protocol") -> tuple[str, ...]:
    """These names once each; `all` are those that have the options which they need.

    Raises ValueError for a name that no protocol has.
    """
    found: dict[str, None] = {}
    for name in names:
        if name == ALL:
            found |= dict.fromkeys(name for name, protocol in registered().items() if _served(name, protocol, config))
        elif name in registered():
            found[name] = None
        else:
            problem = _registry().problems.get(name)
            raise ValueError(problem or f"{field_}: no protocol {name!r}, {did_you_mean(name, [*registered(), ALL])}")
    return tuple(found)


def _served(name: str, protocol: type[EvaluationProtocol], config: ProtocolsConfig | None) -> bool:
    own = protocol.Config() if config is None else getattr(config, option(name))
    return all(getattr(own, needed) is not None for needed in protocol.needs)


def option(name: str) -> str:
    """The field of `ProtocolsConfig` that has a protocol's options."""
    return name.replace("-", "_")


def run(names: Iterable[str], material: Material, config: ProtocolsConfig) -> Iterator[Done]:
    """Ask one protocol after the other; what the data cannot serve is an answer too, and the others continue."""
    for name in chosen(names, config):
        protocol = registered()[name]
        try:
            if material.target.kind not in protocol.kinds:
                raise ValueError(
                    f"label {material.target.name!r} is {material.target.kind}, and {name} reads "
                    f"{' and '.join(protocol.kinds)} labels only; choose another label"
                )
            outcome = protocol.run(material, getattr(config, option(name)))
        except ValueError as error:
            yield Done(name, protocol.title, None, " ".join(uris.scrub(error).split()))
        else:
            yield Done(name, protocol.title, outcome)


def collect(
    builtin: Iterable[type[EvaluationProtocol]], points: Iterable[EntryPoint]
) -> Registry[type[EvaluationProtocol]]:
    """The registry of built-in protocols and entry points. ValueError where a built-in one is not properly made."""
    found: dict[str, type[EvaluationProtocol]] = {}
    for protocol in sorted(builtin, key=lambda protocol: (protocol.order, protocol.name)):
        _check(protocol, protocol.name, found)
        found[protocol.name] = protocol
    return plugins.collect("protocol", found, points, _take)


def _take(name: str, point: EntryPoint, known: Mapping[str, type[EvaluationProtocol]]) -> type[EvaluationProtocol]:
    protocol: type[EvaluationProtocol] = point.load()
    _check(protocol, name, known)
    return protocol


@functools.lru_cache(maxsize=1)
def _registry() -> Registry[type[EvaluationProtocol]]:
    builtin = plugins.classes_in(protocols, EvaluationProtocol)  # type: ignore[type-abstract]
    return plugins.warned(collect(builtin, plugins.installed(GROUP)))


def _check(protocol: Any, name: str, known: Mapping[str, Any]) -> None:
    if not (isinstance(protocol, type) and issubclass(protocol, EvaluationProtocol)):
        raise ValueError(f"it is {protocol!r}, expected a class derived from EvaluationProtocol")
    own = getattr(protocol, "name", None)
    if own != name or not _NAME.fullmatch(name) or name == ALL:
        raise ValueError(f"its name is {own!r}, expected {name!r}: small letters and digits, joined by hyphens")
    if name in known:
        raise ValueError(f"there is a protocol of this name already ({known[name].__module__})")
    config = getattr(protocol, "Config", None)
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ValueError(f"Config is {config!r}, expected a frozen dataclass")
    told = config.__doc__ or ""
    for listed in dataclasses.fields(config):
        if not re.search(rf"^\s+{listed.name}: \S", told, re.MULTILINE):
            raise ValueError(f"Config.{listed.name}: no entry `{listed.name}: text` under `Attributes:`")
    config()


if TYPE_CHECKING:

    class ProtocolsConfig(ProtocolOptions):
        """One field for each registered protocol: its options."""

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    ProtocolsConfig = dataclasses.make_dataclass(
        "ProtocolsConfig",
        [(option(n), protocol.Config, field(default_factory=protocol.Config)) for n, protocol in registered().items()],
        bases=(ProtocolOptions,),
        namespace={
            "__module__": __name__,
            "__doc__": "What protocols share, and the options of each. See docs/protocols.md.",
        },
        frozen=True,
    )
