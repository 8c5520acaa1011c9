"""Local files that are either wholly there or not there at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_MOST_BYTES = 1 << 31  # of an index, a manifest or a view, which are read whole


def read_whole(path: Path) -> bytes:
    """All of a regular file. Raises OSError where it is missing, a pipe or a device, or larger than 2 GiB."""
    # O_NONBLOCK: opening a named pipe must fail the check below, not wait for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        if status.st_size > _MOST_BYTES:
            raise OSError(f"{path} has {status.st_size} bytes, expected at most {_MOST_BYTES}")
    except BaseException:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write: appears under its name, synced, when the block ends, and not at all if it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file at once."""
    with atomic_file(path) as file:
        file.write(data)
