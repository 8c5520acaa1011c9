"""What a data set holds: stored columns, the modalities they compose, labels, and the samples that are written."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import xxhash

from conclugen.common.names import did_you_mean

FLOAT_DTYPES = ("float16", "float32", "float64")
LABEL_KINDS = ("class", "continuous", "multilabel")
MEMBER_NAME_LIMIT = 100  # the ustar name field; longer names need PAX or GNU headers, which break the fixed stride
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+=@,~-]*")
_UNSAFE_IN_KEY = re.compile(r"[^A-Za-z0-9_+=@,~-]")
MAX_COUNTED_CLASSES = 100_000  # of classes that nobody listed: a higher number is a wrong value
_MAX_WIDTH = 1 << 27  # 1 GiB of float64: far above any feature, far below what a ustar size field holds


def check_name(what: str, name: object) -> None:
    """Raise ValueError unless `name` is safe as part of a member or column name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} name {name!r}: expected 1 to 40 of A-Z a-z 0-9 _ -, beginning with a letter or digit; rename it"
        )


def named_by_number(classes: Sequence[str]) -> bool:
    """Whether listed classes are whole numbers by name, such as "1", "2", "3": then a number in the data is the class
    of that name, and not the one at that place of the list. Codes of data sets often begin at 1."""
    return bool(classes) and all(re.fullmatch(r"-?(0|[1-9][0-9]*)", name) is not None for name in classes)


def counted_classes(highest: int) -> tuple[str, ...]:
    """The classes "0", "1", ... up to the highest number found in data that lists none.

    Raises ValueError where they would be more than 100,000: one absurd number must not decide how much memory is used.
    """
    if highest >= MAX_COUNTED_CLASSES:
        raise ValueError(
            f"class number {reprlib.repr(highest)}, expected at most {MAX_COUNTED_CLASSES - 1} where the classes are "
            "not listed; correct the value, number the classes from 0 on, or list their names"
        )
    return tuple(map(str, range(highest + 1)))


@dataclass(frozen=True)
class Column:
    """One stored array: every sample has `width` numbers of `dtype` in the member `<key>.<name>.npy`."""

    name: str
    width: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_name("column", self.name)
        if not isinstance(self.width, int) or isinstance(self.width, bool) or not 0 < self.width <= _MAX_WIDTH:
            raise ValueError(f"column {self.name!r}: width is {self.width!r}, expected an integer in 1..{_MAX_WIDTH}")
        if self.dtype not in FLOAT_DTYPES:
            raise ValueError(f"column {self.name!r}: dtype is {self.dtype!r}, {did_you_mean(self.dtype, FLOAT_DTYPES)}")

    @cached_property
    def numpy_dtype(self) -> np.dtype:
        """Little-endian dtype, as it lies in the file."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's payload."""
        return self.width * self.numpy_dtype.itemsize


