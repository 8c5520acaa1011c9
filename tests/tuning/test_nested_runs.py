"""A parent and its children reach MLflow through one thread: nested, once, and later where the server was away."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from ray_jobs.source import data_set
from ray_jobs.tracking.journal import Journal, read_records
from ray_jobs.tracking.journal_sender import JournalSender
from tuning.ablation.tracking import CellRuns
from tuning.ledger import Record
from tuning.nested_runs import JOURNAL, NestedRunsSink

NOBODY = "http://127.0.0.1:9"  # the discard port


def child(folder: Path, name: str, parent: Journal, first: int = 0) -> Path:
    path = folder / "children" / name / JOURNAL
    with Journal(path, experiment="e", name=name, parent=parent.identity.run_id) as journal:
        for step in range(first, first + 3):
            journal.metrics(step, {"loss": step / 4})
        journal.status("FINISHED")
    return path


def stored(uri: str) -> dict[str, tuple[str | None, list[float]]]:
    """name -> (name of its parent, the values of its loss)."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: str(run.info.run_name) for run in runs}
    return {
        names[run.info.run_id]: (
            names.get(run.data.tags.get("mlflow.parentRunId", "")),
            [m.value for m in client.get_metric_history(run.info.run_id, "loss")],
        )
        for run in runs
    }


def test_children_are_nested_whether_they_are_there_before_or_come_later(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with Journal(tmp_path / JOURNAL, experiment="e", name="parent") as parent:
        child(tmp_path, "before", parent)
        sink = NestedRunsSink(tmp_path, tmp_path / "children", uri, interval_s=0.05)
        later = child(tmp_path, "later", parent)
        sink.ended(later)
        child(tmp_path, "later", parent, first=3)  # written again after it had been let go
        parent.status("FINISHED")
        assert sink.close(60) and sink.unsent() == []
    losses = [step / 4 for step in range(6)]
    assert stored(uri) == {"parent": (None, []), "before": ("parent", losses[:3]), "later": ("parent", losses)}


def test_what_a_server_missed_is_named_and_sent_by_the_next_start(tmp_path: Path) -> None:
    with Journal(tmp_path / JOURNAL, experiment="e", name="parent") as parent:
        path = child(tmp_path, "one", parent)
        sink = NestedRunsSink(tmp_path, tmp_path / "children", NOBODY, interval_s=0.05)
        assert not sink.close(1.0)
        assert sink.unsent() == [tmp_path / JOURNAL, path]
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        assert NestedRunsSink(tmp_path, tmp_path / "children", uri).close(60)
        assert NestedRunsSink(tmp_path, tmp_path / "children", uri).close(60)  # nothing is sent twice
    assert stored(uri) == {"parent": (None, []), "one": ("parent", [0.0, 0.25, 0.5])}


def test_a_child_without_a_readable_journal_holds_up_no_other(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with Journal(tmp_path / JOURNAL, experiment="e", name="parent") as parent:
        child(tmp_path, "a", parent)
        torn = tmp_path / "children" / "b" / JOURNAL
        torn.parent.mkdir()
        torn.write_text("")
        child(tmp_path, "c", parent)
        sink = NestedRunsSink(tmp_path, tmp_path / "children", uri, interval_s=0.05)
        deadline = time.monotonic() + 60
        while sink.unsent() != [torn] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not sink.close(0.5)
        assert sink.unsent() == [torn]
    losses = [0.0, 0.25, 0.5]
    assert stored(uri) == {"parent": (None, []), "a": ("parent", losses), "c": ("parent", losses)}


def test_children_that_were_sent_before_they_ended_are_let_go(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with Journal(tmp_path / JOURNAL, experiment="e", name="parent") as parent:
        one = child(tmp_path, "one", parent)
        sink = NestedRunsSink(tmp_path, tmp_path / "children", uri, interval_s=3600.0)
        assert sink.close(60)
        sink._senders[one] = opened = JournalSender(one, uri)  # as it stands between two looks of the thread
        sink.ended(one)
        assert sink.send_new()
        assert one not in sink._senders
        JournalSender(one, uri).close()  # its lock is free: nobody else sends
        opened.close()


def test_cells_last_as_long_as_they_did_however_late_they_are_written(tmp_path: Path) -> None:
    """Also where one that was run long ago is sent for the first time, and written once more."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = Record(
        "done", "cell", "finished", metrics={"accuracy@1": 0.5}, cost={"seconds": 90.5}, time=1_700_000_000.25
    )
    earliest = time.time_ns() // 1_000_000
    for _ in range(2):
        runs = CellRuns(tmp_path, uri, experiment="e", name="n", params={}, tags={})
        runs.cell(done, "done")
        runs.cell(Record("failed", "cell", "failed", reason="out of memory"), "failed", 30.0)
        assert runs.close() == []
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    found = {str(run.info.run_name): run.info for run in client.search_runs([experiment.experiment_id])}
    assert (found["done"].start_time, found["done"].end_time) == (1_699_999_909_750, 1_700_000_000_250)
    assert found["failed"].end_time - found["failed"].start_time == 30_000
    assert earliest <= found["failed"].end_time <= time.time_ns() // 1_000_000


def test_each_cell_lists_its_own_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, also where it is written again; the ablation's own run lists them all."""
    sink = SimpleNamespace(ended=lambda _: None, close=lambda _: True)
    monkeypatch.setattr("tuning.ablation.tracking.NestedRunsSink", lambda *_: sink)
    sets = {name: data_set(f"/data/{name}-set", name * 32, rows, name=name) for name, rows in (("a", 3), ("b", 4))}
    options: dict[str, Any] = {"experiment": "e", "name": "n", "params": {}, "tags": {}, "inputs": list(sets.values())}
    for _ in range(2):
        runs = CellRuns(tmp_path, "sqlite:///nowhere.db", **options)
        runs.cell(Record("one", "cell", "finished", tags={"dataset": "b"}, metrics={"accuracy@1": 0.5}), "one")
        runs.cell(Record("two", "cell", "failed", tags={"dataset": "a"}, reason="out of memory"), "two")
        assert runs.close() == []

    def listed(journal: Path) -> list[dict[str, object]]:
        records = [record for record, _ in read_records(journal) if record["kind"] == "inputs"]
        return [each for record in records for each in record["datasets"]]

    assert listed(tmp_path / JOURNAL) == list(sets.values())
    assert {key: listed(tmp_path / "runs" / key / JOURNAL) for key in ("one", "two")} == {
        "one": [sets["b"]],
        "two": [sets["a"]],
    }
    assert sets["b"] == {
        "name": "b",
        "digest": "b" * 32,
        "source": "/data/b-set",
        "context": "training",
        "rows": 4,
    }
