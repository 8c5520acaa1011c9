"""What people see while a job works: a redrawn line on a terminal, few lines in a log, and never silence for long."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from conclugen.common import screen
from conclugen.common.screen import Progress, bar, doing, rest, warnings_heard, watched
from tests.clock import Clock


class Terminal(io.StringIO):
    """What is written to a terminal of 80 columns; `lines` is what is seen on it."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        seen = []
        for line in self.getvalue().split("\n"):
            text = line.rpartition("\r")[2]
            seen.append(text.removeprefix("\x1b[K"))
        return seen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(screen.time, "monotonic", clock.read)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return clock


def test_a_log_gets_a_line_every_half_minute_and_the_last(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress(stream=log)
    for done in range(1, 101):
        clock.sleep(1.0)
        progress.show(f"{done}/100", done / 100, last=done == 100)
    assert log.getvalue().split() == ["2/100", "32/100", "62/100", "92/100", "100/100"]
    quiet = io.StringIO()
    Progress(quiet=True, stream=quiet).show("1/1", last=True)
    assert quiet.getvalue() == ""


def test_a_terminal_has_one_line_that_is_drawn_anew(clock: Clock) -> None:
    terminal = Terminal()
    progress = Progress(stream=terminal, first=0.0)
    for done in (1, 2, 50):
        progress.show(f"{done}/100 clips", done / 100)
        clock.sleep(1.0)
    assert terminal.lines == [f"{bar(0.5)} 50/100 clips"]
    progress.show("x" * 200, 0.75)
    assert len(terminal.lines[0]) == 79  # what is wrapped could not be drawn anew
    progress.show("100/100 clips", 1.0, last=True)
    assert terminal.lines == [f"[{'#' * 24}] 100/100 clips", ""]
    assert bar(0.0) == f"[{'.' * 24}]" and bar(7.0) == bar(1.0) and bar(0.5).count("#") == 12


def test_other_lines_do_not_end_up_behind_an_unfinished_one(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with watched():
        progress = Progress(first=0.0)
        progress.show("1/3", 1 / 3)
        print("warning: of one")
        clock.sleep(1.0)
        progress.show("2/3", 2 / 3)
        assert terminal.lines == ["warning: of one", f"{bar(2 / 3)} 2/3"]
    assert terminal.lines == ["warning: of one", f"{bar(2 / 3)} 2/3", ""]  # what follows begins a line
    assert sys.stdout is terminal and sys.stderr is terminal


def test_who_works_in_silence_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "EVERY_S", 0.05)
    said = threading.Event()

    class Heard(io.StringIO):
        def write(self, text: str) -> int:
            if "so far" in text:
                said.set()
            return super().write(text)

    def silence() -> str:
        out, err = io.StringIO(), Heard()
        said.clear()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", err)
            with watched():
                assert said.wait(30)
        assert out.getvalue() == ""  # standard output may be a file of results
        return err.getvalue().splitlines()[0]

    assert silence() == "at work: 00:00:00 so far"
    with doing("all"), doing("starting Ray"):
        assert silence().startswith("starting Ray: 00:00:")


def test_quiet_and_servers_at_rest_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "EVERY_S", 0.01)
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    before = threading.active_count()
    with watched(quiet=True):
        assert threading.active_count() == before and sys.stderr is err
    with watched():
        rest()
        mark = err.getvalue()  # one may have been said before
        threading.Event().wait(0.1)
        assert err.getvalue().count("so far") <= mark.count("so far") + 1
    assert threading.active_count() == before


def test_warnings_are_heard_once_each_wherever_they_come_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """Of both streams, of `warnings.warn` and of several threads at once; a line that is redrawn is none of them."""
    terminal = Terminal()
    before = sys.stdout, sys.stderr
    with warnings_heard() as heard:
        print("warning: the first")
        print("  warning: set in a little", file=sys.stderr)
        print("a warning: no", "warning:no", "warning", sep="\n")
        print("warning: the first")
        print("warn", end="")
        other = threading.Thread(target=lambda: print("warning: of a thread"))
        other.start()
        other.join()
        print("ing: in pieces")
        Progress(stream=sys.stdout, first=0.0).show("3/4")
        monkeypatch.setattr(sys.stdout, "_stream", terminal)
        progress = Progress(stream=sys.stdout, first=0.0)
        progress.show("1/4 clips", 0.25)
        print("warning: beside a redrawn line")
        progress.show("4/4 clips", 1.0, last=True)
        assert sys.stdout.isatty()  # what it is asked goes to the stream itself
    assert heard == ["the first", "set in a little", "of a thread", "in pieces", "beside a redrawn line"]
    assert (sys.stdout, sys.stderr) == before
    print("warning: afterwards")
    assert len(heard) == 5 and "warning: the first\nwarning: no" not in capsys.readouterr().out


def test_what_is_said_at_work_is_heard_too(capsys: pytest.CaptureFixture[str]) -> None:
    with watched(), warnings_heard() as heard:
        print("warning: within")
        with warnings_heard() as inner:
            print("warning: deeper", file=sys.stderr)
    assert heard == ["within", "deeper"] and inner == ["deeper"]
