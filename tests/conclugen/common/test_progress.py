"""The line that tells how far a job over clips is."""

from __future__ import annotations

import pytest

from conclugen.common.screen import ClipProgress


def test_speed_and_time_left_are_of_this_start() -> None:
    progress = ClipProgress(550_000, already=50_000)
    assert progress.line(0, 5.0) == "50,000/550,000 clips  0.00 clips/s"
    # 100,000 in 10 hours, 400,000 to go: 40 hours, more than a day
    assert progress.line(100_000, 36_000.0) == "150,000/550,000 clips  2.78 clips/s  left 40:00:00"
    assert progress.line(500_000, 3600.0).endswith("138.89 clips/s  left 00:00:00")


def test_lines_come_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        progress = ClipProgress(3, quiet=quiet)
        for done in (1, 2, 3):
            progress.show(done)
        assert capsys.readouterr().out == ""  # too soon after the begin
        progress.show(3, last=True)
        assert capsys.readouterr().out.startswith("3/3 clips") is not quiet
