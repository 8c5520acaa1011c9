"""TensorBoard's files say what the journal says, once, whatever restarts there were."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from ray_jobs.tracking.journal import Journal, metric_history
from ray_jobs.tracking.tensorboard_sink import TensorboardSink


def events(folder: Path) -> Iterator[Event]:
    """Of the event files, which are TFRecords: length and its checksum, the record and its checksum."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_every_metric_is_there_with_its_step_and_time_and_restarts_repeat_nothing(tmp_path: Path) -> None:
    journal, folder = Journal(tmp_path / "journal.jsonl", experiment="e", name="n"), tmp_path / "tensorboard"
    journal.params({"pretrain": {"seed": 3}})
    with TensorboardSink(journal.path, folder):
        journal.metrics(1, {"loss": 2.5, "loss/contrastive": 1.5})
        journal.metrics(2, {"loss": math.nan})
    with TensorboardSink(journal.path, folder):  # the run is started again
        journal.metrics(3, {"loss": 1.25})
        journal.metrics(3, {"effective_rank/video": 7.0}, series="validation")
    found, expected = scalars(folder), metric_history(journal.path)
    assert set(found) == set(expected) and "validation/effective_rank/video" in found
    for name, curve in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in curve], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in curve], nan_ok=True), name
    texts = [value for event in events(folder) for value in event.summary.value if value.tag.startswith("config")]
    assert len(texts) == 1 and "pretrain.seed: 3" in texts[0].tensor.string_val[0].decode()
    times = [event.wall_time for event in events(folder) if event.summary.value]
    assert times == sorted(times) and all(time > 1.6e9 for time in times)


def test_what_goes_wrong_is_told_and_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file in the folder's place")
    journal = Journal(tmp_path / "journal.jsonl", experiment="e", name="n")
    with TensorboardSink(journal.path, tmp_path / "tensorboard"):
        journal.metrics(1, {"loss": 2.5})
    assert "TensorBoard's files are not complete" in caplog.text
    assert metric_history(journal.path)["loss"] == [(1, 2.5)]
