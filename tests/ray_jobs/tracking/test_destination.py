"""Where results go is the user's word: a folder of somebody else sends nothing to an address that it names."""

import http.server
import json
import sqlite3
import threading
from pathlib import Path

import pytest

from ray_jobs.tracking.__main__ import main
from ray_jobs.tracking.destination import FILE, remember, uri_of_run
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.mlflow_environment import check_registered_name, connect, default_tracking_uri
from ray_jobs.tracking.mlflow_sink import flush_journal


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def write_run(folder: Path, name: str = "run", parent: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "plot.txt").write_text("plot")
    with Journal(folder / "journal.jsonl", experiment="e", name=name, parent=parent) as journal:
        journal.metrics(0, {"loss": 1.0})
        journal.artifact(folder / "plot.txt", "plots")
        journal.status("FINISHED")
    return folder / "journal.jsonl"


def test_a_run_a_sweep_and_its_trials_are_found_where_they_were_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = f"sqlite:///{tmp_path / 'mlflow.db'}"
    trial = tmp_path / "sweep" / "trials" / "0001"
    trial.mkdir(parents=True)
    assert remember(tmp_path / "sweep", None) == default
    assert uri_of_run(trial) == uri_of_run(tmp_path / "sweep") == default
    server = "http://tracking:5000/proxied"
    assert remember(tmp_path / "sweep", server) == server
    for folder in (trial, tmp_path / "sweep"):
        with pytest.raises(
            ValueError, match=r"tracked at http://tracking:5000/proxied.*--tracking_uri.*nothing was sent"
        ):
            uri_of_run(folder)
    with pytest.raises(ValueError, match="nothing was sent"):
        remember(tmp_path / "sweep", None)  # a job that continues does not split itself over two servers
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert uri_of_run(trial) == remember(tmp_path / "sweep", None) == server


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"tracking_uri": 7}',
        '{"tracking_uri": {"a": 1}}',
        "[" * 4000,
        '{"tracking_uri": null}'.ljust(4097),
    ],
)
def test_a_damaged_record_of_the_destination_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"tracking\.json: does not say where .*--tracking_uri"):
        uri_of_run(tmp_path)


@pytest.mark.parametrize(("beyond", "read"), [(0, True), (1, False)])
def test_a_run_of_version_0_1_may_have_a_configuration_of_16_mib(tmp_path: Path, beyond: int, read: bool) -> None:
    text = json.dumps({"run": {"tracking_uri": None}})
    (tmp_path / "config.json").write_text(text + " " * ((16 << 20) + beyond - len(text)))
    if read:
        assert uri_of_run(tmp_path) == default_tracking_uri(tmp_path.parent)
    else:
        with pytest.raises(ValueError, match="does not say where the folder is tracked"):
            uri_of_run(tmp_path)


@pytest.mark.parametrize("name", [FILE, "config.json"])
def test_no_request_and_no_password_reach_a_server_that_a_folder_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(str(self.headers))
            self.send_error(500)

        do_GET = do_POST  # noqa: N815

    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    journal = write_run(tmp_path / "evil" / "run")
    content = {"tracking_uri": uri}
    (journal.parent / name).write_text(json.dumps(content if name == FILE else {"run": content}))
    assert main([str(tmp_path / "evil")]) != 0
    assert uri in capsys.readouterr().err
    server.shutdown()
    assert not asked


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/take", "s3://somewhere/x", "{outside}", "file://{outside}"])
def test_a_store_that_came_with_a_folder_writes_nothing_outside_of_it(tmp_path: Path, place: str) -> None:
    """The experiment of a SQLite file may name any place for its artifacts."""
    folder = tmp_path / "evil"
    journal = write_run(folder / "run")
    uri = default_tracking_uri(folder)
    outside = tmp_path / "outside"
    outside.mkdir()
    connect(uri).create_experiment("e", place.format(outside=outside))
    flush_journal(journal, uri, timeout_s=30)
    [refused] = (folder / "run" / "journal.refused.jsonl").read_text().splitlines()
    assert json.loads(refused)["kind"] == "artifact" and "outside of" in refused
    assert not list(outside.iterdir())
    with sqlite3.connect(folder / "mlflow.db") as store:
        assert store.execute("select value from metrics").fetchall() == [(1.0,)]


def test_a_store_that_the_user_names_may_keep_artifacts_elsewhere(tmp_path: Path) -> None:
    journal = write_run(tmp_path / "outputs" / "run")
    uri = default_tracking_uri(tmp_path / "stores")
    connect(uri).create_experiment("e", (tmp_path / "elsewhere").as_uri())
    flush_journal(journal, uri, timeout_s=30)
    assert [path.read_text() for path in (tmp_path / "elsewhere").rglob("plot.txt")] == ["plot"]


@pytest.mark.parametrize("name", ["", " ", "team/emotion", "a:b", "it's", 'say "x"', "50%", "a`b", "a\nb", "x" * 257])
def test_a_registered_name_that_the_registry_or_its_search_refuses_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=r"run\.registered_model: must be 1 to 256 printable characters"):
        check_registered_name("run.registered_model", name)


def test_registered_names_with_spaces_and_letters_of_any_language_are_found_again(tmp_path: Path) -> None:
    client = connect(default_tracking_uri(tmp_path))
    for name in ("Überraschung 1.0", "情感 model", "a_b-c.d (2)"):
        check_registered_name("x", name)
        client.create_registered_model(name)
        assert [model.name for model in client.search_registered_models(f"name = '{name}'")] == [name]
