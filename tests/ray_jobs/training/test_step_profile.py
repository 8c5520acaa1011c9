"""Traces of steps: which steps are in them, where they lie, and that training never ends because of one."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.run_config import RunConfig
from ray_jobs.training.step_profile import NoProfile, profiled


def run_steps(folder: Path, done: int, last: int, rank: int = 0, **run: Any) -> None:
    with profiled(RunConfig(name="x", **run), folder, rank, done, last) as profile:
        for step in range(done, last):
            torch.zeros(step + 1) + 1  # as many elements as the step's number
            profile.step()


def additions(path: Path) -> int:
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return sum(event.get("name") == "aten::add" for event in events)


@pytest.mark.parametrize(
    ("done", "last", "asked", "name", "traced"),
    [
        (0, 40, True, "step-000012-rank-0", 5),
        (100, 140, 3, "step-000112-rank-0", 3),
        (0, 6, 3, "step-000004-rank-0", 3),  # a short run: begun sooner
        (7, 9, 50, "step-000009-rank-0", 1),  # shorter than what is asked for
    ],
)
def test_a_bounded_window_of_steps_is_traced(
    tmp_path: Path, done: int, last: int, asked: int, name: str, traced: int
) -> None:
    run_steps(tmp_path / "profile", done, last, profile=asked)
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [f"{name}.json.gz", f"{name}.txt"]
    assert additions(tmp_path / "profile" / f"{name}.json.gz") == traced
    assert "aten::add" in (tmp_path / "profile" / f"{name}.txt").read_text()


def test_ranks_that_are_not_asked_for_trace_nothing(tmp_path: Path) -> None:
    with profiled(RunConfig(name="x", profile=2), tmp_path, 1, 0, 9) as profile:
        assert isinstance(profile, NoProfile)
    run_steps(tmp_path, 0, 9, rank=1, profile=2, profile_ranks="all")
    assert (tmp_path / "step-000008-rank-1.json.gz").exists()
    run_steps(tmp_path / "none", 0, 9)
    run_steps(tmp_path / "none", 8, 9, profile=True)
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_written_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile").write_text("in the way")
    run_steps(tmp_path / "profile", 0, 9, profile=2)
    assert "warning: run.profile: no trace could be written" in capsys.readouterr().out


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.profile: must be .*, got -1"):
        RunConfig(name="x", profile=-1)
