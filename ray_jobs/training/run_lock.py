"""One job at a time works in a run's folder: a lock that the system takes back from a process that dies, however."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil


class RunInUseError(ValueError):
    """Another job works in the folder now."""


@contextlib.contextmanager
def held(folder: Path, doing: str = "the run is being trained", name: str = "run.name") -> Iterator[None]:
    """Hold a run's folder (made if it is not there) for one job.

    Where the file system has no locks, the note in the file decides: its process must be gone from this host. A note of
    another host cannot be checked there, and the user is asked to remove it.

    Args:
        folder: of a run, a sweep or an ablation.
        doing: what the holder does, for the message.
        name: field by which the user would choose another folder.

    Raises:
        RunInUseError: it is held; says by which process, on which host, since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = f"wait for its end, stop it, or choose another {name}"
            raise _in_use(folder, doing, _note(file), remedy) from None
        except OSError:
            note = _note(file)
            if note is not None and not _is_gone(note):
                raise _in_use(folder, doing, note, f"if that process is gone, remove {path}") from None
        process = psutil.Process()
        note = {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time(), "at": time.time()}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(note).encode(), 0)
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def _note(file: int) -> dict[str, Any] | None:
    try:
        note = json.loads(os.pread(file, 4096, 0))
        return {"host": str(note["host"]), **{name: float(note[name]) for name in ("pid", "started", "at")}}
    except (ValueError, KeyError, TypeError):
        return None


def _is_gone(note: dict[str, Any]) -> bool:
    if note["host"] != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(note["pid"])).create_time() - note["started"]) > 1
    except psutil.NoSuchProcess:
        return True


def _in_use(folder: Path, doing: str, note: dict[str, Any] | None, remedy: str) -> RunInUseError:
    owner = "another process"
    if note is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note["at"]))
        owner = f"process {note['pid']:.0f} on {note['host']} since {since}"
    return RunInUseError(f"{folder}: {doing} by {owner}; {remedy}")
