"""Remembers which recordings have one clock: a large one is read once for a whole build, not for each of its shards.

Intervals of one recording lie in many shards, which other processes build, on other machines. So verdicts on large
files are kept on the disk that they share, under a file's path, with its size and its time of change. Whoever needs
one that another is about to give waits for it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from conclugen.common.atomic import write_json
from conclugen.common.locks import Lock, LockHeldError
from shards.media.limits import MediaError
from shards.media.probe import check_file

_LARGE = 16 << 20  # bytes: smaller files are read in less time than it takes to keep a verdict for each of thousands
_SLOWEST = 4_000_000  # bytes a second at which a recording is read at least, by many at once over a network


class ClockVerdicts:
    """folder: where they are kept, made where it is missing; None keeps them in memory alone."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[tuple[str, int, int], MediaError | None] = {}

    def check(self, path: str, timeout: float, scan: Callable[[float], None]) -> None:
        """Raise MediaError as `scan` does or did for the file as it is now.

        scan: reads the file within so many seconds: `timeout`, and as many more as its size takes. That it took longer,
        or that its process died, is remembered here but not on the disk. Raises OSError where no verdict can be kept.
        """
        size = check_file(path)
        try:
            version = (path, size, Path(path).stat().st_mtime_ns)
        except OSError as error:
            raise MediaError("unreadable", f"the file cannot be read: {error.strerror or error}") from None
        if version not in self._known:
            seconds = timeout + size / _SLOWEST
            if self._folder is None or size < _LARGE:
                self._known[version] = _caught(scan, seconds)
            else:
                self._known[version] = self._kept(self._folder, version, seconds, scan)
        if (problem := self._known[version]) is not None:
            raise MediaError(problem.reason, str(problem))

    def _kept(
        self, folder: Path, version: tuple[str, int, int], seconds: float, scan: Callable[[float], None]
    ) -> MediaError | None:
        """From the disk, else by a scan that one process alone makes at a time."""
        file = folder / f"{xxhash.xxh3_128_hexdigest(version[0].encode(errors='surrogateescape'))}.json"
        stated = dict(zip(("path", "size", "changed"), version, strict=True))
        with contextlib.suppress(KeyError):
            return _read(file, stated)
        folder.mkdir(exist_ok=True)
        lock = Lock(file.with_suffix(".lock"), keep=False)
        with contextlib.suppress(LockHeldError):  # its holder can't be at work any more, or can't be seen from here
            lock.acquire(seconds)
        try:
            with contextlib.suppress(KeyError):
                return _read(file, stated)
            problem = _caught(scan, seconds)
            if problem is None or problem.reason == "clock_jumps":
                write_json(file, {**stated, "problem": None if problem is None else str(problem)})
            return problem
        finally:
            lock.release()


def _caught(scan: Callable[[float], None], seconds: float) -> MediaError | None:
    try:
        scan(seconds)
    except MediaError as error:
        return error
    return None


def _read(file: Path, stated: dict[str, Any]) -> MediaError | None:
    """KeyError where there is no verdict on this version of the recording."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise KeyError(file) from None
    if not isinstance(found, dict) or {name: found.get(name) for name in stated} != stated:
        raise KeyError(file)
    problem = found["problem"]
    if problem is not None and not isinstance(problem, str):
        raise KeyError(file)
    return None if problem is None else MediaError("clock_jumps", problem)
