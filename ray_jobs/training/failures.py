"""What goes wrong on a rank, kept by rank, step and cause: noted where it happens, read by the job that started it.

Ray hands over the error of whichever rank it hears of first, and of a process that died no cause at all. So each rank
writes its own record, `failures.jsonl` in the run's folder: one line for each failure of each attempt, and for each
beginning. A run that ends well and never failed leaves none.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import ray
from ray.exceptions import RayError

from conclugen.common import uris
from conclugen.common.atomic import append_text
from conclugen.common.options import JobFailedError
from conclugen.common.reading import parse_json, read_lines
from ray_jobs.checkpoint_store import CheckpointWriteError
from shards import ShardError
from shards.access import AccessError

# What a restart from the last checkpoint would meet again.
_FATAL: tuple[type[Exception], ...] = (ArithmeticError, AssertionError, AttributeError, CheckpointWriteError)
_FATAL += (ImportError, LookupError, NameError, NotImplementedError, TypeError, ValueError)
# Functions in which a rank only waits for another one.
_WAITING = ("/torch/distributed/", "/conclugen/distributed.py", "/ray_jobs/training/rank_meeting.py")
# What Ray says of a process that is gone.
_DIED = re.compile(r"(?:Worker exit detail|The actor is dead because):? ?([^.]*)")
# The last line of a traceback.
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning): ")
_LONGEST_CAUSE = 600
# Other ranks get this long to leave their record before the first process ends and Ray stops them all.
_LAST_WORDS_S = 2.0


class RunFailedError(JobFailedError):
    """A run that ended before its last step, said in one line: rank, step, cause, and what to do."""


@dataclass(frozen=True)
class Failure:
    """One rank's failure.

    Attributes:
        fatal: A restart would meet it again.
        waited: It only waited for other ranks.
        announced: The ranks knew that a node of theirs would be taken away.
        group: The placement group of the ranks: Ray makes another one where it changes their number by itself.
    """

    attempt: str
    rank: int
    world: int
    step: int
    error: str
    message: str
    fatal: bool
    waited: bool
    time: float
    trace: str
    announced: bool = False
    group: str | None = None

    @property
    def was_announced(self) -> bool:
        """It waited for a rank whose node was taken away, as announced."""
        return self.waited and self.announced

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}, after step {self.step}: {self.error}: {self.message}"


def is_fatal(error: BaseException) -> bool:
    """Whether going on from the last checkpoint would only repeat it."""
    if isinstance(error, ShardError | AccessError):
        return not error.may_pass
    return isinstance(error, _FATAL)


class Heartbeat:
    """Around a rank's training: notes how it fails, and ends the process when no step is finished in time.

    Args:
        path: `failures.jsonl` of the run.
        attempt: Which start of the run this is.
        append: Adds lines to the file; None: it lies on this machine.
        limit_s: Seconds without a `beat` after which the process is given up: an exception cannot be raised in a
            thread that hangs in a system call, and the other ranks wait for it.

    Attributes:
        announced: Whether a node of the ranks will be taken away; set by who hears of it.
    """

    def __init__(
        self,
        path: Path,
        attempt: str,
        rank: int,
        world: int,
        limit_s: float,
        append: Callable[[Path, str], None] | None = None,
    ):
        self._append = append or append_text
        self._path, self._attempt, self._rank, self._world, self._limit = path, attempt, rank, world, limit_s
        self.announced = False
        self._group = ray.get_runtime_context().get_placement_group_id() if ray.is_initialized() else None
        self._step = 0
        self._alive_at = time.monotonic()
        self._end = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def beat(self, step: int) -> None:
        """A step is finished (or the rank is otherwise known to get on)."""
        self._step, self._alive_at = step, time.monotonic()

    def __enter__(self) -> Heartbeat:
        self._write({"attempt": self._attempt, "rank": self._rank, "begun": self._group}, f"rank {self._rank} began")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end.set()
        if isinstance(error, Exception):
            frames = traceback.extract_tb(error.__traceback__)
            waited = any(part in frame.filename for frame in frames for part in _WAITING) and not is_fatal(error)
            text = "".join(traceback.format_exception(error))
            self._note(type(error).__name__, " ".join(str(error).split()), is_fatal(error), waited, text)

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self._limit / 10)):
            if time.monotonic() - self._alive_at > self._limit:
                frame = sys._current_frames()[self._watched]
                where = f"no step was finished within {self._limit:g} s; it is in {_place(frame)}"
                stack = traceback.extract_stack(frame)
                waited = any(part in line.filename for line in stack for part in _WAITING)
                self._note("Stalled", where, False, waited, "".join(traceback.format_list(stack)))
                time.sleep(_LAST_WORDS_S)
                os._exit(1)

    def _note(self, error: str, message: str, fatal: bool, waited: bool, trace: str) -> None:
        failure = Failure(
            self._attempt,
            self._rank,
            self._world,
            self._step,
            error,
            uris.scrub(message)[:2000],
            fatal,
            waited,
            time.time(),
            uris.scrub(trace)[-8000:],
            self.announced,
            self._group,
        )
        self._write(asdict(failure), str(failure))

    def _write(self, record: dict[str, Any], told: str) -> None:
        try:
            self._append(self._path, json.dumps(record) + "\n")
        except (OSError, RayError) as problem:  # a full disk, a job that is gone: what Ray hands over must do
            print(f"warning: {self._path}: {uris.scrub(problem)}; {told}", flush=True)


def read(path: Path, attempt: str) -> list[Failure]:
    """The failures that ended one attempt, the most telling first: fatal ones, then of ranks that did not only wait.

    Ranks that Ray stopped to start more or fewer of them may have left records as well; those do not count.
    """
    if not path.is_file():
        return []
    records: list[Failure] = []
    for line, _ in read_lines(path):
        try:
            record = parse_json(line or b"")
            if record["attempt"] != attempt:
                continue
            group = record["begun"] if "begun" in record else record.get("group")
            records = [earlier for earlier in records if earlier.group == group]
            if "begun" not in record:
                records.append(Failure(**record))
        except (ValueError, TypeError, KeyError):
            continue  # torn by a crash
    return most_telling(records)


def forget_beginnings(path: Path) -> None:
    """At a run's end: remove the file where it reports no failure, only of ranks that began."""
    if path.is_file() and not any(_is_failure(line) for line, _ in read_lines(path)):
        path.unlink()


