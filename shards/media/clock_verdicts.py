"""Remembers which recordings have one clock: a large one is read once for a whole build, not for each of its shards.

Intervals of one recording lie in many shards, which other processes build, on other machines. So verdicts on large
files are kept on the disk that they share, under a digest of a file's path, with its size, its time of change and the
number of the rule by which it was judged. Whoever needs one that another is about to give waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from conclugen.common.atomic import write_json
from conclugen.common.locks import Lock, LockHeldError
from conclugen.common.reading import read_mapping
from shards.media.limits import REASONS, MediaError
from shards.media.one_clock import RULE
from shards.media.probe import check_file

_log = logging.getLogger(__name__)
_LARGE = 16 << 20  # bytes: smaller files are read in less time than it takes to keep a verdict for each of thousands
_SLOWEST = 4_000_000  # bytes a second at which a recording is read at least, by many at once over a network
# A reading that fails may last as long as its alarm, and not every shard should wait for one. Once more, however: the
# machine may have been busy, or short of memory.
_TRIES = 2
_UNFINISHED = frozenset({"timeout", "crashed", "too_many_bytes"})
_LONGEST = 1 << 16  # bytes of a kept verdict
Scan = Callable[[float], bool]
_told: set[Path] = set()


@dataclass(frozen=True)
class _Verdict:
    """reason and message: of the MediaError, None for a recording of one clock. tries: how often a build has read the
    file by then; seconds: the longest alarm that it had."""

    reason: str | None = None
    message: str = ""
    tries: int = 1
    seconds: float = 0.0

    def holds(self, seconds: float) -> bool:
        """Whether it is believed by one who has so many seconds to read the file."""
        return self.reason not in _UNFINISHED or (self.tries >= _TRIES and seconds <= self.seconds)

    def check(self) -> None:
        if self.reason is None:
            return
        message = self.message
        if self.reason in _UNFINISHED:
            message = f"the reading of its clock did not end: {message} (tried {self.tries} of {_TRIES} times)"
        raise MediaError(self.reason, message)


class ClockVerdicts:
    """folder: where they are kept, made where it is missing; None keeps them in memory alone, as does a folder that
    can't be written to, which is logged once."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[tuple[str, int, int], _Verdict] = {}

    def check(self, path: str, timeout: float, scan: Scan) -> None:
        """Raise MediaError as `scan` does or did for the file as it is now.

        scan: reads the file within so many seconds, `timeout` and as many more as its size takes, and returns False
        where its format leaves nothing to read, which is not kept. Where it takes longer, or its process dies, it is
        tried again, by the next process that asks, and again by one that has more seconds.
        """
        size = check_file(path)
        try:
            version = (path, size, Path(path).stat().st_mtime_ns)
        except OSError as error:
            raise MediaError("unreadable", f"the file cannot be read: {error.strerror or error}") from None
        if version not in self._known:
            seconds = timeout + size / _SLOWEST
            if self._folder is None or size < _LARGE:
                self._known[version], _ = _made(scan, seconds)
            else:
                self._known[version] = self._kept(self._folder, version, seconds, scan)
        self._known[version].check()

    def _kept(self, folder: Path, version: tuple[str, int, int], seconds: float, scan: Scan) -> _Verdict:
        """From the disk, else by a scan that one process alone makes at a time."""
        path, size, changed = version
        file = folder / f"{xxhash.xxh3_128_hexdigest(path.encode(errors='surrogateescape'))}.json"
        stated = {"rule": RULE, "size": size, "changed": changed}
        kept = _read(file, stated)
        if kept is not None and kept.holds(seconds):
            return kept
        lock = Lock(file.with_suffix(".lock"), keep=False)
        try:
            folder.mkdir(exist_ok=True)
            lock.acquire(_TRIES * seconds)
        except LockHeldError:  # its holder can't be at work any more, or can't be seen from here
            pass
        except OSError as error:
            self._go_without(folder, error)
            return _made(scan, seconds)[0]
        try:
            kept = _read(file, stated)
            if kept is not None and kept.holds(seconds):
                return kept
            verdict, lasting = _made(scan, seconds, 0 if kept is None else kept.tries)
            if lasting:
                try:
                    write_json(file, {**stated, **asdict(verdict)})
                except OSError as error:
                    self._go_without(folder, error)
            return verdict
        finally:
            lock.release()

    def _go_without(self, folder: Path, error: OSError) -> None:
        self._folder = None
        if folder not in _told:
            _told.add(folder)
            what = "what is found out about recordings can't be kept there"
            _log.warning("%s: %s (%s), so each shard reads large ones again", folder, what, error.strerror or error)


def _made(scan: Scan, seconds: float, before: int = 0) -> tuple[_Verdict, bool]:
    """And whether it is worth keeping: not where nothing was read, or the file could not be opened, which may pass."""
    try:
        return _Verdict(), scan(seconds)
    except MediaError as error:
        lasting = error.reason == "clock_jumps" or error.reason in _UNFINISHED
        return _Verdict(error.reason, str(error), before + 1, seconds), lasting


def _read(file: Path, stated: Mapping[str, object]) -> _Verdict | None:
    """None where there is no verdict on this version of the recording."""
    try:
        found = read_mapping(file, _LONGEST)
        if {name: found.get(name) for name in stated} != stated:
            return None
        reason, message, tries, seconds = (found[name] for name in ("reason", "message", "tries", "seconds"))
    except (OSError, ValueError, KeyError):
        return None
    known = reason is None or (isinstance(reason, str) and reason in REASONS)
    if not known or not isinstance(message, str) or type(tries) is not int or not isinstance(seconds, int | float):
        return None
    return _Verdict(reason, message, tries, seconds)
