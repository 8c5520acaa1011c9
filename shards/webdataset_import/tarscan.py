"""Finds the members of any plain tar (ustar, PAX, GNU, bsdtar) without believing a word of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.errors import ShardError
from shards.format.layout import BLOCK, LayoutError, padded, parse_header

_REGULAR = (b"0", b"\0", b"7")
_DIRECTORY = b"5"
_LINK = "target of a link"
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a GNU sparse file",
    b"M": "a part of a multi-volume archive",
}
_LONGEST_EXTENSION = 1 << 20  # a PAX or long-name header; real ones have a few hundred bytes
_REWRITE = "Unpack it with care and write it again with `conclugen pack` or webdataset.TarWriter"


@dataclass(frozen=True)
class Member:
    """A regular file in an archive: its name without a leading `./`, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int


def scan_tar(path: Path) -> Iterator[Member]:
    """The regular members of an archive in order.

    Raises ShardError, naming the archive and the member, for links, devices and sparse files, names that are absolute
    or lead outside, sizes beyond the file, damaged headers, a missing end-of-archive marker, and data after it.
    """
    shard = path.name.removesuffix(".tar")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ShardError(shard, f"cannot be opened: {error}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ShardError(shard, "is not a regular file")
        yield from _Scanner(shard, file, status.st_size).members()


class _Scanner:
    def __init__(self, shard: str, file: BinaryIO, size: int) -> None:
        self._shard, self._file, self._size = shard, file, size
        self._position = 0

    def members(self) -> Iterator[Member]:
        extended: dict[str, str] = {}  # what PAX and long-name headers say of the member that follows
        while True:
            at = self._position
            try:
                header = parse_header(self._take(BLOCK, "header"))
            except LayoutError as error:
                raise self._fault(f"{error} at byte {at}") from None
            if header is None:
                if extended:
                    raise self._fault("an extended header is followed by no member")
                self._check_end()
                return
            name = extended.get("path") or self._text(header.name)
            size = self._size_of(name, extended.get("size"), header.size)
            if header.kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
                fields = self._extension(header.kind, size)
                if header.kind != _PAX_GLOBAL:
                    extended |= fields
                continue
            if any(field.startswith("GNU.sparse") for field in extended):
                raise self._fault("is a GNU sparse file, which is not read", name)
            if _LINK in extended:
                raise self._fault("is not a link, but follows a long link name", name)
            clean = self._safe_name(name)
            if not name:
                raise self._fault("has a member without a name")
            if header.kind in _REGULAR and not name.endswith("/"):
                yield Member(clean, self._position, size)
            elif header.kind not in (*_REGULAR, _DIRECTORY):
                what = _REFUSED.get(header.kind, f"of the unknown type {header.kind!r}")
                raise self._fault(f"is {what}; only regular files are read", name)
            elif size:
                raise self._fault(f"is a directory that claims {size} bytes", name)
            self._skip(size)
            extended = {}

    def _take(self, count: int, what: str) -> bytes:
        self._file.seek(self._position)
        data = self._file.read(count)
        if len(data) != count:
            raise self._fault(f"ends within a {what} at byte {self._position}: cut short, or no end-of-archive marker")
        self._position += count
        return data

    def _skip(self, size: int) -> None:
        self._position += padded(size)
        if self._position > self._size:
            raise self._fault(f"ends within the padding of a member, at byte {self._size}: cut short")

    def _size_of(self, name: str, extended: str | None, plain: int) -> int:
        if extended is not None and not (extended.isascii() and extended.isdigit() and len(extended) < 19):
            raise self._fault(f"has the size {extended[:40]!r}", name)
        size = plain if extended is None else int(extended)
        if size > self._size - self._position:
            raise self._fault(
                f"claims {size} bytes, but only {self._size - self._position} bytes of the file follow", name
            )
        return size

    def _extension(self, kind: bytes, size: int) -> dict[str, str]:
        if size > _LONGEST_EXTENSION:
            raise self._fault(f"an extended header claims {size} bytes")
        start = self._position
        data = self._take(size, "extended header")
        self._position = start
        self._skip(size)
        if kind == _LONG_LINK:
            return {_LINK: ""}  # a link's target; the link itself is refused, and nothing else may follow
        if kind == _LONG_NAME:
            return {"path": self._text(data.split(b"\0", 1)[0])}
        fields = self._pax_fields(data)
        if kind == _PAX_GLOBAL and not {"path", "size"}.isdisjoint(fields):
            raise self._fault("a global PAX header sets path or size for all members")
        return fields

    def _pax_fields(self, data: bytes) -> dict[str, str]:
        """`LENGTH KEY=VALUE\\n` records (POSIX.1-2001, pax interchange format)."""
        fields, position = {}, 0
        while position < len(data):
            space = data.find(b" ", position, position + 10)
            digits = data[position:space]
            if space < 0 or not digits.isdigit():
                raise self._fault("a PAX header is malformed")
            end = position + int(digits)
            record = data[space + 1 : end]
            if end > len(data) or not record.endswith(b"\n") or b"=" not in record:
                raise self._fault("a PAX header is malformed")
            key, value = record[:-1].split(b"=", 1)
            if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):
                fields[self._text(key)] = self._text(value)
            position = end
        return fields

    def _text(self, name: bytes) -> str:
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            raise self._fault(f"has a member whose name is not UTF-8: {name[:120]!r}") from None
        if "\0" in text:
            raise self._fault(f"has a member whose name holds a zero byte: {name[:120]!r}")
        return text

    def _safe_name(self, name: str) -> str:
        while name.startswith("./"):
            name = name[2:].lstrip("/") if name != "./" else ""
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise self._fault("has a name that is absolute or leads outside", name)
        return name

    def _check_end(self) -> None:
        """A second zero block, and nothing but zeros after it: otherwise what follows would be lost silently."""
        if any(self._take(BLOCK, "end-of-archive marker")):
            raise self._fault("has a lone zero block amid its members")
        while self._position < self._size:
            if any(self._take(min(1 << 20, self._size - self._position), "padding")):
                raise self._fault("has data after the end-of-archive marker (two archives joined?)")

    def _fault(self, problem: str, member: str | None = None) -> ShardError:
        if member is not None:
            problem = f"member {member[:200]!r} {problem}"
        return ShardError(self._shard, problem, remedy=_REWRITE)
