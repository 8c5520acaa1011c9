"""What the dataclass of a job looks like to the command line: its groups (nested dataclasses) and its leaves."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

_SCALARS = (str, int, float, bool, type(None))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field that takes a value: its type, its default (None where it must be given), its description."""

    hint: Any
    default: Any
    help: str


def leaves_of(cls: type, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """(dotted name, leaf) of a dataclass and those nested in it. Raises TypeError for a field that is no plain data."""
    documented = _documented(cls)
    for field in dataclasses.fields(cls):
        hint, dotted = hints_of(cls)[field.name], f"{prefix}{field.name}"
        inner = dataclass_of(hint)
        if inner is not None:
            yield from leaves_of(inner, f"{dotted}.")
        else:
            _check_hint(cls, field.name, hint)
            default = default_of(field)
            shown = None if default is dataclasses.MISSING else default
            yield dotted, Leaf(hint, shown, documented.get(field.name, "").replace("%", "%%"))


def groups_of(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of the nested dataclasses."""
    for name, hint in hints_of(cls).items():
        inner = dataclass_of(hint)
        if inner is not None:
            yield f"{prefix}{name}", hint
            yield from groups_of(inner, f"{prefix}{name}.")


def hints_of(cls: type) -> dict[str, Any]:
    """Field -> type, resolved."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The field's default, `dataclasses.MISSING` where it must be given."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def is_optional(hint: Any) -> bool:
    """Whether None is allowed."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint)


def _options(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for option in typing.get_args(hint) if option is not type(None)]
    return [hint]


def dataclass_of(hint: Any) -> type | None:
    """The dataclass of a field that is one, or may be None instead."""
    options = _options(hint)
    only = options[0] if len(options) == 1 else None
    return only if isinstance(only, type) and dataclasses.is_dataclass(only) else None


def is_mapping(hint: Any) -> bool:
    """Whether the field is a mapping of plain data."""
    return any(typing.get_origin(option) in (dict, Mapping) for option in _options(hint))


def _check_hint(cls: type, name: str, hint: Any) -> None:
    """A leaf is plain data: jsonargparse would import what a class, callable or Any field names."""
    for option in _options(hint):
        if typing.get_origin(option) in (dict, list, tuple):
            for argument in typing.get_args(option):
                if argument is not Ellipsis:
                    _check_hint(cls, name, argument)
        elif option not in _SCALARS and typing.get_origin(option) is not Literal:
            raise TypeError(f"{cls.__name__}.{name}: {hint} is no plain data; use numbers, text, lists or mappings")


def _documented(cls: type) -> dict[str, str]:
    """Field -> description, from lines `name: text` of the docstrings (its own and those of the dataclasses that it
    extends) and the indented lines that follow."""
    names = {field.name for field in dataclasses.fields(cls)}
    found: dict[str, str] = {}
    current = None
    texts = [base.__doc__ or "" for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    for line in "\n\n".join(texts).splitlines():
        match = re.match(r"\s+(\w+): (.+)", line)
        if match and match[1] in names:
            current = match[1]
            found[current] = match[2].strip()
        elif current and line.strip():
            found[current] += f" {line.strip()}"
        else:
            current = None
    return found
