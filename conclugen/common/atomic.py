"""Files and folders that appear under their name whole and on the disk, or not at all.

Everything is written beside its target under a random hidden name, synced, renamed over the target in one step, and the
folder is synced too. A reader sees the old content or the new one, two writers never share a temporary file, and
neither a kill nor a power cut leaves a part. What a killed writer leaves is a hidden file that `is_remnant` knows.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_PARTIAL = "partial"
_REPLACED = "replaced"
_LONGEST_STEM = 200  # bytes; with what is added a temporary name stays within the 255 that file systems allow
# File systems that can't sync a folder (some FUSE and network mounts) say so; there is nothing more to do on them.
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write; it becomes `path` when the block ends, and leaves `path` as it was if the block fails.

    Raises OSError, naming `path`, where it cannot be written (no such folder, no permission, no space).
    """
    with atomic_path(path) as temporary:
        # O_EXCL: the name is random, and what somebody put there in advance (a link) must not be followed.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """As `atomic_file`, for writers that take a name: the path to write to, which does not exist yet."""
    target = Path(path)
    temporary = _hidden(target, _PARTIAL)
    try:
        try:
            yield temporary
            sync_file(temporary)
            temporary.replace(target)
        except OSError as error:
            # The user knows the target, not the hidden name beside it.
            if error.filename == str(temporary):
                error.filename, error.filename2 = str(target), None
            raise
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write a whole file atomically."""
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a whole UTF-8 text atomically."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any, *, indent: int | None = 2, sort_keys: bool = True) -> None:
    """Write a JSON document atomically; nothing is touched where `content` is none (TypeError, ValueError)."""
    write_text(path, json.dumps(content, indent=indent, sort_keys=sort_keys))


def append_text(path: str | Path, text: str) -> None:
    """Add to a file, in one write, so that lines of other processes stay whole; the file is made if needed.

    The folder may be somebody else's: what lies there under this name, a link or a pipe, is neither followed nor waited
    for (OSError).
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        file.write(text.encode())


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes `path` when the block ends, and leaves `path` as it was if the block fails.

    A folder already there is replaced: it is moved aside, and removed once the new one is in place, or moved back where
    the new one cannot be put there. Folders above `path` are made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden(target, _PARTIAL)
    aside = _hidden(target, _REPLACED)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                sync_file(Path(folder, name))
            sync_folder(Path(folder))
        try:
            if target.exists():
                target.rename(aside)
            temporary.rename(target)
        except BaseException:
            if aside.exists() and not target.exists():
                aside.rename(target)
            raise
        sync_folder(target.parent)
        if aside.is_symlink():
            aside.unlink()  # what it leads to is somebody else's
        elif aside.exists():
            shutil.rmtree(aside)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def sync_file(path: str | Path) -> None:
    """Make what was written to a file last through a power cut, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder last through a power cut, where its file system can."""
    try:
        sync_file(Path(folder))
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def is_remnant(name: str, target: str) -> bool:
    """Whether a name is that of a temporary file or folder for `target` (both names alone, without folders)."""
    return re.fullmatch(rf"\.{re.escape(_stem(target))}\.[0-9a-f]{{16}}\.({_PARTIAL}|{_REPLACED})", name) is not None


def remove_remnants(path: str | Path) -> None:
    """Remove what killed writers of `path` have left beside it; for whoever is alone in writing it."""
    target = Path(path)
    for entry in target.parent.iterdir() if target.parent.is_dir() else ():
        if is_remnant(entry.name, target.name):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def remove_remnants_in(folder: str | Path) -> None:
    """As `remove_remnants`, of every name in a folder that one job alone writes into."""
    for entry in Path(folder).iterdir():
        if re.fullmatch(rf"\..*\.[0-9a-f]{{16}}\.({_PARTIAL}|{_REPLACED})", entry.name, re.DOTALL):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def hidden_beside(path: str | Path) -> Path:
    """A name for a temporary file or folder beside `path`, which `is_remnant` knows; nothing is made."""
    return _hidden(Path(path), _PARTIAL)


def _hidden(target: Path, suffix: str) -> Path:
    return target.with_name(f".{_stem(target.name)}.{secrets.token_hex(8)}.{suffix}")


def _stem(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST_STEM])
