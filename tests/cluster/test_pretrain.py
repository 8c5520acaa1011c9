"""Pretraining end to end on a real local Ray: world size, tracking, an outage of MLflow, evaluation, divergence."""

import json
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

import conclugen
from conclugen.evaluation.config import ComparisonConfig
from conclugen.training.checkpoint import Checkpoint
from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.evaluate import EvaluateJob, evaluate
from ray_jobs.pretrain import pretrain
from ray_jobs.run_config import ShardsConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import metric_history
from ray_jobs.tracking.mlflow_run import allowed_name
from ray_jobs.training.failures import RunFailedError
from ray_jobs.training.pretraining import PretrainResult
from shards import Manifest
from tests.campaigns.faults import Bench
from tests.cluster import trace
from tests.cluster.runs import small_job, with_run
from tests.cluster.servers import Gate


@pytest.fixture(scope="module")
def alone(shared_ray: None, bench: Bench, gate: Gate) -> PretrainResult:
    """One worker, whose MLflow server is out of reach for ten steps in its middle."""
    run = bench.run_of("alone")
    trace.Plan(pace_s=0.05).give(run)
    refused = gate.refused

    def back() -> None:
        while gate.refused == refused:  # at the latest when the job's end sends the rest
            time.sleep(0.05)
        gate.back()

    with trace.at_step(run, 5, gate.shut), trace.at_step(run, 15, back):
        return pretrain(with_run(bench.job("alone"), workers=1, tracking_uri=gate.url), trace.train)


def last_state(folder: RunFolder) -> Checkpoint:
    found = CheckpointStore(folder.path / "checkpoints").newest()
    assert found is not None
    return found


def curve(folder: RunFolder, name: str = "loss") -> list[tuple[int, float]]:
    return metric_history(folder.journal)[name]


def test_a_run_is_tracked_whole_in_spite_of_an_outage_and_its_model_loads(alone: PretrainResult, shards: Path) -> None:
    steps = alone.step
    assert steps >= 40
    assert [step for step, _ in curve(alone.folder)] == list(range(1, steps + 1))
    client = mlflow.MlflowClient(alone.tracking_uri)
    assert alone.mlflow_run_id is not None
    run = client.get_run(alone.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["pretrain.tasks.clustering.clusters"] == "4"
    assert run.data.tags["manifest_digest"] == Manifest.open(str(shards)).digest
    for name, values in metric_history(alone.folder.journal).items():
        history = client.get_metric_history(alone.mlflow_run_id, allowed_name(name))
        assert sorted((m.step, m.value) for m in history) == values, name
    experiment = client.get_experiment_by_name("conclugen")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'alone'")) == 1
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
        tracking_uri=alone.tracking_uri,
    )
    result = evaluate(job)
    systems = ["majority", "pretrained", "pretrained + raw", "untrained", "raw", "best single modality", "raw balanced"]
    assert [s.system for s in result.scores] == systems
    assert {path.name for path in result.folder.glob("*.png")} >= {"confusion.png", "map.png", "systems.png"}
    accuracy = {s.system: s.scores["accuracy"] for s in result.scores}
    assert accuracy["majority"] == pytest.approx(0.2) and min(accuracy["pretrained"], accuracy["raw"]) > 0.3
    assert alone.mlflow_run_id is not None
    metrics = mlflow.MlflowClient(alone.tracking_uri).get_run(alone.mlflow_run_id).data.metrics
    measured = {name: value for name, value in metrics.items() if name.startswith("evaluation/shards/emotion/")}
    at = "evaluation/shards/emotion/100 percent of labels"
    assert measured[f"{at}/accuracy pretrained"] == pytest.approx(accuracy["pretrained"]) and len(measured) <= 12
    raw = max(accuracy[name] for name in ("raw", "best single modality", "raw balanced"))
    assert measured[f"{at}/gain over strongest raw"] == pytest.approx(accuracy["pretrained"] - raw)
    with pytest.raises(ValueError, match="did you mean 'emotion'"):
        evaluate(replace(job, label="emotoin"))
    with pytest.raises(ValueError, match=r"no exported model|no run 'never-was'"):
        evaluate(replace(job, run="never-was"))


def test_two_workers_train_as_one_does(alone: PretrainResult, reference: PretrainResult) -> None:
    traces = {path.name for path in reference.folder.profile.glob("*.json.gz")}
    assert traces == {"step-000012-rank-0.json.gz", "step-000012-rank-1.json.gz"}
    assert curve(reference.folder) == [(step, pytest.approx(value, abs=1e-9)) for step, value in curve(alone.folder)]
    mine, theirs = last_state(reference.folder).tensors, last_state(alone.folder).tensors
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-8, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("payload", ["host", "device"])
def test_rows_that_are_kept_train_to_the_same_bits(
    reference: PretrainResult, bench: Bench, payload: str, capfd: pytest.CaptureFixture[str]
) -> None:
    job = bench.job(f"kept-{payload}")
    job = replace(job, data=replace(job.data, payload=payload))  # type: ignore[arg-type]
    result = pretrain(job, trace.train)
    assert f"(data.payload={payload})" in capfd.readouterr().out
    assert curve(result.folder) == curve(reference.folder)
    mine, theirs = last_state(result.folder).tensors, last_state(reference.folder).tensors
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_open_files_do_not_grow_with_steps_and_checkpoints(reference: PretrainResult) -> None:
    """Over 20 steps and 3 checkpoints; memory, and many more of both, in `test_soak.py`."""
    files = {(r["rank"], r["step"]): r["files"] for r in trace.read_trace(reference.folder.path)}
    for rank in (0, 1):
        first, last = (max(files[rank, step] for step in steps) for steps in (range(20, 24), range(39, 43)))
        assert last <= first + 2, f"rank {rank}: {first} open files, then {last}"


@pytest.mark.slow
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
