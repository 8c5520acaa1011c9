"""Checkpoints are found again whole or not at all, the best are kept, and a storage that fails is borne for a while."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from conclugen import Pretrainer, storage
from conclugen.training import checkpoint
from conclugen.training.checkpoint import CheckpointVersionError, Snapshot
from ray_jobs import checkpoint_store
from ray_jobs.checkpoint_store import CheckpointStore, CheckpointWriteError, CheckpointWriter
from tests.cluster.servers import S3_KEYS, s3_server


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_store, "_FIRST_PAUSE_S", 0.0)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3-compatible store, which is found as any other: by AWS's own variables."""
    pytest.importorskip("s3fs")
    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("checkpoints")
        yield "s3://checkpoints"


@pytest.fixture(params=["folder", "memory", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "checkpoints")
    elif request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    else:
        yield f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()


def state(pretrainer: Pretrainer, step: int, **measures: float) -> Snapshot:
    return checkpoint.snapshot(pretrainer, {"epoch": 0, "step": step}, {"measures": measures})


def test_the_newest_whole_one_is_found_and_damaged_ones_are_passed_over(
    pretrainer: Pretrainer, location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(location, keep=9)
    assert store.newest() is None and store.steps() == []
    for step in (10, 20, 30, 40):
        store.publish(step, state(pretrainer, step))
    files, root = fsspec.core.url_to_fs(location)
    tensors = f"{root}/step-{40:010d}/{checkpoint.TENSORS}"
    files.pipe_file(tensors, files.cat_file(tensors)[:-8])  # a write cut off
    files.rm_file(f"{root}/step-{30:010d}/{checkpoint.DOCUMENT}")  # a copy cut off
    assert store.steps() == [40, 20, 10]
    found = CheckpointStore(location).newest()
    assert found is not None and found.cursor == {"epoch": 0, "step": 20}
    assert capsys.readouterr().out.count("passed over") == 2


def test_checkpoints_of_another_version_are_not_begun_anew_over(
    pretrainer: Pretrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit makes no other version: the seal tells."""
    store = CheckpointStore(tmp_path, keep=9)
    for step in (10, 20):
        store.publish(step, state(pretrainer, step))
    document = tmp_path / "step-0000000020" / checkpoint.DOCUMENT
    said = json.loads(document.read_text())
    document.write_text(json.dumps({**said, "version": 1}))
    found = store.newest()
    assert found is not None and found.cursor["step"] == 10
    assert "passed over" in capsys.readouterr().out

    written = {name: value for name, value in said.items() if name != "seal"} | {"version": 1}
    for text in (json.dumps(written), storage.document_text(written)):  # without a seal, as it once was, and with one
        document.write_text(text)
        with pytest.raises(CheckpointVersionError, match=r"step-0*20.*version is 1, expected 2.*another name"):
            store.newest()


def test_the_newest_are_kept_whichever_run_length_they_belong_to(pretrainer: Pretrainer, location: str) -> None:
    for step in (20, 40, 60, 80):
        CheckpointStore(location, keep=2).publish(step, state(pretrainer, step))
    assert CheckpointStore(location).steps() == [80, 60]


@pytest.mark.parametrize(("order", "kept"), [("max", [50, 30, 20]), ("min", [50, 40, 10])])
def test_the_best_are_kept_and_always_the_newest(
    pretrainer: Pretrainer, location: str, order: str, kept: list[int]
) -> None:
    for step, value in ((10, 0.1), (20, 0.9), (30, 0.8), (40, 0.2), (50, float("nan"))):
        measures = {} if value != value else {"m": value}
        # A store of its own each time: what it knows of earlier ones it reads from their documents.
        CheckpointStore(location, 2, "m", order).publish(step, state(pretrainer, step, **measures))
    assert CheckpointStore(location).steps() == kept


def test_what_killed_writers_leave_is_removed(pretrainer: Pretrainer, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    (tmp_path / ".step-0000000005.12345678.partial").mkdir()
    (tmp_path / "step-0000000006").mkdir()  # without a document
    store.publish(10, state(pretrainer, 10))
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000010"]


def test_a_copy_is_written_not_what_training_has_made_of_it_since(pretrainer: Pretrainer, tmp_path: Path) -> None:
    taken = state(pretrainer, 1)
    parameter = next(pretrainer.model.parameters())
    before = parameter.detach().clone()
    parameter.data.add_(1)
    CheckpointStore(tmp_path).publish(1, taken)
    parameter.data.copy_(before)
    found = CheckpointStore(tmp_path).load(1)
    assert all(x.equal(found.tensors[name]) for name, x in pretrainer.state()[0].items())


class Faulty(CheckpointStore):
    """Fails at the accesses that it is told of."""

    failing: Any = ()
    accesses = 0

    def _write(self, step: int, state: Snapshot) -> None:
        self.accesses += 1
        if self.accesses in self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super()._write(step, state)


def test_a_storage_that_fails_now_and_then_loses_no_checkpoint(pretrainer: Pretrainer, tmp_path: Path) -> None:
    store = Faulty(tmp_path)
    store.failing = (1, 2, 4, 5, 6)
    writer = CheckpointWriter(store, before=lambda: None)
    for step in (1, 2):
        writer.submit(step, state(pretrainer, step))
    writer.finish()
    assert store.steps() == [2, 1] and store.accesses == 7


def test_a_full_disk_costs_two_checkpoints_at_most_before_the_run_stops(
    pretrainer: Pretrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Faulty(tmp_path)
    writer = CheckpointWriter(store, before=lambda: None)
    writer.submit(1, state(pretrainer, 1))
    store.failing = range(2, 10)
    for step in (2, 3, 4):  # of these the first two cannot be written
        writer.submit(step, state(pretrainer, step))
    writer.finish()
    assert store.steps() == [4, 1] and capsys.readouterr().out.count("No space left on device") == 2
    store.failing = range(1000)
    with pytest.raises(CheckpointWriteError, match=r"step 7 .*No space left on device.*Make room"):
        for step in (5, 6, 7, 8):
            writer.submit(step, state(pretrainer, step))
    assert store.newest() is not None
    writer.submit(9, state(pretrainer, 9))
    with pytest.raises(CheckpointWriteError, match="step 9"):
        writer.finish()  # the last one of a run has no next


def test_what_must_be_on_disk_first_decides(pretrainer: Pretrainer, tmp_path: Path) -> None:
    def superseded() -> None:
        raise RuntimeError("a later attempt writes")

    writer = CheckpointWriter(CheckpointStore(tmp_path), before=superseded)
    writer.submit(1, state(pretrainer, 1))
    with pytest.raises(RuntimeError, match="later attempt"):
        writer.finish()
    assert CheckpointStore(tmp_path).steps() == []


def test_a_real_limit_of_the_file_system_leaves_the_last_good_one(pretrainer: Pretrainer, tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the write fails half way with a real error of the system, in a process of its own."""
    CheckpointStore(tmp_path).publish(1, state(pretrainer, 1))
    child = subprocess.run(
        [sys.executable, "-m", "tests.ray_jobs.training.test_checkpoint_store", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert "CheckpointWriteError" in child.stderr and "step 2" in child.stderr, child.stderr
    assert CheckpointStore(tmp_path).steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]


if __name__ == "__main__":
    taken = CheckpointStore(sys.argv[1]).load(1)
    document = {name: value for name, value in vars(taken).items() if name != "tensors"}
    checkpoint_store._FIRST_PAUSE_S = 0.0
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    writer = CheckpointWriter(CheckpointStore(sys.argv[1]), before=lambda: None)
    writer.submit(2, Snapshot(taken.tensors, document))
    writer.finish()
