"""A store that refuses or is silent is told as such, by every way of reading, and never as damage."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import Column, Manifest, Reader, Sample, Schema, ShardWriter, View
from shards.__main__ import main
from shards.access import AccessError, access_error, refuse_url
from shards.errors import ShardError
from shards.verification.check import verify
from shards.verification.repair import repair
from tests.cluster.servers import S3_KEYS, Faulty, s3_server

SCHEMA = Schema((Column("x", 4, "float32"),), {"x": ("x",)})
ADVICE = ("repair", "pack", "restore", "rebuild", "anew")


def write(folder: Path, rows: int = 8) -> Manifest:
    with ShardWriter(folder, SCHEMA) as writer:
        for number in range(rows):
            writer.append(Sample(f"s{number}", {"x": np.full(4, number, np.float32)}))
    assert writer.manifest is not None
    return writer.manifest


def no_advice(error: BaseException) -> bool:
    return not any(word in str(error).lower() for word in ADVICE)


@pytest.fixture(scope="module")
def faulty() -> Iterator[Faulty]:
    store = Faulty()
    yield store
    store.server.shutdown()


@pytest.fixture(autouse=True)
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")  # an extra; `make test` installs it

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


@pytest.mark.parametrize(
    ("status", "code", "problem", "remedy", "may_pass"),
    [
        (400, "ExpiredToken", "credentials have expired", "Renew", False),
        (403, "InvalidAccessKeyId", "does not accept the credentials", "AWS_ACCESS_KEY_ID", False),
        (403, "SignatureDoesNotMatch", "does not accept the credentials", "AWS_SECRET_ACCESS_KEY", False),
        (403, "AccessDenied", "no permission", "Ask its owner", False),
        (404, "NoSuchBucket", "no such bucket", "Correct its name", False),
        (403, "RequestTimeTooSkewed", "clock", "Set the clock", False),
        (503, "SlowDown", "fewer requests", "Wait", True),
        (500, "InternalError", "the store failed", "Wait", True),
    ],
)
def test_what_a_store_says_is_told(
    faulty: Faulty, status: int, code: str, problem: str, remedy: str, may_pass: bool
) -> None:
    faulty.status, faulty.code, faulty.silent = status, code, False
    with pytest.raises(AccessError, match=rf"s3://b/set.*{problem}.*{remedy}") as caught:
        Manifest.open("s3://b/set", faulty.options())
    assert no_advice(caught.value) and caught.value.may_pass is may_pass
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert str(again) == str(caught.value) and again.may_pass is may_pass


def test_silence_and_a_closed_port(faulty: Faulty) -> None:
    faulty.silent = True
    for options in (faulty.options(), faulty.options(client_kwargs={"endpoint_url": "http://127.0.0.1:9"})):
        with pytest.raises(AccessError, match=r"does not answer.*Check the network") as caught:
            Manifest.open("s3://b/set", options)
        assert caught.value.may_pass and no_advice(caught.value)


def test_a_key_that_expires_while_shards_are_read_is_no_damage(tmp_path: Path, faulty: Faulty) -> None:
    """Index, ranges and views: none of them quarantines a row or tells of a missing view."""
    local = write(tmp_path / "set")
    View.where(local, np.arange(8) < 4, "half", {}).save()
    remote = Manifest("s3://b/set", local.schema, local.shards, {}, faulty.options())
    faulty.status, faulty.code, faulty.silent = 400, "ExpiredToken", False
    reader = Reader(remote)
    with pytest.raises(AccessError, match="expired"):
        reader.read(0, 0, 4)
    assert not list(reader.corrupt)
    with pytest.raises(AccessError, match="expired"):
        View.open(remote, "half")
    reader = Reader(local)
    reader.read(0, 0, 4)  # the index is known; the shard itself can't be reached any more
    reader._storage._manifest, reader._storage.is_local = remote, False
    with pytest.raises(AccessError, match=r"s3://b/set/.*\.tar"):
        reader.read(0, 0, 4)
    assert not list(reader.corrupt)


def test_a_local_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a real store: what is there is read and verified, and a missing bucket is another thing than a missing
    data set."""
    import boto3
    import fsspec

    pytest.importorskip("moto")
    local = write(tmp_path / "set")
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # another test's server had another address
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="here")
        for path in (tmp_path / "set").iterdir():
            if path.is_file():
                client.upload_file(str(path), "here", f"set/{path.name}")
        assert Manifest.open("s3://here/set").digest == local.digest
        assert main(["verify", "s3://here/set"]) == 0
        assert main(["stats", "s3://here/set"]) == 0
        capsys.readouterr()
        assert main(["verify", "s3://nowhere/set"]) == 1  # access failed: not a word about the data
        told = capsys.readouterr().err
        assert "there is no such bucket" in told and not any(word in told.lower() for word in ADVICE)
        assert main(["verify", "s3://here/other"]) == 2
        told = capsys.readouterr().err
        assert "no manifest at s3://here/other" in told and "conclugen pack" in told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_local_files_without_permission(tmp_path: Path) -> None:
    write(tmp_path / "set")
    for path in (tmp_path / "set").glob("*.tar"):
        path.chmod(0)
    with pytest.raises(AccessError, match="no permission"):
        verify(tmp_path / "set", lambda problem: None)