@dataclass(frozen=True)
class Label:
    """A label of every sample.

    Attributes:
        name: As `--label` names it.
        kind: `class`: one of the classes, by name or number; `continuous`: `width` floats; `multilabel`: a float for
            each class.
        classes: Names, in the order of their numbers; none of a continuous label.
        width: Floats of a continuous label.
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    width: int = 1

    def __post_init__(self) -> None:
        check_name("label", self.name)
        if self.kind not in LABEL_KINDS:
            raise ValueError(f"label {self.name!r}: kind is {self.kind!r}, {did_you_mean(self.kind, LABEL_KINDS)}")
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.kind == "continuous":
            if self.classes or self.width < 1:
                raise ValueError(f"label {self.name!r}: a continuous label has no classes and a width of at least 1")
            return
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"label {self.name!r}: classes are {self.classes!r}, expected one or more different names")
        expected = len(self.classes) if self.kind == "multilabel" else 1
        if self.kind == "multilabel" and self.width == 1:
            object.__setattr__(self, "width", expected)
        if self.width != expected:
            raise ValueError(f"label {self.name!r}: width is {self.width}, expected {expected} for a {self.kind} label")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's label: () or (width,)."""
        return (self.width,) if self.kind == "multilabel" or self.width > 1 else ()

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(np.int64 if self.kind == "class" else np.float64)

    def encode(self, value: Any) -> int | float | list[float]:
        """The label as stored in an index: class number or float(s); None becomes -1 or NaN.

        Raises ValueError for an unknown class, an out-of-range number or a wrong number of values.
        """
        if self.kind == "class":
            return self._class_number(value)
        try:
            values = np.full(self.width, np.nan) if value is None else np.asarray(value, np.float64).reshape(-1)
        except OverflowError:  # an integer that no float holds
            values = np.array([np.inf])
        if len(values) != self.width or np.isinf(values).any():
            raise ValueError(f"label {self.name!r} is {value!r}, expected {self.width} finite number(s) or NaN")
        return [float(item) for item in values] if self.shape else float(values[0])

    def _class_number(self, value: Any) -> int:
        if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
            return -1
        if isinstance(value, str):
            if value not in self.classes:
                raise ValueError(
                    f"label {self.name!r}: class {value!r} is unknown, {did_you_mean(value, self.classes)}"
                )
            return self.classes.index(value)
        try:
            number = int(value)
        except OverflowError:  # infinity
            number = len(self.classes)
        if number != value or not -1 <= number < len(self.classes):
            raise ValueError(
                f"label {self.name!r}: class {value!r}, expected 0..{len(self.classes) - 1} or -1 (missing)"
            )
        return number

    def to_json(self, encoded: int | float | list[float]) -> Any:
        """The stored label as people and the `webdataset` package read it: the class's name, numbers, null if
        missing."""
        if self.kind == "class":
            return None if encoded == -1 else self.classes[int(encoded)]  # type: ignore[arg-type]
        if isinstance(encoded, list):
            return [None if item != item else item for item in encoded]
        return None if encoded != encoded else encoded

    def from_json(self, value: Any) -> int | float | list[float]:
        """Inverse of `to_json`; raises ValueError for what `encode` refuses."""
        if isinstance(value, list):
            value = [np.nan if item is None else item for item in value]
        return self.encode(value)


