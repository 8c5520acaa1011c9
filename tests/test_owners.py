"""A folder has one owner: commands that find another at work where they write are refused in one line, and leave it
as it is. Those whose refusal no test of their own shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from conclugen.common.locks import FOLDER_LOCK, folder_held
from tests import jobs
from tests.campaigns.endings import JOBS, content

# Command -> the folder that it holds, and the lock in it where it is not the usual one.
HELD = {
    "render": ("out", FOLDER_LOCK),
    "controlled": ("out/a", FOLDER_LOCK),
    "sweep replay": ("out/a", FOLDER_LOCK),
    "demo": ("out", FOLDER_LOCK),
    "export": ("", ".shared.lock"),
    "author_features": ("", ".out.lock"),
}


@pytest.mark.parametrize("name", HELD)
def test_the_second_is_refused_and_changes_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, (place, lock) = JOBS[name], HELD[name]
    job.prepare(tmp_path)
    with folder_held(tmp_path / place, "work is done here", "another one", file=lock):
        before = content(tmp_path)
        status = jobs.load(job.command).main([str(argument) for argument in job.arguments(tmp_path)])
        assert content(tmp_path) == before
    said = capsys.readouterr().err
    [line] = [line for line in said.splitlines() if not line.startswith("note: ")]
    assert status == 2 and line.startswith(f"error: {(tmp_path / place)}: ") and " by process " in line, said
