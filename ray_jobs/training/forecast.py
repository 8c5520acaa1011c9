"""What the steps of a run on GPUs are estimated to take on its cluster, said before they begin.

The step is counted from the code that runs it (`conclugen.training.step_cost`), eager; kind and number of a node's GPUs
are what Ray knows of its nodes, rates are those of data sheets, and the network is what the user says, or assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conclugen import PretrainConfig
from conclugen.training.step_cost import MACHINES, Estimate, Machine, StepCost, count, estimate
from ray_jobs.run_config import PretrainJob

ASSUMED_GBIT = 10.0
_KIND = "accelerator_type:"
# A share of the step that the network may have before anything is said of it.
_MUCH = 0.25


@dataclass(frozen=True)
class Forecast:
    """lines: to print. step_bytes: what a step takes of a GPU, 0 where it is not known."""

    lines: tuple[str, ...] = ()
    step_bytes: int = 0


def forecast(job: PretrainJob, widths: Mapping[str, int], nodes: Sequence[Mapping[str, Any]]) -> Forecast:
    """nodes: as `ray.nodes()` gives them. Whatever can't be counted must not keep a run from training."""
    config = job.pretrain
    widths = {m: widths[m] for m in config.required_modalities}
    machine = machine_of(nodes, job.run.network_gbit)
    try:
        if machine is None:
            return Forecast((), count(config, widths, job.run.workers).peak)
        cost = count(config, widths, job.run.workers, machine.holds)
        return Forecast((*_lines(job, widths, machine, cost),), cost.peak)
    except Exception as error:  # a task of somebody's own may ask tensors for values
        return Forecast((f"no estimate of a step: {type(error).__name__}: {str(error).splitlines()[0][:200]}",))


def machine_of(nodes: Sequence[Mapping[str, Any]], network_gbit: float | None) -> Machine | None:
    """The GPUs of a cluster and their links; None where Ray names no kind whose rates are known. Of several kinds it is
    the slowest: a step waits for all."""
    found = []
    for node in nodes:
        resources = node.get("Resources", {}) if node.get("Alive", True) else {}
        gpus = int(resources.get("GPU", 0))
        kinds = [name.removeprefix(_KIND) for name in resources if name.startswith(_KIND)]
        known = [name for kind in kinds for name in MACHINES if kind == name or kind.startswith(f"{name}-")]
        if gpus and known:
            found.append(dataclasses.replace(MACHINES[known[0]], node=gpus))
    if not found:
        return None
    slowest = min(found, key=lambda machine: machine.flops["bfloat16"])
    most = max(machine.node for machine in found if machine.name == slowest.name)
    return dataclasses.replace(slowest, node=most, between=(network_gbit or ASSUMED_GBIT) * 1e9 / 8)


def _lines(job: PretrainJob, widths: Mapping[str, int], machine: Machine, cost: StepCost) -> list[str]:
    config, run, found = job.pretrain, job.run, estimate(cost, machine)
    where = f"{run.workers} x {machine.name}"
    if run.workers > machine.node:
        said = "as run.network_gbit says" if run.network_gbit else "assumed; run.network_gbit says otherwise"
        where += f", {machine.node} a node, {machine.between * 8 / 1e9:g} Gbit/s between nodes ({said})"
    lines = [
        f"estimate for {where}: a step takes {_ms(found.step)} ({config.global_batch / found.step:,.0f} samples/s): "
        f"{_ms(found.compute)} of eager computation, {_ms(found.blocking)} of the losses' collectives, and gradients "
        f"{_ms(found.exposed)} more than the backward pass hides"
    ]
    if cost.peak > machine.holds:
        lines.append(
            f"warning: a step takes {cost.peak / 1e9:.0f} GB of a GPU that has {machine.holds / 1e9:.0f}: set "
            "pretrain.micro_batch, or use more run.workers"
        )
    if found.exposed + found.blocking > _MUCH * found.step:
        lines.append(_remedy(config, widths, machine, cost, found))
    return lines


def _remedy(
    config: PretrainConfig, widths: Mapping[str, int], machine: Machine, cost: StepCost, found: Estimate
) -> str:
    """What makes a step faster that waits for the network, by the same estimate."""
    if found.exposed >= found.blocking:
        told = f"gradients need {_ms(found.exposed)} of a {_ms(found.step)} step on this network"
    else:
        told = f"the losses' collectives need {_ms(found.blocking)} of a {_ms(found.step)} step on this network"
    ways: list[tuple[float, str]] = []
    if config.gradient_compression == "none" and cost.gradients:
        halved = estimate(dataclasses.replace(cost, gradients=cost.gradients // 2), machine)
        ways.append((halved.step, "pretrain.gradient_compression=bfloat16"))
    fewer = machine.node if cost.world > machine.node else 1
    if fewer < cost.world:
        other = count(config, widths, fewer, machine.holds)
        if other.peak <= machine.holds:
            ways.append((estimate(other, machine).step, f"run.workers={fewer}"))
    ways = sorted(way for way in ways if way[0] < 0.95 * found.step)
    if not ways:
        return f"warning: {told}: use GPUs of one node, a faster network, or a larger pretrain.global_batch"
    tried = ", ".join(f"{_ms(seconds)} with {way}" for seconds, way in ways)
    return f"warning: {told}: use {ways[0][1]} (a step takes {tried})"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.1f} ms"
