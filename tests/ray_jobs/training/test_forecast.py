"""What is said of a step before a run begins: figures of the same estimate, and remedies that are faster by it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from conclugen import presets
from conclugen.training.step_cost import MACHINES, count, estimate
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.training import forecast as module
from ray_jobs.training.forecast import forecast, machine_of

WIDTHS = {"video": 96, "audio": 64, "text": 48, "other": 7}
SIZES = {"representation_dim": 512, "projection_dim": 32, "reconstruction_hidden_dim": 64}


def job(workers: int, **run: Any) -> PretrainJob:
    config = presets.build("contrast_generative", "improved", global_batch=64, precision="bfloat16", model=SIZES)
    return PretrainJob(config, DataConfig(folder="x"), RunConfig(name="r", gpu=True, workers=workers, **run))


def node(kind: str, gpus: float, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": 8.0, "GPU": gpus, f"accelerator_type:{kind}": 1.0}}


HEAD = {"Alive": True, "Resources": {"CPU": 4.0}}


def test_the_machine_is_what_ray_knows_of_its_nodes() -> None:
    found = machine_of([HEAD, node("L4", 4.0), node("L4", 1.0)], None)
    assert found == dataclasses.replace(MACHINES["L4"], node=4, between=1.25e9)
    slower = machine_of([node("H100", 8.0), node("A100-40G", 2.0), node("T4", 4.0)], 400.0)
    assert slower == dataclasses.replace(MACHINES["A100"], node=2, between=50e9)
    assert machine_of([HEAD, node("T4", 4.0), node("L4", 4.0, alive=False)], None) is None
    lent = {"Alive": True, "Resources": {"CPU": 8.0, "accelerator_type:L4": 1.0}}  # its GPUs are kept from Ray
    assert machine_of([lent], None) is None and machine_of([lent, node("L4", 2.0)], None).node == 2  # type: ignore[union-attr]
    assert machine_of([node("L40S", 1.0)], None) == dataclasses.replace(MACHINES["L40S"], node=1, between=1.25e9)


def test_a_network_that_makes_more_gpus_slower_is_told_with_what_is_faster() -> None:
    nodes = [HEAD, *[node("L4", 1.0)] * 4]
    found = forecast(job(4), WIDTHS, nodes)
    machine = machine_of(nodes, None)
    assert machine is not None
    widths = {m: WIDTHS[m] for m in ("video", "audio", "text")}
    four, one = (count(job(4).pretrain, widths, world, machine.holds) for world in (4, 1))
    e = estimate(four, machine)
    halved = estimate(dataclasses.replace(four, gradients=four.gradients // 2), machine)
    alone = estimate(one, machine)
    assert alone.step < halved.step < e.step, "so that the test tells them apart"
    assert found.step_bytes == four.peak
    first, warning = found.lines
    assert first.startswith("estimate for 4 x L4, 1 a node, 10 Gbit/s between nodes (assumed; run.network_gbit says")
    assert f"a step takes {1e3 * e.step:,.0f} ms ({64 / e.step:,.0f} samples/s)" in first
    needed = f"warning: gradients need {module._ms(e.exposed)} of a {module._ms(e.step)} step on this network: use "
    alone_takes = f"run.workers=1 (a step takes {module._ms(alone.step)} with run.workers=1, "
    halved_takes = f"{module._ms(halved.step)} with pretrain.gradient_compression=bfloat16)"
    assert warning == needed + alone_takes + halved_takes
    said = forecast(job(4, network_gbit=25.0), WIDTHS, nodes).lines[0]
    assert "25 Gbit/s between nodes (as run.network_gbit says)" in said


def test_within_a_node_nothing_is_said_of_a_network() -> None:
    (line, *_) = forecast(job(4), WIDTHS, [HEAD, node("H100", 8.0)]).lines
    assert line.startswith("estimate for 4 x H100: a step takes")
    assert len(forecast(job(1), WIDTHS, [node("H100", 8.0)]).lines) == 1


def test_a_step_that_a_gpu_does_not_hold_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MACHINES, "L4", dataclasses.replace(MACHINES["L4"], holds=10**6))
    lines = forecast(job(1), WIDTHS, [node("L4", 1.0)]).lines
    assert any(line.startswith("warning: a step takes") and "pretrain.micro_batch" in line for line in lines)


def test_what_cannot_be_counted_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("a value was asked for\nand more")

    monkeypatch.setattr(module, "count", fails)
    found = forecast(job(2), WIDTHS, [node("L4", 1.0)])
    assert found.lines == ("no estimate of a step: RuntimeError: a value was asked for",) and found.step_bytes == 0


def test_gpus_that_nobody_knows_are_counted_and_not_timed() -> None:
    found = forecast(job(2), WIDTHS, [HEAD])
    assert found.lines == () and found.step_bytes > 0


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_network_has_a_rate(value: float) -> None:
    with pytest.raises(ValueError, match=r"run\.network_gbit: must be null or more than 0 Gbit/s, got"):
        RunConfig(name="r", network_gbit=value)
