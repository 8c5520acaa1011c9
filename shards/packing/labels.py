"""Labels, groups and texts of a data set to be packed: from arrays or table columns to what samples carry."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conclugen.common.names import did_you_mean
from shards import names
from shards.format.schema import LABEL_KINDS, Label, counted_classes, named_by_number

_MOST_SHOWN = 400  # characters of a list of classes


@dataclass(frozen=True)
class LabelSpec:
    """A label to be packed. fields: where its values are (several for several numbers); kind: "" where the values say
    it; classes: their names, or `names_from`: the array that lists them; with neither they are found in the data."""

    name: str
    fields: tuple[str, ...]
    kind: str
    classes: tuple[str, ...] = ()
    names_from: str | None = None

    @classmethod
    def parse(cls, text: str) -> LabelSpec:
        """NAME[=FIELD[,FIELD]][:KIND[:CLASS,CLASS | :names=FIELD]]; ValueError otherwise."""
        head, given, rest = text.partition(":")
        kind, _, classes = rest.partition(":")
        name, _, fields = head.partition("=")
        if given and kind not in LABEL_KINDS:
            raise ValueError(f"--label {text!r}: kind is {kind!r}, {did_you_mean(kind, LABEL_KINDS)}")
        if kind == "continuous" and classes:
            raise ValueError(f"--label {text!r}: a continuous label has no classes")
        names_from = classes.removeprefix("names=") if classes.startswith("names=") else None
        listed = () if names_from or not classes else tuple(classes.split(","))
        return cls(name, tuple(fields.split(",")) if fields else (name,), kind, listed, names_from)

    @property
    def option(self) -> str:
        """As it is given, but for the classes."""
        fields = "" if self.fields == (self.name,) else f"={','.join(self.fields)}"
        return f"{self.name}{fields}:{self.kind}".removesuffix(":")

    def of_kind(self, kind: str) -> LabelSpec:
        """The same of a kind that was not given."""
        return replace(self, kind=kind)


@dataclass(frozen=True)
class LabelValues:
    """A label and its encoded value for each of the n samples, as `Label.encode` gives them."""

    label: Label
    values: list[Any]


def sample_number(number: int) -> str:
    """How a message names a sample that has no better name than its number in the source."""
    return f"sample number {number}"


def read_label(
    spec: LabelSpec,
    field: Callable[[str], np.ndarray],
    constants: Callable[[str], np.ndarray],
    allow_empty_class: bool,
    place: Callable[[int], str] = sample_number,
) -> LabelValues:
    """Find classes and encode all values, read as `shards.names` says. place: what a message calls a sample. Raises
    ValueError for values that don't fit, for a class that no sample has (unless allowed), and for a class label of a
    single class."""
    arrays = [field(name) for name in spec.fields]
    if not spec.kind:
        spec = spec.of_kind(_kind_of(spec, arrays))
    if spec.kind != "class":
        numbers = [_floats(spec, array, place).reshape(len(array), -1) for array in arrays]
        return _numbers(spec, np.concatenate(numbers, axis=1), constants, place)
    if len(arrays) != 1 or arrays[0].ndim != 1:
        raise ValueError(f"label {spec.name!r}: a class label has one value for each sample")
    raw = [_class_value(spec, place, number, value) for number, value in enumerate(arrays[0].tolist())]
    known = [value for value in raw if value is not None and value != -1]
    if not known:
        raise ValueError(f"label {spec.name!r}: no sample has one")
    classes = _named(spec, constants)
    # Whole numbers are class numbers, unless they are names: those of the listed classes, or some beside text.
    numeric, listed = all(not isinstance(value, str) for value in known), bool(classes)
    named = named_by_number(classes) or (
        listed and all(str(value) in classes for value in known) and _as_text(arrays[0])
    )
    by_number = numeric and not named
    if not classes:
        classes = _counted(spec, raw, place) if numeric else tuple(sorted({str(value) for value in known}))
    label = Label(spec.name, "class", classes)
    values: list[Any] = []
    for number, value in enumerate(raw):
        if not by_number and value is not None and (value != -1 or "-1" in classes):
            value = str(value)
        try:
            values.append(label.encode(value))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place(number)}: {error}") from None
    counts = np.bincount([value for value in values if value >= 0], minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if np.count_nonzero(counts) < 2:
        only = classes[int(counts.argmax())]
        raise ValueError(f"label {spec.name!r}: all samples are of the class {only!r}; leave the label out")
    if empty and not allow_empty_class:
        there = ",".join(name for name, count in zip(classes, counts, strict=True) if count)
        raise ValueError(
            f"label {spec.name!r}: no sample is of the class {empty[0]!r}; "
            + (
                f"leave the class out: --label {spec.option}:{there}"
                if len(there) <= _MOST_SHOWN and (not by_number or not listed)
                else "leave the class out"
            )
            + ", or say --allow-empty-class if other data has it"
        )
    return LabelValues(label, values)


def _kind_of(spec: LabelSpec, arrays: Sequence[np.ndarray]) -> str:
    """What the values say: text is a class, a number with a fraction is continuous. Raises ValueError for whole
    numbers, which are the names of classes as often as they are ratings."""
    whole = True
    for value in itertools.chain.from_iterable(array.reshape(-1).tolist() for array in arrays):
        value = names.plain(value)
        try:
            number = names.number(value)
        except ValueError:
            return "class"
        if isinstance(value, bool):
            return "class"
        whole = whole and (np.isnan(number) or float(number).is_integer())
    if whole:
        raise ValueError(
            f"label {spec.name!r}: its values are whole numbers; say whether they are classes or amounts: "
            f"--label {spec.option}:class or --label {spec.option}:continuous"
        )
    return "continuous"


def _class_value(spec: LabelSpec, place: Callable[[int], str], number: int, value: Any) -> Any:
    try:
        return names.class_value(value)
    except ValueError as error:
        raise ValueError(f"label {spec.name!r}: {place(number)} is {error}") from None


def _as_text(array: np.ndarray) -> bool:
    """Whether the source holds the values as text: then "3" may be a class's name, and else its number."""
    return array.dtype.kind in "USO" and any(isinstance(names.plain(value), str) for value in array.tolist())


