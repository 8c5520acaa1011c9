"""Pretraining end to end on a real local Ray: world size, resume, failure, tracking."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

import conclugen
from conclugen.checkpoint import Checkpoint
from conclugen.evaluation.config import ComparisonConfig
from ray_jobs.evaluate import EvaluateJob, evaluate
from ray_jobs.pretrain import pretrain
from ray_jobs.run_config import ShardsConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import metric_history
from ray_jobs.training.checkpoint_store import CheckpointStore
from ray_jobs.training.failures import RunFailedError
from ray_jobs.training.pretraining import PretrainResult
from shards import Manifest
from tests.cluster.runs import small_job, with_run, without_ray_of_the_test

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def alone(shared_ray: None, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """The reference: one worker, never interrupted."""
    return pretrain(small_job(shards, tmp_path_factory.mktemp("alone"), "alone"))


@pytest.fixture(scope="module")
def together(shared_ray: None, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """The same by two workers, which trace two steps."""
    job = small_job(shards, tmp_path_factory.mktemp("together"), "together", workers=2)
    return pretrain(with_run(job, profile=2, profile_ranks="all"))


def last_state(folder: RunFolder) -> Checkpoint:
    found = CheckpointStore(folder.path / "checkpoints").newest()
    assert found is not None
    return found


def curve(folder: RunFolder, name: str = "loss") -> list[tuple[int, float]]:
    return metric_history(folder.journal)[name]


def test_a_run_is_tracked_whole_and_its_model_loads(alone: PretrainResult, shards: Path) -> None:
    steps = alone.step
    assert steps >= 50
    assert [step for step, _ in curve(alone.folder)] == list(range(1, steps + 1))
    client = mlflow.MlflowClient(alone.tracking_uri)
    assert alone.mlflow_run_id is not None
    run = client.get_run(alone.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["pretrain.tasks.clustering.clusters"] == "4"
    assert run.data.tags["manifest_digest"] == Manifest.open(str(shards)).digest
    history = client.get_metric_history(alone.mlflow_run_id, "loss")
    assert [(m.step, m.value) for m in history] == curve(alone.folder)
    for name in ("input_queue_depth", "data_wait_share", "step_seconds", "samples_per_second"):
        assert len(curve(alone.folder, name)) == steps, name  # of each report
    assert 0 < max(depth for _, depth in curve(alone.folder, "input_queue_depth")) <= 2
    embedder = conclugen.load(alone.model)
    vectors = embedder.embed({m: torch.zeros(3, width) for m, width in embedder.widths.items()})
    assert vectors.shape == (3, 16 * len(embedder.widths))
    assert (alone.folder.plots / "losses.png").stat().st_size > 1000


def test_an_evaluation_joins_the_run(alone: PretrainResult, shards: Path) -> None:
    job = EvaluateJob(
        run=alone.folder.name,
        label="emotion",
        data=ShardsConfig(folder=str(shards)),
        output=str(alone.folder.path.parent),
        comparison=ComparisonConfig(methods=("probe",), fractions=(1.0,)),
    )
    result = evaluate(job)
    assert [s.system for s in result.scores] == ["majority", "pretrained", "untrained", "raw"]
    assert {path.name for path in result.folder.glob("*.png")} >= {"confusion.png", "map.png", "systems.png"}
    accuracy = {s.system: s.scores["accuracy"] for s in result.scores}
    assert accuracy["majority"] == pytest.approx(0.2) and min(accuracy["pretrained"], accuracy["raw"]) > 0.3
    assert alone.mlflow_run_id is not None
    metrics = mlflow.MlflowClient(alone.tracking_uri).get_run(alone.mlflow_run_id).data.metrics
    assert metrics["evaluation/shards/emotion/raw/probe/1/accuracy"] == pytest.approx(accuracy["raw"])
    with pytest.raises(ValueError, match="did you mean 'emotion'"):
        evaluate(replace(job, label="emotoin"))
    with pytest.raises(ValueError, match=r"no exported model|no run 'never-was'"):
        evaluate(replace(job, run="never-was"))


def test_two_workers_train_as_one_does(alone: PretrainResult, together: PretrainResult) -> None:
    traces = {path.name for path in together.folder.profile.glob("*.json.gz")}
    assert traces == {"step-000012-rank-0.json.gz", "step-000012-rank-1.json.gz"}
    assert curve(together.folder) == [(step, pytest.approx(value, abs=1e-9)) for step, value in curve(alone.folder)]
    mine, theirs = last_state(together.folder).tensors, last_state(alone.folder).tensors
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-8, rtol=0, msg=name)


def test_a_longer_run_goes_on_and_a_finished_one_is_left_alone(alone: PretrainResult, shards: Path) -> None:
    output, name = alone.folder.path.parent, alone.folder.name
    before = curve(alone.folder)
    again = pretrain(small_job(shards, output, name))
    assert again.step == alone.step and curve(again.folder) == before
    longer = pretrain(small_job(shards, output, name, workers=2, epochs=4))
    assert longer.step > alone.step
    assert [step for step, _ in curve(longer.folder)] == list(range(1, longer.step + 1))
    assert longer.mlflow_run_id == alone.mlflow_run_id
    with pytest.raises(ValueError, match="seed: 127 then, 128 now"):
        pretrain(small_job(shards, output, name, seed=128))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    shared_ray: None, shards: Path, tmp_path: Path
) -> None:
    job = small_job(
        shards, tmp_path, "diverges", precision="float32", clip_norm=None, optimizer={"lr": 1e25, "warmup_epochs": 0}
    )
    job = with_run(job, max_failures=3)
    with pytest.raises(RunFailedError, match=r"^rank \d of 1, after step \d+: NonFiniteLossError: .*not finite"):
        pretrain(job)
    folder = RunFolder(tmp_path / "diverges")
    noted = [json.loads(line) for line in folder.failures.read_text().splitlines()]
    assert ["begun" in record for record in noted] == [True, False], "a restart would only meet it again"
    assert not folder.model.exists()
    found = folder.store(job.run).newest()
    assert found is None or all(torch.isfinite(x).all() for x in found.tensors.values() if x.is_floating_point())
    runs = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert [run.info.status for run in runs] == ["FAILED"]


@pytest.mark.timeout(1200)
def test_killed_in_mid_epoch_and_started_again_ends_with_the_same_weights(
    together: PretrainResult, shards: Path, tmp_path: Path
) -> None:
    """Two workers on a Ray of the job's own; driver and all are killed. One never killed has as many workers."""

    def start() -> subprocess.Popen[bytes]:
        arguments = ["--shards", str(shards), "--output", str(tmp_path), "--name", "killed", "--epochs", "3"]
        command = [sys.executable, "-m", "tests.cluster.runs", *arguments]
        environment = without_ray_of_the_test()
        with log_file.open("ab") as log:
            return subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    killed, reference, log_file = RunFolder(tmp_path / "killed"), together.folder, tmp_path / "killed.log"
    first = start()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and first.poll() is None:
        steps = CheckpointStore(killed.path / "checkpoints").steps()
        written = curve(killed)[-1][0] if killed.journal.exists() and steps else 0
        if steps and written > max(steps) + 2:  # steps are lost: they lie behind the newest checkpoint
            break
        time.sleep(0.02)
    assert first.poll() is None, log_file.read_text()[-3000:]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    interrupted_at = curve(killed)[-1][0]

    total = curve(reference)[-1][0]
    assert interrupted_at < total, "the kill came too late to prove anything"
    assert start().wait(timeout=400) == 0, log_file.read_text()[-3000:]

    assert curve(killed) == curve(reference)
    mine, theirs = last_state(killed).tensors, last_state(reference).tensors
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(["1"], "tags.`mlflow.runName` = 'killed'")
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(runs[0].info.run_id, "loss")] == list(range(1, total + 1))
