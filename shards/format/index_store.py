"""Index files of a data set: read, checked against the manifest, and a bounded number of them kept."""

from __future__ import annotations

import threading
from collections import OrderedDict

import xxhash

from shards.access import AccessError
from shards.errors import ShardError
from shards.format.index import GROUP, INDEX_SUFFIX, ShardIndex, decode_index
from shards.format.manifest import Manifest, ShardEntry


def read_index_bytes(manifest: Manifest, entry: ShardEntry) -> bytes:
    """An index file whose size and digest agree with the manifest; ShardError otherwise, and AccessError where it
    can't be reached."""
    remedy = "Restore the index, or rebuild it with `conclugen verify FOLDER --repair`"
    try:
        data = manifest.read_bytes(entry.name + INDEX_SUFFIX)
    except AccessError:
        raise
    except FileNotFoundError:
        raise ShardError(entry.name, f"file {entry.name}{INDEX_SUFFIX} is missing", remedy=remedy) from None
    except OSError as error:
        raise ShardError(entry.name, f"index cannot be read: {error}", remedy=remedy) from error
    if len(data) != entry.index_bytes or xxhash.xxh3_128_digest(data) != entry.index_digest:
        raise ShardError(
            entry.name,
            "index differs from the manifest (damaged, of another shard, or the manifest is stale)",
            expected=f"{entry.index_bytes} bytes, digest {entry.index_digest.hex()}",
            found=f"{len(data)} bytes, digest {xxhash.xxh3_128_hexdigest(data)}",
            remedy=remedy,
        )
    return data


def load_index(manifest: Manifest, entry: ShardEntry, group: str = GROUP) -> ShardIndex:
    """The index of a shard, checked against the manifest and the manifest's schema; ShardError otherwise. group: column
    that is its `group`."""
    index = decode_index(entry.name, read_index_bytes(manifest, entry), entry.bytes, group=group)
    if index.schema.columns != manifest.schema.columns:
        raise ShardError(
            entry.name, "columns differ from the manifest", expected=manifest.schema.columns, found=index.schema.columns
        )
    if index.schema != manifest.schema:
        raise ShardError(
            entry.name,
            "schema differs from the manifest",
            expected=manifest.schema.to_dict(),
            found=index.schema.to_dict(),
        )
    if len(index) != entry.count or index.stride != entry.stride or index.digest != entry.digest:
        raise ShardError(
            entry.name,
            "index and manifest disagree",
            expected=f"{entry.count} samples, stride {entry.stride}, digest {entry.digest.hex()}",
            found=f"{len(index)} samples, stride {index.stride}, digest {index.digest.hex()}",
            remedy="Rebuild the manifest with `conclugen verify FOLDER --repair`",
        )
    return index


class IndexCache:
    """Least recently used indexes with their shards' entries, bounded by their memory; at least one is kept."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._entries: OrderedDict[int, tuple[ShardEntry, ShardIndex]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: int) -> tuple[ShardEntry, ShardIndex] | None:
        with self._lock:
            found = self._entries.get(shard)
            if found is not None:
                self._entries.move_to_end(shard)
            return found

    def put(self, shard: int, entry: ShardEntry, index: ShardIndex) -> None:
        with self._lock:
            if shard in self._entries:
                return
            self._entries[shard] = entry, index
            self._held += index.nbytes
            while self._held > self._limit and len(self._entries) > 1:
                _, (_, oldest) = self._entries.popitem(last=False)
                self._held -= oldest.nbytes
