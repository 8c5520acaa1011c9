"""Local files that are read whole."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

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
