"""Exactly once: a fault at every call to the server, before and after it is carried out, and nothing comes twice."""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from ray_jobs.tracking import journal_sender, mlflow_run
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.journal_sender import JournalSender, SenderBusyError
from ray_jobs.tracking.mlflow_run import IDENTITY_TAG, MLFLOW_PARENT_TAG, RunGoneError, allowed_name
from tests.ray_jobs.tracking.recording_server import FaultyClient, ProcessDeathError, RecordingServer

URI = "http://localhost:1"
STEPS = 12


@pytest.fixture(autouse=True)
def small_requests(monkeypatch):
    monkeypatch.setattr(mlflow_run, "METRICS_PER_REQUEST", 7)
    monkeypatch.setattr(journal_sender, "METRICS_PER_REQUEST", 7)
    monkeypatch.setattr(mlflow_run, "PARAMS_PER_REQUEST", 2)


def write_run(folder: Path) -> Path:
    """A journal with every kind of record; 2 numbers a step and a validation every 4."""
    folder.mkdir(parents=True)
    (folder / "plot.svg").write_text("plot")
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").write_text("model")
    with Journal(folder / "journal.jsonl", experiment="exp", name="run", parent="the-parent") as journal:
        journal.params({"a": 1, "b": {"c": 2.5, "d": "text"}})
        journal.tags({"digest": "abc"})
        for step in range(STEPS):
            journal.metrics(step, {"loss": step / 2, "lr": 1e-3})
            if step % 4 == 3:
                journal.metrics(step, {"loss": 9.0}, series="validation")
        journal.artifact(folder / "plot.svg", "plots")
        journal.model(folder / "model", registered_name="m")
        journal.params({"a": 2})
        journal.status("FINISHED")
    return folder / "journal.jsonl"


def drain(sender: JournalSender, failures_allowed: int = 0) -> None:
    while True:
        try:
            if not sender.send_some():
                return
        except ConnectionError:
            failures_allowed -= 1
            if failures_allowed < 0:
                raise


def assert_complete(server: RecordingServer) -> None:
    [run] = [
        run for run in server.runs.values() if run.info.lifecycle_stage == "active" and run.data.tags[IDENTITY_TAG]
    ]
    sent = Counter((key, step, value) for key, step, _, value in server.metrics[run.info.run_id])
    expected = Counter({("loss", step, step / 2): 1 for step in range(STEPS)})
    expected.update({("lr", step, 1e-3): 1 for step in range(STEPS)})
    expected.update({("validation/loss", step, 9.0): 1 for step in (3, 7, 11)})
    assert sent == expected
    assert run.data.params == {"a": "1", "b.c": "2.5", "b.d": "text"}
    assert run.data.tags["digest"] == "abc" and run.data.tags["changed.a"] == "2"
    assert server.artifacts[run.info.run_id] == {"plots/plot.svg": "plot", "model/MLmodel": "model"}
    assert server.registered == ["m"]
    assert [(v.run_id, v.source) for v in server.versions] == [(run.info.run_id, f"{run.info.artifact_uri}/model")]
    assert run.info.status == "FINISHED" and run.info.end_time is not None


def count_calls(tmp_path: Path) -> int:
    server = RecordingServer()
    client = FaultyClient(server, -1, False, ConnectionError)
    drain(JournalSender(write_run(tmp_path / "count"), URI, lambda _: client))
    assert_complete(server)
    return client.calls


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [ConnectionError, ProcessDeathError])
def test_a_fault_at_any_call_loses_and_repeats_nothing(tmp_path, error, after):
    calls = count_calls(tmp_path)
    assert calls > 20
    journal = write_run(tmp_path / "run")
    for call in range(calls):
        server = RecordingServer()
        for state in journal.parent.glob("journal.mlflow-*"):
            state.unlink()
        client = FaultyClient(server, call, after, error)
        sender = JournalSender(journal, URI, lambda _, client=client: client)
        try:
            drain(sender, failures_allowed=1)
        except ProcessDeathError:
            sender.close()
            sender = JournalSender(journal, URI, lambda _, server=server: server)
            drain(sender)
        sender.close()
        assert_complete(server)


def test_death_between_the_answer_and_the_note_repeats_nothing(tmp_path, monkeypatch):
    calls = count_calls(tmp_path)
    journal = write_run(tmp_path / "run")
    notes = 0
    note = JournalSender._note
    for fatal in range(calls):
        server, notes = RecordingServer(), 0
        for state in journal.parent.glob("journal.mlflow-*"):
            state.unlink()

        def dying_note(self, offset, fatal=fatal):
            nonlocal notes
            notes += 1
            if notes == fatal + 1:
                raise ProcessDeathError
            note(self, offset)

        monkeypatch.setattr(JournalSender, "_note", dying_note)
        for _ in range(2):
            sender = JournalSender(journal, URI, lambda _, server=server: server)
            try:
                drain(sender)
            except ProcessDeathError:
                pass
            finally:
                sender.close()
        assert_complete(server)


