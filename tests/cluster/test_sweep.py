"""Sweeps on a real local Ray: early stopping, deaths, kills, populations, tracking."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import mlflow
import pytest
import ray

from ray_jobs.pretrain import COMMAND as PRETRAIN
from ray_jobs.tracking.journal import metric_history
from ray_jobs.tracking.mlflow_run import allowed_name
from tests.cluster.servers import free_port, mlflow_server
from tests.cluster.sweeps import DyingActor, FragileActor, fixed_space, small_space, small_sweep
from tests.feature_corpus import write_corpus
from tuning.ledger import Ledger, Record
from tuning.nested_runs import NestedRunsSink
from tuning.sweep import run as sweep_run
from tuning.sweep.folder import SweepFolder
from tuning.sweep.job import ResourceConfig, ScheduleConfig
from tuning.sweep.objective import OBJECTIVES, without_confusion
from tuning.sweep.population import Schedule, replay
from tuning.sweep.sweep import SweepResult, prepare, sweep

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    write_corpus(folder, speakers=9, takes=6)
    return folder


@pytest.fixture(scope="module")
def twelve(shared_ray: None, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return sweep(small_sweep(shards, tmp_path_factory.mktemp("twelve"), "twelve", objective="effective_rank"))


def runs_of(result_or_uri: str) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(result_or_uri)
    experiment = client.get_experiment_by_name("conclugen")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def check_mlflow(uri: str, folder: SweepFolder, trials: int) -> None:
    """One parent, a child for each trial, every number of every journal on the server once and right."""
    client, runs = mlflow.MlflowClient(uri), runs_of(uri)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in runs if run not in children]
    assert parent.info.run_name == folder.name and parent.info.status == "FINISHED"
    assert len(children) == trials and len({run.info.run_name for run in children}) == trials
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    (data,) = {(d.dataset.name, d.dataset.digest, d.dataset.profile) for run in runs for d in run.inputs.dataset_inputs}
    assert {len(run.inputs.dataset_inputs) for run in runs} == {1}
    assert data[:2] == (parent.data.tags["dataset"], parent.data.tags["view_digest"])
    for run in children:
        journal = folder.trial(int(run.data.tags["trial"])) / "journal.jsonl"
        for name, curve in metric_history(journal).items():
            history = client.get_metric_history(run.info.run_id, allowed_name(name))
            assert [(m.step, m.value) for m in history] == curve, (run.info.run_name, name)


def trials_of(folder: Path) -> list[Record]:
    """What a sweep's ledger holds besides the raw rows that trials are compared with."""
    return [record for record in Ledger.open(folder).history() if record.kind == "trial"]


def test_asha_stops_most_and_the_last_trial_still_runs(twelve: SweepResult) -> None:
    states = Counter(outcome.state for outcome in twelve.store.outcomes.values())
    assert states["stopped"] + states["finished"] == 12 and states["stopped"] >= 6
    assert 11 in twelve.store.outcomes
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources().get("CPU") == 2, "a trial holds resources beyond its end"
    finished = {n: twelve.store.value(n) for n, o in twelve.store.outcomes.items() if o.state == "finished"}
    assert twelve.best is not None and finished[twelve.best] == max(finished.values())
    for number, outcome in twelve.store.outcomes.items():
        assert set(outcome.curve) <= {1, 3, 9} and (9 in outcome.curve) == (outcome.state == "finished"), number


def test_a_sweep_is_found_in_mlflow_and_in_its_ledger(twelve: SweepResult) -> None:
    check_mlflow(twelve.tracking_uri, twelve.folder, 12)
    records = trials_of(twelve.folder.path)
    assert sorted(record.tags["number"] for record in records) == list(range(12))
    for record in records:  # every objective of every trial, whichever of them the sweep is judged by
        assert set(OBJECTIVES) <= set(record.metrics)
        assert record.cost["cpu_seconds"] > 0 and record.cost["train_seconds"] > 0
    best = next(record for record in records if record.tags["number"] == twelve.best)
    table = mlflow.search_runs(
        experiment_names=["conclugen"],
        filter_string="tags.sweep = 'twelve' and tags.state = 'finished'",
        order_by=["metrics.`validation/effective_rank` DESC"],
    ) if mlflow.set_tracking_uri(twelve.tracking_uri) is None else None  # fmt: skip
    assert table is not None
    first = table.iloc[0]
    assert first["metrics.validation/effective_rank"] == best.metrics["effective_rank"]
    for name in ("tasks", "modalities", "weights", "seed", "dataset"):
        assert first[f"tags.{name}"], name
    assert {"loss", "lr", "samples_per_second", "validation/effective_rank/audio"} <= {
        column.removeprefix("metrics.") for column in table.columns
    }


