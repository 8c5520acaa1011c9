"""Tables that people write: CSV and its kin, JSON lines and Parquet. Values are read as `shards.names` says.

Delimited text (.csv, .tsv, .tab, .txt): the first row is the head. The separator is that of a line `sep=;` above it, as
Excel writes it, else the comma, semicolon, tab or bar with which all rows have as many fields as the head. A field may
be quoted with `"`, and then hold separators, line breaks and doubled quotes. Rows without any value are passed over,
also such as `;;;`. Rows are numbered as a spreadsheet numbers them: the head is row 1.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from conclugen.common.names import did_you_mean
from shards.files import read_whole
from shards.format.parquet import read_parquet
from shards.names import EncodingError, check_encoding, decode_text, fold, looks_like_utf8, plain, suffix

DELIMITED = (".csv", ".tsv", ".tab", ".txt")
_PARQUET = (".parquet", ".pq")
SUFFIXES = (*DELIMITED, ".jsonl", ".ndjson", *_PARQUET)
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SEP_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?[ ;,\t]*(?:\r\n|\r|\n)', re.IGNORECASE)
_MOST_NAMED = 5
_BESIDES = {
    ".xlsx": "save the sheet as CSV (UTF-8)", ".xls": "save the sheet as CSV (UTF-8)",
    ".ods": "save the sheet as CSV (UTF-8)", ".json": "write one object a line, as .jsonl",
    ".gz": "decompress it", ".zip": "decompress it", ".pkl": "write it as Parquet: pickles are not read",
}  # fmt: skip


@dataclass
class Table:
    """Rows of a table by column: plain values (text, numbers, None where missing), all columns equally long.

    numbers: each row's number in the file, for messages. how: what the file is (encoding, separator), in words. doubts:
    what may be meant otherwise.
    """

    path: Path
    columns: dict[str, list[Any]]
    numbers: list[int]
    how: str
    doubts: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def called(self, name: str) -> str:
        """The column that is meant: that of the name itself, or the only one that differs from it in case, spaces, `_`
        and `-` only. ValueError for an unknown one."""
        if name in self.columns:
            return name
        alike = [column for column in self.columns if fold(column) == fold(name)]
        if len(alike) != 1:
            raise ValueError(f"{self.path} has no column {name!r}, {did_you_mean(name, self.columns)}")
        return alike[0]

    def column(self, name: str) -> list[Any]:
        """Values of the column that is `called` so."""
        return self.columns[self.called(name)]

    def row(self, index: int) -> tuple[Any, ...]:
        return tuple(values[index] for values in self.columns.values())

    def take(self, indices: Sequence[int]) -> Table:
        """These rows, in this order."""
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Table(self.path, columns, [self.numbers[i] for i in indices], self.how, self.doubts)

    def once(
        self, keys: Sequence[Any], contents: Sequence[Any] | None = None
    ) -> tuple[list[int], dict[int, list[int]]]:
        """Rows by key (None: none): indices with each key's first row and without its identical copies, and, for
        rows whose key another, different row has as well, the indices of all rows of that key. contents: what of each
        row must agree (None: all of it)."""
        contents = [self.row(index) for index in range(len(self))] if contents is None else contents
        rows: dict[Any, list[int]] = {}
        kept = []
        for index, key in enumerate(keys):
            if key is None:
                kept.append(index)
                continue
            same = rows.setdefault(key, [])
            if not any(contents[other] == contents[index] for other in same):
                same.append(index)
                kept.append(index)
        rivals = {index: same for same in rows.values() if len(same) > 1 for index in same}
        return kept, rivals


def read_table(path: Path, encoding: str | None = None) -> Table:
    """A table. encoding: of delimited text and JSON lines without a mark; None: UTF-8.

    Raises ValueError, naming the file, and the rows where there are some to blame: not there or not readable, bytes of
    another encoding, rows with more or fewer fields than the head, columns of one name, no rows.
    """
    kind = suffix(path)
    if encoding is not None:
        encoding = check_encoding(encoding)
    if kind not in SUFFIXES:
        remedy = f"; {_BESIDES[kind]}" if kind in _BESIDES else ""
        raise ValueError(f"--table {path}: expected a file ending in {', '.join(SUFFIXES)}{remedy}")
    try:
        data = read_whole(path)
    except FileNotFoundError:
        raise ValueError(f"--table {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"--table {path} cannot be read: {error.strerror or error}") from None
    try:
        table = _parquet(path, data) if kind in _PARQUET else _text_table(path, kind, data, encoding)
    except EncodingError as error:
        raise ValueError(f"--table {path} cannot be read as text: {error}") from None
    except (ValueError, OSError, pa.ArrowException, NotImplementedError, csv.Error) as error:
        raise ValueError(f"--table {path} cannot be read: {error}") from None
    if not table.numbers:
        raise ValueError(f"--table {path} has no rows")
    return table


def parse_delimited(path: Path, text: str, usual: str = ",") -> Table:
    """A table of text that is decoded already, with `usual` as the separator where two would do; as `read_table`."""
    try:
        return _delimited(path, text, usual)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _text_table(path: Path, kind: str, data: bytes, encoding: str | None) -> Table:
    text, found = decode_text(data, encoding)
    if kind in DELIMITED:
        table = _delimited(path, text, "\t" if kind in (".tsv", ".tab") else ",")
    else:
        table = _json_lines(path, text)
    table.how = f"{found}, {table.how}"
    if encoding not in (None, "utf-8") and found == encoding and looks_like_utf8(data):
        table.doubts.append(f"{path.name} is read as {encoding}, as --encoding says, but it is valid UTF-8 as well")
    return table


def _parquet(path: Path, data: bytes) -> Table:
    read = read_parquet(data)
    names = _head([str(name) for name in read.column_names])
    columns = {name: [plain(value) for value in read.column(i).to_pylist()] for i, name in enumerate(names)}
    return Table(path, columns, list(range(1, read.num_rows + 1)), "Parquet")


def _json_lines(path: Path, text: str) -> Table:
    rows: list[Mapping[str, Any]] = []
    numbers = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: expected an object, found {line.strip()[:80]}")
        rows.append({_head([name])[0]: plain(value) for name, value in row.items()})
        numbers.append(number)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(path, {name: [row.get(name) for row in rows] for name in names}, numbers, "JSON lines")


def _delimited(path: Path, text: str, usual: str) -> Table:
    said = _SEP_LINE.match(text)
    skipped = 1 if said else 0
    if said:
        separator, text = said[1], text[said.end() :]
        readings = {separator: _Reading.of(text, separator, skipped)}
    else:
        head = re.sub(r'"[^"]*"', "", next((line for line in text.splitlines() if line.strip()), ""))
        candidates = [s for s in dict.fromkeys((usual, *_SEPARATORS)) if s in head] or [usual]
        readings = {s: _Reading.of(text, s, skipped) for s in candidates}
    fitting = [s for s, reading in readings.items() if reading.problem is None]
    separator = max(fitting or readings, key=lambda s: (len(readings[s].rows), len(readings[s].head)))
    reading = readings[separator]
    if reading.problem is not None:
        raise ValueError(f"{reading.problem} (separator: {_SEPARATORS.get(separator, repr(separator))})")
    table = reading.table(path)
    table.how = f"separator {_SEPARATORS.get(separator, repr(separator))}"
    if reading.empty:
        table.how += f", rows without any value passed over: {reading.empty}"
    also = [_SEPARATORS[s] for s in fitting if s != separator and len(readings[s].head) > 1]
    if also:
        table.doubts.append(
            f"{path.name} is read with the separator {_SEPARATORS[separator]}, but {' and '.join(also)} would fit as "
            f"well; write `sep={separator}` into a first line if this is right"
        )
    return table


@dataclass
class _Reading:
    """Delimited text as one separator has it: head, rows that hold a value with their numbers, or the problem."""

    head: list[str]
    rows: list[list[str]]
    numbers: list[int]
    empty: int = 0
    problem: str | None = None

    @classmethod
    def of(cls, text: str, separator: str, skipped: int) -> _Reading:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        reading, number, line = cls([], [], []), 0, 0
        ragged: list[str] = []
        try:
            for number, fields in enumerate(reader, 1):
                began, line = line + 1, reader.line_num
                if not any(value.strip() for value in fields):
                    reading.empty += bool(fields)
                    continue
                if not reading.head:
                    reading.head = fields
                    continue
                if len(fields) != len(reading.head):
                    ragged.append(_ragged(number, began + skipped, fields, reading.head))
                    continue
                reading.rows.append(fields)
                reading.numbers.append(number)
        except csv.Error as error:
            place = f"row {number + 1} (from line {line + 1 + skipped} on)"
            what = str(error)
            if "unexpected end" in what:
                what = "a quoted field does not end"
            elif "expected after" in what:
                what = "there is text after a closing quote"
            reading.problem = f"{place}: {what}; double the quotes within a field, and quote it whole"
            return reading
        if ragged:
            more = f"; and {len(ragged) - _MOST_NAMED} more rows" if len(ragged) > _MOST_NAMED else ""
            reading.problem = "; ".join(ragged[:_MOST_NAMED]) + more
        return reading

    def table(self, path: Path) -> Table:
        doubts, columns = [], {}
        named = [(i, name) for i, name in enumerate(_head(self.head)) if name]
        for place, name in named:
            columns[name] = [plain(row[place]) for row in self.rows]
        for place in sorted(set(range(len(self.head))) - {i for i, _ in named}):
            number = next((n for row, n in zip(self.rows, self.numbers, strict=True) if row[place].strip()), None)
            if number is not None:
                doubts.append(f"{path.name}: column {place + 1} has no name (row {number} has a value); it is not read")
        if not columns:
            raise ValueError("its head is empty: the first row has to name the columns")
        return Table(path, columns, list(self.numbers), "", doubts)


def _ragged(number: int, line: int, fields: Sequence[str], head: Sequence[str]) -> str:
    where = f"row {number}" + (f" (line {line})" if line != number else "")
    hint = ""
    if len(fields) > len(head) and not any(value.strip() for value in fields[len(head) :]):
        hint = ": there is a separator too many at its end"
    elif len(fields) > len(head):
        hint = ": quote fields that hold the separator"
    return f"{where}: {len(fields)} fields, the head has {len(head)}{hint}"


def _head(names: Sequence[str]) -> list[str]:
    """Column names as `plain` reads text (empty ones stay so); ValueError for one that comes twice."""
    head = [plain(name) or "" for name in names]
    twice = next((name for i, name in enumerate(head) if name and name in head[:i]), None)
    if twice is not None:
        raise ValueError(f"two columns have the same name: {twice!r}; rename one")
    return head