def _is_failure(line: bytes | None) -> bool:
    """Also of a line that can't be read: it stays."""
    try:
        return "begun" not in parse_json(line or b"")
    except (ValueError, TypeError):
        return True


def describe(failures: list[Failure], error: BaseException, step: int) -> str:
    """One line on what ended an attempt: the first failure, ranks that said nothing; without records Ray's own words.

    step: the last one that was journalled, for a process that died without a word.
    """
    if not failures:
        died = _DIED.search(uris.scrub(" ".join(str(error).split())))
        cause = died[1].strip()[:_LONGEST_CAUSE] if died else cause_of(str(error))
        ranks = getattr(error, "worker_failures", None) or {}
        if ranks:
            return f"rank {', '.join(map(str, sorted(ranks)))}, after step {step}: the process died: {cause}"
        return f"after step {step}: {type(error).__name__}: {cause}"
    first = failures[0]
    silent = sorted(set(range(first.world)) - {failure.rank for failure in failures})
    if first.waited and silent:
        ranks = ", ".join(map(str, silent))
        return f"rank {ranks} gave no sign of life, and {first}"
    return str(first)


def handed_over(error: BaseException, attempt: str, world: int, step: int) -> list[Failure]:
    """What Ray hands over of ranks' own exceptions, for those that could leave no record: on a node that does not see
    the run's folder, or where the disk is full. Of a process that died there is none."""
    found = []
    for rank, wrapped in sorted((getattr(error, "worker_failures", None) or {}).items()):
        own = getattr(wrapped, "_base_exc", wrapped)
        if isinstance(own, RayError) or not isinstance(own, Exception):
            continue
        message = uris.scrub(" ".join(str(own).split()))[:2000]
        trace = uris.scrub(str(wrapped))[-8000:]
        waited = any(part in trace for part in _WAITING) and not is_fatal(own)
        kind = type(own).__name__
        found.append(Failure(attempt, rank, world, step, kind, message, is_fatal(own), waited, time.time(), trace))
    return found


def most_telling(failures: Iterable[Failure]) -> list[Failure]:
    """Fatal ones first, then those of ranks that did not only wait, each in order of time."""
    return sorted(failures, key=lambda failure: (not failure.fatal, failure.waited, failure.time))


def cause_of(said: str) -> str:
    """The end of what a library said, in one line: of a traceback the exception, its last line."""
    lines = said.strip().splitlines()
    starts = [i for i, line in enumerate(lines) if _EXCEPTION.match(line)]
    traced = any(line.lstrip().startswith(("File ", "Traceback", "ray::")) for line in lines)
    cause = uris.scrub(" ".join(" ".join(lines[starts[-1] :] if starts and traced else lines).split()))
    return cause if len(cause) <= _LONGEST_CAUSE else f"...{cause[-_LONGEST_CAUSE:]}"


def _place(frame: FrameType) -> str:
    innermost = traceback.extract_stack(frame)[::-1][:4]
    return " < ".join(f"{Path(line.filename).name}:{line.lineno} {line.name}" for line in innermost)