@dataclass(frozen=True)
class Schema:
    """Columns in sample order, the modalities composed of them by default, labels, and names of extra string fields.

    `modalities` defaults to one modality for each column. `grouped` says whether samples belong to groups (speakers).
    """

    kind: ClassVar[str] = "features"

    columns: tuple[Column, ...]
    modalities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[Label, ...] = ()
    grouped: bool = False
    meta: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "meta", tuple(self.meta))
        if not self.columns:
            raise ValueError("schema: expected at least one column")
        for what, names in (
            ("column", [column.name.lower() for column in self.columns]),  # `webdataset` lowers the case of extensions
            ("label", [label.name for label in self.labels]),
            ("meta", list(self.meta)),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"schema: {what} {twice[0]!r} is named twice (case is ignored); rename one")
        for name in self.meta:
            check_name("meta", name)
        modalities = self.modalities or {column.name: (column.name,) for column in self.columns}
        object.__setattr__(self, "modalities", self.resolve(modalities))

    def __hash__(self) -> int:
        return hash(self.canonical_json())

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """The column of that name; ValueError with the allowed names otherwise."""
        for column in self.columns:
            if column.name == name:
                return column
        raise ValueError(f"column {name!r} is unknown, {did_you_mean(name, self.column_names)}")

    def label(self, name: str) -> Label:
        """The label of that name; ValueError with the allowed names otherwise."""
        for label in self.labels:
            if label.name == name:
                return label
        raise ValueError(f"label {name!r} is unknown, {did_you_mean(name, [item.name for item in self.labels])}")

    def check_group_column(self, name: str) -> None:
        """ValueError unless rows can be grouped by the index column `name`: `group`, or a string field."""
        known = ["group", *(f"meta.{field}" for field in self.meta)]
        if name not in known:
            raise ValueError(f"column {name!r} is unknown, {did_you_mean(name, known)}")

    def resolve(self, modalities: Mapping[str, Sequence[str]] | Sequence[str] | None) -> dict[str, tuple[str, ...]]:
        """Modality -> columns: None is the default composition, a sequence selects from it, a mapping composes it
        again."""
        if modalities is None:
            return dict(self.modalities)
        if isinstance(modalities, str):
            raise ValueError(f"modalities is the string {modalities!r}, expected a sequence of names or a mapping")
        if not isinstance(modalities, Mapping):
            for name in modalities:
                if name not in self.modalities:
                    raise ValueError(f"modality {name!r} is unknown, {did_you_mean(name, self.modalities)}")
            return {name: self.modalities[name] for name in modalities}
        resolved = {}
        for name, members in modalities.items():
            check_name("modality", name)
            members = (members,) if isinstance(members, str) else tuple(members)
            if not members or len(set(members)) != len(members):
                raise ValueError(f"modality {name!r}: columns are {members!r}, expected one or more different names")
            for member in members:
                self.column(member)
            resolved[name] = members
        return resolved

    def to_dict(self) -> dict[str, Any]:
        return {
            "columns": [{"name": c.name, "width": c.width, "dtype": c.dtype} for c in self.columns],
            "modalities": {name: list(members) for name, members in self.modalities.items()},
            "labels": [
                {"name": x.name, "kind": x.kind, "classes": list(x.classes), "width": x.width} for x in self.labels
            ],
            "grouped": self.grouped,
            "meta": list(self.meta),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schema:
        """Strict inverse of `to_dict`; ValueError names the field that is missing, unknown or wrong."""
        _expect_fields("schema", data, ("columns", "modalities", "labels", "grouped", "meta"))
        for name in ("columns", "labels", "meta"):
            if not isinstance(data[name], list):
                raise ValueError(f"schema: {name} is {data[name]!r}, expected a list")
        for item in data["columns"]:
            _expect_fields("column", item, ("name", "width", "dtype"))
        for item in data["labels"]:
            _expect_fields("label", item, ("name", "kind", "classes", "width"))
        if not isinstance(data["modalities"], Mapping) or not isinstance(data["grouped"], bool):
            raise ValueError("schema: expected modalities as a mapping and grouped as true or false")
        return cls(
            columns=tuple(Column(**item) for item in data["columns"]),
            modalities={name: tuple(members) for name, members in data["modalities"].items()},
            labels=tuple(Label(**item) for item in data["labels"]),
            grouped=data["grouped"],
            meta=tuple(data["meta"]),
        )

    def canonical_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


def _expect_fields(what: str, data: Any, names: tuple[str, ...]) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} is {data!r}, expected a mapping with the fields {', '.join(names)}")
    for name in data:
        if name not in names:
            raise ValueError(f"{what}: field {name!r} is unknown, {did_you_mean(name, names)}")
    for name in names:
        if name not in data:
            raise ValueError(f"{what}: field {name!r} is missing")


@dataclass(frozen=True)
class Sample:
    """One sample to be written. A column that is None, absent or all NaN is a missing one.

    columns: name -> (width,) numbers; labels: name -> class name or number, float(s), or None; original: the name the
    sample has elsewhere (the key, if not given); meta: name -> string.
    """

    key: str
    columns: Mapping[str, np.ndarray | None]
    labels: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    text: str | None = None
    original: str | None = None
    meta: Mapping[str, str | None] = field(default_factory=dict)


def key_limit(columns: Iterable[str]) -> int:
    """Longest key whose longest member name `<key>.<column>.npy` still fits a ustar header."""
    return MEMBER_NAME_LIMIT - max(len(name) for name in columns) - len("..npy")


CLIP_KEY_LIMIT = 64  # what feature shards of the clips can name with columns of up to 30 characters


def safe_key(key: str, limit: int) -> str:
    """`key` itself if it is safe and short enough, else a safe name with a short hash of the original.

    Dots are unsafe: `webdataset` cuts a member's name at its first dot, and so would merge `x.y` with `x.z`.
    """
    if _KEY.fullmatch(key) and len(key) <= limit:
        return key
    digest = xxhash.xxh3_64_hexdigest(key.encode("utf-8", "surrogatepass"))[:12]
    stem = _UNSAFE_IN_KEY.sub("_", key).lstrip("+=@,~-")[: limit - len(digest) - 1]
    return f"{stem}-{digest}" if stem else f"x-{digest}"
