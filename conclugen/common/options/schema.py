"""Frozen dataclasses as schemas: their fields, what each one means, and plain data turned into objects and back.

A field is documented in its class's docstring, one entry for each:

    @dataclass(frozen=True)
    class DataConfig:
        \"\"\"The shards of a job.

        Attributes:
            folder: Folder or URL of the shards.
            rows: Rows to read at most; none: all.
        \"\"\"

        folder: str
        rows: int | None = None

A renamed field keeps its former name, `field(default=..., metadata={"was": "max_rows"})`, for files and command
lines of earlier versions.

Fields hold plain data (text, numbers, true or false, choices, paths, lists, mappings) or another dataclass. A type that
could name code (a class, a callable, Any) is refused, so that nothing which a configuration says is ever imported.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from conclugen.common import uris
from conclugen.common.names import nearest
from conclugen.common.options.words import OptionsError, Word

T = TypeVar("T")
REQUIRED = dataclasses.MISSING
UNSET = "???"  # in a template: a field that must be given
_NOTHING = ("none", "null")
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_METAVARS = {
    **dict.fromkeys(("run", "name", "view", "label", "preset", "recipe"), "NAME"),
    **dict.fromkeys(("data", "folder", "output", "embeddings", "source"), "FOLDER"),
    **dict.fromkeys(("files", "table", "json", "plot"), "FILE"),
}
_EXPECTED: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "a path",
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field that takes a value: dotted name, type, default (REQUIRED where there is none), description."""

    name: str
    hint: Any
    default: Any
    help: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether each occurrence on the command line is one item, of which commas are a part."""
        return bool(self.metadata.get("whole"))

    @property
    def unless(self) -> str | None:
        """Dotted name of the field that may be given in its place; without either one is missing."""
        other = self.metadata.get("unless")
        return None if other is None else ".".join([*self.name.split(".")[:-1], other])

    @property
    def line_only(self) -> bool:
        """Whether the field is given on the command line alone: what it names is imported, which no file may ask."""
        return bool(self.metadata.get("line_only"))

    @property
    def was(self) -> str | None:
        """Dotted name that the field had in an earlier version."""
        former = self.metadata.get("was")
        return None if former is None else ".".join([*self.name.split(".")[:-1], former])

    @property
    def metavar(self) -> str:
        """The placeholder of the value in `--help`."""
        return _METAVARS.get(self.name.rpartition(".")[2]) or _metavar(self.hint)


def leaves(cls: type, prefix: str = "", base: Any = None) -> Iterator[Leaf]:
    """The leaves of a dataclass and of those nested in it, in order, with the defaults that `base` has, or else the
    fields. TypeError: a field that is not plain data."""
    documented = documentation(cls)
    for field in dataclasses.fields(cls):
        hint, name = hints(cls)[field.name], f"{prefix}{field.name}"
        inner = dataclass_of(hint)
        default = default_of(field) if base is None else getattr(base, field.name)
        if inner is not None:
            yield from leaves(inner, f"{name}.", default if isinstance(default, inner) else None)
        else:
            _check_plain(cls, field.name, hint)
            if "unless" in field.metadata and base is None:
                default = REQUIRED
            yield Leaf(name, hint, default, documented.get(field.name, ""), field.metadata)


def groups(cls: type, prefix: str = "") -> Iterator[tuple[str, type, bool]]:
    """(dotted name, dataclass, whether it may be none) of each nested dataclass."""
    for name, hint in hints(cls).items():
        inner = dataclass_of(hint)
        if inner is not None:
            yield f"{prefix}{name}", inner, type(None) in typing.get_args(hint)
            yield from groups(inner, f"{prefix}{name}.")


@functools.cache
def hints(cls: Any) -> dict[str, Any]:
    """Field -> type, resolved."""
    found = typing.get_type_hints(cls)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not REQUIRED else field.default


def dataclass_of(hint: Any) -> type | None:
    """The dataclass of a field that is one, or may be none instead."""
    options = [option for option in _options(hint) if option is not type(None)]
    only = options[0] if len(options) == 1 else None
    return only if _is_dataclass(only) else None


def documentation(cls: type) -> dict[str, str]:
    """Field -> description, from the section `Attributes:` of the class and of the dataclasses that it extends."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = re.search(r"^( *)Attributes:\n((?:\1 +.*\n?|[ \t]*\n)*)", base.__dict__.get("__doc__") or "", re.M)
        for entry in re.split(r"\n(?=    \w+:)", _dedented(section[2])) if section else ():
            name, _, text = entry.strip().partition(":")
            found[name] = " ".join(text.split())
    return found


