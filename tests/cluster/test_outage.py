"""A tracking server that is down or slow: training does not wait for it, and every number arrives."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from ray_jobs.pretrain import PretrainResult, pretrain
from ray_jobs.run_config import PretrainJob
from ray_jobs.tracking.journal import metric_history
from ray_jobs.tracking.mlflow_run import allowed_name
from ray_jobs.tracking.mlflow_sink import flush_journal
from tests.cluster import trace
from tests.cluster.runs import small_job, with_run
from tests.cluster.servers import Gate, mlflow_server

# What a job waits for its tracking server at its end, at most (`MlflowSink.close`), and what a busy machine adds.
BOUND_S = 30.0
SLACK_S = 15.0


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        gate = Gate(url)
        yield gate
        gate.close()


@pytest.fixture(autouse=True)
def opened(gate: Gate) -> Iterator[None]:
    yield
    gate.open, gate.delay_s = True, 0.0


def run(job: PretrainJob, gate: Gate) -> tuple[PretrainResult, float, float]:
    """The result, the longest time between two steps, and how long the job took after its last step."""
    result = pretrain(with_run(job, tracking_uri=gate.url), trace.train)
    ended = time.time()
    times = [record["time"] for record in trace.read_trace(result.folder.path)]
    return result, max(b - a for a, b in itertools.pairwise(times)), ended - times[-1]


def check_all_arrived(result: PretrainResult, gate: Gate) -> None:
    """Every step of every curve, once, after what was missed is sent."""
    run_id = flush_journal(result.folder.journal, gate.url, timeout_s=120)
    client = mlflow.MlflowClient(gate.url)
    for name, curve in metric_history(result.folder.journal).items():
        sent = client.get_metric_history(run_id, allowed_name(name))
        assert [(m.step, m.value) for m in sorted(sent, key=lambda m: m.step)] == curve, name
    assert client.get_run(run_id).info.status == "FINISHED"
    experiment = client.get_experiment_by_name("conclugen")
    assert experiment is not None
    named = client.search_runs([experiment.experiment_id], f"tags.`mlflow.runName` = '{result.folder.name}'")
    assert len(named) == 1


@contextlib.contextmanager
def at_step(folder: Path, step: int, act: Callable[[], None]) -> Iterator[None]:
    def wait() -> None:
        while max(trace.steps_of(folder), default=0) < step:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join(timeout=10)


def shut(gate: Gate) -> None:
    gate.open = False


def reopen(gate: Gate) -> None:
    gate.open = True


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "when",
    [
        "in the middle",
        *(pytest.param(when, marks=pytest.mark.slow) for when in ("from the start to the end", "at the end", "slow")),
    ],
)
def test_training_goes_on_and_every_number_arrives(
    shared_ray: None, shards: Path, tmp_path: Path, gate: Gate, when: str
) -> None:
    name = when.replace(" ", "-")
    job = small_job(shards, tmp_path, name, epochs=1)
    trace.Plan(pace_s=0.05).give(tmp_path / name)
    with contextlib.ExitStack() as stack:
        if when == "from the start to the end":
            gate.open = False
        elif when == "in the middle":
            stack.enter_context(at_step(tmp_path / name, 5, lambda: shut(gate)))
            stack.enter_context(at_step(tmp_path / name, 15, lambda: reopen(gate)))
        elif when == "at the end":
            stack.enter_context(at_step(tmp_path / name, 10, lambda: shut(gate)))
        else:
            gate.delay_s = 3.0
        result, longest_step, after_last = run(job, gate)
    assert longest_step < 5.0, "a step waited for the server"
    assert after_last < BOUND_S + SLACK_S + 30, "the job's end, export included"
    reopen(gate)
    gate.delay_s = 0.0
    check_all_arrived(result, gate)