@pytest.mark.parametrize("name", ["manifest.parquet", "*.index.parquet", "*.tar"])
def test_local_permission_is_no_reason_to_repair(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `open` refuses it to others than root. Nothing is rewritten, and no shard is left out."""
    manifest = write(tmp_path / "set")
    closed = {str(path) for path in (tmp_path / "set").glob(name)}
    before = {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    real = os.open

    def refusing(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(AccessError, match=r"no permission.*Give this user permission") as caught:
        Reader(manifest if name != "manifest.parquet" else Manifest.open(tmp_path / "set")).read(0, 0, 8)
    assert no_advice(caught.value)
    if name != "*.tar":
        with pytest.raises(AccessError, match="no permission"):
            repair(tmp_path / "set")
    monkeypatch.undo()
    assert before == {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}


def test_what_is_about_the_data_stays_so() -> None:
    for error in (FileNotFoundError(2, "no"), ValueError("x"), ShardError("s", "x"), OSError(5, "input/output error")):
        assert access_error(error, "/data") is None
    assert json.dumps(str(access_error(TimeoutError(), "/data"))).count("does not answer") == 1


@pytest.mark.parametrize("text", ["s3://b/x", "gs://b/x", "hdfs://h:9/x", "https://h/x"])
def test_an_address_where_a_local_path_is_needed_is_refused_also_as_a_path(text: str) -> None:
    for given in (text, Path(text)):
        with pytest.raises(ValueError, match=rf"--out {text}: must be a local path, got an address. Copy it"):
            refuse_url("--out", given, "Copy it")
    for given in ("a/b", "/x:y/z", "C:x", None, "out:"):
        refuse_url("--out", given, "Copy it")


ADDRESS = "s3://bucket/data"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["pack", "--source", ADDRESS, "--out", "OUT", "--column", "x"], "--source"),
        (["pack", "--source", "SET", "--out", ADDRESS, "--column", "x"], "--output"),
        (["pack", "--source", "SET", "--out", "OUT", "--column", "x", "--table", "s3://bucket/t.csv"], "--table"),
        (["index", ADDRESS], "FOLDER"),
        (["index", ADDRESS, "--output", "OUT"], "FOLDER"),
        (["split", ADDRESS], "FOLDER"),
        (["check", ADDRESS], "source"),
        (["check", "SET", "--table", "s3://bucket/t.csv"], "table"),
        (["convert-pickle", ADDRESS, "--output", "OUT"], "FILE"),
        (["convert-pickle", "SET", "--output", ADDRESS], "--output"),
        (["verify", ADDRESS, "--repair"], "FOLDER"),
    ],
)
def test_shards_commands_refuse_addresses_by_name(
    command: list[str], option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "f.npz", x=np.ones((4, 2), np.float32))
    command = [{"SET": str(tmp_path / "f.npz"), "OUT": str(tmp_path / "out")}.get(part, part) for part in command]
    assert main(command) == 2
    told = capsys.readouterr().err
    address = "s3://bucket/t.csv" if option.endswith("table") else ADDRESS
    assert f"{option} {address}: must be a local path, got an address" in told and "copy" in told.lower()
    assert not Path("s3:").exists() and not (tmp_path / "out").exists()


BUILD = ["--adapter", "mosei", "--source", ".", "--output", "out"]


@pytest.mark.parametrize(
    ("job", "command", "option"),
    [
        ("ray_jobs.build_shards", ["--adapter", "folder", "--source", ADDRESS, "--output", "out"], "source"),
        ("ray_jobs.build_shards", ["--adapter", "folder", "--source", ".", "--output", ADDRESS], "output"),
        ("ray_jobs.build_shards", [*BUILD, "--table", ADDRESS], "table"),
        ("ray_jobs.build_shards", [*BUILD, "--folds", ADDRESS], "folds"),
        ("ray_jobs.build_shards", [*BUILD, "--unpack", ADDRESS], "unpack"),
        ("ray_jobs.extract_features", ["--data", ".", "--output", ADDRESS], "output"),
        ("ray_jobs.embed", [ADDRESS, "--run", "r"], "files"),
        ("ray_jobs.embed", ["a.mp4", "--run", "r", "--output", ADDRESS], "output"),
        ("ray_jobs.embed", ["a.mp4", "--run", "r", "--embeddings", ADDRESS], "embeddings"),
        ("ray_jobs.evaluate", ["--run", "r", "--label", "y", "--data", ADDRESS, "--output", ADDRESS], "output"),
        ("tuning.sweep.__main__", ["--run", "r", "--data", ADDRESS, "--output", ADDRESS], "output"),
        ("tuning.ablate", ["--data.s", ADDRESS, "--output", ADDRESS], "output"),
        ("tuning.report.__main__", [ADDRESS], "FOLDER"),
    ],
)
def test_jobs_refuse_addresses_by_name(
    job: str,
    command: list[str],
    option: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one line, before anything is written."""
    import importlib

    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(job).COMMAND.main(command) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {option} {ADDRESS}: must be a local path, got an address") and told.count("\n") == 1
    assert not list(tmp_path.iterdir())