def to_plain(value: Any) -> Any:
    """Nested dicts, lists and scalars of a configuration, as JSON and YAML hold them; by its own `to_dict`, if any."""
    if _is_dataclass(type(value)) and hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def build(cls: type[T], data: Any, base: T | None = None, path: str = "") -> T:
    """A `cls` from plain data laid over `base`, or over the defaults of its fields.

    A mapping given for a nested dataclass changes only the fields that it names.

    Raises OptionsError naming the field: unknown, missing, or of a wrong type; and what the dataclasses raise.
    """
    if not isinstance(data, Mapping):
        raise OptionsError(f"{path or cls.__name__}: expected a mapping of fields, got {data!r}")
    types_ = hints(cls)  # type: ignore[arg-type]
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # a dataclass, which T can't say
        former = field.metadata.get("was")
        if former in data:
            if field.name in data:
                raise OptionsError(f"{_join(path, field.name)}: also given by its former name {former!r}; give one")
            data = {field.name if name == former else name: value for name, value in data.items()}
    for name in data:
        if name not in types_:
            raise OptionsError(
                f"unknown field {_join(path, str(name))!r}{nearest(name, types_)}; {cls.__name__} has: "
                f"{', '.join(types_)}"
            )
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        dotted, given = _join(path, field.name), data.get(field.name, REQUIRED)
        current = default_of(field) if base is None else getattr(base, field.name)
        inner = dataclass_of(types_[field.name])
        if inner is not None and (isinstance(given, Mapping) or (given is REQUIRED and current is REQUIRED)):
            under = current if isinstance(current, inner) else None
            values[field.name] = build(inner, {} if given is REQUIRED else given, under, dotted)
        elif given is not REQUIRED and not (isinstance(given, str) and given == UNSET):
            values[field.name] = convert(types_[field.name], given, dotted)
        elif current is REQUIRED:
            raise OptionsError(f"{dotted}: missing")
        else:
            values[field.name] = current
    for name, value in values.items():
        refuse_secrets(_join(path, name), value)
    return cls(**values)


def refuse_secrets(path: str, value: Any) -> None:
    """Raise OptionsError, without the secret, where any text of a value is an address that holds one.

    All fields of all jobs go through here, whatever they are called: what a job is given is stored with its results.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_secrets(path, key)
            refuse_secrets(_join(path, uris.public(str(key))), item)
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_secrets(path, item)
    elif isinstance(value, str | Path):
        try:
            uris.check(path, str(value))
        except ValueError as error:
            raise OptionsError(str(error)) from None


def convert(hint: Any, value: Any, path: str) -> Any:
    """A plain value, or a word of a command line, as the type of its field. Raises OptionsError naming the field."""
    options = _options(hint)
    if type(None) in options and (value is None or (isinstance(value, Word) and value.lower() in _NOTHING)):
        return None
    # Of `bool | int` the first that fits; text fits every word, so it comes last.
    options = sorted((option for option in options if option is not type(None)), key=lambda option: option is str)
    if type(value) in options:
        return value
    for option in options[:-1]:
        try:
            return convert(option, value, path)
        except OptionsError:
            continue
    hint = options[-1]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Path and value == "":  # `Path` takes it for the working folder
        raise OptionsError(f"{path}: must name a file or folder, got ''")
    if isinstance(value, Word):
        value = _word_as(hint, value, path)
        if isinstance(value, Word):
            raise OptionsError(f"{path}: must be {expected(hint)}, got {value!r}")
    if _is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, None, path)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[arguments.index(value)], bool):
            names = ", ".join(str(argument) for argument in arguments)
            raise OptionsError(f"{path}: must be one of {names}, got {value!r}{nearest(value, arguments)}")
        return value
    if origin in (list, tuple) and isinstance(value, list | tuple):
        repeated = origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis)
        if repeated or len(value) == len(arguments):
            each = [arguments[0]] * len(value) if repeated else arguments
            return origin(convert(h, item, path) for h, item in zip(each, value, strict=True))
    elif origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if isinstance(value, Mapping):
            return {str(key): convert(arguments[1], item, _join(path, str(key))) for key, item in value.items()}
    elif hint is Path and isinstance(value, str | Path):
        return Path(value)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise OptionsError(f"{path}: must be {expected(hint)}, got {value!r}")


def expected(hint: Any) -> str:
    """What a value of this type is, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    options = [option for option in _options(hint) if option is not type(None)]
    if len(options) > 1 or options[0] is not hint:
        return " or ".join(dict.fromkeys(map(expected, options)))
    if origin in (list, tuple):
        inner = dict.fromkeys(expected(argument) for argument in arguments if argument is not Ellipsis)
        return f"a list ({' and '.join(inner)})"
    if origin is not None and origin is not Literal:
        return "a mapping, such as name=value"
    return _EXPECTED.get(hint, "one of the names that are allowed")


