"""Any folder of videos, with or without a table that says more about them."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shards.adapters.clip_set import Clip, ClipSet, Count, Rejected
from shards.adapters.files import VIDEO_SUFFIXES, Files, refuse_name, shown
from shards.adapters.table import read_table
from shards.packing.labels import LabelSpec, read_label
from shards.schema import did_you_mean

# What of a clip can be in the table -> the column's name there, unless `fields` says otherwise.
FIELDS = ("path", "audio", "start", "end", "key", "group", "split", "text")
_LONGEST_TEXT = 1 << 20


def read(
    source: Path,
    table: str | Path | None = None,
    fields: Mapping[str, str] | None = None,
    labels: Sequence[LabelSpec] = (),
) -> ClipSet:
    """Clips of a folder.

    Without a table: every video below it, in folders of any depth; the key is the path without its suffix, with `_`
    for `/`; a `.txt` of the same name beside a video is its transcript. With a table: a clip for each row; `path`
    (required) and `audio` are relative to the folder; further columns as in `FIELDS`, renamed by `fields`
    (name -> column); `labels` are read from the table as `python -m shards pack` reads them. Raises ValueError for a
    table that can't be read, unknown columns, and labels that don't fit.
    """
    if table is None:
        if fields or labels:
            raise ValueError("--field and --label name columns of a table: give --table as well")
        return _untabled(source)
    rows = read_table(Path(table))
    columns = _columns(Path(table), rows, fields or {})
    encoded = [read_label(spec, _field(Path(table), rows), _no_constants, allow_empty_class=True) for spec in labels]
    clips: list[Clip] = []
    rejected: list[Rejected] = []
    missing: list[str] = []
    for number, row in enumerate(rows):
        named = {name: row[column] for name, column in columns.items() if row.get(column) is not None}
        values = {item.label.name: item.values[number] for item in encoded}
        try:
            clip = _clip(named, values)
        except _RowError as error:
            rejected.append(Rejected(f"row {number + 1}: {shown(str(named.get('path')))}", error.reason, str(error)))
            continue
        if not os.path.lexists(source / clip.video):
            missing.append(clip.video)
        clips.append(clip)
    counts = [Count("videos of the table", len(rows), len(rows) - len(missing), missing)]
    grouped = any(clip.group is not None for clip in clips)
    names = tuple(item.label for item in encoded)
    absent = set(missing)
    present = [clip for clip in clips if clip.video not in absent]
    return ClipSet(source.name, source, names, present, rejected, counts, grouped=grouped)


class _RowError(ValueError):
    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def _untabled(source: Path) -> ClipSet:
    files = Files(source)
    clips = []
    for path in files.find(VIDEO_SUFFIXES):
        key = PurePosixPath(path).with_suffix("").as_posix().replace("/", "_")
        try:
            clips.append(Clip(key, path, transcript=_beside(source / path)))
        except OSError as error:
            message = f"the transcript beside it cannot be read: {error.strerror}"
            files.rejected.append(Rejected(shown(path), "unreadable", message))
    return ClipSet(source.name, source, (), clips, files.rejected, grouped=False)


def _beside(video: Path) -> str | None:
    text = video.with_suffix(".txt")
    if not text.is_file():
        return None
    if text.stat().st_size > _LONGEST_TEXT:
        raise OSError(errno.EFBIG, f"{text.name} has more than {_LONGEST_TEXT} bytes")
    return text.read_bytes().decode("utf-8", "replace").strip() or None


def _columns(table: Path, rows: Sequence[Mapping[str, Any]], fields: Mapping[str, str]) -> dict[str, str]:
    """Field -> column of the table, for those that it has."""
    found = {name for row in rows for name in row}
    for name, column in fields.items():
        if name not in FIELDS:
            raise ValueError(f"--field {name}={column}: {name!r} is unknown, {did_you_mean(name, FIELDS)}")
        if column not in found:
            raise ValueError(f"--field {name}={column}: {table} has no such column, {did_you_mean(column, found)}")
    columns = {name: fields.get(name, name) for name in FIELDS if fields.get(name, name) in found}
    if "path" not in columns:
        raise ValueError(f"{table} has no column 'path'; say which column it is with --field path=COLUMN")
    return columns


def _field(table: Path, rows: Sequence[Mapping[str, Any]]) -> Callable[[str], np.ndarray]:
    def field(name: str) -> np.ndarray:
        names = {key for row in rows for key in row}
        if name not in names:
            raise ValueError(f"{table} has no column {name!r}, {did_you_mean(name, names)}")
        values = np.empty(len(rows), object)
        values[:] = [row.get(name) for row in rows]
        return values

    return field


def _no_constants(name: str) -> np.ndarray:
    raise ValueError(f"a table has no array {name!r}; list the classes instead")


def _clip(named: Mapping[str, Any], labels: Mapping[str, Any]) -> Clip:
    for name in ("path", "audio"):
        value = named.get(name)
        if value is None and name == "audio":
            continue
        problem = refuse_name(value) if isinstance(value, str) else f"{name} is {value!r}, expected a path"
        if problem is not None:
            raise _RowError("bad_name", problem)
    start, end = (_seconds(name, named.get(name)) for name in ("start", "end"))
    if (start is None) != (end is None):
        raise _RowError("bad_interval", f"start is {start} and end is {end}: give both or none")
    path = str(named["path"])
    key = named.get("key")
    if key is None:
        key = PurePosixPath(path).with_suffix("").as_posix().replace("/", "_")
        key += "" if start is None else f"_{start:g}"
    group, split, text = (None if named.get(name) is None else str(named[name]) for name in ("group", "split", "text"))
    return Clip(str(key), path, named.get("audio"), start, end, labels, group, split, text)


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise _RowError("bad_interval", f"{name} is {value!r}, expected seconds") from None
    if not math.isfinite(seconds):
        raise _RowError("bad_interval", f"{name} is {value!r}, expected seconds")
    return seconds