def _counted(spec: LabelSpec, raw: Sequence[Any], place: Callable[[int], str]) -> tuple[str, ...]:
    highest = max(value for value in raw if value is not None)
    try:
        return counted_classes(highest)
    except ValueError as error:
        raise ValueError(f"label {spec.name!r}: {place(raw.index(highest))}: {error}") from None


def _numbers(
    spec: LabelSpec, values: np.ndarray, constants: Callable[[str], np.ndarray], place: Callable[[int], str]
) -> LabelValues:
    if np.isinf(values).any():
        raise ValueError(f"label {spec.name!r}: {place(int(np.isinf(values).any(axis=1).argmax()))} is infinite")
    if np.isnan(values).all():
        raise ValueError(f"label {spec.name!r}: no sample has one")
    if spec.kind == "multilabel":
        classes = _named(spec, constants) or (spec.fields if len(spec.fields) > 1 else ())
        if len(classes) != values.shape[1]:
            raise ValueError(f"label {spec.name!r}: {values.shape[1]} numbers a sample, but {len(classes)} classes")
        label = Label(spec.name, "multilabel", classes)
    else:
        label = Label(spec.name, "continuous", width=values.shape[1])
    return LabelValues(label, [label.encode(row) for row in values])


def _named(spec: LabelSpec, constants: Callable[[str], np.ndarray]) -> tuple[str, ...]:
    return (
        spec.classes
        if spec.names_from is None
        else tuple(names.name(name) or "" for name in constants(spec.names_from))
    )


def _floats(spec: LabelSpec, array: np.ndarray, place: Callable[[int], str]) -> np.ndarray:
    """Numbers, NaN where missing."""
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    numbers = np.empty(len(array), np.float64)
    for number, value in enumerate(array.tolist()):
        try:
            numbers[number] = names.number(value)
        except ValueError as error:
            raise ValueError(f"label {spec.name!r}: not a number: {place(number)} is {error}") from None
    return numbers


def read_strings(
    what: str,
    values: np.ndarray,
    read: Callable[[Any], str | None] = names.name,
    place: Callable[[int], str] = sample_number,
) -> Sequence[str | None]:
    """Keys, groups, texts and the like, None where missing; `read` is `names.name` or `names.text`."""
    strings: list[str | None] = []
    for number, value in enumerate(values.tolist()):
        try:
            strings.append(read(value))
        except ValueError as error:
            raise ValueError(f"{what}: {place(number)} is {error}") from None
    return strings