def _metavar(hint: Any) -> str:
    options = [option for option in _options(hint) if option is not type(None)]
    if len(options) > 1:
        return "|".join(map(_metavar, options))
    hint, arguments = options[0], typing.get_args(options[0])
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(str(argument) for argument in arguments) + "}"
    if is_list(hint):
        return f"{_metavar(arguments[0])},..."
    if is_mapping(hint):
        return f"NAME={_metavar(arguments[1])}"
    return {int: "N", float: "X", Path: "PATH", bool: "true|false"}.get(hint, "TEXT")


def is_list(hint: Any) -> bool:
    return any(typing.get_origin(option) in (list, tuple) for option in _options(hint))


def is_mapping(hint: Any) -> bool:
    return any(typing.get_origin(option) in (dict, Mapping) for option in _options(hint))


def is_switch(hint: Any) -> bool:
    """Whether the bare flag means true."""
    return bool in _options(hint)


def pairs(hint: Any, word: str) -> dict[str, Word] | Word:
    """`a=1,b=2,3` as {"a": "1", "b": "2,3"}; of text a name alone stands for itself. The word, where it is not
    pairs."""
    mapping = next(option for option in _options(hint) if is_mapping(option))
    found = {}
    # A comma parts pairs where a name follows it; others belong to the value before them.
    for part in re.split(r",(?=[^,=\[\]{}]+=)" if "=" in word else ",", word):
        name, equals, value = part.partition("=")
        if not equals and typing.get_args(mapping)[1] is not str:
            return Word(word)
        if name.strip() in found:
            raise OptionsError(f"{word!r}: {name.strip()!r} is named twice; name it once")
        found[name.strip()] = Word(value.strip() if equals else name.strip())
    return found


def _word_as(hint: Any, word: Word, path: str) -> Any:
    """A word as plain data of the type that its field has; the word itself where it is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        named = {str(argument).lower(): argument for argument in arguments}
        return named.get(word.lower(), str(word))
    if word[:1] + word[-1:] in ("[]", "{}") and (origin is not None or _is_dataclass(hint)):
        from conclugen.common.options import strict_yaml

        return strict_yaml.words(word, path)
    if origin in (list, tuple):
        return [Word(part.strip()) for part in word.split(",")] if word.strip() else []
    if origin is not None:
        refuse_secrets(path, str(word))  # before what tells that it is one may be parted from it
        return pairs(hint, word)
    if hint is bool:
        return _BOOLEANS.get(word.lower(), str(word))
    if hint in (int, float):
        try:  # YAML writes infinity as .inf
            return str(word) if "_" in word else hint(re.sub(r"^([-+]?)\.(?=[a-zA-Z])", r"\1", word))
        except ValueError:
            return str(word)
    return str(word)


def _options(hint: Any) -> Sequence[Any]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _check_plain(cls: type, name: str, hint: Any) -> None:
    for option in _options(hint):
        if typing.get_origin(option) in (dict, list, tuple, Mapping):
            for argument in typing.get_args(option):
                if argument is not Ellipsis:
                    _check_plain(cls, name, argument)
        elif not (option in (*_EXPECTED, type(None)) or typing.get_origin(option) is Literal or _is_dataclass(option)):
            raise TypeError(f"{cls.__name__}.{name}: {hint} is not plain data; use numbers, text, lists or mappings")


def _is_dataclass(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _dedented(text: str) -> str:
    """Lines of a section with the entries' names at column 4."""
    first = re.search(r"^( *)\S", text, re.M)
    width = len(first[1]) if first else 0
    return "\n" + "\n".join("    " + line[width:] if line.strip() else "" for line in text.splitlines())


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
