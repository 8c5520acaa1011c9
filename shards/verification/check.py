"""Reads every byte of a data set and names every problem, with shard, sample, reason and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shards.clips.reader import ClipManifest, ClipReader
from shards.errors import ManifestError, ShardError
from shards.format.index import INDEX_SUFFIX, ShardIndex, read_table, values_digest
from shards.format.index_store import load_index, read_index_bytes
from shards.format.manifest import TAR_SUFFIX, Manifest, ShardEntry
from shards.format.raw_columns import read_raw
from shards.format.raw_sample import parse_intact, parse_raw
from shards.format.record import Record
from shards.format.storage import Storage, consecutive
from shards.planning.view import FOLDER, View
from shards.verification.clips import DAMAGED as _DAMAGED_CLIPS
from shards.verification.clips import clip_faults, open_manifest
from shards.webdataset_import.command import split_name
from shards.webdataset_import.member import MemberError, parse_npy
from shards.webdataset_import.tarscan import scan_tar

_BLOCK_BYTES = 2 << 20
_INDEX = "Run `conclugen index` on the folder again"
_DAMAGED = "Restore the shard from its source; `verify --repair` makes a manifest without it"


@dataclass(frozen=True)
class Problem:
    """One fault: where, what, and what to do about it."""

    shard: str
    sample: str | None
    reason: str
    remedy: str

    def __str__(self) -> str:
        where = f"shard {self.shard!r}" + ("" if self.sample is None else f", sample {self.sample!r}")
        return f"{where}: {self.reason}. {self.remedy}"


def verify(
    folder: str | Path,
    found: Callable[[Problem], None] = lambda problem: None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> list[Problem]:
    """All problems of a data set (empty: it is whole), each also given to `found` as soon as it is met.

    Looks at every byte: manifest, views, indexes, each sample's checksum, headers, numbers and JSON against index and
    schema, the end of each archive, and keys that occur twice. Of clip shards: every clip's checksum, names, places and
    JSON; whether a video decodes is for extraction to say. progress gets rows done and rows in all, after each shard.
    """
    problems: list[Problem] = []

    def add(problem: Problem) -> None:
        problems.append(problem)
        found(problem)

    try:
        manifest = open_manifest(folder)
    except ManifestError as error:
        add(Problem(error.shard, None, error.problem, error.remedy or _DAMAGED))
        return problems
    holder: dict[str, str] = {}
    for number in range(len(manifest)):
        if isinstance(manifest, ClipManifest):
            faults = check_clip_shard(manifest, number, holder)
        else:
            faults = check_shard(manifest, manifest.entry(number), holder)
        for problem in faults:
            add(problem)
        progress(int(manifest.rows_before[number + 1]), manifest.rows)
    for problem in check_views(manifest):
        add(problem)
    return problems


def check_views(manifest: Manifest) -> Iterator[Problem]:
    """The problems of the saved views: damaged, or made for other data."""
    for name in View.names(manifest):
        try:
            View.open(manifest, name)
        except ShardError as error:
            yield Problem(error.shard, None, _without_place(error), error.remedy or _DAMAGED)
        except ValueError as error:  # not the name of a view
            yield Problem(f"{FOLDER}/{name}.parquet", None, str(error), "Remove or rename the file")


def check_shard(manifest: Manifest, entry: ShardEntry, holder: dict[str, str]) -> Iterator[Problem]:
    """The problems of one shard. `holder` (key -> shard) is what was met so far, and gains this shard's keys."""
    try:
        index = load_index(manifest, entry)
        table = read_table(entry.name, read_index_bytes(manifest, entry))
        storage = Storage(manifest)
        keys = table["key"].to_pylist()
        yield from _repeated(entry, keys, holder)
        if index.layout is None:
            yield from _check_members(manifest, entry, index, table, keys, storage)
        else:
            yield from _check_raw(manifest, entry, index, table, storage)
    except ShardError as error:
        yield Problem(entry.name, error.sample, _without_place(error), error.remedy or _DAMAGED)


def check_clip_shard(manifest: ClipManifest, number: int, holder: dict[str, str]) -> Iterator[Problem]:
    """As `check_shard`, of the clip shard with that number."""
    entry, reader = manifest.entry(number), ClipReader(manifest)
    try:
        reader.index(number)
        rows = reader.table(number).to_pylist()
        yield from _repeated(entry, [row["key"] for row in rows], holder)
        yield from (Problem(entry.name, *fault) for fault in clip_faults(reader, number, rows))
    except ShardError as error:
        yield Problem(entry.name, error.sample, _without_place(error), error.remedy or _DAMAGED_CLIPS)


def _repeated(entry: ShardEntry, keys: list[str], holder: dict[str, str]) -> Iterator[Problem]:
    for key in keys:
        if key in holder:
            yield Problem(entry.name, key, f"key occurs in shard {holder[key]!r} as well", "Pack the data again")
        else:
            holder[key] = entry.name


def _without_place(error: ShardError) -> str:
    if error.expected is None and error.found is None:
        return error.problem
    return f"{error.problem} (expected {error.expected}, found {error.found})"


