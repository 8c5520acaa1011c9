"""Clip shards: a tar of `.mp4`, `.flac` or `.wav`, `.txt` and `.json` for each clip, read by range and verified.

The `webdataset` package reads them as they are. Index and manifest are those of feature shards, with members of any
size in the place of columns: see `shards.format.index` (layout `members`) and `shards.format.manifest`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
import xxhash

from conclugen.common.names import did_you_mean
from shards.errors import ManifestError, ShardError
from shards.format.index import ShardIndex, decode_index, read_table
from shards.format.index_store import IndexCache, read_index_bytes
from shards.format.manifest import Manifest
from shards.format.schema import Label, check_name
from shards.format.storage import Storage
from shards.media.face_track import Faces
from shards.media.limits import Limits

VIDEO, TEXT, JSON = "mp4", "txt", "json"
SOUNDS = ("flac", "wav")
# Strings of the index: `meta.<name>`. source: path within the source folder; transcript: "own", the recogniser's
# name, or missing; transcript_confidence: "high" or "low"; face: "yes" or "no"; seconds: length of the picture.
META = ("split", "source", "transcript", "transcript_confidence", "face", "seconds")
LIMITS = "limits"  # in what a manifest says of its making
_REBUILD = "Build the shards again"
_INDEX_CACHE = 64 * 1024**2


@dataclass(frozen=True)
class ClipMember:
    """A kind of member, in the place of a feature shard's column."""

    name: str


