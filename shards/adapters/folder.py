"""Any folder of videos, with or without a table that says more about them."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from conclugen.common.names import did_you_mean
from shards import names
from shards.adapters.clip_set import Clip, ClipSet, Count, Rejected
from shards.adapters.files import VIDEO_SUFFIXES, Files, refuse_name, shown
from shards.format.schema import CLIP_KEY_LIMIT, safe_key
from shards.format.tables import Table, read_table
from shards.packing.labels import LabelSpec, LabelValues, read_label

# What of a clip can be in the table -> the column's name there, unless `fields` says otherwise.
FIELDS = ("path", "audio", "start", "end", "key", "group", "split", "text")
# What people call these columns, told apart as `names.fold` has it: taken where there is none of the name itself, and
# only one of these.
ALSO_CALLED = {
    "path": ("file", "filename", "file_path", "video", "video_path", "clip"),
    "audio": ("audio_file", "audio_path", "wav"),
    "group": ("speaker", "speaker_id", "person", "person_id", "actor", "actor_id", "subject", "subject_id"),
    "text": ("transcript", "transcription", "utterance", "sentence"),
}
_LONGEST_TEXT = 1 << 20
_NAMED = 5


def read(
    source: Path,
    table: str | Path | None = None,
    fields: Mapping[str, str] | None = None,
    labels: Sequence[LabelSpec] = (),
    encoding: str | None = None,
) -> ClipSet:
    """Clips of a folder.

    Without a table: every video below it, in folders of any depth; the key is the path without its suffix, with `_` for
    `/`; a `.txt` of the same name beside a video is its transcript. With a table: a clip for each row; `path`
    (required; its suffix may be left out) and `audio` are relative to the folder; further columns as in `FIELDS`,
    renamed by `fields` (name -> column) or as in `ALSO_CALLED`; `labels` are read from the table as `python -m shards
    pack` reads them. Names of columns may differ in case. Rows that are there twice, identically, count once; different
    rows of one key are refused, each with the numbers of the others. Names, paths and encodings are read as
    `shards.names` says; encoding: of the table and of transcripts without a mark.

    Raises ValueError for a table that can't be read, unknown columns, and labels that don't fit.
    """
    if table is None:
        if fields or labels:
            raise ValueError("--label, --group, --text and --field name columns of a table: give --table as well")
        return _untabled(source, encoding)
    rows = read_table(Path(table), encoding)
    columns = _columns(rows, fields or {}, labels)
    files = Files(source)
    found = files.find(VIDEO_SUFFIXES)
    on_disk = names.FileNames(found)
    read_rows: list[Clip | Rejected] = []
    missing: dict[int, str] = {}
    similar: dict[str, str] = {}
    early: set[int] = set()  # rows whose interval begins before 0
    for index in range(len(rows)):
        named = {name: rows.columns[column][index] for name, column in columns.items()}
        try:
            clip, there = _clip(named, source, on_disk)
        except _RowError as error:
            path = shown(str(named.get("path")))
            read_rows.append(Rejected(f"row {rows.numbers[index]}: {path}", error.reason, str(error)))
            continue
        if not there:
            missing[index] = clip.video
            if (other := on_disk.similar(clip.video)) is not None:
                similar[clip.video] = other
        if clip.start is not None and names.number(named["start"]) < 0:
            early.add(index)
        read_rows.append(clip)
    valued = [rows.column(name) for spec in labels for name in spec.fields]
    kept, rivals = rows.once(
        [item.key if isinstance(item, Clip) else None for item in read_rows],
        [(item, *(values[index] for values in valued)) for index, item in enumerate(read_rows)],
    )
    encoded = table_labels(rows.take(kept), labels)
    clips: list[Clip] = []
    rejected = list(files.rejected)
    for place, index in enumerate(kept):
        item = read_rows[index]
        if isinstance(item, Clip) and index in rivals:
            item = _refuse_rivals(rows, item, index, rivals[index])
        if isinstance(item, Rejected):
            rejected.append(item)
        elif index not in missing:
            values = {label.label.name: label.values[place] for label in encoded}
            clips.append(dataclasses.replace(item, labels=values))
    absent = [missing[index] for index in kept if index in missing]
    if absent and not clips and not rejected:
        told = [f"{path} (there is {similar[path]})" if path in similar else path for path in absent]
        raise ValueError(
            f"{rows.path}: none of its {len(absent)} videos is in {source} ({_some(told)}); there "
            + (f"are {len(found)} videos ({_some(found)})" if found else "are none at all")
        )
    counts = [Count("videos of the table", len(kept), len(kept) - len(absent), absent, similar)]
    how = [f"{rows.path.name}: {len(rows)} rows, {rows.how}"]
    if called := [f"{name} is its column {column!r}" for name, column in columns.items() if column != name]:
        how.append(f"{rows.path.name}: {', '.join(called)}")
    if begun := early.intersection(kept):
        how.append(f"intervals that begin before 0, and are taken from 0 on: {len(begun)}")
    if windows := sum(isinstance(path, str) and "\\" in path for path in rows.columns[columns["path"]]):
        how.append(f"paths with \\ for /: {windows}")
    written = zip(rows.columns[columns["path"]], read_rows, strict=True)
    if bare := sum(isinstance(item, Clip) and not str(path).strip().endswith(_suffix(item)) for path, item in written):
        how.append(f"paths without a suffix, taken as the file of that name: {bare}")
    if len(kept) < len(rows):
        how.append(f"rows given again, identically, and counted once: {len(rows) - len(kept)}")
    doubts = list(rows.doubts)
    used = {item.video for item in read_rows if isinstance(item, Clip)}
    if unused := [path for path in found if path not in used]:
        doubts.append(f"videos of the folder without a row in {rows.path.name}: {len(unused)} ({_some(unused)})")
    if "text" not in columns and (unread := _texts(source).keys() & {_stem(path) for path in used}):
        doubts.append(
            f".txt files beside clips that are not read, as a table is given (its column text would be): {len(unread)}"
        )
    grouped = any(clip.group is not None for clip in clips)
    schema = tuple(label.label for label in encoded)
    return ClipSet(source.name, source, schema, clips, rejected, counts, grouped=grouped, how=how, doubts=doubts)


class _RowError(ValueError):
    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def _untabled(source: Path, encoding: str | None) -> ClipSet:
    files = Files(source)
    clips, encodings = [], Counter[str]()
    texts = _texts(source)
    for path in files.find(VIDEO_SUFFIXES):
        beside = texts.pop(_stem(path), None)
        try:
            transcript = None if beside is None else _transcript(source / beside, encoding, encodings)
        except OSError as error:
            message = f"the transcript beside it cannot be read: {error.strerror}"
            files.rejected.append(Rejected(shown(path), "unreadable", message))
        except ValueError as error:
            message = f"the transcript beside it, {PurePosixPath(str(beside)).name}: {error}"
            files.rejected.append(Rejected(shown(path), "bad_text", message))
        else:
            clips.append(Clip(_key(path, None, None), path, transcript=transcript))
    how = [f"transcripts beside clips: {count} in {name}" for name, count in sorted(encodings.items())]
    doubts = []
    if texts:
        doubts.append(
            f".txt files without a video of their name beside them: {len(texts)} ({_some([*texts.values()])})"
        )
    return ClipSet(source.name, source, (), clips, files.rejected, grouped=False, how=how, doubts=doubts)


def _texts(source: Path) -> dict[str, str]:
    """The path of each .txt file, by what it shares with the video that it belongs to."""
    return {_stem(path): path for path in Files(source).find([".txt"])}


def _suffix(clip: Clip) -> str:
    return PurePosixPath(clip.video).suffix


def _stem(path: str) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(path).with_suffix("").as_posix())


def _transcript(text: Path, encoding: str | None, encodings: Counter[str]) -> str | None:
    if text.stat().st_size > _LONGEST_TEXT:
        raise OSError(errno.EFBIG, f"{text.name} has more than {_LONGEST_TEXT} bytes")
    transcript, found = names.decode_text(text.read_bytes(), encoding)
    encodings[found] += 1
    return names.text(transcript)


def _columns(table: Table, fields: Mapping[str, str], labels: Sequence[LabelSpec]) -> dict[str, str]:
    """Field -> column of the table, for those that it has; fields may be named as people call them. ValueError with all
    columns that are asked for and not there."""
    fields = {_field_called(name, column): column for name, column in fields.items()}
    problems = []
    for name, column in fields.items():
        try:
            fields[name] = table.called(column)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    for spec in labels:
        for column in spec.fields:
            try:
                table.called(column)
            except ValueError as error:
                problems.append(f"label {spec.name}: {error}")
    given = {name: fields.get(name) or _column_called(name, table.names) for name in FIELDS}
    columns = {name: column for name, column in given.items() if column is not None}
    if "path" not in columns:
        known = ", ".join(table.columns)
        problems.append(
            f"{table.path} has no column 'path' (it has: {known}); say which column it is with --field path=COLUMN"
        )
    if problems:
        raise ValueError("; ".join(problems))
    return columns


def _field_called(name: str, column: str) -> str:
    called = next((field for field, others in ALSO_CALLED.items() if names.fold(name) in map(names.fold, others)), name)
    if called not in FIELDS:
        raise ValueError(f"--field {name}={column}: {name!r} is unknown, {did_you_mean(name, FIELDS)}")
    return called


def _column_called(name: str, columns: Sequence[str]) -> str | None:
    """The column of a field: that of its name, or the only one that is called otherwise."""
    if name in columns:
        return name
    wanted = {names.fold(other) for other in (name, *ALSO_CALLED.get(name, ()))}
    found = [column for column in columns if names.fold(column) in wanted]
    return found[0] if len(found) == 1 else None


def table_labels(table: Table, specs: Sequence[LabelSpec]) -> list[LabelValues]:
    """Labels of a table, each with its value in each row; ValueError names the row of one that does not fit."""

    def values(name: str) -> np.ndarray:
        column = np.empty(len(table), object)
        column[:] = table.column(name)
        return column

    def row(number: int) -> str:
        return f"row {table.numbers[number]} of {table.path.name}"

    return [read_label(spec, values, _no_constants, allow_empty_class=True, place=row) for spec in specs]


def _no_constants(name: str) -> np.ndarray:
    raise ValueError(f"a table has no array {name!r}; list the classes instead")


def _clip(named: Mapping[str, Any], source: Path, on_disk: names.FileNames) -> tuple[Clip, bool]:
    """The clip of a row without labels, and whether its video is there."""
    path, there = _path("path", named.get("path"), source, on_disk)
    if not there or (source / path).is_dir():  # a folder may have the name that a video has without its suffix
        try:
            with_suffix = on_disk.find_without_suffix(path)
        except ValueError as error:
            raise _RowError("bad_name", str(error)) from None
        path, there = (path, there) if with_suffix is None else (with_suffix, True)
    audio = named.get("audio")
    audio = None if audio is None else _path("audio", audio, source, on_disk)[0]
    start, end = (_seconds(name, named.get(name)) for name in ("start", "end"))
    if (start is None) != (end is None):
        raise _RowError("bad_interval", f"start is {start} and end is {end}: give both or none")
    if start is not None and end is not None:
        start = max(start, 0.0)
        if end <= start:
            raise _RowError("bad_interval", f"the interval is {named['start']} to {named['end']}, which is empty")
    key, group, split = (_read(name, named.get(name), names.name) for name in ("key", "group", "split"))
    if key is None:
        key = _key(path, start, end)
    return Clip(key, path, audio, start, end, {}, group, split, _read("text", named.get("text"), names.text)), there


def _path(name: str, value: Any, source: Path, on_disk: names.FileNames) -> tuple[str, bool]:
    """The file that a row means, as the disk has it, and whether it is there."""
    problem = refuse_name(value) if isinstance(value, str) else f"{name} is {value!r}, expected a path"
    if problem is None:
        value = value if os.path.lexists(source / value) else names.unix_path(value)
        problem = refuse_name(value)
    if problem is not None:
        raise _RowError("bad_name", problem)
    try:
        found = on_disk.find(value, lambda path: os.path.lexists(source / path))
    except ValueError as error:
        raise _RowError("bad_name", str(error)) from None
    return (value, False) if found is None else (found, True)


def _key(path: str, start: float | None, end: float | None) -> str:
    """The path without its suffix, with `_` for `/`, and the interval, which stays whole where that is too long."""
    stem = names.unix_path(PurePosixPath(path).with_suffix("").as_posix()).replace("/", "_")
    if start is None or end is None:
        return stem
    interval = names.interval_key("", start, end)
    return safe_key(stem, CLIP_KEY_LIMIT - len(interval)) + interval


def _read(name: str, value: Any, read: Callable[[Any], str | None]) -> str | None:
    try:
        return read(value)
    except ValueError as error:
        raise _RowError("bad_row", f"{name} is {error}") from None


def _seconds(name: str, value: Any) -> float | None:
    try:
        seconds = names.number(value)
    except ValueError as error:
        raise _RowError("bad_interval", f"{name} is {error} (seconds)") from None
    if math.isinf(seconds):
        raise _RowError("bad_interval", f"{name} is {value!r}, expected seconds")
    return None if math.isnan(seconds) else seconds


def _refuse_rivals(rows: Table, clip: Clip, index: int, same: Sequence[int]) -> Rejected:
    others = [rows.numbers[other] for other in same if other != index]
    listed = ", ".join(map(str, others[:_NAMED])) + (", ..." if len(others) > _NAMED else "")
    message = f"the key {clip.key!r} is also that of row {listed}, which differs; keep the right one"
    return Rejected(f"row {rows.numbers[index]}: {shown(clip.video)}", "duplicate_key", message)


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _NAMED:,} more" if len(items) > _NAMED else ""
    return ", ".join(map(shown, items[:_NAMED])) + more
