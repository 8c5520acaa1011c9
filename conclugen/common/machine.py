"""What of this machine a process may use: cores and memory, less than there are where a container, a batch system or
`taskset` has set limits."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_MMAP_THRESHOLD, _LARGE = -3, 4 << 20  # M_MMAP_THRESHOLD of malloc.h; bytes
_NO_LIMIT = 1 << 60  # cgroup v1 writes the largest number of pages for none


@dataclass(frozen=True)
class Memory:
    """Of the tightest limit, in bytes: how much it allows, and how much of it is yet free."""

    limit: int
    free: int


def cores() -> int:
    """Cores that this process may keep busy: those that it may run on, or the share of time that it may have of them,
    rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, version in _cgroups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # `max` and -1 are none
                count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def return_freed_memory() -> None:
    """Have this process give large arrays back to the system once they are freed. glibc does so at first, and takes
    ever larger ones out of its heap as it sees them come and go: between those that stay, the heap can't shrink. Where
    the C library is another one, nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def memory_limit() -> Memory | None:
    """The tightest of the limits on this process's memory and those of the groups that it is in; None without any."""
    found = None
    for folder, version in _cgroups("memory"):
        names = ("memory.max", "memory.current", "inactive_file")
        if version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        with contextlib.suppress(OSError, ValueError, KeyError):
            limit = int((folder / names[0]).read_text())  # ValueError for `max`
            used = int((folder / names[1]).read_text())
            kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used -= int(kinds.get(names[2], 0))  # pages of files that the kernel would give up
            free = max(0, limit - used)
            if limit < _NO_LIMIT and (found is None or free < found.free):
                found = Memory(limit, free)
    return found


def _cgroups(controller: str) -> Iterator[tuple[Path, int]]:
    """(folder, version) of this process's group and of those above it; in a container the root is its own."""
    with contextlib.suppress(OSError, ValueError):
        for line in _OWN.read_text().splitlines():
            number, names, path = line.split(":", 2)
            if number == "0" and not names:
                root, version = _ROOT, 2
            elif controller in names.split(","):
                root, version = _ROOT / controller, 1
            else:
                continue
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield folder, version
