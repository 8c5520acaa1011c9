"""What a job builds at its end is refused at its start."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from conclugen import Batch, Pretrainer, presets
from conclugen.common.locks import bytes_in, check_room, folder_held
from conclugen.common.options import GOOD, PARTIAL
from conclugen.training import checkpoint
from ray_jobs import checkpoint_store, preflight, pretrain
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.journal_sender import refused
from ray_jobs.tracking.mlflow_environment import connect
from ray_jobs.tracking.mlflow_sink import MlflowSink
from ray_jobs.training import pretraining
from ray_jobs.training.pretraining import PretrainResult, checkpoint_bytes
from shards import Manifest
from shards.__main__ import main as shards_main
from shards.format.layout import least_bytes
from tests.cluster.servers import S3_KEYS, Faulty
from tests.feature_corpus import write_corpus
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


def test_room_for_what_will_be_written_is_asked_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What shards take at least is below what they took; with less room than that nothing is begun."""
    np.savez(tmp_path / "x.npz", v=np.ones((500, 300), np.float32), w=np.ones((500, 7), np.float32))
    asked = ["pack", "--source", str(tmp_path / "x.npz"), "--column", "v", "--column", "w", "--quiet", "--output"]
    assert shards_main([*asked, str(tmp_path / "whole")]) == 0
    took = sum(path.stat().st_size for path in (tmp_path / "whole").glob("*.tar"))
    least = least_bytes(Manifest.open(tmp_path / "whole").schema.columns, 500)
    assert 0.8 * took < least <= took
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=least - 1))
    assert shards_main([*asked, str(tmp_path / "less")]) != 0
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"--output: .*less has 2\.0 MiB free, and 2\.0 MiB are needed for 500 samples; make room", told)
    assert not (tmp_path / "less").exists()
    assert bytes_in(tmp_path / "whole") >= took and bytes_in(tmp_path / "nowhere") == 0


def test_a_checkpoint_is_at_least_what_is_asked_for(tmp_path: Path) -> None:
    sizes = {"representation_dim": 64, "projection_dim": 32, "standardize": False}
    config = presets.build("contrast_only", global_batch=8, model=sizes)
    widths = {"video": 40, "audio": 30, "text": 20}
    pretrainer = Pretrainer(config, widths, 1)
    least = checkpoint_bytes(config, SimpleNamespace(reader=SimpleNamespace(widths=widths)))  # type: ignore[arg-type]
    batch = Batch(
        {m: torch.randn(8, width) for m, width in widths.items()},
        {m: torch.ones(8, dtype=torch.bool) for m in widths},
        torch.arange(8),
    )
    pretrainer.step(batch)
    checkpoint.save(tmp_path / "step", pretrainer, {})
    assert 0.5 * bytes_in(tmp_path / "step") < least <= bytes_in(tmp_path / "step")


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [(403, "AccessDenied", "no permission"), (404, "NoSuchBucket", "no such bucket"), (400, "ExpiredToken", "expired")],
)
def test_a_store_that_takes_no_objects_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, why: str
) -> None:
    s3fs = pytest.importorskip("s3fs")  # an extra; `make test` installs it
    store = Faulty()
    store.status, store.code = status, code
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server.server_port}")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(OSError, match=rf"^run\.storage: s3://b/runs cannot be written to \(.*{why}") as refused:
            preflight.check_storage("run.storage", "s3://b/runs")
        assert "permission to put, list, read and delete" in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
    finally:
        store.server.shutdown()
        store.server.server_close()
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_takes_objects_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check_storage("run.storage", "memory://bucket/runs/a")
    memory = fsspec.filesystem("memory")
    assert not memory.find("/bucket")
    waits = threading.Event()
    monkeypatch.setattr(type(memory), "put_file", lambda *_, **__: waits.wait(30))
    with pytest.raises(OSError, match=r"cannot be written to \(.*no answer within 0\.05 s"):
        preflight.check_storage("run.storage", "memory://bucket/runs/a", within_s=0.05)
    waits.set()


def _stored_job(folder: Path, storage: str) -> PretrainJob:
    write_corpus(folder / "data", speakers=4, takes=4)
    sizes = {"representation_dim": 8, "projection_dim": 4, "standardize": False}
    config = presets.build("contrast_only", global_batch=8, model=sizes)
    data = DataConfig(str(folder / "data"), view="everything", validation_view=None)
    run = RunConfig("a", str(folder / "out"), storage=storage, tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return PretrainJob(config, data, run)


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [(403, "AccessDenied", "no permission"), (403, "InvalidAccessKeyId", "does not accept the credentials")],
)
def test_pretraining_on_a_store_that_refuses_ends_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, code: str, why: str
) -> None:
    s3fs = pytest.importorskip("s3fs")  # an extra; `make test` installs it
    store = Faulty()
    store.status, store.code = status, code
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(checkpoint_store, "_FIRST_PAUSE_S", 0.0)
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server.server_port}")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(OSError, match=rf"^run\.storage: s3://b/runs/a cannot be read \(.*{why}") as refused:
            pretrain.pretrain(_stored_job(tmp_path, "s3://b/runs"))
        assert len(str(refused.value).splitlines()) == 1
    finally:
        store.server.shutdown()
        store.server.server_close()
        s3fs.S3FileSystem.clear_instance_cache()
    assert not list((tmp_path / "out" / "a").glob("*.json*")), "nothing is begun"


