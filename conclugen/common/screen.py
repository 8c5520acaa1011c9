"""What a job shows while it works: a line that is redrawn on a terminal, a line every half minute in a log, and a word
where nothing else has been said for half a minute.

    with doing("starting Ray on this machine"):        # named if it takes long
        ...
    progress = Progress()
    progress.show("120/384 clips", 120 / 384)

`Command.main` holds `watched` around every job: nobody has to guess whether a silent job works or hangs. What is warned
of within `warnings_heard` can be counted and listed again, wherever it came from.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

EVERY_S = 30.0  # seconds between lines of a log, and of silence before a word is said
_REDRAWN_S = 0.2
_BAR = 24
_ERASE = "\r\x1b[K"
_WARNING = "warning: "

_doing: list[tuple[str, float]] = []  # what is being done, and since when; the innermost is named
_resting = False
_said = time.monotonic()  # when anything was written last
_drawn: TextIO | None = None  # where an unfinished line is shown


class Progress:
    """Lines about how far a job is. quiet: none; stream: where they go (None: standard output); first: seconds until
    the first line, as speeds are those of the start before."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None, first: float = 2.0) -> None:
        self._quiet = quiet
        self._stream = sys.stdout if stream is None else stream
        self._terminal = is_terminal(self._stream)
        self._due = time.monotonic() + first

    def due(self) -> bool:
        """Whether a line would be shown now, for who makes one in a tight loop."""
        return not self._quiet and time.monotonic() >= self._due

    def show(self, text: str, share: float = math.nan, last: bool = False) -> None:
        """text: the line; share: of the work that is done, for the bar; last: it is shown whatever came before, and
        stays."""
        global _drawn
        if self._quiet or not (last or self.due()):
            return
        self._due = time.monotonic() + (_REDRAWN_S if self._terminal else EVERY_S)
        if not self._terminal:
            print(text, file=self._stream, flush=True)
            return
        line = text if math.isnan(share) else f"{bar(share)} {text}"
        end = "\n" if last else ""
        self._stream.write(_ERASE + line[: max(shutil.get_terminal_size().columns - 1, 20)] + end)
        self._stream.flush()
        _drawn = None if last else _plain(self._stream)


def bar(share: float) -> str:
    """`[######..................]`"""
    done = round(_BAR * min(max(share, 0.0), 1.0))
    return f"[{'#' * done}{'.' * (_BAR - done)}]"


def is_terminal(stream: TextIO) -> bool:
    """Whether a line can be redrawn there."""
    try:
        return stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
    except (AttributeError, ValueError):  # closed, or no file
        return False


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what is being done within the block, should nothing else be said for long."""
    _doing.append((what, time.monotonic()))
    try:
        yield
    finally:
        _doing.pop()


def rest() -> None:
    """Until the end of the job silence is what should be, as of a server that waits."""
    global _resting
    _resting = True


@contextlib.contextmanager
def watched(quiet: bool = False) -> Iterator[None]:
    """Within the block, say on standard error that the job is at work whenever nothing was written for half a minute.
    quiet: don't."""
    if quiet or isinstance(sys.stdout, _Noted):
        yield
        return
    global _resting, _said
    _resting, _said = False, time.monotonic()
    out, err = sys.stdout, sys.stderr
    mine = _Noted(out), _Noted(err)
    sys.stdout, sys.stderr = mine
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(over, time.monotonic()), name="at work", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _finish_line()
        if sys.stdout is mine[0]:
            sys.stdout = out
        if sys.stderr is mine[1]:
            sys.stderr = err


@contextlib.contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """Collect what is warned of on the screen within the block: lines that begin with `warning: `, without that, each
    once. The list grows while they are said."""
    heard: list[str] = []
    out, err = sys.stdout, sys.stderr
    mine = _Heard(out, heard), _Heard(err, heard)
    sys.stdout, sys.stderr = mine
    try:
        yield heard
    finally:
        if sys.stdout is mine[0]:
            sys.stdout = out
        if sys.stderr is mine[1]:
            sys.stderr = err


def _watch(over: threading.Event, began: float) -> None:
    while not over.wait(EVERY_S if _resting else max(_said + EVERY_S - time.monotonic(), 0.05)):
        if time.monotonic() - _said >= EVERY_S and not _resting:
            what, since = _doing[-1] if _doing else ("at work", began)
            with contextlib.suppress(OSError, ValueError):  # nobody reads, or it is closed
                print(f"{what}: {clock(time.monotonic() - since)} so far", file=sys.stderr, flush=True)
            _note()


class _Noted:
    """A stream that remembers when it was written to, and that other lines do not end up behind an unfinished one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if text and not text.startswith(_ERASE):
            _erase_line()
        _note()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Heard:
    """A stream whose warnings are noted. Threads write lines piece by piece, so each has its own unfinished one."""

    def __init__(self, stream: TextIO, heard: list[str]) -> None:
        self._stream = stream
        self._heard = heard
        self._begun: dict[int, str] = {}

    def write(self, text: str) -> int:
        if not text.startswith(_ERASE):  # a line that is redrawn warns of nothing
            thread = threading.get_ident()
            *lines, rest = (self._begun.pop(thread, "") + text).split("\n")
            if rest:
                self._begun[thread] = rest
            for line in map(str.strip, lines):
                if line.startswith(_WARNING) and (told := line.removeprefix(_WARNING)) not in self._heard:
                    self._heard.append(told)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _plain(stream: Any) -> TextIO:
    while isinstance(stream, _Noted | _Heard):
        stream = stream._stream
    plain: TextIO = stream
    return plain


def _note() -> None:
    global _said
    _said = time.monotonic()


def _erase_line() -> None:
    """Take an unfinished line off the screen: it is drawn again below what is written now."""
    global _drawn
    stream, _drawn = _drawn, None
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(_ERASE)
            stream.flush()


def _finish_line() -> None:
    global _drawn
    stream, _drawn = _drawn, None
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.write("\n")
            stream.flush()


class ClipProgress:
    """Shows how far a job with clips is, as `Progress` does. total: clips of the whole job; already: done by an
    earlier start, which count as done but not for the speed; quiet: shows nothing."""

    def __init__(self, total: int, already: int = 0, quiet: bool = False) -> None:
        self._total, self._already = total, already
        self._began, self._progress = time.monotonic(), Progress(quiet)

    def show(self, done: int, last: bool = False) -> None:
        """done: clips of this start; last: show it whenever the last line was."""
        share = (self._already + done) / self._total if self._total else 1.0
        self._progress.show(self.line(done, time.monotonic() - self._began), share, last)

    def line(self, done: int, seconds: float) -> str:
        """The line after so many clips in so many seconds; without the time left where nothing is done yet."""
        line = f"{self._already + done:,}/{self._total:,} clips  {done / max(seconds, 1e-9):.2f} clips/s"
        if not done:
            return line
        return f"{line}  left {clock((self._total - self._already - done) * seconds / done)}"


def clock(seconds: float) -> str:
    """`00:41:00`; hours continue beyond 24; `--:--:--` for what is not known yet (NaN, infinite or negative)."""
    if not math.isfinite(seconds) or seconds < 0:
        return "--:--:--"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{left:02d}"