@dataclass(frozen=True)
class ClipSchema:
    """What clip shards hold: the sound's format, labels, whether clips belong to groups (speakers), and names of
    strings of the index that this set has besides `META`."""

    kind: ClassVar[str] = "clips"

    sound: str = "flac"
    labels: tuple[Label, ...] = ()
    grouped: bool = False
    further: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "further", tuple(self.further))
        if self.sound not in SOUNDS:
            raise ValueError(f"clip schema: sound is {self.sound!r}, {did_you_mean(self.sound, SOUNDS)}")
        names = [label.name for label in self.labels]
        if len(set(names)) != len(names):
            raise ValueError(f"clip schema: labels are {names}, expected different names")
        for name in self.further:
            check_name("meta", name)
        if len(set(self.meta)) != len(self.meta):
            raise ValueError(f"clip schema: meta fields are {list(self.meta)}, expected different names")

    @property
    def meta(self) -> tuple[str, ...]:
        return (*META, *self.further)

    @property
    def column_names(self) -> tuple[str, ...]:
        return (VIDEO, self.sound, TEXT, JSON)

    @property
    def columns(self) -> tuple[ClipMember, ...]:
        return tuple(ClipMember(name) for name in self.column_names)

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        return {"video": (VIDEO,), "audio": (self.sound,), "text": (TEXT,)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "sound": self.sound,
            "labels": [
                {"name": x.name, "kind": x.kind, "classes": list(x.classes), "width": x.width} for x in self.labels
            ],
            "grouped": self.grouped,
            **({"further": list(self.further)} if self.further else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClipSchema:
        """Strict inverse of `to_dict`; ValueError for anything else."""
        if not isinstance(data, Mapping) or set(data) - {"further"} != {"kind", "sound", "labels", "grouped"}:
            raise ValueError(f"clip schema: found {data!r}, expected kind, sound, labels and grouped")
        further = data.get("further", [])
        if not isinstance(further, list):
            raise ValueError(f"clip schema: further is {further!r}, expected a list of names")
        if data["kind"] != cls.kind or not isinstance(data["grouped"], bool) or not isinstance(data["labels"], list):
            raise ValueError(f"clip schema: found {data!r}")
        try:
            labels = tuple(Label(**item) for item in data["labels"])
        except TypeError as error:
            raise ValueError(f"clip schema: labels cannot be read: {error}") from None
        return cls(data["sound"], labels, data["grouped"], tuple(further))

    def canonical_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


class ClipManifest(Manifest):
    """A data set of clip shards. `ClipManifest.open(folder)`; the rest as `shards.Manifest`."""

    schema_type = ClipSchema
    schema: ClipSchema  # type: ignore[assignment]

    @property
    def limits(self) -> Limits:
        """Those under which the clips were built, for whoever decodes them again; the usual ones where it is not said.
        ManifestError for invalid limits."""
        stated = self.info.get(LIMITS)
        if stated is None:
            return Limits()
        try:
            return Limits(**stated)
        except (TypeError, ValueError) as error:
            raise ManifestError(self.folder, f"its limits cannot be read: {error}", remedy=_REBUILD) from None


@dataclass(frozen=True)
class StoredClip:
    """One clip as it is stored. row: global row number; video: MP4 bytes; sound: FLAC or WAV bytes, mono, or None;
    text: transcript or None; info: what its `.json` says (see `shards.clips.writer.clip_json`)."""

    key: str
    row: int
    video: bytes
    sound: bytes | None
    text: str | None
    info: dict[str, Any]

    @cached_property
    def faces(self) -> Faces | None:
        """Where its faces are, or None for a clip without one."""
        face = self.info.get("face")
        return None if face is None else Faces.from_dict(face)

    @property
    def cuts(self) -> tuple[float, ...]:
        """Seconds at which another shot begins; none where faces, and with them shots, were not looked for."""
        video = self.info.get("video")
        cuts = video.get("cuts") if isinstance(video, dict) else None
        if cuts is None:
            return () if self.faces is None else self.faces.cuts
        if not isinstance(cuts, list) or not all(isinstance(cut, float | int) for cut in cuts):
            raise ValueError(f"the cuts are {cuts!r}, expected a list of seconds")
        return tuple(float(cut) for cut in cuts)

    @property
    def low_confidence(self) -> bool:
        """Whether the transcript was recognised by a machine that was unsure of it."""
        transcript = self.info.get("transcript")
        return bool(transcript and transcript["low_confidence"])


class ClipReader:
    """Reads clips of a `ClipManifest` by shard and row; each one's checksum is verified.

    A corrupt clip raises ShardError that names shard and clip: a job quarantines it and continues. Pickled, it is the
    manifest's path.
    """

    def __init__(self, manifest: ClipManifest) -> None:
        self.manifest = manifest
        self._storage = Storage(manifest)
        self._indexes = IndexCache(_INDEX_CACHE)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ClipReader, (self.manifest,))

    def table(self, shard: int) -> pa.Table:
        """The shard's index: key, `label.<name>`, group, text, `meta.<name>`, `present.<member>`, and more."""
        entry = self.manifest.entry(shard)
        return read_table(entry.name, read_index_bytes(self.manifest, entry))

    def index(self, shard: int) -> ShardIndex:
        """Checksums, presence, labels and places of the shard's clips, checked against the manifest."""
        held = self._indexes.get(shard)
        if held is None:
            entry = self.manifest.entry(shard)
            index = decode_index(entry.name, read_index_bytes(self.manifest, entry), entry.bytes, ClipSchema)
            if index.schema != self.manifest.schema or len(index) != entry.count or index.digest != entry.digest:
                raise ShardError(entry.name, "index and manifest disagree", remedy=_REBUILD)
            self._indexes.put(shard, entry, index)
            return index
        return held[1]

    def read(self, shard: int, row: int) -> StoredClip:
        """Clip number `row` of a shard, read with one request. ShardError: it is corrupt; IndexError: no row."""
        index, entry = self.index(shard), self.manifest.entry(shard)
        if not 0 <= row < entry.count:
            raise IndexError(f"clip {row} of shard {entry.name!r}, expected 0..{entry.count - 1}")
        assert index.members is not None
        places = index.members[row].tolist()
        there = [(offset, size) for offset, size in places if offset >= 0]
        buffer = memoryview(bytearray(sum(size for _, size in there)))
        ranges, at = [], 0
        for offset, size in there:
            ranges.append((offset, [buffer[at : at + size]]))
            at += size
        self._storage.read_into(entry, ranges)
        if xxhash.xxh3_64_intdigest(buffer) != int(index.checksums[row]):
            key = self.table(shard)["key"][row].as_py()
            raise ShardError(entry.name, "checksum differs from the index", sample=key, remedy="Build the shard again")
        parts: dict[str, bytes] = {}
        at = 0
        for name, (offset, size) in zip(self.manifest.schema.column_names, places, strict=True):
            if offset >= 0:
                parts[name] = bytes(buffer[at : at + size])
                at += size
        try:
            info = json.loads(parts[JSON])
            text = parts[TEXT].decode() if TEXT in parts else None
            key, video = str(info["key"]), parts[VIDEO]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ShardError(entry.name, f"clip number {row} cannot be read: {error!r}") from None
        number = int(self.manifest.rows_before[shard]) + row
        return StoredClip(key, number, video, parts.get(self.manifest.schema.sound), text, info)

    def clips(self, shard: int) -> Iterator[StoredClip]:
        """All clips of a shard in order; ShardError at the first damaged one."""
        for row in range(self.manifest.entry(shard).count):
            yield self.read(shard, row)