def test_pretraining_on_a_store_that_fails_or_is_silent_ends_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A store's client raises what it likes (botocore's own errors are no OSError), or never returns; a listing that
    works may be followed by a read that does not."""

    class StrangeError(Exception):
        pass

    waits = threading.Event()
    memory = fsspec.filesystem("memory")
    job = _stored_job(tmp_path, "memory://silent")

    def raises(*_: object, **__: object) -> None:
        raise StrangeError("no endpoint\nat https://u:hidden@h")

    monkeypatch.setattr(preflight, "STORED_WITHIN_S", 0.2)
    monkeypatch.setattr(pretraining, "_SLOWEST_BYTES_PER_S", 2**40)
    for ends, why in (
        (raises, r"StrangeError: no endpoint at https://h"),
        (lambda *_, **__: waits.wait(60), r"[^()]*no answer within 0\.2 s"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(type(memory), "ls", ends)
            with pytest.raises(OSError, match=rf"^run\.storage: memory://silent/a cannot be read \({why}"):
                pretrain.pretrain(job)
    memory.pipe_file("/silent/a/step-0000000003/checkpoint.json", b"{}")
    try:
        monkeypatch.setattr(type(memory), "get_file", lambda *_, **__: waits.wait(60))
        with pytest.raises(OSError, match=r"cannot be read \(.*no answer within 0\.2 s"):
            pretrain.pretrain(job)
    finally:
        waits.set()
        memory.rm("/silent", recursive=True)


def test_a_store_is_probed_as_checkpoints_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stores (SMB) make folders in `put_file` and want them there in `pipe_file`."""

    def wants_folder(*_: object, **__: object) -> None:
        raise FileNotFoundError("no such folder")

    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "pipe_file", wants_folder)
    preflight.check_storage("run.storage", "memory://share/runs/first")
    assert not memory.find("/share")


def test_a_model_that_is_not_registered_in_the_end_is_said_and_the_status_is_not_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A registry that refuses the model at the end of a run, all else being taken; once it takes it, all is well."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    folder = RunFolder(tmp_path / "a")
    folder.path.mkdir()
    (folder.path / "m").mkdir()
    (folder.path / "m" / "MLmodel").write_text("model")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with Journal(folder.journal, experiment="e", name="a") as journal:
        journal.model(folder.path / "m", registered_name="wanted")
        journal.status("FINISHED")
    refuses = [True]

    def connecting(uri: str) -> Any:
        client = connect(uri)
        register = client.create_registered_model

        def create(name: str, *more: Any) -> Any:
            if refuses:
                raise MlflowException("no models today", INVALID_PARAMETER_VALUE)
            return register(name, *more)

        client.create_registered_model = create
        return client

    def finished(job: PretrainJob, begun: int = 0) -> PretrainResult:
        with MlflowSink(folder.journal, uri, connect_to=connecting) as sink:
            pass
        lines = tuple(refused(folder.journal, begun))
        return PretrainResult(folder, folder.model, 7, uri, sink.run_id, lines, not sink.complete)

    monkeypatch.setattr(pretrain, "pretrain", finished)
    run = RunConfig("a", str(tmp_path), registered_model="wanted")
    job = PretrainJob(presets.build("contrast_only", global_batch=8), DataConfig("shards"), run)
    assert pretrain.run(job) == PARTIAL
    said = capsys.readouterr().out
    assert "MLflow refused model: " in said and "no models today" in said
    assert "the model was not registered as 'wanted'; fix the cause, and the same command registers it" in said
    client = connect(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert found.info.status == "FINISHED" and not client.search_registered_models()
    refuses.clear()
    with Journal(folder.journal) as journal:  # as the same command continues
        begun = journal.position
        journal.model(folder.path / "m", registered_name="wanted")
    monkeypatch.setattr(pretrain, "pretrain", lambda job: finished(job, begun))
    assert pretrain.run(job) == GOOD
    assert [model.name for model in client.search_registered_models()] == ["wanted"]
    assert "refused" not in capsys.readouterr().out


def test_a_server_is_told_of_in_seconds_whatever_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as silent:  # takes the connection and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert preflight.why_silent(uri, within_s=0.5) == "no answer within 0.5 s"
    preflight.check_tracking("http://127.0.0.1:9", "e", "model")
    said = capsys.readouterr().out
    assert said.startswith("warning: MLflow at http://127.0.0.1:9 does not answer now (")
    assert "Connection refused" in said, "the server's own reason, not the time that was waited"
    assert "whether model 'model' can be registered is open; the job continues" in said and said.count("\n") == 1


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
