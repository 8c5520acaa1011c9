"""How a job ends that is told to stop: in order, in words, and with the status of its signal.

An interrupt (Ctrl-C, SIGINT) and a termination (SIGTERM, as `ray job stop`, schedulers and `docker stop` send it, with
a grace of seconds before SIGKILL) both become a KeyboardInterrupt in the main thread, so that whatever is open is
closed on the way out. `Command.main` holds `stoppable` around every job of the project, prints what `resumable` has
noted on the way, and ends with 130 or 143. What must be waited for at the end asks `patience` how long it may be.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# `ray job stop` kills after 3 s; within that, what is open must be closed and told.
GRACE_S = 1.5
_ENOUGH = 3  # so many signals mean: now, whatever is open

_received: list[int] = []


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into KeyboardInterrupt within the block; in a thread other than the main one, which gets
    no signals, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _received.clear()
    retake(ignored=False)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def retake(ignored: bool = True) -> None:
    """Take the signals (back) from a library that has put its own handlers there, as Ray does when it starts.

    ignored: also where the process was started to ignore them, as a shell does with SIGINT for jobs in the background.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if ignored or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def stopped() -> bool:
    """Whether a signal has told this process to stop."""
    return bool(_received)


def status() -> int:
    """The exit status of a process that was told to stop: 130 or 143."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def patience(seconds: float) -> float:
    """How long something may be waited for at the end: as asked, or the little that a process has that must stop."""
    return min(seconds, GRACE_S) if _received else seconds


@contextlib.contextmanager
def resumable(words: Callable[[], str]) -> Iterator[None]:
    """Note, where the block is interrupted, what is done and what the same command will do: `words()`, such as
    `3 of 8 trials have ended; the same command goes on with the rest`. Of nested blocks the innermost is heard."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not getattr(stop, "__notes__", ()):
            stop.add_note(words())
        raise


def message(stop: KeyboardInterrupt) -> str:
    """One line for people: `interrupted: ...` or `terminated: ...`."""
    how = "terminated" if status() == 128 + signal.SIGTERM else "interrupted"
    notes = getattr(stop, "__notes__", ())
    return f"{how}: {notes[0] if notes else 'nothing was finished; the same command begins anew'}"


def _stop(number: int, _: Any) -> None:
    _received.append(number)
    if len(_received) == 1:
        raise KeyboardInterrupt
    if len(_received) >= _ENOUGH:
        os._exit(status())
