"""Checkpoints on an S3-compatible store: a run is stopped there, and continues from what the store has."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import fsspec
import pytest
import ray
import torch

from conclugen import Pretrainer
from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.pretrain import pretrain
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import metric_history
from ray_jobs.training import far_folder
from ray_jobs.training import worker as train_worker
from ray_jobs.training.failures import RunFailedError
from ray_jobs.training.worker import Attempt
from tests.cluster.runs import small_job, with_run
from tests.cluster.servers import S3_KEYS, s3_server

NOWHERE = "/nowhere-to-be-found"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket's URL; s3fs finds the store as it finds any other, by AWS's variables."""
    pytest.importorskip("s3fs")
    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("checkpoints")
        yield "s3://checkpoints"


def elsewhere(attempt: Attempt) -> None:
    """A worker on a node where the run's folder is not to be found."""
    far_folder._APPEARS_WITHIN_S = 0.0
    train_worker.train(replace(attempt, folder=f"{NOWHERE}/{Path(attempt.folder).name}"))


def failing_elsewhere(attempt: Attempt) -> None:
    with mock.patch.object(Pretrainer, "check_finite", side_effect=ValueError("a fault that would come back")):
        elsewhere(attempt)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_shared_folder_a_store_suffices(
    bucket: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What workers need travels with the start or is asked for, and what they tell comes back: the same run, and the
    same failure, as in a folder that they see."""
    monkeypatch.setattr(far_folder, "several_nodes", lambda: True)
    ray.init("local", num_cpus=6, include_dashboard=False, logging_level="warning")
    try:
        far = with_run(small_job(shards, tmp_path / "far", "far", workers=2, epochs=1), storage=bucket)
        found = pretrain(far, elsewhere)
        seen = pretrain(small_job(shards, tmp_path / "seen", "seen", workers=2, epochs=1))
        with pytest.raises(RunFailedError, match=r"^rank \d of 2, .*ValueError: a fault that would come back"):
            pretrain(
                with_run(small_job(shards, tmp_path / "far", "fails", workers=2, epochs=1), storage=bucket),
                failing_elsewhere,
            )
        with pytest.raises(RunFailedError, match=r"does not see .* give run\.storage"):
            pretrain(small_job(shards, tmp_path / "far", "unseen", epochs=1), elsewhere)
    finally:
        ray.shutdown()
    assert not Path(NOWHERE).exists()
    for name in ("loss", "validation/effective_rank/video"):
        assert metric_history(found.folder.journal)[name] == metric_history(seen.folder.journal)[name]
    here, there = found.folder.store(far.run).newest(), CheckpointStore(seen.folder.path / "checkpoints").newest()
    assert here is not None and there is not None and here.tensors.keys() == there.tensors.keys()
    assert all(torch.equal(here.tensors[name], x) for name, x in there.tensors.items())
    assert "a fault that would come back" in (tmp_path / "far" / "fails" / "failures.jsonl").read_text()
    assert (found.model / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_from_the_store_alone(bucket: str, shards: Path, tmp_path: Path) -> None:
    """One epoch, then a second one by a job that knows nothing but the store: equal to two epochs in one go, by a
    schedule that does not depend on a run's length, as a single cosine does."""
    restarts = {"schedule": "restarts"}
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="warning")
    try:
        one = with_run(small_job(shards, tmp_path / "one", "run", epochs=1, optimizer=restarts), storage=bucket)
        pretrain(one)
        store = RunFolder(tmp_path / "one" / "run").store(one.run)
        assert store.location == f"{bucket}/run" and len(store.steps()) == 3
        assert not (tmp_path / "one" / "run" / "checkpoints").exists()
        two = with_run(
            small_job(shards, tmp_path / "two", "run", workers=2, epochs=2, optimizer=restarts), storage=bucket
        )
        result = pretrain(two)
        whole = pretrain(small_job(shards, tmp_path / "whole", "whole", epochs=2, optimizer=restarts))
    finally:
        ray.shutdown()
    here, there = store.newest(), CheckpointStore(whole.folder.path / "checkpoints").newest()
    assert here is not None and there is not None and result.step == whole.step
    for name, x in there.tensors.items():
        torch.testing.assert_close(here.tensors[name], x, atol=1e-8, rtol=0, msg=name)
    other = replace(two, pretrain=replace(two.pretrain, seed=5))
    with pytest.raises(
        ValueError, match=r"holds checkpoints of another run, which differs in .*seed \(there \d+, here 5\)"
    ):
        pretrain(with_run(other, output=str(tmp_path / "three")))
