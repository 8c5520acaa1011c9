"""Checks clip shards: every clip's bytes, where they lie, and what its JSON says, against index and manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.clips.reader import ClipManifest, ClipReader, ClipSchema, StoredClip
from shards.errors import ManifestError, ShardError
from shards.format.manifest import OTHER_KIND, TAR_SUFFIX, Manifest
from shards.webdataset_import.tarscan import scan_tar

DAMAGED = (
    "Remove the damaged shard's tar and run `conclugen build` as before: it builds what is missing. "
    "Or leave it: `conclugen features` quarantines what it can't read"
)


def open_manifest(folder: str | Path) -> Manifest:
    """The manifest of feature shards or of clip shards. ManifestError for a corrupt one, FileNotFoundError for none."""
    try:
        return Manifest.open(folder)
    except ManifestError as error:
        if error.problem == OTHER_KIND and error.found == ClipSchema.kind:
            return ClipManifest.open(folder)
        raise


def clip_faults(reader: ClipReader, shard: int, rows: list[dict[str, Any]]) -> Iterator[tuple[str | None, str, str]]:
    """(key or None, what is wrong, what to do) of one shard. rows: of its index, which was read."""
    if reader.manifest.is_local:
        try:
            yield from _misplaced(reader, shard, [row["key"] for row in rows])
        except ShardError as error:
            yield None, error.problem, DAMAGED
    for number, row in enumerate(rows):
        try:
            clip = reader.read(shard, number)
        except ShardError as error:
            if error.may_pass:
                raise
            yield row["key"], error.problem, DAMAGED
            continue
        for field in _differences(reader.manifest.schema, row, clip):
            yield row["key"], f"{field} differs between shard and index", DAMAGED


def _misplaced(reader: ClipReader, shard: int, keys: list[str]) -> Iterator[tuple[str | None, str, str]]:
    """Members of the archive that the index does not find under their own name, and the other way round."""
    manifest, entry = reader.manifest, reader.manifest.entry(shard)
    there = {(m.offset, m.size): m.name for m in scan_tar(Path(manifest.path(entry.name + TAR_SUFFIX)))}
    members = reader.index(shard).members
    assert members is not None
    names = manifest.schema.column_names
    for key, places in zip(keys, members.tolist(), strict=True):
        for extension, (offset, size) in zip(names, places, strict=True):
            if offset >= 0 and there.pop((offset, size), None) != f"{key}.{extension}":
                yield key, f"the index finds its .{extension} where the archive has none", DAMAGED
    for name in there.values():
        yield None, f"{name!r} is in the archive, but not in the index", DAMAGED


def _differences(schema: ClipSchema, row: dict[str, Any], clip: StoredClip) -> list[str]:
    """Fields of the index that are not what the clip's own members say."""
    info = clip.info
    pairs: list[tuple[str, Any, Any]] = [
        ("key", row["key"], clip.key),
        ("text", row["text"], clip.text),
        ("group", row["group"], info.get("group")),
        ("meta.split", row["meta.split"], info.get("split")),
    ]
    stated = info.get("labels")
    labels = stated if isinstance(stated, dict) else {}
    pairs += [
        (f"label.{label.name}", label.to_json(row[f"label.{label.name}"]), labels.get(label.name))
        for label in schema.labels
    ]
    return [name for name, indexed, stored in pairs if indexed != stored]
