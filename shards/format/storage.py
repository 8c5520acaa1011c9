"""Byte ranges of shards: local files with few descriptors and no memory of their own, or any fsspec URL."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence

from shards.access import AccessError, reaching
from shards.errors import UNREADABLE, ShardError
from shards.format.manifest import TAR_SUFFIX, Manifest, ShardEntry

_OPEN_FILES = 64
_SIZES_KNOWN = 100_000
_MOST_BUFFERS = 1024  # of one preadv call, on Linux
_RESTORE = "Restore the shard from its source, or run `conclugen verify FOLDER --repair` to continue without it"
# Remote: ranges closer than this are fetched as one, for a request costs more than so many bytes.
_REMOTE_GAP = 256 * 1024


class _OpenFile:
    """A descriptor that is closed when its last user lets go of it, even after it left the cache."""

    def __init__(self, path: str) -> None:
        # O_NONBLOCK: opening a named pipe must fail the check below, not wait for somebody to write into it.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise OSError("not a regular file")

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


class Storage:
    """Reads ranges of a manifest's shards; a shard's size is compared with the manifest before any of it is read."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.is_local = manifest.is_local
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._sized: set[str] = set()
        self._lock = threading.Lock()

    def read_into(self, entry: ShardEntry, ranges: Sequence[tuple[int, Sequence[memoryview]]]) -> None:
        """Fill each range's buffers, one after another, with the shard's bytes from the range's offset on.

        Raises ShardError where the file is missing, has another size than the manifest says, or ends early, and
        AccessError where it can't be reached, which says nothing about the shard.
        """
        try:
            with reaching(self._manifest.path(entry.name + TAR_SUFFIX), self._manifest.storage_options):
                if self.is_local:
                    self._read_local(entry, ranges)
                else:
                    self._read_remote(entry, ranges)
        except AccessError:
            raise
        except FileNotFoundError:
            raise ShardError(entry.name, f"file {entry.name}{TAR_SUFFIX} is missing", remedy=_RESTORE) from None
        except OSError as error:
            raise ShardError(entry.name, f"{UNREADABLE}: {error}", remedy=_RESTORE) from error

    def _read_local(self, entry: ShardEntry, ranges: Sequence[tuple[int, Sequence[memoryview]]]) -> None:
        file = self._open(entry)
        for offset, buffers in ranges:
            if len(buffers) == 1 and os.preadv(file.descriptor, buffers, offset) == len(buffers[0]):
                continue  # nearly always; below is what else can happen
            for start in range(0, len(buffers), _MOST_BUFFERS):
                some = list(buffers[start : start + _MOST_BUFFERS])
                wanted = sum(map(len, some))
                offset += wanted
                while (got := os.preadv(file.descriptor, some, offset - wanted)) < wanted:
                    if got == 0:
                        raise _wrong_size(entry, os.fstat(file.descriptor).st_size)
                    wanted -= got
                    some = _after(some, got)

    def _open(self, entry: ShardEntry) -> _OpenFile:
        with self._lock:
            file = self._files.get(entry.name)
            if file is not None:
                self._files.move_to_end(entry.name)
                return file
            file = _OpenFile(self._manifest.path(entry.name + TAR_SUFFIX))
            size = os.fstat(file.descriptor).st_size
            if size != entry.bytes:
                raise _wrong_size(entry, size)
            self._files[entry.name] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
            return file

    def _read_remote(self, entry: ShardEntry, ranges: Sequence[tuple[int, Sequence[memoryview]]]) -> None:
        filesystem, path = self._manifest.filesystem, self._manifest.path(entry.name + TAR_SUFFIX)
        if entry.name not in self._sized:
            size = filesystem.size(path)
            if size != entry.bytes:
                raise _wrong_size(entry, size)
            if len(self._sized) >= _SIZES_KNOWN:
                self._sized.clear()
            self._sized.add(entry.name)
        merged = _merge([(offset, sum(map(len, buffers))) for offset, buffers in ranges], _REMOTE_GAP)
        starts, ends = [start for start, _, _ in merged], [end for _, end, _ in merged]
        if len(merged) == 1:
            parts = [filesystem.cat_file(path, start=starts[0], end=ends[0])]
        else:
            parts = filesystem.cat_ranges([path] * len(merged), starts, ends)
        waiting = iter(ranges)
        for (start, end, members), data in zip(merged, parts, strict=True):
            if isinstance(data, Exception):
                raise data
            if len(data) != end - start:
                raise _wrong_size(entry, start + len(data))
            view = memoryview(data)
            for offset, _ in members:
                at = offset - start
                for buffer in next(waiting)[1]:
                    buffer[:] = view[at : at + len(buffer)]
                    at += len(buffer)


def consecutive(ranges: Sequence[tuple[int, int]], memory: memoryview) -> list[tuple[int, list[memoryview]]]:
    """(offset, length) ranges as `read_into` takes them, to be put into `memory` one after another."""
    placed, at = [], 0
    for offset, length in ranges:
        placed.append((offset, [memory[at : at + length]]))
        at += length
    return placed


def _after(buffers: list[memoryview], filled: int) -> list[memoryview]:
    """What is left of the buffers when so many bytes of them are filled."""
    while filled >= len(buffers[0]):
        filled -= len(buffers[0])
        buffers = buffers[1:]
    return [buffers[0][filled:], *buffers[1:]]


def _merge(ranges: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """(start, end, the ranges inside) of neighbouring ranges that are at most `gap` apart, in ascending order."""
    merged: list[tuple[int, int, list[tuple[int, int]]]] = []
    for offset, length in ranges:
        if merged and 0 <= offset - merged[-1][1] <= gap:
            start, _, members = merged[-1]
            members.append((offset, length))
            merged[-1] = (start, offset + length, members)
        else:
            merged.append((offset, offset + length, [(offset, length)]))
    return merged


def _wrong_size(entry: ShardEntry, found: int) -> ShardError:
    return ShardError(
        entry.name, "size in bytes differs from the manifest", expected=entry.bytes, found=found, remedy=_RESTORE
    )
