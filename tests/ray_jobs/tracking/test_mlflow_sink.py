"""The background sink against real stores: SQLite, a server process that dies and comes back, and no server at all."""

import json
import math
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.tracking import mlflow_environment
from ray_jobs.tracking.__main__ import main
from ray_jobs.tracking.background_sender import pause_before_retry
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.mlflow_environment import bounded_calls, check_tracking_uri, default_tracking_uri
from ray_jobs.tracking.mlflow_run import IDENTITY_TAG, MLFLOW_PARENT_TAG
from ray_jobs.tracking.mlflow_sink import MlflowSink, flush_journal


def rows(database: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def stored_metrics(database: Path) -> Counter:
    return Counter(rows(database, "select run_uuid, key, step, value from metrics"))


def write_steps(journal: Journal, first: int, stop: int, pause_s: float = 0.0) -> None:
    for step in range(first, stop):
        journal.metrics(step, {"loss": step / 8, "lr": 0.001})
        time.sleep(pause_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_run_in_a_local_store(tmp_path, capfd):
    uri = default_tracking_uri(tmp_path)
    (tmp_path / "run" / "plots").mkdir(parents=True)
    (tmp_path / "run" / "plots" / "loss.svg").write_text("<svg/>")
    names = ["faces", "é" * 254 + "x", "é" * 255, "a #$|\n"]
    data_sets = [
        {"name": name, "digest": f"{n:032x}", "source": f"/data/{name}", "context": "training", "rows": 10 + n}
        for n, name in enumerate(names)
    ]
    judged = {**data_sets[0], "digest": "f" * 32, "context": "evaluation", "rows": 3}
    with (
        Journal(tmp_path / "parent" / "journal.jsonl", experiment="exp", name="parent") as parent,
        Journal(
            tmp_path / "run" / "journal.jsonl", experiment="exp", name="run", parent=parent.identity.run_id
        ) as journal,
    ):
        flush_journal(parent.path, uri)
        with MlflowSink(journal.path, uri, interval_s=0.05) as sink:
            journal.params({"lr": 0.1, "long": "x" * 7000, **{f"p{i}": i for i in range(250)}})
            journal.tags({"shards.digest": "abc", "long": "y" * 9000})
            write_steps(journal, 1, 2501)
            journal.metrics(2501, {"loss": math.nan, "odd": math.inf})
            journal.metrics(2501, {"retrieval": 0.5}, series="validation")
            journal.inputs(data_sets)
            journal.inputs([judged, data_sets[0]])
            journal.artifact(tmp_path / "run" / "plots", "plots")
            journal.status("FINISHED")
            assert sink.close(timeout_s=60)
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(sink.run_id)
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.info.start_time == journal.identity.start_time
    assert run.data.tags[IDENTITY_TAG] == journal.identity.run_id
    assert run.data.tags["mlflow.source.name"] == "conclugen"
    kind = client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development", "its page opens with metrics, not with prompts"
    assert client.get_run(run.data.tags[MLFLOW_PARENT_TAG]).info.run_name == "parent"
    assert run.data.tags["shards.digest"] == "abc"
    assert len(run.data.params) == 252 and run.data.params["long"] == "x" * 6000
    assert sorted(map(told, run.inputs.dataset_inputs)) == sorted(tuple(each.values()) for each in [*data_sets, judged])
    history = client.get_metric_history(sink.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, 2502))
    assert [metric.value for metric in history[:-1]] == [step / 8 for step in range(1, 2501)]
    assert math.isnan(history[-1].value)
    assert [metric.value for metric in client.get_metric_history(sink.run_id, "validation/retrieval")] == [0.5]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(tmp_path), "artifacts lie below the output folder"
    assert (artifacts / "plots" / "loss.svg").read_text() == "<svg/>"
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def told(given: Any) -> tuple[str, str, str, str, int]:
    """Name, digest, source, context and rows of one of a run's data sets, as MLflow has it."""
    data_set, (tag,) = given.dataset, given.tags
    assert (data_set.source_type, tag.key) == ("shards", "mlflow.data.context")
    source, rows = json.loads(data_set.source)["uri"], json.loads(data_set.profile)["num_rows"]
    return data_set.name, data_set.digest, source, tag.value, rows


# Eight processes import MLflow at once: some 5 s of CPU each, which on a machine that has other work take minutes.
_BUSY_S = 400.0


def run_one(folder: str, uri: str, number: int) -> None:
    with Journal(f"{folder}/{number}/journal.jsonl", experiment="exp", name=f"run-{number}") as journal:
        sink = MlflowSink(journal.path, uri, interval_s=0.01)
        journal.params({"number": number})
        for step in range(100):
            journal.metrics(step, {"loss": number + step / 8})
            time.sleep(0.002)
        journal.status("FINISHED")
        sys.exit(0 if sink.close(timeout_s=_BUSY_S) else 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_processes_create_one_store_and_write_to_it_at_once(tmp_path):
    uri = default_tracking_uri(tmp_path)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_one, args=(str(tmp_path), uri, number)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(2 * _BUSY_S)
    assert [process.exitcode for process in processes] == [0] * 8
    assert rows(tmp_path / "mlflow.db", "select count(*) from experiments where name = 'exp'") == [(1,)]
    runs = dict(rows(tmp_path / "mlflow.db", "select name, run_uuid from runs where status = 'FINISHED'"))
    assert sorted(runs) == [f"run-{number}" for number in range(8)]
    assert stored_metrics(tmp_path / "mlflow.db") == Counter(
        {(runs[f"run-{n}"], "loss", step, n + step / 8): 1 for n in range(8) for step in range(100)}
    )


def test_no_server_stops_nothing_and_what_it_missed_arrives_later(tmp_path, caplog):
    environment = dict(os.environ)
    uri = f"http://127.0.0.1:{free_port()}"
    with Journal(tmp_path / "run" / "journal.jsonl", experiment="exp", name="run") as journal:
        sink = MlflowSink(journal.path, uri, interval_s=0.01)
        write_steps(journal, 0, 500)
        assert not sink.close(timeout_s=1.0)
        sink._thread.join(60)
        assert not sink._thread.is_alive()
    assert "conclugen track" in caplog.text
    assert caplog.text.count("will be tried again") == 1, "one warning, not one an attempt"
    changed = {name for name in {*os.environ, *environment} if os.environ.get(name) != environment.get(name)}
    assert changed <= {"MLFLOW_DISABLE_TELEMETRY", "PYTEST_CURRENT_TEST"}
    with pytest.raises(TimeoutError, match="could not be sent"):
        flush_journal(journal.path, uri, timeout_s=0.2)
    assert main([str(tmp_path)]) == 0
    assert sum(stored_metrics(tmp_path / "mlflow.db").values()) == 1000


class Server:
    """`mlflow server` as a process of its own, on a port and a store that outlive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        store = [
            "--backend-store-uri",
            default_tracking_uri(self.folder),
            "--artifacts-destination",
            str(self.folder / "files"),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1", *store],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # processes for jobs of its own
                },
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.mark.slow
def test_a_server_killed_twice_in_mid_run_has_every_number_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ray_jobs.tracking.background_sender._LONGEST_PAUSE_S", 0.5)
    server = Server(tmp_path)
    try:
        with Journal(tmp_path / "run" / "journal.jsonl", experiment="exp", name="run") as journal:
            sink = MlflowSink(journal.path, server.uri, interval_s=0.01)
            write_steps(journal, 0, 50)
            server.start()
            write_steps(journal, 50, 400, 0.005)
            server.kill()
            write_steps(journal, 400, 500, 0.005)
            server.start()
            write_steps(journal, 500, 800, 0.005)
            server.kill()
            assert not sink.close(timeout_s=0.5)  # the process ends while the server is away
            sink._thread.join(15)
            write_steps(journal, 790, 850)  # resumed: repeats ten steps
            server.start()
            (tmp_path / "run" / "plot.svg").write_text("<svg/>")
            journal.artifact(tmp_path / "run" / "plot.svg")
            journal.status("FINISHED")
            sink = MlflowSink(journal.path, server.uri, interval_s=0.01)
            assert sink.close(timeout_s=60)
        from mlflow import MlflowClient

        client = MlflowClient(server.uri)
        assert [file.path for file in client.list_artifacts(sink.run_id)] == ["plot.svg"]
        assert client.get_run(sink.run_id).info.status == "FINISHED"
    finally:
        server.kill()
    assert rows(tmp_path / "mlflow.db", "select count(*) from runs") == [(1,)]
    expected = Counter({(sink.run_id, "loss", step, step / 8): 1 for step in range(850)})
    expected.update({(sink.run_id, "lr", step, 0.001): 1 for step in range(850)})
    assert stored_metrics(tmp_path / "mlflow.db") == expected


def test_a_server_that_never_answers_does_not_hold_up_the_end(tmp_path, monkeypatch):
    monkeypatch.setitem(mlflow_environment._CALL_SETTINGS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with Journal(tmp_path / "journal.jsonl", experiment="exp", name="run") as journal:
            sink = MlflowSink(journal.path, f"http://127.0.0.1:{silent.getsockname()[1]}", interval_s=0.01)
            write_steps(journal, 0, 10)
            time.sleep(0.3)
            assert not sink.close(timeout_s=0.5)
            sink._thread.join(60)
            assert not sink._thread.is_alive(), "the request ended by its own time limit"


def test_neither_writing_nor_the_end_waits_for_a_request(tmp_path):
    """The server answers only after steps have been written and the sink has been closed."""
    answers = threading.Event()

    def connect_to(uri):
        answers.wait()
        raise ConnectionError("nobody is there")

    uri = "http://127.0.0.1:9"
    with Journal(tmp_path / "journal.jsonl", experiment="exp", name="run") as journal:
        sink = MlflowSink(journal.path, uri, interval_s=0.01, connect_to=connect_to)
        write_steps(journal, 0, 500)
        assert not sink.close(timeout_s=0.1) and sink._thread.is_alive()
        answers.set()
        sink._thread.join(60)
        assert not sink._thread.is_alive()


def test_limits_are_lent_to_mlflow_and_taken_back(monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with bounded_calls(), bounded_calls():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77", "what the user has set stays"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_uris_that_cannot_work_are_refused_at_once(tmp_path):
    with Journal(tmp_path / "journal.jsonl", experiment="exp", name="run") as journal:
        with pytest.raises(ValueError, match="relative"):
            MlflowSink(journal.path, "sqlite:///mlflow.db")
        with pytest.raises(ValueError, match="no scheme"):
            MlflowSink(journal.path, "mlruns")
    assert check_tracking_uri(default_tracking_uri("some/folder")).startswith("sqlite:////")


def test_pauses_double_up_to_a_limit():
    assert [pause_before_retry(n) for n in (1, 2, 3, 6, 7, 8, 500)] == [0.5, 1, 2, 16, 30, 30, 30]


def test_the_command_says_when_there_is_nothing(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no journal.jsonl" in capsys.readouterr().err
