"""Labels, groups and texts of a data set to be packed: from arrays or table columns to what samples carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.schema import LABEL_KINDS, Label, counted_classes, did_you_mean


@dataclass(frozen=True)
class LabelSpec:
    """A label to be packed. fields: where its values are (several for several numbers); classes: their names, or
    `names_from`: the array that lists them; with neither they are found in the data."""

    name: str
    fields: tuple[str, ...]
    kind: str
    classes: tuple[str, ...] = ()
    names_from: str | None = None

    @classmethod
    def parse(cls, text: str) -> LabelSpec:
        """NAME[=FIELD[,FIELD]]:KIND[:CLASS,CLASS | :names=FIELD]; ValueError otherwise."""
        head, _, rest = text.partition(":")
        kind, _, classes = rest.partition(":")
        name, _, fields = head.partition("=")
        if kind not in LABEL_KINDS:
            raise ValueError(f"--label {text!r}: kind is {kind!r}, {did_you_mean(kind, LABEL_KINDS)}")
        if kind == "continuous" and classes:
            raise ValueError(f"--label {text!r}: a continuous label has no classes")
        names_from = classes.removeprefix("names=") if classes.startswith("names=") else None
        listed = () if names_from or not classes else tuple(classes.split(","))
        return cls(name, tuple(fields.split(",")) if fields else (name,), kind, listed, names_from)


@dataclass(frozen=True)
class LabelValues:
    """A label and its encoded value for each of the n samples, as `Label.encode` gives them."""

    label: Label
    values: list[Any]


def read_label(
    spec: LabelSpec, field: Callable[[str], np.ndarray], constants: Callable[[str], np.ndarray], allow_empty_class: bool
) -> LabelValues:
    """Find classes and encode all values. Raises ValueError for values that don't fit, for a class that no sample has
    (unless allowed), and for a class label of a single class."""
    arrays = [field(name) for name in spec.fields]
    if spec.kind != "class":
        return _numbers(spec, np.concatenate([_floats(spec, a).reshape(len(a), -1) for a in arrays], axis=1), constants)
    if len(arrays) != 1 or arrays[0].ndim != 1:
        raise ValueError(f"label {spec.name!r}: a class label has one value for each sample")
    raw = [_plain(value) for value in arrays[0].tolist()]
    known = [value for value in raw if value is not None and value != -1]
    if not known:
        raise ValueError(f"label {spec.name!r}: no sample has one")
    classes = _named(spec, constants)
    numeric = all(_is_integer(value) for value in known)
    if not classes:
        classes = _counted(spec, raw) if numeric else tuple(sorted({str(value) for value in known}))
    label = Label(spec.name, "class", classes)
    # Text such as "3" is a class number, unless "3" is a class's name.
    by_number = numeric and not all(str(value) in classes for value in known if isinstance(value, str))
    values: list[Any] = []
    for number, value in enumerate(raw):
        if value is not None and (by_number or not isinstance(value, str)):
            value = int(value) if _is_integer(value) else value
        try:
            values.append(label.encode(value))
        except (ValueError, TypeError) as error:
            raise ValueError(f"sample number {number}: {error}") from None
    counts = np.bincount([value for value in values if value >= 0], minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if np.count_nonzero(counts) < 2:
        only = classes[int(counts.argmax())]
        raise ValueError(f"label {spec.name!r}: all samples are of the class {only!r}; leave the label out")
    if empty and not allow_empty_class:
        raise ValueError(
            f"label {spec.name!r}: no sample is of the class {empty[0]!r}; leave the class out, or say "
            "--allow-empty-class if other data has it"
        )
    return LabelValues(label, values)


def _counted(spec: LabelSpec, raw: Sequence[Any]) -> tuple[str, ...]:
    numbers = [-1 if value is None else int(value) for value in raw]
    highest = max(numbers)
    try:
        return counted_classes(highest)
    except ValueError as error:
        raise ValueError(f"label {spec.name!r}: sample number {numbers.index(highest)}: {error}") from None


def _numbers(spec: LabelSpec, values: np.ndarray, constants: Callable[[str], np.ndarray]) -> LabelValues:
    if np.isinf(values).any():
        raise ValueError(f"label {spec.name!r}: sample number {int(np.isinf(values).any(axis=1).argmax())} is infinite")
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
    return spec.classes if spec.names_from is None else tuple(str(name) for name in constants(spec.names_from))


def _floats(spec: LabelSpec, array: np.ndarray) -> np.ndarray:
    """Numbers, with empty text and None as NaN."""
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    try:
        return np.array([np.nan if value in (None, "") else float(value) for value in array.tolist()], np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"label {spec.name!r}: not a number: {error}") from None


def _plain(value: Any) -> Any:
    """None for what means missing: None, empty text, NaN."""
    return None if value is None or value == "" or value != value else value


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        # Longer digits are a name: no class has such a number, and `int` refuses the longest.
        return value.removeprefix("-").isdecimal() and len(value) < 20
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def read_strings(what: str, values: np.ndarray) -> Sequence[str | None]:
    """Names of groups, texts and the like: text as it is, whole numbers as text, None where empty or NaN."""
    strings: list[str | None] = []
    for number, value in enumerate(map(_plain, values.tolist())):
        if value is None or isinstance(value, str):
            strings.append(value)
        elif _is_integer(value):
            strings.append(str(int(value)))
        else:
            raise ValueError(f"{what}: sample number {number} is {value!r}, expected text or a whole number")
    return strings
