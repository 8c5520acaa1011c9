"""Values of steps come back as they were, with the share of time spent waiting for data."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conclugen import presets
from conclugen.mates import LARGER_BATCH, OTHER_COLUMNS
from conclugen.tasks.contrastive import SHARE
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal, metric_history
from ray_jobs.training.step_recorder import StepRecorder, StepTimer
from shards.reading.stream_counters import StreamCounters
from tests.clock import Clock


def test_values_of_each_step_and_the_period_s_timing(clock: Clock) -> None:
    recorder = StepTimer(global_batch=10)

    def slow_batches() -> Iterator[int]:
        for batch in range(3):
            time.sleep(0.05)
            yield batch

    for batch in recorder.timed(slow_batches()):
        values = {"loss": torch.tensor(float(batch)), "lr": torch.tensor(0.5, dtype=torch.float64)}
        if batch == 2:
            values["loss/clustering"] = torch.tensor(math.nan)
        recorder.add(batch + 1, values)
        time.sleep(0.15)
    records = recorder.take()
    assert [(r["step"], r["loss"], r["lr"]) for r in records] == [(1, 0.0, 0.5), (2, 1.0, 0.5), (3, 2.0, 0.5)]
    assert "loss/clustering" not in records[0] and math.isnan(records[2]["loss/clustering"])
    assert "data_wait_share" not in records[0]
    # The first batch is start-up: 0.1 s of waiting in 0.55 s, for three steps of 10 samples.
    assert records[2]["data_wait_share"] == pytest.approx(0.1 / 0.55)
    assert records[2]["step_seconds"] == pytest.approx(0.55 / 3)
    assert records[2]["samples_per_second"] == pytest.approx(30 / 0.55)
    assert "input_queue_depth" not in records[2], "a source that does not read ahead has no queue"
    assert recorder.take() == []


def begun(tmp_path: Path) -> tuple[PretrainJob, RunFolder]:
    """A run whose journal is there."""
    config = presets.build("contrast_generative", "improved")
    job = PretrainJob(config, DataConfig("/nowhere", validation_view=None), RunConfig("first", str(tmp_path)))
    folder = RunFolder(tmp_path / "first")
    folder.path.mkdir()
    with Journal(folder.journal, experiment="e", name="first"):
        pass
    return job, folder


def test_less_than_half_is_warned_of_once_and_every_step_is_journalled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, folder = begun(tmp_path)
    recorder = StepRecorder(folder, job, None, folder.begin_attempt())  # type: ignore[arg-type]
    for step, share in enumerate((0.8, 0.3, 0.2, 0.1), 1):
        list(recorder.timed([step], StreamCounters()))
        recorder.add(step, {"loss": torch.tensor(1.0), SHARE: torch.tensor(share)})
        recorder.write()
    out = capsys.readouterr().out
    assert out.count("warning: ") == 1
    assert "30% of the rows of a batch found negatives of the same speaker" in out and "data.speaker" in out
    journalled = [value for _, value in metric_history(folder.journal)[SHARE]]
    assert journalled == pytest.approx([0.8, 0.3, 0.2, 0.1])


def test_a_report_waits_for_a_device_once_whatever_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, copy = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(x.numel()) or copy(x))
    recorder = StepTimer(global_batch=10)
    list(recorder.timed([1]))
    for step in range(1, 21):
        recorder.add(
            step,
            {
                "loss": torch.tensor(step / 3),
                "lr": torch.tensor(step / 7, dtype=torch.float64),
                "count": torch.tensor(step),
            },
        )
    records = recorder.take()
    assert copies == [60]
    for step, record in enumerate(records, 1):
        assert record["loss"] == float(torch.tensor(step / 3))
        assert (record["step"], record["lr"], record["count"]) == (step, step / 7, step)


@pytest.mark.parametrize(
    ("larger", "said"), [(64.0, "A batch of 64 rows holds enough of them: --batch 64."), (0.0, "")]
)
def test_a_warning_holds_what_is_known_of_the_data_and_that_is_read_once(
    larger: float, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not before there is something to warn of: it is a look through all indexes."""
    job, folder = begun(tmp_path)
    asked = []

    def about() -> dict[str, float]:
        asked.append(True)
        return {LARGER_BATCH: larger, OTHER_COLUMNS: 0.0}

    recorder = StepRecorder(folder, job, None, folder.begin_attempt(), about=about)  # type: ignore[arg-type]
    for step, share in enumerate((0.8, 0.3, 0.2), 1):
        list(recorder.timed([step], StreamCounters()))
        recorder.add(step, {"loss": torch.tensor(1.0), SHARE: torch.tensor(share)})
        recorder.write()
        assert len(asked) == (step > 1)
    out = capsys.readouterr().out
    assert out.count("warning: ") == bool(said) and said in out
