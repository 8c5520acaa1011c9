"""One job at a time works in a run's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from conclugen.common.locks import Lock, LockHeldError


class RunInUseError(ValueError):
    """Another job works in the folder now."""


@contextlib.contextmanager
def held(folder: Path, doing: str = "the run is being trained", name: str = "run.name") -> Iterator[None]:
    """Hold a run's folder (made if it is not there) for one job.

    Args:
        folder: of a run, a sweep or an ablation.
        doing: what the holder does, for the message.
        name: field by which the user would choose another folder.

    Raises:
        RunInUseError: it is held; says by which process, on which host, since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / ".lock")
    try:
        lock.acquire()
    except LockHeldError as error:
        raise RunInUseError(f"{folder}: {doing} by {error.holder}; {error.remedy}, or choose another {name}") from None
    try:
        yield
    finally:
        lock.release()
