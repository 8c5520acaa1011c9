"""Frozen configuration dataclasses: kinds of fields, checks that name the field, strict conversion from and to plain
data.

Every field carries a kind in its metadata:
`identity` decides what is learned and must agree when a run is resumed, `schedulable` may change on the way (the change
is logged), `free` concerns only where and how fast the run goes.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from conclugen.common.names import nearest

IDENTITY = {"kind": "identity"}
SCHEDULABLE = {"kind": "schedulable"}
FREE = {"kind": "free"}

T = TypeVar("T")


def choose(field: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{field}: unknown value {value!r}{nearest(value, names)}; allowed: {', '.join(names)}")


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise ValueError naming the field, the value found and what is expected, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{field}: found {value!r}, expected {expected}")


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain data (dict, list, str, numbers, None) of a configuration dataclass; JSON-able."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    result: dict[str, Any] = plain(config)
    return result


def from_dict(cls: type[T], data: Mapping[str, Any], path: str = "") -> T:
    """Build dataclass `cls` from plain data. Unknown fields and values of a wrong type raise ValueError naming the
    field."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{path or cls.__name__}: found {data!r}, expected a mapping of fields")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in data:
        if name not in names:
            raise ValueError(
                f"unknown field {_join(path, str(name))!r}{nearest(name, names)}; "
                f"{cls.__name__} has: {', '.join(names)}"
            )
    return cls(**{name: _convert(hints[name], value, _join(path, name)) for name, value in data.items()})


def merge(config: T, overrides: Mapping[str, Any], path: str = "") -> T:
    """A copy of `config` with `overrides` applied; a mapping given for a nested dataclass changes only the fields it
    names."""
    if not overrides:
        return config
    data = to_dict(config)
    names = list(data)
    for name, value in overrides.items():
        if name not in names:
            raise ValueError(f"unknown field {_join(path, name)!r}{nearest(name, names)}; allowed: {', '.join(names)}")
        current = getattr(config, name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(current):
            value = merge(current, value, _join(path, name))
        data[name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return from_dict(type(config), data, path)


def leaves(config: Any, path: str = "", kind: str = "identity") -> Iterator[tuple[str, str, Any]]:
    """(dotted name, kind, plain value) of each leaf field. An absent nested configuration is a leaf of value None."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = _join(path, field.name)
        field_kind = field.metadata.get("kind", kind)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, name, field_kind)
        else:
            yield name, field_kind, list(value) if isinstance(value, tuple) else value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        return _convert(inner[0], value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, path)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ValueError(f"{path}: found {value!r}, expected a list of names")
        return tuple(_convert(arguments[0], v, path) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{path}: found {value!r} ({type(value).__name__}), expected {hint.__name__}")
    return value
