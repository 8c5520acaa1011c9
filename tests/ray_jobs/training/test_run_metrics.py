"""What a run tells Ray's metrics, and what its workers' NCCL is told; scraped in tests/cluster/test_metrics.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conclugen import presets
from conclugen.training import step_cost
from ray_jobs.checkpoint_store import CheckpointStore, CheckpointWriter
from ray_jobs.run_config import RunConfig
from ray_jobs.training import run_metrics
from ray_jobs.training.trainer import nccl_environment


class Gauges:
    """In the place of Ray's."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], float] = {}

    def __call__(self, name: str) -> Any:
        assert name in run_metrics.METRICS
        gauges = self

        class Gauge:
            def set(self, value: float, tags: dict[str, str]) -> None:
                gauges.found[name, tags["run"]] = value

        return Gauge()


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> Gauges:
    found = Gauges()
    monkeypatch.setattr(run_metrics, "_gauge", found)
    return found


def test_a_report_tells_its_pace_and_mfu_where_the_peak_is_known(gauges: Gauges) -> None:
    values = {"loss": 3.0, "step_seconds": 0.5, "samples_per_second": 128.0, "data_wait_share": 0.25}
    run_metrics.tell_report("a", values, None)
    run_metrics.tell_report("b", values, 0.125)
    pace = {"step_seconds": 0.5, "samples_per_second": 128.0, "data_wait_share": 0.25}
    expected = {(name, run): value for run in ("a", "b") for name, value in pace.items()}
    assert gauges.found == expected | {("mfu", "b"): 0.25}
    with pytest.raises(AssertionError):
        run_metrics.tell("a", loss=1.0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA L40", None),
    ],
)
def test_the_peak_is_that_of_the_very_device(name: str, peak: float | None) -> None:
    machine = step_cost.known_machine(name)
    assert (None if machine is None else machine.flops["bfloat16"]) == peak


def test_the_ideal_is_the_counted_products_at_the_peak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 8}
    config = presets.build("generative_only", global_batch=8, precision="bfloat16", model=sizes)
    widths, gpu = {"video": 12, "audio": 10, "text": 6}, torch.device("cuda", 0)
    assert run_metrics.ideal_seconds(config, widths, 2, torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    flops = step_cost.count(config, widths, 2).flops
    assert flops > 0
    assert run_metrics.ideal_seconds(config, widths, 2, gpu) == pytest.approx(flops / 121e12)

    def fails(*_: object) -> None:
        raise RuntimeError("no fake tensors for this one")

    monkeypatch.setattr(step_cost, "count", fails)
    assert run_metrics.ideal_seconds(config, widths, 2, gpu) is None
    assert "no fake tensors for this one" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A10G")
    assert run_metrics.ideal_seconds(config, widths, 2, gpu) is None


def test_a_checkpoint_is_told_when_it_is_stored_and_not_before(tmp_path: Path) -> None:
    told: list[str] = []

    class Store(CheckpointStore):
        fails = False

        def publish(self, step: int, state: Any) -> None:
            if self.fails:
                raise OSError("full")
            told.append(f"published {step}")

    store = Store(tmp_path)

    def stored(seconds: float) -> None:
        assert seconds >= 0
        told.append("stored")

    writer = CheckpointWriter(store, before=lambda: told.append("before"), stored=stored)
    state: Any = None
    writer.submit(7, state)
    writer.finish()
    assert told == ["before", "published 7", "stored"]
    store.fails = True
    writer.submit(8, state)
    writer.wait()
    assert told[3:] == ["before"]


def test_nccl_records_its_last_operations_and_has_the_runs_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    found = nccl_environment(RunConfig(name="first", stall_timeout_s=100.0), "/runs/first")
    assert found["TORCH_FR_DUMP_TEMP_FILE"] == "/runs/first/nccl-rank-"
    assert found["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1" and int(found["TORCH_FR_BUFFER_SIZE"]) > 0
    assert found["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == "130"  # 30 s after the rank that stalls has said so
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "20000")
    assert nccl_environment(RunConfig(name="first"), "/runs/first")["TORCH_FR_BUFFER_SIZE"] == "20000"


@pytest.mark.slow  # reads all of torch's libraries
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA, and so without NCCL")
def test_torch_knows_these_variables() -> None:
    wanted = {name.encode() for name in nccl_environment(RunConfig(name="a"), "/a")}
    for library in (Path(torch.__file__).parent / "lib").glob("libtorch_*.so"):
        content = library.read_bytes()
        wanted -= {name for name in wanted if name in content}
    assert not wanted
