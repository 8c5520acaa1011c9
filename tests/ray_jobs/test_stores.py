"""Jobs whose data lies in a store: a store that refuses or is silent is told in one line, as that, before anything is
made. (What a store says, case by case: tests/shards/test_access.py; jobs that read from one: tests/cluster.)"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from conclugen import Pretrainer, export, presets
from conclugen.common.options import save
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder
from tests.cluster.servers import S3_KEYS, Faulty

DATA = "s3://bucket/data"
WIDTHS = {"video": 6, "audio": 5}
SMALL = {"representation_dim": 8, "projection_dim": 4, "reconstruction_hidden_dim": 8, "standardize": False}
ADVICE = ("repair", "conclugen pack", "damaged", "restore", "build it")
ANSWERS = {
    "wrong key": (403, "InvalidAccessKeyId", "does not accept the credentials"),
    "expired token": (400, "ExpiredToken", "credentials have expired"),
    "missing bucket": (404, "NoSuchBucket", "there is no such bucket"),
    "no permission": (403, "AccessDenied", "no permission"),
    "throttling": (503, "SlowDown", "asks for fewer requests"),
    "time-out": (0, "", "does not answer"),
}
COMMANDS = {
    "ray_jobs.extract_features": ["--data", DATA, "--output", "new", "--encoders", "random"],
    "ray_jobs.pretrain": ["--data", DATA, "--run", "new", "--output", "."],
    "ray_jobs.evaluate": ["--data", DATA, "--run", "first", "--label", "emotion", "--output", "."],
    "ray_jobs.embed": ["--data", DATA, "--run", "first", "--output", "."],
    "tuning.sweep.__main__": ["--data", DATA, "--run", "new", "--output", "."],
    "tuning.ablate": ["--data.set", DATA, "--run", "new", "--output", "."],
}


@pytest.fixture(scope="module")
def store() -> Iterator[Faulty]:
    faulty = Faulty()
    yield faulty
    faulty.server.shutdown()


@pytest.fixture
def folder(tmp_path: Path, store: Faulty, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of commands, with a finished run; addresses lead to the faulty store."""
    s3fs = pytest.importorskip("s3fs")  # an extra; `make test` installs it
    config = presets.build("contrast_only", modalities=tuple(WIDTHS), global_batch=8, model=SMALL)
    run = RunFolder(tmp_path / "first")
    run.path.mkdir()
    save(PretrainJob(config, DataConfig(DATA), RunConfig("first", str(tmp_path))), run.config)
    export.save(run.model, Pretrainer(config, WIDTHS, steps_per_epoch=4), {"modalities": {m: [m] for m in WIDTHS}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server.server_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    yield tmp_path
    s3fs.S3FileSystem.clear_instance_cache()


# Each answer and each command once by default, all pairs in the slow run.
PAIRS = [
    pytest.param(command, answer, marks=() if i == j else pytest.mark.slow)
    for i, command in enumerate(COMMANDS)
    for j, answer in enumerate(ANSWERS)
]


@pytest.mark.parametrize(("command", "answer"), PAIRS)
def test_access_is_told_as_access(
    command: str, answer: str, folder: Path, store: Faulty, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    status, code, words = ANSWERS[answer]
    store.silent = not status
    if status:
        store.status, store.code = status, code
    else:
        monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", 0.5)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    assert importlib.import_module(command).COMMAND.main(COMMANDS[command]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(told) == 1 and told[0].startswith(f"error: {DATA}") and words in told[0]
    assert not any(word in told[0].lower() for word in ADVICE)
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
