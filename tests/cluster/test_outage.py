"""A tracking server that is down, slow or silent: training does not wait for it, and every number arrives.

That nothing waits is seen from what happens first, not from a clock: steps are made, and the job ends, while the server
is still out of reach, and it comes back only then.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from ray_jobs.pretrain import pretrain
from ray_jobs.tracking.journal import metric_history
from ray_jobs.tracking.journal_sender import SenderBusyError
from ray_jobs.tracking.mlflow_run import allowed_name
from ray_jobs.tracking.mlflow_sink import MlflowSink, flush_journal
from ray_jobs.training.pretraining import PretrainResult
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
    back(gate)


def shut(gate: Gate) -> None:
    gate.open = False


def silence(gate: Gate) -> None:
    gate.silent = True


def back(gate: Gate) -> None:
    gate.open, gate.silent, gate.delay_s = True, False, 0.0


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, float]]:
    """Of each end of a sink: whether everything had arrived, and how long it took."""
    ends: list[tuple[bool, float]] = []

    def timed(sink: MlflowSink, *arguments: float) -> bool:
        begun = time.monotonic()
        complete = close(sink, *arguments)
        ends.append((complete, time.monotonic() - begun))
        return complete

    close = MlflowSink.close
    monkeypatch.setattr(MlflowSink, "close", timed)
    return ends


def check_all_arrived(result: PretrainResult, gate: Gate) -> None:
    """Every step of every curve, once, after what was missed is sent."""
    run_id = sent(result, gate)
    client = mlflow.MlflowClient(gate.url)
    for name, curve in metric_history(result.folder.journal).items():
        there = client.get_metric_history(run_id, allowed_name(name))
        assert [(m.step, m.value) for m in sorted(there, key=lambda m: m.step)] == curve, name
    assert client.get_run(run_id).info.status == "FINISHED"
    experiment = client.get_experiment_by_name("conclugen")
    assert experiment is not None
    named = client.search_runs([experiment.experiment_id], f"tags.`mlflow.runName` = '{result.folder.name}'")
    assert len(named) == 1


def sent(result: PretrainResult, gate: Gate) -> str:
    """Send what was missed; the job's own sender may still be in its last request, which a silent server held up."""
    while True:
        try:
            return flush_journal(result.folder.journal, gate.url, timeout_s=120)
        except SenderBusyError:
            time.sleep(0.5)


@contextlib.contextmanager
def at_step(folder: Path, step: int, act: Callable[[], None]) -> Iterator[None]:
    def wait() -> None:
        while trace.last_step(folder) < step:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join(timeout=10)
    assert not thread.is_alive(), f"no step {step}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "when",
    [
        "in the middle",
        *(
            pytest.param(when, marks=pytest.mark.slow)
            for when in ("from the start to the end", "at the end", "slow", "silent")
        ),
    ],
)
def test_training_goes_on_and_every_number_arrives(
    shared_ray: None, shards: Path, tmp_path: Path, gate: Gate, when: str, closing: list[tuple[bool, float]]
) -> None:
    """`from the start`, `at the end`, `silent`: the job ends without the server, which is there only afterwards."""
    name = when.replace(" ", "-")
    job = with_run(small_job(shards, tmp_path, name, epochs=1), tracking_uri=gate.url)
    trace.Plan(pace_s=0.05).give(tmp_path / name)
    with contextlib.ExitStack() as stack:
        if when == "from the start to the end":
            shut(gate)
        elif when == "in the middle":
            stack.enter_context(at_step(tmp_path / name, 5, lambda: shut(gate)))
            stack.enter_context(at_step(tmp_path / name, 15, lambda: back(gate)))
        elif when == "at the end":
            stack.enter_context(at_step(tmp_path / name, 10, lambda: shut(gate)))
        elif when == "silent":
            stack.enter_context(at_step(tmp_path / name, 5, lambda: silence(gate)))
        else:
            gate.delay_s = 1.0
        result = pretrain(job, trace.train)
    assert trace.last_step(result.folder.path) == result.step
    ((complete, seconds),) = closing
    assert seconds < BOUND_S + SLACK_S
    if when in ("from the start to the end", "at the end", "silent"):
        assert not complete, "the server was out of reach all the time"
    back(gate)
    check_all_arrived(result, gate)
