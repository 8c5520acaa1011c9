"""Writes a clip shard: members as they come, then the index beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from conclugen.common.atomic import atomic_file, write_bytes
from shards.clips.reader import JSON, TEXT, VIDEO, ClipSchema
from shards.errors import ShardError
from shards.format.index import INDEX_SUFFIX, IndexRows, content_digest, encode_index
from shards.format.layout import BLOCK, RECORD, padded, tar_header
from shards.format.manifest import TAR_SUFFIX, ShardEntry, check_shard_name
from shards.format.record import check_text
from shards.format.schema import CLIP_KEY_LIMIT, safe_key


@dataclass(frozen=True)
class NewClip:
    """A clip to be written. video: MP4 bytes; sound: bytes in the schema's format, or None; labels: name -> value as
    `Label.encode` takes it; meta: strings of the index (`ClipSchema.meta`); details: more for the `.json`."""

    key: str
    video: bytes
    sound: bytes | None
    text: str | None
    labels: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    meta: Mapping[str, str | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def clip_json(schema: ClipSchema, clip: NewClip, encoded: Mapping[str, Any]) -> bytes:
    """The `.json` member: key, original (the key that the data set has), group, split, labels by name, and the
    details: `source`, `video`, `audio`, `face`, `transcript`."""
    document = {
        "key": safe_key(clip.key, CLIP_KEY_LIMIT),
        "original": clip.key,
        "group": clip.group,
        "split": clip.meta.get("split"),
        "labels": {label.name: label.to_json(encoded[label.name]) for label in schema.labels},
        **clip.details,
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()


def write_clip_shard(
    folder: str | os.PathLike[str], name: str, schema: ClipSchema, clips: Iterable[NewClip]
) -> ShardEntry | None:
    """Write `<name>.tar` and its index into an existing local folder; None (and no files) if there are no clips.

    Each file appears whole or not at all, the index last. Memory holds one clip. Raises ShardError for a key that
    occurs twice, and ValueError for labels or texts that don't fit.
    """
    check_shard_name(name)
    rows = _Rows(schema)
    path = Path(folder) / f"{name}{TAR_SUFFIX}"
    with atomic_file(path) as file:
        position = 0
        for clip in clips:
            members, key = rows.add(name, clip)
            digest, places = xxhash.xxh3_64(), []
            for extension in schema.column_names:
                data = members.get(extension)
                if data is None:
                    places.append((-1, -1))
                    continue
                file.write(tar_header(f"{key}.{extension}", len(data)))
                file.write(data)
                file.write(bytes(padded(len(data)) - len(data)))
                places.append((position + BLOCK, len(data)))
                digest.update(data)
                position += BLOCK + padded(len(data))
            rows.place(places, digest.intdigest())
        size = padded(position + 2 * BLOCK, RECORD)
        file.write(bytes(size - position))
    if not rows.keys:
        path.unlink()
        return None
    layout = {"kind": "members", "mapping": {"clips": True}}
    index = rows.index()
    data = encode_index(schema, layout, index)  # type: ignore[arg-type]
    write_bytes(path.with_name(f"{name}{INDEX_SUFFIX}"), data)
    digest_bytes = content_digest(layout, index.checksums)
    return ShardEntry(name, len(rows.keys), size, 0, digest_bytes, len(data), xxhash.xxh3_128_digest(data))


class _Rows:
    """Rows of the index, gathered clip by clip."""

    def __init__(self, schema: ClipSchema) -> None:
        self._schema = schema
        self.keys: list[str] = []
        self._seen: set[str] = set()
        self._places: list[list[tuple[int, int]]] = []
        self._checksums: list[int] = []
        self._labels: dict[str, list[Any]] = {label.name: [] for label in schema.labels}
        self._groups: list[str | None] = []
        self._texts: list[str | None] = []
        self._meta: dict[str, list[str | None]] = {name: [] for name in schema.meta}

    def add(self, shard: str, clip: NewClip) -> tuple[dict[str, bytes | None], str]:
        """The members of a clip and its safe key; nothing is kept where the clip is refused."""
        encoded = {label.name: label.encode(clip.labels.get(label.name)) for label in self._schema.labels}
        for what, value in (("text", clip.text), ("group", clip.group), *clip.meta.items()):
            check_text(what, value)
        document = clip_json(self._schema, clip, encoded)
        key = safe_key(clip.key, CLIP_KEY_LIMIT)
        if key in self._seen:
            raise ShardError(shard, "key occurs twice; rename one", sample=clip.key)
        self._seen.add(key)
        self.keys.append(key)
        self._groups.append(clip.group)
        self._texts.append(clip.text)
        for name, values in self._labels.items():
            values.append(encoded[name])
        for name, strings in self._meta.items():
            strings.append(clip.meta.get(name))
        text = None if clip.text is None else clip.text.encode()
        return {VIDEO: clip.video, self._schema.sound: clip.sound, TEXT: text, JSON: document}, key

    def place(self, places: list[tuple[int, int]], checksum: int) -> None:
        self._places.append(places)
        self._checksums.append(checksum)

    def index(self) -> IndexRows:
        members = np.array(self._places, np.int64).reshape(len(self.keys), len(self._schema.columns), 2)
        return IndexRows(
            self.keys,
            np.where(members[..., 0] < 0, np.iinfo(np.int64).max, members[..., 0]).min(axis=1),
            np.array(self._checksums, np.uint64),
            members[..., 0] >= 0,
            self._labels,
            self._groups,
            self._texts,
            self._meta,
            members,
        )