def _check_raw(
    manifest: Manifest, entry: ShardEntry, index: ShardIndex, table: Any, storage: Storage
) -> Iterator[Problem]:
    schema, layout = manifest.schema, index.layout
    assert layout is not None
    stride = layout.stride
    step = max(1, _BLOCK_BYTES // stride)
    memory = np.empty((min(step, entry.count), stride), np.uint8)
    for start in range(0, entry.count, step):
        rows = table.slice(start, step).to_pylist()
        raw = memory[: len(rows)]
        sums = read_raw(storage, entry, stride, slice(start, start + len(rows)), raw)
        intact = sums == index.checksums[start : start + len(rows)]
        records = parse_intact(schema, layout, raw, [row["key"] for row in rows])
        for sample, row, same, record in zip(raw, rows, intact.tolist(), records, strict=True):
            if not same:
                yield Problem(entry.name, row["key"], "checksum differs from the index", _DAMAGED)
                continue
            if record is None:
                try:
                    record = parse_raw(schema, layout, sample.data)
                except ValueError as error:
                    yield Problem(entry.name, row["key"], str(error), _DAMAGED)
                    continue
            for field in _differences(manifest, row, record):
                yield Problem(
                    entry.name, row["key"], f"{field} differs between shard and index", "Rebuild it: `verify --repair`"
                )
    tail = np.empty(entry.bytes - entry.count * stride, np.uint8)
    storage.read_into(entry, [(entry.count * stride, [tail.data])])
    if tail.any():
        yield Problem(entry.name, None, "the end of the archive is not empty", _DAMAGED)


def _differences(manifest: Manifest, row: dict[str, Any], record: Record) -> list[str]:
    """Index fields that are not what the shard's own bytes say."""
    schema = manifest.schema
    pairs: list[tuple[str, Any, Any]] = [
        ("key", row["key"], record.key),
        ("group", row["group"], record.group),
        ("text", row["text"], record.text),
    ]
    pairs += [(f"meta.{name}", row[f"meta.{name}"], record.meta[name]) for name in schema.meta]
    pairs += [
        (f"present.{name}", row[f"present.{name}"], there)
        for name, there in zip(schema.column_names, record.present, strict=True)
    ]
    # Compared as JSON values, where a missing number is None: NaN is not equal to itself.
    pairs += [
        (f"label.{label.name}", label.to_json(row[f"label.{label.name}"]), label.to_json(record.labels[label.name]))
        for label in schema.labels
    ]
    return [name for name, indexed, stored in pairs if indexed != stored]


def _check_members(
    manifest: Manifest, entry: ShardEntry, index: ShardIndex, table: Any, keys: list[str], storage: Storage
) -> Iterator[Problem]:
    assert index.members is not None
    if manifest.is_local:
        yield from _check_names(Path(manifest.path(entry.name + TAR_SUFFIX)), entry, index, keys)
    labels = {label.name: table[f"label.{label.name}"].to_pylist() for label in manifest.labels}
    meta = {name: table[f"meta.{name}"].to_pylist() for name in manifest.schema.meta}
    said = values_digest(keys, labels, table["group"].to_pylist(), table["text"].to_pylist(), meta)
    if index.layout_dict.get("values") != said:
        yield Problem(entry.name, None, "keys, labels, groups or texts are not those that were indexed", _INDEX)
    for row, key in enumerate(keys):
        places = [(offset, size) for offset, size in index.members[row].tolist() if offset >= 0]
        buffer = np.empty(sum(size for _, size in places), np.uint8).data
        storage.read_into(entry, consecutive(places, buffer))
        if xxhash.xxh3_64_intdigest(buffer) != int(index.checksums[row]):
            yield Problem(entry.name, key, "checksum differs from the index", _DAMAGED)
            continue
        at = 0
        for number, column in enumerate(manifest.columns):
            size = int(index.members[row, number, 1])
            if size < 0:
                continue
            try:
                finite = bool(np.isfinite(parse_npy(buffer[at : at + size], column)).all())
            except MemberError as error:
                yield Problem(entry.name, key, f"column {column.name!r}: {error}", _INDEX)
            else:
                if finite != index.present[row, number]:
                    yield Problem(entry.name, key, f"presence of column {column.name!r} is not as indexed", _DAMAGED)
            at += size


def _check_names(path: Path, entry: ShardEntry, index: ShardIndex, keys: list[str]) -> Iterator[Problem]:
    """Whether the index finds every sample of the archive, and each array under its own sample's name."""
    assert index.members is not None
    names: dict[tuple[int, int], str | None] = {}
    samples: dict[str, None] = {}
    for member in scan_tar(path):
        split = split_name(member.name)
        names[member.offset, member.size] = None if split is None else split[0]
        if split is not None:
            samples[split[0]] = None
    for row, key in enumerate(keys):
        places = [(offset, size) for offset, size in index.members[row].tolist() if offset >= 0]
        if any(names.get(place) != key for place in places):
            yield Problem(entry.name, key, "the index finds an array where the archive has none of this sample", _INDEX)
    indexed = set(keys)
    for key in samples:
        if key not in indexed:
            yield Problem(entry.name, key, "the sample is in the archive, but not in the index", _INDEX)


def stray_files(manifest: Manifest) -> list[str]:
    """Shards and indexes in the (local) folder that the manifest does not list: nothing reads them."""
    if not manifest.is_local:
        return []
    listed = set(manifest.shards["name"].to_pylist())
    names = (path.name for path in Path(manifest.folder).iterdir())
    return sorted(
        name
        for name in names
        for end in (TAR_SUFFIX, INDEX_SUFFIX)
        if name.endswith(end) and name[: -len(end)] not in listed
    )
