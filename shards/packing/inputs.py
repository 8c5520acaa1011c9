"""What is to be packed, read and checked completely before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from shards import names
from shards.access import LOCAL_RESULT, LOCAL_SOURCE, refuse_url
from shards.doubts import Samples, classes_of
from shards.format.schema import FLOAT_DTYPES, Column, Sample, Schema
from shards.packing.columns import Column2D, Source
from shards.packing.labels import LabelSpec, LabelValues, read_label, read_strings, sample_number
from shards.packing.pooling import Pooling
from shards.packing.sample_table import SampleTable
from shards.packing.source import open_source
from shards.planning.split import check_values_as_names

_T = TypeVar("_T")
_P = ParamSpec("_P")
_CHECK_ROWS = 4096
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class PackOptions:
    """What to pack. columns: stored name -> array. dtype: None keeps the source's float type (integers: float32).
    nan: how many NaN make a row missing, "all" (a row with fewer is refused) or "any". shuffle_seed: None keeps order.
    encoding: of the table's text, where the file has no mark (None: UTF-8).
    pooling: of sequences; csv_columns: patterns of the columns of per-clip CSV files that are features (none: all).
    view_by: a field of `meta` whose values are to name views; they are made from the manifest, afterwards.
    """

    source: Path
    out: Path
    columns: Mapping[str, str]
    modalities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Sequence[LabelSpec] = ()
    key: str | None = None
    group: str | None = None
    text: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    table: Path | None = None
    table_key: str | None = None
    encoding: str | None = None
    dtype: str | None = None
    nan: str = "all"
    shuffle_seed: int | None = 0
    max_shard_bytes: int = 256 * 1024**2
    overwrite: bool = False
    allow_empty_class: bool = False
    view_by: str | None = None
    pooling: Pooling = field(default_factory=Pooling)
    csv_columns: tuple[str, ...] = ()


@dataclass
class PackInput:
    """A checked data set: n samples by number."""

    count: int
    schema: Schema
    columns: dict[str, Column2D]
    present: dict[str, np.ndarray]
    keys: Sequence[str]
    labels: list[LabelValues]
    groups: Sequence[str | None] | None
    texts: Sequence[str | None] | None
    meta: dict[str, Sequence[str | None]]
    table: SampleTable | None = None
    parts: Sequence[str | None] | None = None

    def sample(self, number: int) -> Sample:
        return Sample(
            self.keys[number],
            {name: column.row(number) if self.present[name][number] else None for name, column in self.columns.items()},
            {values.label.name: values.values[number] for values in self.labels},
            None if self.groups is None else self.groups[number],
            None if self.texts is None else self.texts[number],
            None,
            {name: values[number] for name, values in self.meta.items()},
        )

    def samples(self) -> Samples:
        """Labels, speakers, parts (of the views to be made, or the field `split`) and texts, for doubts."""
        return Samples(
            self.count,
            [item.label for item in self.labels],
            {item.label.name: classes_of(item.label, item.values) for item in self.labels if item.label.classes},
            self.groups,
            self.parts,
            None if self.texts is None else sum(text is not None for text in self.texts),
        )

    def lines(self) -> list[str]:
        """What was understood, in words."""
        lines = [f"{self.count} samples"]
        for column in self.schema.columns:
            there = int(self.present[column.name].sum())
            missing = f", {self.count - there} missing" if there < self.count else ""
            lines.append(f"column {column.name}: {column.width} x {column.dtype}{missing}")
        return lines + ([] if self.table is None else self.table.lines()) + self.samples().lines()

    def doubts(self) -> list[str]:
        """What may be meant otherwise."""
        return ([] if self.table is None else self.table.doubts()) + self.samples().doubts()


def read_input(options: PackOptions) -> PackInput:
    """Read and check everything but the numbers of each sample's final encoding; ValueError lists all that is wrong."""
    refuse_url("--source", options.source, LOCAL_SOURCE)
    refuse_url("--table", options.table, LOCAL_SOURCE)
    refuse_url("--out", options.out, LOCAL_RESULT)
    return _InputCheck(options).run()


