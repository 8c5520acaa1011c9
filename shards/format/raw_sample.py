"""Reads one fixed-stride sample back in full: every byte of it must be what the writer would write."""

from __future__ import annotations

import numpy as np

from shards.format.layout import BLOCK, LayoutError, SampleLayout, parse_header
from shards.format.record import Record, decode
from shards.format.schema import Schema


def parse_intact(schema: Schema, layout: SampleLayout, raw: np.ndarray, keys: list[str]) -> list[Record | None]:
    """The records of n samples (n, stride) that are, under the keys expected, what the writer would write; None for the
    others, of which `parse_raw` says why. The same check for many samples at once."""
    places = [(at, at + column.nbytes) for column, at in zip(layout.columns, layout.payload_offsets, strict=True)]
    records: list[Record | None] = []
    again = np.zeros_like(raw)
    known: list[tuple[int, Record]] = []
    for i, (sample, key) in enumerate(zip(raw, keys, strict=True)):
        view = sample.data
        text = bytes(view[layout.json_offset : layout.json_offset + layout.json_length])
        try:
            record = decode(schema, b"".join([view[a:b] for a, b in places]), text.rstrip(b" "))
        except ValueError:
            record = None
        records.append(record if record is not None and record.key == key else None)
        if records[-1] is not None:
            known.append((i, records[-1]))
    some = again[: len(known)]
    layout.fill(some, [r.key for _, r in known], [r.payload for _, r in known], [r.text_json for _, r in known])
    for (i, _), other in zip(known, some, strict=True):
        if other.tobytes() != raw[i].tobytes():
            records[i] = None
    return records


def parse_raw(schema: Schema, layout: SampleLayout, sample: bytes | memoryview) -> Record:
    """The record in a sample. Raises ValueError with the reason where any byte is not as the writer writes it."""
    view = memoryview(sample)
    first = _header_name(view, 0)
    suffix = f".{schema.columns[0].name}.npy"
    if not first.endswith(suffix):
        raise ValueError(f"first member is {first!r}, expected KEY{suffix}")
    payload = b"".join(
        view[at : at + column.nbytes] for column, at in zip(layout.columns, layout.payload_offsets, strict=True)
    )
    text = bytes(view[layout.json_offset : layout.json_offset + layout.json_length])
    record = decode(schema, payload, text.rstrip(b" "))
    if record.key != first.removesuffix(suffix):
        raise ValueError(f"first member is {first!r}, but the JSON member says the key {record.key!r}")
    again = np.zeros((1, layout.stride), np.uint8)
    layout.fill(again, [record.key], [payload], [record.text_json])
    differs = np.flatnonzero(again[0] != np.frombuffer(view, np.uint8))
    if len(differs):
        raise ValueError(_what_lies_at(layout, int(differs[0])))
    return record


def _header_name(view: memoryview, at: int) -> str:
    try:
        header = parse_header(view[at : at + BLOCK])
    except LayoutError as error:
        raise ValueError(f"tar {error}") from None
    if header is None:
        raise ValueError("an empty block where a member is expected")
    return header.name.decode("ascii", "backslashreplace")


def _what_lies_at(layout: SampleLayout, position: int) -> str:
    for column, header, npy, payload in zip(
        layout.columns, layout.header_offsets, layout.npy_offsets, layout.payload_offsets, strict=True
    ):
        for what, start, end in (
            ("tar header", header, npy),
            ("npy header (width or dtype)", npy, payload),
            ("padding", payload + column.nbytes, payload + column.nbytes + BLOCK),
        ):
            if start <= position < end:
                return f"{what} of column {column.name!r} is not as written (byte {position} of the sample)"
    return f"JSON member is not as written (byte {position} of the sample)"
