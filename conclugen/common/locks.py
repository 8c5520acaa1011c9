"""Locks between processes that know their owner and end with it.

A lock is the kernel's lock on a file (`filelock`): the system takes it back from a process that dies, however. Beside
it, in the same file, is a readable note of who holds it. Where the file system has no locks, a marker file
stands in for them, and the note counts: its process must be gone from this host. That is said once for each file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from conclugen.common.reading import read_mapping

_log = logging.getLogger(__name__)
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
_LONGEST_NOTE = 4096
_QUIET_S = 10.0  # who waits longer says for whom
_POLL_S = 0.05
FOLDER_LOCK, _PROBE = ".lock", ".room-"
_LEAST_FREE = 1 << 20  # bytes: less is not enough for any job's records
_told: set[Path] = set()


@dataclass(frozen=True)
class Owner:
    """Who holds a lock: host name, process number, when the process began (the kernel's own words, empty where it has
    none), and since when it holds the lock (seconds since 1970)."""

    host: str
    pid: int
    began: str
    since: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {since}"

    @classmethod
    def here(cls) -> Owner:
        return cls(socket.gethostname(), os.getpid(), _began(os.getpid()), time.time())

    def is_gone(self) -> bool:
        """Whether the process has certainly ended; False for one of another host, which cannot be seen from here."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # somebody else's process
            pass
        now = _began(self.pid)
        return bool(self.began and now) and self.began != now  # the number is another process's by now


class LockHeldError(ValueError):
    """Another process holds the lock. owner: who, or None where its note can't be read; remedy: what to do."""

    def __init__(self, path: Path, owner: Owner | None, remedy: str) -> None:
        self.path, self.owner, self.remedy = path, owner, remedy
        super().__init__(f"{path}: held by {owner or 'another process'}; {remedy}")

    @property
    def holder(self) -> str:
        """`process 4711 on host since 2026-01-31 10:00:00`."""
        return str(self.owner or "another process")