class _InputCheck:
    """Collects problems, and stops after each stage that later ones build upon."""

    def __init__(self, options: PackOptions) -> None:
        self._options = options
        self._problems: list[str] = []
        self._source: Source = open_source(options.source, options.pooling, options.csv_columns)
        self._table: SampleTable | None = None
        self._count = 0

    def run(self) -> PackInput:
        options = self._options
        columns = self._columns()
        keys = self._keys(self._key_values())
        self._stop_at_problems()
        groups = self._strings("--group", options.group)
        texts = self._strings("--text", options.text, names.text)
        meta = {name: self._strings("--meta", where, names.text) or () for name, where in options.meta.items()}
        if options.view_by is not None:
            self._attempt(self._check_views, options.view_by, meta)
        labels = [self._attempt(self._label, spec) for spec in options.labels]
        present = {name: self._attempt(_presence, name, column, keys, options) for name, column in columns.items()}
        self._problems += self._repeated(keys)
        self._stop_at_problems()
        known = [values for values in labels if values is not None]
        schema = self._attempt(self._schema, columns, known)
        self._stop_at_problems()
        assert schema is not None
        there = {name: mask for name, mask in present.items() if mask is not None}
        for modality, members in schema.modalities.items():
            if not np.logical_and.reduce([there[name] for name in members]).any():
                listed = ", ".join(members)
                self._problems.append(f"modality {modality!r}: no sample has all of its columns {listed}; leave it out")
        self._stop_at_problems()
        parts = meta.get(options.view_by or "split")
        return PackInput(self._count, schema, columns, there, keys, known, groups, texts, meta, self._table, parts)

    def _attempt(self, read: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return read(*args, **kwargs)
        except ValueError as error:
            self._problems.append(str(error))
            return None

    def _stop_at_problems(self) -> None:
        if not self._problems:
            return
        shown = self._problems[:_SHOWN_PROBLEMS]
        hidden = len(self._problems) - len(shown)
        more = f"\n  and {hidden} more" if hidden else ""
        raise ValueError(f"{self._options.source} was not packed:\n  " + "\n  ".join(shown) + more)

    def _columns(self) -> dict[str, Column2D]:
        if not self._options.columns:
            known = ", ".join(self._source.names)
            raise ValueError(f"name the columns to store with --column; {self._options.source.name} has: {known}")
        columns: dict[str, Column2D] = {}
        for name, array in self._options.columns.items():
            column = self._attempt(self._source.column, array)
            if column is not None:
                columns[name] = column
        self._stop_at_problems()
        first, self._count = next((name, column.count) for name, column in columns.items())
        for name, column in columns.items():
            if column.count != self._count:
                self._problems.append(
                    f"column {name!r} has {column.count} rows, but column {first!r} has {self._count}"
                )
        self._stop_at_problems()
        return columns

    def _key_values(self) -> np.ndarray | None:
        """Keys of the samples, if they have any; opens the table, which may hold them, or be joined by them."""
        options, keys = self._options, self._source.keys
        if options.table is not None and options.table_key is None:
            if keys is not None:
                raise ValueError("a folder of one file a sample needs --table-key, the table's column of their names")
            self._table = self._attempt(SampleTable, options.table, None, None, options.encoding)
        if options.key is not None:
            keys = self._attempt(self._field, options.key)
        if options.table is not None and options.table_key is not None:
            self._table = self._attempt(SampleTable, options.table, options.table_key, keys, options.encoding)
        return keys

    def _field(self, name: str) -> np.ndarray:
        """(n,) values of a column of the table or an array of the source."""
        if self._table is not None and name in self._table.names:
            return self._of_all(name, self._table.field(name))
        try:
            values = self._source.field(name)
        except ValueError as error:
            also = f"; {self._options.table} has: {', '.join(self._table.names)}" if self._table else ""
            raise ValueError(f"{error}{also}") from None
        return self._of_all(name, values)

    def _label_field(self, name: str) -> np.ndarray:
        """(n,) values, or (n, L) from an array of several numbers for each sample."""
        if self._table is None or name not in self._table.names:
            try:
                whole = self._source.column(name)
            except ValueError:
                return self._field(name)
            return self._of_all(name, whole.rows(0, whole.count))
        return self._field(name)

    def _of_all(self, name: str, values: np.ndarray) -> np.ndarray:
        if len(values) != self._count:
            raise ValueError(f"field {name!r} has {len(values)} rows, but the columns have {self._count}")
        return values

    def _strings(
        self, option: str, name: str | None, read: Callable[[Any], str | None] = names.name
    ) -> Sequence[str | None] | None:
        if name is None:
            return None
        return self._attempt(lambda: read_strings(f"{option} {name}", self._field(name), read, self._place(name)))

    def _place(self, name: str) -> Callable[[int], str]:
        """What a message calls a sample of this field: the table's row, where the field is a column of it."""
        if self._table is None or name not in self._table.names:
            return sample_number
        return self._table.place

    def _keys(self, values: np.ndarray | None) -> list[str]:
        """Keys as names; row numbers where there are none. What is wrong with them is a problem, and then they are."""
        if values is None:
            digits = max(6, len(str(self._count - 1)))
            return [f"row-{number:0{digits}d}" for number in range(self._count)]
        option = self._options.key or "keys"
        place = self._place(option)
        keys = self._attempt(read_strings, f"--key {option}", values, names.name, place) or ()
        absent = next((number for number, key in enumerate(keys) if key is None), None)
        if absent is not None:
            self._problems.append(f"--key {option}: {place(absent)} has none; every sample needs a key of its own")
        return [key or "" for key in keys]

    def _repeated(self, keys: Sequence[str]) -> list[str]:
        """Keys of several samples, with their numbers."""
        numbers: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            numbers.setdefault(key, []).append(number)
        place = self._place(self._options.key or "")
        problems = []
        for key, same in numbers.items():
            if len(same) > 1:
                places = " and ".join(map(place, same[:3])) + (" and others" if len(same) > 3 else "")
                problems.append(f"key {key!r} occurs twice ({places}); keys must differ: choose another --key")
        return problems

    def _check_views(self, name: str, meta: Mapping[str, Sequence[str | None]]) -> None:
        if name not in meta:
            raise ValueError(f"--view-by {name}: name it with --meta {name}[=FIELD] as well")
        values = {value: None for value in meta[name] if value is not None}  # in the order of the samples
        if not values and len(meta[name]):  # no values at all where they could not be read: that is a problem already
            raise ValueError(f"--view-by {name}: no sample has a value; leave it out, or choose another field")
        try:
            check_values_as_names(name, values)
        except ValueError as error:
            remedy = "or pack without --view-by, and make views with `conclugen split` afterwards"
            raise ValueError(f"--view-by {name}: {error}; {remedy}") from None

    def _label(self, spec: LabelSpec) -> LabelValues:
        place = self._place(spec.fields[0])
        return read_label(spec, self._label_field, self._source.constants, self._options.allow_empty_class, place)

    def _schema(self, columns: Mapping[str, Column2D], labels: Sequence[LabelValues]) -> Schema:
        options = self._options
        return Schema(
            tuple(Column(name, column.width, _stored_dtype(column, options.dtype)) for name, column in columns.items()),
            dict(options.modalities),
            tuple(values.label for values in labels),
            options.group is not None,
            tuple(options.meta),
        )


def _stored_dtype(column: Column2D, dtype: str | None) -> str:
    if dtype is not None:
        return dtype
    name = column.dtype.newbyteorder("=").name
    return name if name in FLOAT_DTYPES else "float32"


def _presence(name: str, column: Column2D, keys: Sequence[str], options: PackOptions) -> np.ndarray:
    """(n,) bool. Raises ValueError, with row and element, for partly NaN or infinite rows, or if all are missing."""
    limit = np.finfo(_stored_dtype(column, options.dtype)).max
    present = np.ones(column.count, bool)
    for start in range(0, column.count, _CHECK_ROWS):
        block = column.rows(start, min(start + _CHECK_ROWS, column.count))
        nan = np.isnan(block)
        here = ~(nan.any(axis=1) if options.nan == "any" else nan.all(axis=1))
        present[start : start + len(block)] = here
        partly = nan.any(axis=1) & here
        if partly.any():
            row = int(partly.argmax())
            raise ValueError(
                f"column {name!r}: row {start + row} (key {keys[start + row]!r}) is NaN in {int(nan[row].sum())} of "
                f"{column.width} elements, first in element {int(nan[row].argmax())}; fill the gaps, or count such "
                "rows as missing with --nan-row-missing any"
            )
        beyond = np.abs(np.where(nan, 0, block)) > limit
        if beyond[here].any():
            row = int((beyond.any(axis=1) & here).argmax())
            at = int(beyond[row].argmax())
            raise ValueError(
                f"column {name!r}: row {start + row} (key {keys[start + row]!r}), element {at} is {block[row][at]}, "
                f"beyond {_stored_dtype(column, options.dtype)}"
            )
    if not present.any():
        raise ValueError(f"column {name!r} is missing (NaN) in every row; leave it out")
    return present