def test_records_written_by_this_sender_only_are_not_looked_up(tmp_path):
    server = RecordingServer()
    client = FaultyClient(server, -1, False, ConnectionError)
    client.get_metric_history = lambda *_: pytest.fail("a new run has no history to ask for")
    drain(JournalSender(write_run(tmp_path / "run"), URI, lambda _: client))
    assert_complete(server)


def test_a_lost_state_file_is_made_up_from_the_server(tmp_path):
    server = RecordingServer()
    journal = write_run(tmp_path / "run")
    for content in (None, "", "[]", '{"run_id": 1}'):
        sender = JournalSender(journal, URI, lambda _: server)
        drain(sender)
        sender.close()
        assert_complete(server)
        [state] = journal.parent.glob("journal.mlflow-*.json")
        state.unlink() if content is None else state.write_text(content)


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path):
    server = RecordingServer()
    journal_path = write_run(tmp_path / "run")
    drain(sender := JournalSender(journal_path, URI, lambda _: server))
    sender.close()
    with Journal(journal_path) as journal:
        journal.status("RUNNING")
        for step in range(STEPS - 3, STEPS + 2):
            journal.metrics(step, {"loss": 100.0})
    drain(sender := JournalSender(journal_path, URI, lambda _: server))
    [run] = server.runs.values()
    assert run.info.status == "RUNNING"
    losses = [(step, value) for key, step, _, value in server.metrics[run.info.run_id] if key == "loss"]
    assert losses == [(step, step / 2) for step in range(STEPS)] + [(STEPS, 100.0), (STEPS + 1, 100.0)]


def test_a_run_that_was_deleted_on_the_server_is_written_anew(tmp_path):
    server = RecordingServer()
    journal_path = write_run(tmp_path / "run")
    sender = JournalSender(journal_path, URI, lambda _: server)
    drain(sender)
    deleted = sender.run_id
    server.delete_run(deleted)
    server.versions.clear()
    with Journal(journal_path) as journal:
        journal.tags({"late": "tag"})
    with pytest.raises(RunGoneError, match=deleted):
        sender.send_some()
    drain(sender)
    assert sender.run_id != deleted
    assert_complete(server)


def test_an_empty_double_of_the_run_is_put_away(tmp_path):
    server = RecordingServer()
    journal_path = write_run(tmp_path / "run")
    drain(sender := JournalSender(journal_path, URI, lambda _: server))
    sender.close()
    identity = server.get_run(sender.run_id).data.tags[IDENTITY_TAG]
    double = server.create_run(server.experiments["exp"], tags={IDENTITY_TAG: identity})
    for state in journal_path.parent.glob("journal.mlflow-*"):
        state.unlink()
    drain(JournalSender(journal_path, URI, lambda _: server))
    assert double.info.lifecycle_stage == "deleted"
    assert_complete(server)


def test_a_refused_record_is_named_and_the_others_arrive(tmp_path, caplog):
    server = RecordingServer()
    server.refused_metrics = {"validation/loss"}
    journal_path = write_run(tmp_path / "run")
    sender = JournalSender(journal_path, URI, lambda _: server)
    attempts = raised = 0
    while True:
        attempts += 1
        assert attempts < 200
        try:
            if not sender.send_some():
                break
        except Exception as error:
            raised += 1
            assert "bad metric" in str(error)
            if raised == 1:  # another sender begins with the refused record
                sender.close()
                sender = JournalSender(journal_path, URI, lambda _: server)
    assert raised == 1 + 3 * 2, "the third time each is given up"
    [run] = server.runs.values()
    keys = Counter(key for key, *_ in server.metrics[run.info.run_id])
    assert keys == {"loss": STEPS, "lr": STEPS}
    refused = [json.loads(line) for line in (tmp_path / "run" / "journal.refused.jsonl").read_text().splitlines()]
    assert len(refused) == 3 and all("bad metric validation/loss" in entry["reason"] for entry in refused)
    assert "is refused" in caplog.text


def test_numbers_do_not_wait_for_an_artifact_store_that_is_down(tmp_path):
    server = RecordingServer()
    journal_path = write_run(tmp_path / "run")
    is_down = True
    store = server.log_artifact

    def log_artifact(*args):
        if is_down:
            raise PermissionError("no credentials")
        store(*args)

    server.log_artifact = log_artifact
    sender = JournalSender(journal_path, URI, lambda _: server)
    for _ in range(3):
        with pytest.raises(PermissionError):
            drain(sender)
    [run] = server.runs.values()
    assert run.info.status == "FINISHED" and server.artifacts[run.info.run_id] == {}
    sender.close()
    is_down = False
    drain(JournalSender(journal_path, URI, lambda _: server))
    assert_complete(server)


def test_a_file_that_is_gone_is_named_and_left_out(tmp_path):
    server = RecordingServer()
    journal_path = write_run(tmp_path / "run")
    (tmp_path / "run" / "plot.svg").unlink()
    drain(JournalSender(journal_path, URI, lambda _: server))
    assert "plot.svg is no longer there" in (tmp_path / "run" / "journal.refused.jsonl").read_text()
    [run] = server.runs.values()
    assert run.info.status == "FINISHED"


