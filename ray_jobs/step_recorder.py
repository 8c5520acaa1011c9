"""Collects what each optimiser step gave and how long it waited, without forcing the device to wait."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class StepRecorder:
    """Values and timing of steps, between two reports.

    Args:
        global_batch: Rows of a global batch.
    """

    def __init__(self, global_batch: int):
        self.global_batch = global_batch
        self._pending: list[tuple[int, dict[str, Tensor], float]] = []
        self._waited = 0.0
        self._since = time.perf_counter()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Hand the batches through, and count the seconds that the loop waits for each."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited = time.perf_counter() - before
            yield batch

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Note the values of a step. They stay on the device until `take`."""
        self._pending.append((step, values, self._waited))

    def take(self) -> list[dict[str, Any]]:
        """Everything since the last call, one dict a step: `step` and the values.

        The last one also has the period's `samples_per_second`, `step_seconds` and `data_wait_share`.
        """
        if not self._pending:
            return []
        names = sorted({name for _, values, _ in self._pending for name in values})
        table = torch.stack(
            [
                torch.stack([values[name].double() if name in values else _NAN for name in names])
                for _, values, _ in self._pending
            ]
        ).tolist()
        now = time.perf_counter()
        elapsed, waited = now - self._since, sum(wait for _, _, wait in self._pending)
        self._since = now
        timing = {
            "samples_per_second": len(self._pending) * self.global_batch / elapsed,
            "step_seconds": elapsed / len(self._pending),
            "data_wait_share": min(1.0, waited / elapsed),
        }
        records = [
            {"step": step, **{name: value for name, value in zip(names, row, strict=True) if name in values}}
            for (step, values, _), row in zip(self._pending, table, strict=True)
        ]
        records[-1] |= timing
        self._pending.clear()
        return records


_NAN = torch.tensor(float("nan"), dtype=torch.float64)
