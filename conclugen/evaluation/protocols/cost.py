"""What does a representation cost, beside raw features?

Measured on this machine, in this process, one after the other: seconds of the clock and peak memory of making the
representation of the rows and of learning and applying its probe (the choice of its strength included). Memory is the
largest resident set that the system saw, above the one before: what fits memory that the process already holds counts
as 0. Costs are of the heads and the probe; frozen encoders, which all rows share, are not in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from conclugen.evaluation.protocols.base import EvaluationProtocol, Material, Outcome, Table, failure_notes
from conclugen.evaluation.protocols.deferred import np
from conclugen.fields import require

T = TypeVar("T")
_MB = 1 << 20


@dataclass(frozen=True)
class CostConfig:
    """Parameters, seconds and memory of representations and their probes.

    Attributes:
        repeats: Times that the representation is made; the median counts.
    """

    repeats: int = 3

    def __post_init__(self) -> None:
        require(self.repeats >= 1, "protocols.cost.repeats", self.repeats, "1 or more")


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock, and bytes of resident memory at the peak above the start; None where it can't be read."""

    seconds: float
    peak: int | None


class Cost(EvaluationProtocol):
    name = "cost"
    title = "Cost"
    Config = CostConfig
    kinds = ("class", "multilabel", "continuous")
    order = 70

    @classmethod
    def run(cls, material: Material, config: CostConfig) -> Outcome:
        table: list[tuple[Any, ...]] = []
        headline: dict[str, float] = {}
        holes: list[str] = []
        rows = material.protocol.rows
        for system in material.systems:
            made = [measured(partial(system.represent, material.features)) for _ in range(config.repeats)]
            arrays = made[0][0]
            seconds = sorted(spent.seconds for _, spent in made)[len(made) // 2]
            peaks = [spent.peak for _, spent in made if spent.peak is not None]
            (fits, failures), fitting = measured(partial(material.fits, system, arrays, material.options.fraction))
            holes += failure_notes(system.name, material.options.fraction, failures)
            if not fits:
                continue
            _, applying = measured(partial(material.predicted, fits, arrays))
            width = sum(array.shape[1] for array in arrays.values())
            weights = int(
                np.mean([fit.fitted.probe.model.weight.size + fit.fitted.probe.model.bias.size for fit in fits])
            )
            tested = sum(len(fit.split.fold.test_rows) for fit in fits)
            raw = system.only_raw
            speed = None if raw else rows / max(seconds, 1e-9)
            table.append(
                (
                    system.name,
                    width,
                    system.parameters,
                    weights,
                    0.0 if raw else seconds,
                    speed,
                    0.0 if raw else _mb(max(peaks, default=None)),
                    fitting.seconds / len(fits),
                    _mb(fitting.peak),
                    tested / max(applying.seconds, 1e-9),
                )
            )
            headline[f"{system.name}/parameters"] = float(system.parameters)
            if speed is not None:
                headline[f"{system.name}/rows_per_second"] = speed
            headline[f"{system.name}/probe_seconds"] = fitting.seconds / len(fits)
        if not table:
            raise ValueError(f"no probe could be learned; {holes[-1]}")
        columns = (
            "system",
            "columns",
            "parameters",
            "probe parameters",
            "representation s",
            "representation rows/s",
            "representation peak MB",
            "probe s",
            "probe peak MB",
            "probe rows/s",
        )
        rules = (
            f"Representation: {rows} rows, median of {config.repeats}; raw features are there already. Probe: seconds "
            f"of one fit on {material.options.fraction:.0%} of the labels with its choice of strength, rows/s of "
            "applying it to test rows.",
            "Seconds of the clock on this machine; memory above what the process held before, at its largest; what is "
            "below the sampling's resolution is 0. Frozen encoders are not in it.",
        )
        return Outcome((Table("cost", columns, tuple(table)),), (), headline, rules, tuple(holes))


def measured(work: Callable[[], T]) -> tuple[T, Spent]:
    """What `work` returns, and what it took."""
    before = _restarted_peak()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    return result, Spent(seconds, None if before is None else max(0, _status("VmHWM") - before))


def _restarted_peak() -> int | None:
    """Bytes of this process in memory now, from which the system's own high-water mark counts again; None where the
    system keeps none (other than Linux). A thread that looks now and then would miss a peak while others have the CPU.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
        return _status("VmRSS")
    except (OSError, StopIteration):
        return None


def _status(field: str) -> int:
    """A size of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) << 10


def _mb(size: int | None) -> float | None:
    return None if size is None else size / _MB
