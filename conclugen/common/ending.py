"""How a job ends when it is asked to stop: in order, with a message, and with the status of its signal.

An interrupt (Ctrl-C, SIGINT) and a termination (SIGTERM, as `ray job stop`, schedulers and `docker stop` send it, with
a grace of seconds before SIGKILL) both become a KeyboardInterrupt in the main thread, so that whatever is open is
closed on the way out. `Command.main` holds `stoppable` around every job of the project, prints what `resumable` has
noted on the way, and ends with 130 or 143. What must be waited for at the end asks `patience` how long it may be.

Python runs signal handlers between two instructions of Python. A library that blocks in native code (Ray, while it
connects) delays them. A thread therefore sees every signal at once, says so, and ends the process at the third.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# `ray job stop` kills after 3 s; within that, what is open must be closed and told.
GRACE_S = 1.5
_ENOUGH = 3  # so many signals mean: now, whatever is open
_UNHEARD_S = 1.0  # after which it is said that one came

_received: list[tuple[int, float]] = []  # signals, and when they came by the monotonic clock
_ours: set[int] = set()  # signals that `stoppable` has taken
_handled = threading.Event()  # the main thread knows of one


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into KeyboardInterrupt within the block; in a thread other than the main one, which gets
    no signals, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _ours:  # the outer block has them, and knows what came
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _received.clear()
    _handled.clear()
    # What the process was started to ignore stays ignored, as SIGINT is in jobs that a shell runs in the background.
    _ours.update(number for number, handler in before.items() if handler != signal.SIG_IGN)
    retake()
    try:
        with _listening():
            yield
    finally:
        _ours.clear()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reading,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
        os.close(reading)


def _listen(reading: int) -> None:
    """Count signals as they come, a byte for each, until the pipe is closed."""
    came: list[int] = []
    told = False
    while numbers := os.read(reading, 64):
        came += [number for number in numbers if number in _ours]
        if came and not told and not _handled.wait(_UNHEARD_S):
            told = True
            _write(b"\nstopping as soon as what is under way returns; the third signal ends it at once\n")
        if len(came) >= _ENOUGH:
            time.sleep(_UNHEARD_S / 4)  # the main thread does the same, where it can
            _stop_at_once(came[0])


def retake() -> None:
    """Take the signals of `stoppable` back from a library that has put its own handlers there, as Ray does when it
    starts. Outside of `stoppable`, as in a notebook, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _ours:
        signal.signal(number, _stop)


def listens() -> bool:
    """Whether signals of this process are those of `stoppable`."""
    return bool(_ours)


def stopped() -> bool:
    """Whether a signal has told this process to stop."""
    return bool(_received)


def status() -> int:
    """The exit status of a process that was told to stop: 130 or 143."""
    return 128 + (_received[0][0] if _received else signal.SIGINT)


def patience(seconds: float) -> float:
    """How long something may be waited for at the end: as asked, or the little that a process has that must stop."""
    return min(seconds, GRACE_S) if _received else seconds


@contextlib.contextmanager
def resumable(words: Callable[[], str]) -> Iterator[None]:
    """Note, where the block is interrupted, what is done and what the same command will do: `words()`, such as
    `3 of 8 trials have ended; the same command continues with the rest`. Of nested blocks the innermost is heard.

    An error on the way out (of `words` too) does not take the interrupt's place: see `interrupt_first`."""
    try:
        with interrupt_first():
            yield
    except KeyboardInterrupt as stop:
        if not getattr(stop, "__notes__", ()):
            with contextlib.suppress(Exception):
                stop.add_note(words())
        raise


@contextlib.contextmanager
def interrupt_first() -> Iterator[None]:
    """Where this process was told to stop and an error leaves the block, raise the interrupt, with the error as its
    cause: on the way out a pipe may be broken, a disk full, a connection gone."""
    try:
        yield
    except Exception as error:
        if not stopped():
            raise
        raise _behind(error) or KeyboardInterrupt() from error


def message(stop: KeyboardInterrupt) -> str:
    """One line: `interrupted: ...` or `terminated: ...`, and the error on the way out, if there was one."""
    how = "terminated" if status() == 128 + signal.SIGTERM else "interrupted"
    notes = getattr(stop, "__notes__", ())
    text = f"{how}: {notes[0] if notes else 'nothing was finished; the same command starts over'}"
    if stop.__cause__ is None:
        return text
    lines = str(stop.__cause__).strip().splitlines()
    return f"{text} (on the way out: {': '.join([type(stop.__cause__).__name__, *lines[:1]])})"


def _behind(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt during whose handling an error was raised."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if isinstance(found, KeyboardInterrupt):
            return found
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return None


def _stop(number: int, _: Any) -> None:
    before = _received[-1][1] if _received else -math.inf
    _received.append((number, time.monotonic()))
    _handled.set()
    if len(_received) >= _ENOUGH:
        _stop_at_once(_received[0][0])
    # The second leaves the end alone, unless so much time has passed that the first was swallowed somewhere.
    if _received[-1][1] - before > GRACE_S:
        raise KeyboardInterrupt


def _stop_at_once(number: int) -> None:
    _write(b"\nstopped at once: the third signal\n")
    os._exit(128 + number)


def _write(words: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(2, words)
