"""What is not there of a run is said, from its files alone; files of somebody else that lie end nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.standing import refusals, standing
from tuning.ledger import Ledger, Record
from tuning.report.__main__ import main


def made(folder: Path, status: str, name: str = "s") -> Path:
    with Journal(folder / "journal.jsonl", experiment="e", name=name) as journal:
        journal.params({"trials": 5})
        journal.status("RUNNING")
        journal.status(status)
    return folder / "journal.jsonl"


def sent(journal: Path, lacking: int = 0, deferred: tuple[int, ...] = ()) -> None:
    state = {"server": "x", "run_id": "r", "offset": journal.stat().st_size - lacking, "deferred": list(deferred)}
    journal.with_name("journal.mlflow-0123abcd.json").write_text(json.dumps(state))


def test_a_run_that_is_whole_lacks_nothing(tmp_path: Path) -> None:
    sent(made(tmp_path, "FINISHED"))
    assert standing(tmp_path).lines() == [] and refusals(tmp_path) == []
    assert standing(tmp_path / "nowhere").lines() == []


@pytest.mark.parametrize(("status", "words"), [("KILLED", "was interrupted"), ("FAILED", "ended with an error")])
def test_what_is_missing_is_said_once_each(tmp_path: Path, status: str, words: str) -> None:
    sent(made(tmp_path, status), lacking=1)
    sent(made(tmp_path / "trials" / "0000", "FINISHED", "whole"))
    made(tmp_path / "trials" / "0001", "FINISHED", "never sent")
    late = made(tmp_path / "runs" / "b", "FINISHED", "deferred")
    sent(late, deferred=(3,))
    lines = [{"seq": n, "kind": "artifact", "reason": f"no room for {n}"} for n in range(5)]
    late.with_name("journal.refused.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = standing(tmp_path)
    assert found.unsent == ("s", "deferred", "never sent") and len(found.refused) == 5
    ran, lacks, declined = found.lines()
    assert words in ran and f"({status})" in ran and "the same command continues" in ran
    assert "s; deferred; never sent; conclugen track sends it" in lacks
    assert "refused 5 record(s)" in declined and "deferred: artifact: no room for 0; " in declined
    assert declined.endswith("and 2 more.") and refusals(tmp_path) == [declined]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"offset": "x"}', '{"offset": 1e400, "deferred": []}', "\0"])
def test_state_that_can_not_be_believed_is_none(tmp_path: Path, content: str) -> None:
    journal = made(tmp_path, "FINISHED")
    journal.with_name("journal.mlflow-0123abcd.json").write_text(content)
    assert standing(tmp_path).unsent == ("s",)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    made(tmp_path / "elsewhere", "FINISHED", "another")
    (tmp_path / "own" / "runs").mkdir(parents=True)
    sent(made(tmp_path / "own", "FINISHED"))
    (tmp_path / "own/runs/x").symlink_to(tmp_path / "elsewhere")
    assert standing(tmp_path / "own").lines() == []


def test_a_report_says_it_first(tmp_path: Path) -> None:
    """Trials without a result, the interrupt, what MLflow lacks; in each of its texts."""
    folder = tmp_path / "search"
    sent(made(folder, "KILLED"))
    tags = {"objective": "probe_accuracy", "sweep": "search", "tasks": ["contrastive"], "modalities": ["video"]}
    with Ledger.open(folder) as ledger:
        ledger.append(Record("a", "trial", "finished", tags={**tags, "number": 0}, metrics={"probe_accuracy": 0.5}))
        ledger.append(Record("b", "trial", "failed", tags={**tags, "number": 1, "diverged": False}, reason="died"))
    assert main([str(folder), "--no-tracking"]) == 0
    for name in ("report.html", "report.md"):
        text = (folder / "report" / name).read_text()
        missing, weights = text.rindex("What is not there"), text.rindex("Loss weights")
        assert missing < text.index("4 of 5 trials have no result (1 died).") < weights
        assert missing < text.index("was interrupted (KILLED)") < weights
