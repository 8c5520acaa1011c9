"""Where the checkpoints of a run lie: a folder or an object store, written whole, found again, the best of them kept.

Ray Train has a checkpoint manager too. It is not used, because a run must continue from whatever a failure leaves
behind: it refuses a run once a checkpoint that its snapshot names is gone or the snapshot, written in place, is torn;
its `report` is a barrier without a time limit; and what it keeps is counted for each of its own names, not for the run.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from conclugen.common import uris
from conclugen.training import checkpoint
from conclugen.training.checkpoint import Checkpoint, CheckpointError, CheckpointVersionError, Snapshot

PREFIX = "step-"
_ATTEMPTS, _FIRST_PAUSE_S = 4, 0.5
_MOST_MISSED = 3  # checkpoints in a row that could not be written

Result = TypeVar("Result")


class CheckpointWriteError(RuntimeError):
    """Checkpoints cannot be written, and going on would risk too much work. The last good one stays."""


class CheckpointStore:
    """Checkpoints of one run, by step. A checkpoint counts once its document is there, which is written last.

    Args:
        location: Folder or fsspec URL; made if it is not there.
        keep: Checkpoints kept: the best by `keep_by`, or the newest without it; the newest is kept in any case.
        keep_by: Name of a measure in a checkpoint's `extra["measures"]`.
        keep_order: `max` or `min`: which of its values are best.
    """

    def __init__(self, location: str | Path, keep: int = 3, keep_by: str | None = None, keep_order: str = "max"):
        self.location = str(location).rstrip("/")
        self.is_local = "://" not in self.location
        self._filesystem, self._root = fsspec.core.url_to_fs(self.location, use_listings_cache=False)
        self._keep, self._keep_by, self._sign = keep, keep_by, 1 if keep_order == "max" else -1
        self._values: dict[int, float] = {}

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, newest first; `load` says whether it reads back."""
        return sorted((step for step in self._folders() if self._filesystem.exists(self._document(step))), reverse=True)

    def load(self, step: int) -> Checkpoint:
        """Raises CheckpointError where it is damaged or incomplete."""
        if self.is_local:
            return checkpoint.load(self._folder(step))
        with tempfile.TemporaryDirectory() as temporary:
            for name in (checkpoint.TENSORS, checkpoint.DOCUMENT):
                source = f"{self._folder(step)}/{name}"
                try:
                    retried(functools.partial(self._filesystem.get_file, source, f"{temporary}/{name}"))
                except FileNotFoundError as cause:
                    raise CheckpointError(f"{source}: missing; the checkpoint was cut off") from cause
            return checkpoint.load(temporary)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that reads back whole; for each damaged or half-written one a line is printed.

        Raises CheckpointVersionError where another version of conclugen wrote a later one: to continue would overwrite
        it.
        """
        for step in sorted(retried(self._folders), reverse=True):
            try:
                return self.load(step)
            except CheckpointVersionError as error:
                remedy = "continue with that version, give the run another name, or move its checkpoints away"
                raise CheckpointVersionError(f"{error}; {remedy}") from error
            except CheckpointError as error:
                print(f"passed over: {uris.scrub(error)}", flush=True)
        return None

    def publish(self, step: int, state: Snapshot) -> None:
        """Store a checkpoint, then remove those that need not be kept. Raises what the storage raises, in the end."""
        retried(lambda: self._write(step, state))
        self._values[step] = self._value(state.document["extra"])
        retried(self._prune)

    def _write(self, step: int, state: Snapshot) -> None:
        if self.is_local:
            checkpoint.write(self._folder(step), state)
            return
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary) / "checkpoint"
            checkpoint.write(local, state)
            for name in (checkpoint.TENSORS, checkpoint.DOCUMENT):
                self._filesystem.put_file(str(local / name), f"{self._folder(step)}/{name}")

    def _prune(self) -> None:
        whole = self.steps()
        kept = set(whole[:1])
        kept |= set(whole[: self._keep] if self._keep_by is None else sorted(whole, key=self._rank)[: self._keep])
        for step in set(self._folders()) - kept:
            if step < whole[0]:  # a later one without document is another writer's, or will be written again
                self._filesystem.rm(self._folder(step), recursive=True)
        if self.is_local:  # what writers that were killed have left
            for left in Path(self._root).glob(f".{PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True)

    def _rank(self, step: int) -> tuple[float, int]:
        if step not in self._values:
            text = self._filesystem.cat_file(self._document(step)).decode(errors="replace")
            self._values[step] = self._value(checkpoint.read_extra(text))
        value = self._values[step]
        return (math.inf if math.isnan(value) else -self._sign * value, -step)

    def _value(self, extra: dict[str, Any]) -> float:
        measures = extra.get("measures")
        value = measures.get(self._keep_by) if isinstance(measures, dict) else None
        return float(value) if isinstance(value, int | float) else math.nan

    def _folders(self) -> list[int]:
        self._filesystem.invalidate_cache()
        try:
            names = [path.rstrip("/").rpartition("/")[2] for path in self._filesystem.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []
        digits = [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]
        return [int(text) for text in digits if text.isdigit()]

    def _folder(self, step: int) -> str:
        return f"{self._root}/{PREFIX}{step:010d}"

    def _document(self, step: int) -> str:
        return f"{self._folder(step)}/{checkpoint.DOCUMENT}"


class CheckpointWriter:
    """Writes checkpoints in a thread while training continues; at most one waits, so memory stays bounded.

    One that cannot be written is passed over with a warning, for the next may succeed; the third in a row, and the last
    of a run, raise CheckpointWriteError.

    Args:
        store: Where to.
        before: Called in the thread before a checkpoint is written: what must be on disk before it counts, and whether
            this process may still write.
        stored: Called in the thread when a checkpoint is stored, with the seconds since it was submitted.
    """

    def __init__(
        self,
        store: CheckpointStore,
        before: Callable[[], None],
        stored: Callable[[float], None] = lambda seconds: None,
    ):
        self._store, self._before, self._stored = store, before, stored
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._pending: tuple[int | None, Future[None]] | None = None  # the step of a checkpoint, None of other work
        self._missed = 0

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._pending is not None and not self._pending[1].done()

    def wait(self) -> None:
        """Wait until the one submitted last is written, or passed over, and what is done beside them."""
        self._settle(most_missed=_MOST_MISSED)

    def submit(
        self, step: int, state: Snapshot, completed: Callable[[Snapshot], Snapshot] = lambda state: state
    ) -> None:
        """Have a snapshot written, as it is after `completed` in the thread; waits until the one before it is."""
        self.wait()
        self._pending = step, self._thread.submit(self._write, step, state, completed, time.perf_counter())

    def do(self, work: Callable[[], None]) -> None:
        """Have something else done in the thread. What it raises, the next call that waits raises."""
        self.wait()
        self._pending = None, self._thread.submit(work)

    def finish(self) -> None:
        """Wait until everything is written. Raises CheckpointWriteError where the last one could not be."""
        self._settle(most_missed=1)

    def _write(self, step: int, state: Snapshot, completed: Callable[[Snapshot], Snapshot], submitted: float) -> None:
        state = completed(state)
        self._before()
        self._store.publish(step, state)
        self._stored(time.perf_counter() - submitted)

    def _settle(self, most_missed: int) -> None:
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        error = future.exception()
        if error is None:
            self._missed = 0
            return
        if step is None or not isinstance(error, OSError):
            raise error
        self._missed += 1
        what = f"the checkpoint at step {step} could not be written to {self._store.location}: {describe(error)}"
        if self._missed >= most_missed:
            raise CheckpointWriteError(
                f"{what}. Make room or restore access, and start the run again under its name: it continues from the "
                "last checkpoint"
            ) from error
        print(f"warning: {what}; training continues, and the next one is tried", flush=True)


def retried(action: Callable[[], Result]) -> Result:
    """Repeat what the storage refuses with an OSError, for about 4 s in all; FileNotFoundError is an answer."""
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError:
            if attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(_FIRST_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def describe(error: BaseException) -> str:
    """The error in one line, without secrets; `No space left on device` rather than a number."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        return uris.scrub(f"{os.strerror(error.errno)}{where}")
    return uris.scrub(" ".join(f"{type(error).__name__}: {error}".split()))
