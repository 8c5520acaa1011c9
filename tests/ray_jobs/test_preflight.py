"""What a job builds at its end is refused at its start."""

from __future__ import annotations

import errno
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from conclugen.common.locks import check_room, folder_held
from ray_jobs import preflight
from ray_jobs.run_config import DataConfig, RunConfig
from tuning.sweep.job import SweepJob


def test_a_sweep_s_name_leaves_room_for_its_best_run() -> None:
    """Before, 200 bytes were taken, and the search was through when `<name>-best` was refused."""
    data = DataConfig("shards")
    assert SweepJob(data, "n" * 195).best_run().name == "n" * 195 + "-best"
    with pytest.raises(ValueError, match=r"^name: 'n+'\.\.\. is longer than 200 bytes.*run of the best configuration"):
        SweepJob(data, "n" * 196)
    with pytest.raises(ValueError, match=r"^experiment: must be 1 to 256 printable characters, got ''"):
        SweepJob(data, "n", experiment="")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "e" * 257])
def test_experiments_that_no_store_takes(name: str) -> None:
    with pytest.raises(ValueError, match=r"^run\.experiment: must be 1 to 256 printable"):
        RunConfig("run", experiment=name)
    assert RunConfig("run", experiment="e" * 256).experiment


def test_a_folder_without_room_or_permission_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_room("output", tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir()), "a look leaves nothing"
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**19))
        with pytest.raises(OSError, match=r"^output: .* has 0\.5 MiB free, and 1\.0 MiB are needed") as full:
            check_room("output", tmp_path)
    assert full.value.errno == errno.ENOSPC
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"output: .*file is a file"):
        check_room("output", tmp_path / "file" / "below")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with (
        pytest.raises(PermissionError, match=r"--output: .* cannot be written to \(Permission denied\)"),
        folder_held(tmp_path / "x", "work is done", "another --output"),
    ):
        pass
    with (
        pytest.raises(PermissionError, match=r"^FOLDER: .* cannot be written to"),
        folder_held(tmp_path / "x", "work is done", "another time", field="FOLDER"),
    ):
        pass
    assert not (tmp_path / "x").exists()


def test_a_server_is_told_of_in_seconds_whatever_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as silent:  # takes the connection and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "time" in str(preflight.why_silent(uri, within_s=0.5)) or "no answer" in str(
            preflight.why_silent(uri, within_s=0.5)
        )
    preflight.check_tracking("http://127.0.0.1:9", "e", "model")
    said = capsys.readouterr().out
    assert said.startswith("warning: MLflow at http://127.0.0.1:9 does not answer now (")
    assert "whether model 'model' can be registered is open; the job goes on" in said and said.count("\n") == 1


def test_a_server_that_answers_anything_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    class Wants(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Wants)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        preflight.check_tracking(f"http://127.0.0.1:{server.server_port}/proxy/", "e")
    finally:
        server.shutdown()
        server.server_close()
    assert capsys.readouterr().out == "" and asked == ["/proxy/health None"], "and no credentials are sent"
