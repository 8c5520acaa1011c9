"""YAML as configuration files need it: plain data only, and nothing read in another way than it looks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from conclugen.common.options.words import OptionsError, Word

FORBIDDEN_KEYS = ("class_path", "init_args")
# Reading YAML takes a time that grows with the square of the depth, and some microseconds for each byte.
_DEEPEST, _MOST_BYTES = 50, 1 << 20


_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(
        r"^([-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


class _Loader(yaml.SafeLoader):
    """Reads scalars by YAML's core schema: `1e-5` is a number, as in JSON; `no`, `1:30`, `010` and dates are text."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(*_FLOAT)


class _Dumper(yaml.SafeDumper):
    """Quotes text that any reader, this one or one of YAML 1.1, would take for something else."""


_Dumper.add_implicit_resolver(*_FLOAT)


def load(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises: OptionsError for a missing, malformed, huge or deeply nested file, a tag, an alias, a key given twice,
        or a key that names code to import (`class_path`, `init_args`); nothing is imported.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise OptionsError(f"{path}: has more than {_MOST_BYTES} bytes, which no configuration needs")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsError(f"{path}: cannot be read: {error}") from error
    try:
        root = _compose(path, text, _Loader)
        content = None if root is None else _Loader(text).construct_document(root)
    except OptionsError:
        raise
    except ValueError as error:  # a number of more digits than `int` takes
        raise OptionsError(f"{path}: cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise OptionsError(f"{path}: found a {type(content).__name__}, expected a mapping of fields")
    return content


def words(text: str, path: str) -> Any:
    """A list or a mapping as a command line says it (`[a, b]`, `{a: 1}`): what it holds are words."""
    return _as_words(_compose(path, text, yaml.BaseLoader))


def _as_words(node: yaml.Node | None) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_as_words(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _as_words(item) for key, item in node.value}
    return Word("" if node is None else node.value)


def _compose(path: str | Path, text: str, loader: type[yaml.SafeLoader] | type[yaml.BaseLoader]) -> yaml.Node | None:
    """The only document of a text, with everything refused that is not plain data."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            _check_event(path, event)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise OptionsError(f"{path}:{_line(event)}: is nested more than {_DEEPEST} deep; write it flat")
        root = loader(text).get_single_node()
    except yaml.YAMLError as error:
        raise OptionsError(f"{path}:{_problem(error, text)}") from error
    for keys, key in _keys(root, ()):
        _check_key(path, keys, key)
    return root


def dump(content: Any) -> str:
    """Plain data as YAML that `load` reads back equal."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def inline(value: Any) -> str:
    """A plain value as it is written after a field's name, on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=float("inf")
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _check_event(path: str | Path, event: yaml.Event) -> None:
    place = f"{path}:{_line(event)}"
    if isinstance(event, yaml.AliasEvent):
        raise OptionsError(f"{place}: alias *{event.anchor} is refused; write the value out")
    tag = getattr(event, "tag", None)
    if tag is not None:
        raise OptionsError(f"{place}: tag {tag!r} is refused; configuration is plain data")


def _keys(node: yaml.Node | None, parents: tuple[str, ...]) -> Iterator[tuple[dict[str, int], tuple[str, yaml.Node]]]:
    """Each key of each mapping: (the keys before it in its mapping with their lines, (dotted name, key))."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            yield seen, (".".join((*parents, name)), key)
            seen[name] = _line(key)
            yield from _keys(value, (*parents, name))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _keys(value, (*parents, str(number)))


def _check_key(path: str | Path, seen: dict[str, int], named: tuple[str, yaml.Node]) -> None:
    name, key = named
    line = _line(key)
    if not isinstance(key, yaml.ScalarNode):
        raise OptionsError(f"{path}:{line}: the name of a field is a list or a mapping; write it as text")
    if key.value in FORBIDDEN_KEYS:
        raise OptionsError(f"{path}:{line}: {name!r} names code to import, which is refused; remove it")
    if key.value in seen:
        raise OptionsError(f"{path}:{line}: {name!r} is given twice, first in line {seen[key.value]}; keep one")


def _problem(error: yaml.YAMLError, text: str) -> str:
    """`LINE:COLUMN: no valid YAML: ...` on one line; PyYAML's own message has several, with excerpts."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        return f"{line}:{column}: no valid YAML: found character {chr(error.character)!r}; remove it"
    assert isinstance(error, yaml.MarkedYAMLError)
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f"{mark.line + 1}:{mark.column + 1}: "
    context = ""
    if error.context:
        begun = error.context_mark
        context = error.context + ("" if begun is None else f" (line {begun.line + 1}, column {begun.column + 1})")
    return f"{place}no valid YAML: " + " ".join(": ".join(filter(None, (context, error.problem))).split())


def _line(part: yaml.Event | yaml.Node) -> int:
    assert part.start_mark is not None
    return part.start_mark.line + 1