class Lock:
    """A lock on a file, which is made if it is not there.

    Not reentrant: a second `Lock` on the same file waits, or is refused, in the same process too.

    Args:
        path: of the lock file.
        keep: whether the file stays when the lock is released.
    """

    def __init__(self, path: str | Path, keep: bool = True) -> None:
        self.path, self._keep = Path(path), keep
        self._marker = self.path.with_name(f"{self.path.name}.marker")
        self._held: filelock.BaseFileLock | None = None
        self._note: Owner | None = None

    def acquire(self, wait_s: float = 0.0) -> None:
        """Take the lock, waiting at most so long (`math.inf`: as long as it takes; after 10 s it says for whom).

        Raises:
            LockHeldError: it is held; says by which process, on which host, since when.
            OSError: the file can't be made or opened.
        """
        patience = min(wait_s, _QUIET_S)
        try:
            self._acquire(patience)
        except LockHeldError as error:
            if wait_s <= patience:
                raise
            _log.warning("%s: waiting for %s", self.path, error.holder)
            self._acquire(wait_s - patience)
        self._note = Owner.here()
        self._write(json.dumps(asdict(self._note)), os.O_CREAT)

    def release(self) -> None:
        """Let the lock go. Releasing twice is allowed."""
        if self._held is not None:
            if self.owner() == self._note:  # the file may be gone, or another's, if its folder was removed
                if self._keep:
                    self._write("")
                else:  # who waits for it finds that the file has lost its name, and makes another (`filelock`)
                    with contextlib.suppress(OSError):
                        self.path.unlink()
            self._held.release()
            self._held = None

    def owner(self) -> Owner | None:
        """Who holds the lock, by its note; None where there is none (or none that can be read)."""
        try:
            note = read_mapping(self.path, _LONGEST_NOTE)
            return Owner(str(note["host"]), int(note["pid"]), str(note["began"]), float(note["since"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None

    @contextlib.contextmanager
    def held(self, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the lock for a block; waits and raises as `acquire` does."""
        self.acquire(wait_s)
        try:
            yield
        finally:
            self.release()

    def _acquire(self, wait_s: float) -> None:
        lock = filelock.FileLock(self.path, thread_local=False, fallback_to_soft=False, poll_interval=_POLL_S)
        try:
            _wait(lock, wait_s)
            self._held = lock
        except filelock.Timeout:
            raise LockHeldError(self.path, self.owner(), "wait for its end, stop it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _tell(self.path, error, f"{self._marker.name} stands in for one")
            self._acquire_marker(wait_s)

    def _acquire_marker(self, wait_s: float) -> None:
        """The marker keeps out those without locks, as this process is; the note those who have them."""
        end = time.monotonic() + wait_s
        marker = filelock.SoftFileLock(self._marker, thread_local=False, poll_interval=_POLL_S)
        try:
            _wait(marker, max(wait_s, 4 * _POLL_S))  # the first try may only remove what a killed process has left
        except filelock.Timeout:
            raise self._held_by_marker() from None
        try:
            while (owner := self.owner()) is not None and not owner.is_gone():
                if time.monotonic() >= end:
                    raise self._held_by_marker()
                time.sleep(_POLL_S)
        except BaseException:
            marker.release()
            raise
        self._held = marker

    def _held_by_marker(self) -> LockHeldError:
        return LockHeldError(self.path, self.owner(), f"if that process is gone, remove {self.path} and {self._marker}")

    def _write(self, note: str, flags: int = 0) -> None:
        """The note is informative only: a full disk must not turn it into an error."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o666)
            try:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, note.encode(), 0)
            finally:
                os.close(descriptor)


def is_of_lock(name: str) -> bool:
    """Whether a file is of this module: a folder's lock, its marker, or a probe that a killed `check_room` left."""
    return name.startswith((FOLDER_LOCK, _PROBE))


def check_room(what: str, folder: str | Path, least: int = _LEAST_FREE, of: str = "") -> None:
    """Raise OSError unless a folder, which need not be there yet, can be written to and has room left.

    what: field or option that names it, for messages. least: bytes that a job will yet write there for certain; of:
    what they are, for the message.
    """
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise _plain(NotADirectoryError, errno.ENOTDIR, f"{what}: {there} is a file, where a folder is needed")
    try:
        # A file without a name where the system has such; nothing is left of it then, however the process ends.
        tempfile.TemporaryFile(prefix=_PROBE, dir=there).close()
    except OSError as error:
        raise _plain(type(error), error.errno, f"{what}: {folder} cannot be written to ({error.strerror})") from None
    free = shutil.disk_usage(there).free
    needed = max(least, _LEAST_FREE)
    if free < needed:
        raise _plain(
            OSError,
            errno.ENOSPC,
            f"{what}: {folder} has {free / 2**20:,.1f} MiB free, and {needed / 2**20:,.1f} MiB are needed"
            f"{f' for {of}' if of else ''}; make room, or choose another folder",
        )


def bytes_in(folder: str | Path) -> int:
    """Of the files in a folder and below it, which a job that continues need not write again; 0 where there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).lstat().st_size
    return total


def _plain(kind: type[OSError], number: int | None, message: str) -> OSError:
    """An error of that number that reads as the message alone."""
    error = kind(message)
    error.errno = number
    return error


class FolderInUseError(ValueError):
    """Another process works in the folder now."""


@contextlib.contextmanager
def folder_held(
    folder: str | Path, doing: str, choose: str, *, field: str = "", file: str = FOLDER_LOCK, keep: bool = False
) -> Iterator[None]:
    """Hold a folder (made if it is not there) for one job; every job that writes into a folder of results or of data
    takes this one lock.

    Args:
        folder: that is written to.
        doing: what the holder does, for the message of whoever is refused: "shards are being written".
        choose: by what another folder is chosen, such as `another --output`.
        field: that gives the folder, for the message where it can't be written to, if `choose` does not name it.
        file: name of the lock in the folder.
        keep: whether the lock file stays. If not, nothing of the lock is left, nor the folder if it was made here and
            is empty.

    Raises:
        FolderInUseError: it is held; says by which process, on which host, since when.
        OSError: the folder can't be made or written to, or has no room.
    """
    folder = Path(folder)
    made = not folder.exists()
    check_room(field or choose.removeprefix("another "), folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / file, keep)
    try:
        lock.acquire()
    except LockHeldError as error:
        raise FolderInUseError(f"{folder}: {doing} by {error.holder}; {error.remedy}, or choose {choose}") from None
    try:
        yield
    finally:
        lock.release()
        if made and not keep:
            with contextlib.suppress(OSError):  # there is something in it, as there should be
                folder.rmdir()


@contextlib.contextmanager
def descriptor_locked(descriptor: int, path: Path) -> Iterator[None]:
    """Hold an open file alone, waiting for others as long as it takes; path: its name, for messages.

    Meant for a file that is itself appended to, for moments: no note is written. Where the file system has no locks the
    block runs without one, and that is said once.
    """
    try:
        # The kernel's own queue: filelock polls, which a file that is locked for every line would feel.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        locked = True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _tell(path, error, "only one process may write here")
        locked = False
    try:
        yield
    finally:
        if locked:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _wait(lock: filelock.BaseFileLock, wait_s: float) -> None:
    if wait_s <= 0:
        lock.acquire(blocking=False)
    else:
        lock.acquire(timeout=-1 if math.isinf(wait_s) else wait_s)


def _tell(path: Path, error: OSError, instead: str) -> None:
    with _telling:
        if path in _told:
            return
        _told.add(path)
    _log.warning("%s: this file system has no locks (%s); %s", path, error.strerror or error, instead)


_telling = threading.Lock()


def _began(pid: int) -> str:
    """When a process began, in the kernel's words: process numbers are used again, in containers within seconds."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The command's name stands in brackets and may hold anything; the start is field 22 of the line.
        return f"{boot}:{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return ""
