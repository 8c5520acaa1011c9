"""The lines of progress: what a journal gains is printed once, in order, as people read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.tracking.journal import Journal
from ray_jobs.training.progress import ProgressPrinter

REPORT = {"loss": 3.21, "loss/contrastive": 5.125, "samples_per_second": 1234.4, "data_wait_share": 0.02}


def test_what_a_run_adds_to_its_journal_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not what an earlier attempt printed, nor what no line tells of; the last records too, however soon it ends."""
    path = tmp_path / "journal.jsonl"
    with Journal(path, experiment="e", name="r") as journal:
        journal.metrics(10, {**REPORT, "step_seconds": 1.0})
        with ProgressPrinter(path, 200):
            journal.metrics(20, {**REPORT, "step_seconds": 2.0, "input_queue_depth": 1.93})
            journal.metrics(21, {"loss": 3.0})
            journal.metrics(21, {"effective_rank/video": 7.25, "neighbour_accuracy": 0.5, "uniformity/video": -1.0},
                            series="validation")  # fmt: skip
            journal.tags({"a": "b"})
    assert capsys.readouterr().out.splitlines() == [
        "step  20/200  loss 3.2100  contrastive 5.125  1,234 samples/s  data wait 2.0%  queue 1.9  left 00:06:00",
        "validation at step 21: effective_rank/video 7.25  neighbour_accuracy 0.5",
    ]


def test_a_run_whose_journal_comes_later_is_printed_from_its_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    with ProgressPrinter(path, 9), Journal(path, experiment="e", name="r") as journal:
        journal.metrics(1, {**REPORT, "step_seconds": 1.0})
    assert capsys.readouterr().out.startswith("step 1/9  loss 3.2100  contrastive 5.125")
    with ProgressPrinter(tmp_path / "none.jsonl", 9):
        pass
    assert capsys.readouterr().out == ""