def test_a_child_is_nested_once_its_parent_appears(tmp_path):
    server = RecordingServer()
    with Journal(tmp_path / "parent" / "journal.jsonl", experiment="exp", name="sweep") as parent:
        pass
    with Journal(
        tmp_path / "child" / "journal.jsonl", experiment="exp", name="trial", parent=parent.identity.run_id
    ) as child:
        pass
    child_sender = JournalSender(child.path, URI, lambda _: server)
    drain(child_sender)
    assert MLFLOW_PARENT_TAG not in server.get_run(child_sender.run_id).data.tags
    parent_sender = JournalSender(parent.path, URI, lambda _: server)
    drain(parent_sender)
    drain(child_sender)
    assert server.get_run(child_sender.run_id).data.tags[MLFLOW_PARENT_TAG] == parent_sender.run_id
    with Journal(
        tmp_path / "other" / "journal.jsonl", experiment="exp", name="t", parent=parent_sender.run_id
    ) as other:
        pass
    drain(other_sender := JournalSender(other.path, URI, lambda _: server))
    assert server.get_run(other_sender.run_id).data.tags[MLFLOW_PARENT_TAG] == parent_sender.run_id


def test_one_sender_at_a_time(tmp_path):
    server = RecordingServer()
    journal_path = write_run(tmp_path / "run")
    first = JournalSender(journal_path, URI, lambda _: server)
    first.send_some()
    with pytest.raises(SenderBusyError, match=r"process \d+ on .* is sending it to .*; wait for its end, stop it"):
        JournalSender(journal_path, URI, lambda _: server).send_some()
    first.close()
    drain(JournalSender(journal_path, URI, lambda _: server))
    assert_complete(server)


def test_two_servers_have_states_of_their_own(tmp_path):
    journal_path = write_run(tmp_path / "run")
    servers = {"http://one:1": RecordingServer(), "http://two:1": RecordingServer()}
    for uri, server in servers.items():
        drain(JournalSender(journal_path, uri, lambda _, server=server: server))
        assert_complete(server)
    states = list(journal_path.parent.glob("journal.mlflow-*.json"))
    assert len(states) == 2
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD") as refusal:
        JournalSender(journal_path, "http://user:secret@one:1")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("loss/contrastive", "loss/contrastive"),
        ("retrieval/video-audio/recall@1", "retrieval/video-audio/recall:1"),
        ("f1/überrascht", "f1/überrascht"),
        ("µ loss (dB)", "µ loss _dB_-"),
        ("../up", "up-"),
        ("a//b/", "a/b-"),
        ("x" * 300, "x" * 239 + "-"),
        ("", "-"),
    ],
)
def test_names_are_made_acceptable(name, allowed):
    """A name that had to be changed carries a digest of ten digits behind the dash."""
    from mlflow.utils.validation import _validate_metric_name

    got = allowed_name(name)
    assert got == allowed or (allowed.endswith("-") and got[:-10] == allowed and len(got) <= 250)
    _validate_metric_name(got)


def test_distinct_names_stay_distinct():
    """Names that one rule or another would make equal, and the results of the rule itself, given as names again."""
    from mlflow.utils.validation import _validate_metric_name

    rng = random.Random(0)
    alphabet = "ab@:#$ /._-é\u0301中%\\\n\t\U0001f600"
    names = {"".join(rng.choices(alphabet, k=rng.randrange(5))) for _ in range(4000)}
    names |= {"x" * 250, "x" * 251, "x" * 252, "a/../b", "a/b", "a//b", "/a/b", "a/b/", "a/./b", "é", "e\u0301"}
    names |= {allowed_name(name) for name in names}
    sent = {name: allowed_name(name) for name in names}
    assert len(set(sent.values())) == len(names) > 3000
    for name in sent.values():
        _validate_metric_name(name)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("../../id_rsa", ""),
        ("{outside}", ""),
        ("link", ""),
        ("folder", ""),  # holds a link
        ("loop", ""),
        ("pipe", ""),
        ("plot.svg", "../up"),
        ("plot.svg", "/etc"),
        ("plot.svg", "a\\..\\b"),
    ],
)
def test_a_journal_of_somebody_else_sends_no_file_from_outside_its_folder(tmp_path, path, target):
    run = tmp_path / "a" / "b"
    journal = write_run(run)
    outside = tmp_path / "id_rsa"
    outside.write_text("SECRET")
    (run / "link").symlink_to(outside)
    (run / "loop").symlink_to("loop")
    (run / "folder" / "deep").mkdir(parents=True)
    (run / "folder" / "deep" / "link").symlink_to(tmp_path)
    os.mkfifo(run / "pipe")
    record = {"seq": 99, "time": 1, "kind": "artifact", "path": path.format(outside=outside), "target": target}
    with journal.open("a") as file:
        file.write(json.dumps(record) + "\n")
    server = RecordingServer()
    drain(JournalSender(journal, URI, lambda _: FaultyClient(server, -1, False, ConnectionError)))
    assert_complete(server)  # the rest is sent
    [refused] = (run / "journal.refused.jsonl").read_text().splitlines()
    assert json.loads(refused)["seq"] == 99 and "SECRET" not in refused