def test_the_best_configuration_is_one_that_pretraining_takes(twelve: SweepResult) -> None:
    job = PRETRAIN.parse(["--config", str(twelve.folder.best)])
    assert twelve.best is not None and job.pretrain == twelve.store.config(twelve.best)
    assert twelve.folder.table.read_text().count("\n|") >= 10
    pictures = {path.name for path in twelve.folder.plots.glob("*.png")}
    assert pictures == {"confusion.png", "objective.png", "slices.png"}
    rows = [line.split(" | ")[0].removeprefix("| ") for line in twelve.folder.table.read_text().splitlines()]
    assert {f"{twelve.best:04d} + raw", "majority", "raw balanced", f"untrained heads, as trial {twelve.best:04d}"} <= {
        *rows
    }


def test_twelve_trials_are_run_by_few_processes_and_the_cost_of_starting_one_is_told_apart(twelve: SweepResult) -> None:
    costs = [record.cost for record in trials_of(twelve.folder.path)]
    started = [cost["process_start_seconds"] for cost in costs if cost["process_start_seconds"] > 0]
    assert 1 <= len(started) <= 4, "actors are not used again"
    assert twelve.costs["processes"] == len(started)
    assert twelve.costs["process_start_seconds"] == pytest.approx(sum(started) / len(started))
    overhead = [cost["overhead_seconds"] for cost in costs]
    assert min(overhead) > 0 and twelve.costs["overhead_seconds"] == pytest.approx(sum(overhead) / 12)


@pytest.mark.slow
def test_a_finished_sweep_is_left_alone_and_grows_by_what_is_added(
    twelve: SweepResult, shards: Path, shared_ray: None
) -> None:
    job = small_sweep(shards, twelve.folder.path.parent, "twelve", objective="effective_rank")
    before = {record.key: record.time for record in trials_of(twelve.folder.path)}
    again = sweep(job)
    assert again.table == twelve.table
    assert {record.key: record.time for record in trials_of(twelve.folder.path)} == before
    grown = sweep(dataclasses.replace(job, trials=14))
    times = {record.key: record.time for record in trials_of(twelve.folder.path)}
    assert len(grown.store.outcomes) == len(times) == 14 and before.items() <= times.items()
    check_mlflow(twelve.tracking_uri, twelve.folder, 14)
    with pytest.raises(ValueError, match=r"space.epochs: 9 then, 6 now[\s\S]*Choose another --name"):
        sweep(dataclasses.replace(job, space=small_space(epochs=6)))


@pytest.mark.slow
def test_a_trial_that_dies_goes_on_from_its_checkpoint(
    shared_ray: None, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_run, "TrialActor", DyingActor)
    schedule = ScheduleConfig(checkpoint_every_s=0, report_epochs=3)
    job = small_sweep(shards, tmp_path, "dies", trials=2, scheduler="none", schedule=schedule)
    died = sweep(job)
    assert "epoch 3" in (died.folder.path / "has-died").read_text()
    assert [outcome.state for outcome in died.store.outcomes.values()] == ["finished"] * 2
    steps = [step for step, _ in metric_history(died.folder.trial(1) / "journal.jsonl")["loss"]]
    assert steps == list(range(1, max(steps) + 1))
    monkeypatch.undo()
    whole = sweep(dataclasses.replace(job, name="whole"))
    assert {n: died.store.metrics[n] for n in range(2)} == {n: whole.store.metrics[n] for n in range(2)}


@pytest.mark.slow
def test_a_trial_that_dies_for_good_does_not_take_the_sweep_down(
    shared_ray: None, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_run, "TrialActor", FragileActor)
    resources = ResourceConfig(max_concurrent=2, max_failures=1)
    job = small_sweep(shards, tmp_path, "fragile", trials=3, scheduler="none", resources=resources)
    result = sweep(job)
    assert {n: o.state for n, o in result.store.outcomes.items()} == {0: "finished", 1: "failed", 2: "finished"}
    assert {run.info.status for run in runs_of(result.tracking_uri)} == {"FINISHED", "FAILED"}
    monkeypatch.undo()
    again = sweep(job)  # what killed it may be gone: it is run again
    assert {o.state for o in again.store.outcomes.values()} == {"finished"}


@pytest.mark.slow
def test_a_trial_that_diverges_is_told_as_the_worst(shared_ray: None, shards: Path, tmp_path: Path) -> None:
    space = fixed_space(fixed={"clip_norm": None, "optimizer.warmup_epochs": 0}, epochs=3)
    wild = dataclasses.replace(space, lr=dataclasses.replace(space.lr, low=1e25, high=1e25))
    result = sweep(small_sweep(shards, tmp_path, "wild", trials=2, scheduler="none", search="tpe", space=wild))
    assert {o.state for o in result.store.outcomes.values()} == {"failed"} and result.best is None
    reasons = [record.reason for record in trials_of(result.folder.path)]
    assert len(reasons) == 2 and all(reason.startswith("diverged: ") and "not finite" in reason for reason in reasons)


