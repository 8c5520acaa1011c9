"""A sample as it is stored: checked, its columns as one run of bytes, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conclugen.common.names import did_you_mean
from shards.format.schema import Sample, Schema, key_limit, safe_key

_JSON_FIELDS = ("group", "key", "labels", "meta", "missing", "original", "text")


@dataclass(frozen=True)
class Record:
    """`payload`: all columns in schema order, little-endian, missing ones as NaN. `text_json`: unpadded ASCII JSON."""

    key: str
    payload: bytes
    text_json: bytes
    present: tuple[bool, ...]
    labels: Mapping[str, Any]
    group: str | None
    text: str | None
    meta: Mapping[str, str | None]


def encode(schema: Schema, sample: Sample) -> Record:
    """Check a sample against the schema and encode it; ValueError names key, field, found and expected."""
    if not isinstance(sample.key, str) or not sample.key:
        raise ValueError(f"sample key is {sample.key!r}, expected a string that is not empty")
    for what, given, allowed in (
        ("column", sample.columns, schema.column_names),
        ("label", sample.labels, [label.name for label in schema.labels]),
        ("meta", sample.meta, schema.meta),
    ):
        for name in given:
            if name not in allowed:
                raise ValueError(f"sample {sample.key!r}: {what} {name!r} is unknown, {did_you_mean(name, allowed)}")
    if sample.group is not None and not schema.grouped:
        raise ValueError(f"sample {sample.key!r} has the group {sample.group!r}, but the schema says grouped=False")
    for what, value in (("group", sample.group), ("text", sample.text), *sample.meta.items()):
        check_text(f"sample {sample.key!r}: {what}", value)
    parts, present = [], []
    for column in schema.columns:
        values = _column_values(sample.key, column.name, column.width, sample.columns.get(column.name))
        present.append(values is not None)
        if values is None:
            values = np.full(column.width, np.nan)
        with np.errstate(over="ignore"):
            stored = values.astype(column.numpy_dtype)
        if present[-1] and not np.isfinite(stored).all():
            at = int(np.flatnonzero(~np.isfinite(stored))[0])
            raise ValueError(
                f"sample {sample.key!r}: column {column.name!r}, element {at} is {values[at]!r}, which {column.dtype} "
                "cannot hold as a finite number; fix the input, choose a wider dtype, or leave the column out (None)"
            )
        parts.append(stored.tobytes())
    try:
        labels = {label.name: label.encode(sample.labels.get(label.name)) for label in schema.labels}
    except (ValueError, TypeError) as error:
        raise ValueError(f"sample {sample.key!r}: {error}") from None
    key = safe_key(sample.key, key_limit(schema.column_names))
    meta = {name: sample.meta.get(name) for name in schema.meta}
    text_json = json.dumps(
        {
            "key": key,
            "labels": {label.name: label.to_json(labels[label.name]) for label in schema.labels},
            "group": sample.group,
            "text": sample.text,
            "original": sample.key if sample.original is None else sample.original,
            "meta": meta,
            "missing": [name for name, there in zip(schema.column_names, present, strict=True) if not there],
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode("ascii")
    return Record(key, b"".join(parts), text_json, tuple(present), labels, sample.group, sample.text, meta)


def check_text(what: str, value: Any) -> None:
    """None or a string that UTF-8 can hold (half a surrogate pair is none: Parquet would refuse it later, unnamed)."""
    if value is None:
        return
    if not isinstance(value, str):
        raise ValueError(f"{what} is {value!r}, expected a string or none")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is {value!r}, which is not valid Unicode; repair its encoding") from None


def _column_values(key: str, column: str, width: int, values: Any) -> np.ndarray | None:
    """(width,) numbers, or None where missing (None or all NaN)."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"sample {key!r}: column {column!r} has dtype {array.dtype}, expected numbers")
    if array.shape not in ((width,), (1, width)):
        raise ValueError(f"sample {key!r}: column {column!r} has shape {array.shape}, expected ({width},)")
    array = array.reshape(width)
    missing = np.isnan(array)
    if missing.all():
        return None
    if missing.any():
        at = int(np.flatnonzero(missing)[0])
        raise ValueError(
            f"sample {key!r}: column {column!r} is NaN in {int(missing.sum())} of {width} elements, first in element "
            f"{at}; a column is either wholly present or wholly missing: fill the gaps, or pass None"
        )
    return array


def decode(schema: Schema, payload: bytes, text_json: bytes) -> Record:
    """The record of stored bytes, for rebuilding an index; ValueError says what is not as the schema has it."""
    try:
        data = json.loads(text_json.decode("ascii").rstrip(" "))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"JSON member cannot be read: {error}") from None
    if not isinstance(data, dict) or tuple(sorted(data)) != _JSON_FIELDS:
        raise ValueError(f"JSON member has the fields {sorted(data)}, expected {list(_JSON_FIELDS)}")
    labels, meta, missing = data["labels"], data["meta"], data["missing"]
    names = [label.name for label in schema.labels]
    if not isinstance(labels, dict) or sorted(labels) != sorted(names):
        raise ValueError(f"JSON member has the labels {labels!r}, expected {names}")
    if not isinstance(meta, dict) or sorted(meta) != sorted(schema.meta):
        raise ValueError(f"JSON member has the meta fields {meta!r}, expected {list(schema.meta)}")
    if not isinstance(missing, list) or not set(map(str, missing)) <= set(schema.column_names):
        raise ValueError(f"JSON member lists {missing!r} as missing, expected some of {list(schema.column_names)}")
    for what, value in (("key", data["key"] or ""), ("group", data["group"]), ("text", data["text"]), *meta.items()):
        check_text(f"JSON member: {what}", value)
    present, position = [], 0
    for column in schema.columns:
        values = np.frombuffer(payload, column.numpy_dtype, column.width, position)
        position += column.nbytes
        there = column.name not in missing
        if not (np.isfinite(values).all() if there else np.isnan(values).all()):
            state = "present, but its numbers are not all finite" if there else "missing, but not all of it is NaN"
            raise ValueError(f"column {column.name!r} is listed as {state}")
        present.append(there)
    encoded = {label.name: label.from_json(labels[label.name]) for label in schema.labels}
    return Record(data["key"], payload, text_json, tuple(present), encoded, data["group"], data["text"], meta)
