"""Tables of clips: CSV, TSV, JSON lines or Parquet, as rows of plain values."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.tables import read_parquet

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a table; an empty field is None. ValueError names the file (and line) that can't be read."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--table {path}: expected a file ending in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            rows = _parquet(path)
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            rows = [_object(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        else:
            rows = _delimited(path, "\t" if path.suffix == ".tsv" else ",")
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"--table {path} cannot be read: {error}") from None
    if not rows:
        raise ValueError(f"--table {path} has no rows")
    return [{name: None if value == "" else value for name, value in row.items()} for row in rows]


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = read_parquet(path.read_bytes()).to_pylist()
    except ValueError as error:
        raise ValueError(f"--table {path} cannot be read: {error}") from None
    return rows


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--table {path}, line {number}: no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"--table {path}, line {number}: expected an object, found {str(row)[:80]}")
    return row


def _delimited(path: Path, separator: str) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        names = next(reader, [])
        if len(set(names)) != len(names):
            raise ValueError(f"--table {path}: two columns have the same name: {', '.join(names)}")
        rows = []
        for number, fields in enumerate(reader, 2):
            if not fields:
                continue
            if len(fields) != len(names):
                raise ValueError(f"--table {path}, row {number}: {len(fields)} fields, the head has {len(names)}")
            rows.append(dict(zip(names, fields, strict=True)))
        return rows