@pytest.mark.slow
def test_a_population_exploits_and_its_schedule_gives_the_same_model(
    shared_ray: None, shards: Path, tmp_path: Path
) -> None:
    schedule = ScheduleConfig(checkpoint_every_s=0, exchange_epochs=1)
    job = small_sweep(
        shards, tmp_path, "population", space=fixed_space(epochs=6), trials=4, scheduler="pbt", schedule=schedule
    )
    result = sweep(job)
    assert [o.state for o in result.store.outcomes.values()] == ["finished"] * 4
    changed = 0
    for path in result.folder.tune.glob("*/*/checkpoint_*/state/checkpoint.json"):
        document = json.loads(path.read_text())
        changed += document["meta"]["weights"]["configured"] != _own_weights(result, int(path.parts[-4]))
    assert changed, "no trial has taken over the state of another"
    written = Schedule.load(result.folder.path / "schedule.json")
    assert result.best is not None
    shared = prepare(job).shared
    again, _ = without_confusion(replay(written, shared).measure(), shared.judge.classes)
    assert again == result.store.metrics[result.best]


def _own_weights(result: SweepResult, number: int) -> dict[str, float]:
    return {name: task.weight for name, task in result.store.config(number).tasks.active.items()}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_and_started_again_it_goes_on(shards: Path, tmp_path: Path) -> None:
    trials = 10
    folder = SweepFolder(tmp_path / "killed")

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.cluster.sweeps", str(shards), str(tmp_path), "killed", str(trials)]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    first = start()
    deadline = time.monotonic() + 200
    while first.poll() is None and time.monotonic() < deadline and len(trials_of(folder.path)) < 4:
        time.sleep(0.05)
    assert first.poll() is None, (tmp_path / "log").read_text()[-3000:]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = {record.key: record for record in trials_of(folder.path)}
    begun = dict(folder.proposals())
    assert 4 <= len(before) < trials and len(begun) > len(before), "the kill came too late to prove anything"

    assert start().wait(timeout=250) == 0, (tmp_path / "log").read_text()[-3000:]
    records = trials_of(folder.path)
    assert Counter(record.tags["number"] for record in records) == Counter(range(trials))
    assert {record.key: record for record in records if record.key in before} == before
    assert begun.items() <= dict(folder.proposals()).items()
    check_mlflow(f"sqlite:///{tmp_path}/mlflow.db", folder, trials)
    import optuna

    backend = optuna.storages.journal.JournalFileBackend(str(folder.path / "optuna.log"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert sorted(trial.user_attrs["number"] for trial in study.trials) == list(range(trials))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tracking_server_that_goes_away_in_between_loses_nothing(
    shared_ray: None, shards: Path, tmp_path: Path
) -> None:
    """Eight trials; the server is killed after the second has ended, and is back a minute later."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    job = small_sweep(shards, tmp_path, "served", trials=8, scheduler="none", tracking_uri=uri)
    folder = SweepFolder(job.folder)

    def outage() -> None:
        while len(trials_of(folder.path)) < 2:
            time.sleep(0.05)
        first.close()
        time.sleep(60)
        first.enter_context(mlflow_server(tmp_path, port))

    with contextlib.ExitStack() as first:
        first.enter_context(mlflow_server(tmp_path, port))
        thread = threading.Thread(target=outage)
        thread.start()
        result = sweep(job)
        thread.join()
        if not NestedRunsSink(result.folder.path, result.folder.trials, uri).close(120):
            pytest.fail("not everything reached the server")
        check_mlflow(uri, result.folder, 8)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_eight_trials_at_once_lose_nothing_in_the_default_store(shards: Path, tmp_path: Path) -> None:
    ray.shutdown()
    ray.init("local", num_cpus=8, include_dashboard=False, logging_level="ERROR", object_store_memory=256 * 1024**2)
    try:
        resources = ResourceConfig(max_concurrent=8)
        job = small_sweep(shards, tmp_path, "eight", trials=16, scheduler="none", resources=resources)
        result = sweep(job)
        check_mlflow(result.tracking_uri, result.folder, 16)
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_of_two_workers_come_to_the_same_results(shards: Path, tmp_path: Path) -> None:
    """Two stretches of a trainer each, in float64, beside the same trials in one process."""
    space = fixed_space(fixed={"precision": "float64"}, epochs=4)
    schedule = ScheduleConfig(report_epochs=2)
    settings = {"space": space, "trials": 2, "scheduler": "none", "schedule": schedule}
    alone = sweep(small_sweep(shards, tmp_path, "alone", **settings))
    resources = ResourceConfig(workers=2, max_concurrent=1)
    together = sweep(small_sweep(shards, tmp_path, "together", **{**settings, "resources": resources}))
    for number in range(2):
        mine, theirs = (r.folder.trial(number) / "journal.jsonl" for r in (together, alone))
        assert metric_history(mine)["loss"] == [
            (step, pytest.approx(value, abs=1e-9)) for step, value in metric_history(theirs)["loss"]
        ]
