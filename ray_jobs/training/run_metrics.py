"""What a run tells Ray's metrics: each node offers them to Prometheus, and deploy/grafana/conclugen.json draws them.

The journal is where a run's numbers are kept; these are for whoever watches a cluster. Ray puts `ray_` before each
name. Where no Ray runs, nothing happens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from ray.util.metrics import Gauge

from conclugen import PretrainConfig
from conclugen.common import uris
from conclugen.training import step_cost

METRICS = {
    "step_seconds": "Seconds of an optimiser step, its wait for data included; mean of the last report.",
    "samples_per_second": "Rows of the global batch a second, of all ranks together; mean of the last report.",
    "data_wait_share": "Share of the time in which rank 0 waited for data, 0 to 1; of the last report.",
    "mfu": "Model FLOPs utilisation: a step's matrix products beside the device's bfloat16 peak, 0 to 1.",
    "checkpoint_seconds": "Seconds from the copy of the last checkpoint until it was stored.",
    "checkpoint_blocked_seconds": "Seconds of them in which training was paused.",
    "restarts": "Starts of the run's workers beyond the first, in this job.",
}
"""Name, after `conclugen_` -> what it is."""

_OF_A_REPORT = ("step_seconds", "samples_per_second", "data_wait_share")


def tell(run: str, **values: float) -> None:
    """Set metrics of a run, by their names in `METRICS`."""
    for name, value in values.items():
        _gauge(name).set(value, tags={"run": run})


def tell_report(run: str, values: Mapping[str, float], ideal_seconds: float | None) -> None:
    """The metrics of a report of steps. values: of its last step, as the journal has them; ideal_seconds: see there."""
    found = {name: float(values[name]) for name in _OF_A_REPORT if name in values}
    if ideal_seconds is not None and "step_seconds" in found:
        found["mfu"] = ideal_seconds / found["step_seconds"]
    tell(run, **found)


def ideal_seconds(config: PretrainConfig, widths: Mapping[str, int], world: int, device: torch.device) -> float | None:
    """Seconds that a step's matrix products would take one rank at its device's bfloat16 peak; None for a device whose
    peak is not known here (`step_cost.MACHINES`), and for a step that can't be counted. Takes about a second."""
    if device.type != "cuda" or config.precision == "float64":
        return None
    machine = step_cost.known_machine(torch.cuda.get_device_name(device))
    if machine is None:
        return None
    try:
        return step_cost.count(config, widths, world).flops / machine.flops["bfloat16"]
    except Exception as error:  # a task of another package, for instance: no metric is worth a run
        print(f"note: no MFU, for this step's operations could not be counted ({uris.scrub(error)})", flush=True)
        return None


@functools.cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"conclugen_{name}", METRICS[name], tag_keys=("run",))
