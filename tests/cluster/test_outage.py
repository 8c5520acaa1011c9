"""A tracking server that is down, slow or silent: training does not wait for it, and every number arrives.

That nothing waits is seen from what happens first, not from a clock: steps are made, and the job ends, while the server
is still out of reach, and it comes back only then.

By default the one outage is that of `test_pretrain.py`, in the middle of the run that others are compared with.
"""

import contextlib
import time
from collections.abc import Iterator
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
from tests.cluster.servers import Gate


@pytest.fixture(autouse=True)
def opened(gate: Gate) -> Iterator[None]:
    yield
    gate.back()


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each end of a sink: whether everything had arrived."""
    ends: list[bool] = []

    def noted(sink: MlflowSink, *arguments: float) -> bool:
        ends.append(close(sink, *arguments))
        return ends[-1]

    close = MlflowSink.close
    monkeypatch.setattr(MlflowSink, "close", noted)
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


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("when", ["from the start to the end", "at the end", "slow", "silent"])
def test_training_goes_on_and_every_number_arrives(
    shared_ray: None, shards: Path, tmp_path: Path, gate: Gate, when: str, closing: list[bool]
) -> None:
    """`from the start`, `at the end`, `silent`: the job ends without the server, which is there only afterwards."""
    name = when.replace(" ", "-")
    job = with_run(small_job(shards, tmp_path, name, epochs=1), tracking_uri=gate.url)
    trace.Plan(pace_s=0.05).give(tmp_path / name)
    with contextlib.ExitStack() as stack:
        if when == "from the start to the end":
            gate.shut()
        elif when == "at the end":
            stack.enter_context(trace.at_step(tmp_path / name, 10, gate.shut))
        elif when == "silent":
            stack.enter_context(trace.at_step(tmp_path / name, 5, gate.fall_silent))
        else:
            gate.delay_s = 1.0
        result = pretrain(job, trace.train)
    assert trace.last_step(result.folder.path) == result.step
    (complete,) = closing
    if when != "slow":
        assert not complete, "the server was out of reach all the time"
    gate.back()
    check_all_arrived(result, gate)
