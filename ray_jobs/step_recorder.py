"""Collects what optimiser steps give, without forcing the device to wait, and writes it to the run's journal.

Rank 0 writes the journal itself: `ray.train.report` is a barrier of all workers that lasts until the controller's next
look, far too long for every few steps. The driver tails the file for the progress line and for MLflow. Steps that a
restart repeats are dropped by the journal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from conclugen import Pretrainer
from ray_jobs.run_config import PretrainJob
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal
from ray_jobs.validation import Validation
from shards import Manifest

Item = TypeVar("Item")


class SilentRecorder:
    """What the other ranks have in its place: records nothing."""

    def timed(self, batches: Iterable[Item]) -> Iterable[Item]:
        return batches

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        pass

    def write(self) -> None:
        pass

    def validate(self, pretrainer: Pretrainer) -> dict[str, float]:
        return {}


class StepRecorder(SilentRecorder):
    """Values and timing of steps, and validation measures, to the journal in the run's folder.

    Args:
        folder: The run's folder; its journal exists already.
        job: For the size of a batch and the validation view.
        manifest: Of the shards that hold that view.
    """

    def __init__(self, folder: RunFolder, job: PretrainJob, manifest: Manifest):
        self._journal = Journal(folder.journal)
        self._validation = Validation.open(job.data, manifest, job.pretrain.modalities)
        self._timer = StepTimer(job.pretrain.global_batch)

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        return self._timer.timed(batches)

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Note the values of a step. They stay on the device until `write`."""
        self._timer.add(step, values)

    def write(self) -> None:
        """Journal every step since the last call."""
        for record in self._timer.take():
            step = record.pop("step")
            self._journal.metrics(step, record, series="train")

    def validate(self, pretrainer: Pretrainer) -> dict[str, float]:
        """Measure training health on the validation view, if there is one; journalled and returned."""
        if self._validation is None:
            return {}
        measures = self._validation.measure(pretrainer)
        self._journal.metrics(pretrainer.step_number, measures, series="validation")
        self._timer.skip()
        return measures


class StepTimer:
    """Values of steps with the time they took and the share of it spent waiting for data.

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
        self._pending.append((step, values, self._waited))

    def skip(self) -> None:
        """Leave the time since the last `take` out of the next period: it was no training."""
        self._since = time.perf_counter()

    def take(self) -> list[dict[str, Any]]:
        """Everything since the last call, one dict a step: `step` and the values.

        The last one also has the period's `samples_per_second`, `step_seconds` and `data_wait_share`.
        """
        if not self._pending:
            return []
        names = sorted({name for _, values, _ in self._pending for name in values})
        table = torch.stack(
            [
                torch.stack([values[name].detach().double().cpu() if name in values else _ABSENT for name in names])
                for _, values, _ in self._pending
            ]
        ).tolist()
        now = time.perf_counter()
        elapsed, waited = now - self._since, sum(wait for _, _, wait in self._pending)
        self._since = now
        records = [
            {"step": step, **{name: value for name, value in zip(names, row, strict=True) if name in values}}
            for (step, values, _), row in zip(self._pending, table, strict=True)
        ]
        records[-1] |= {
            "samples_per_second": len(self._pending) * self.global_batch / elapsed,
            "step_seconds": elapsed / len(self._pending),
            "data_wait_share": min(1.0, waited / elapsed),
        }
        self._pending.clear()
        return records


_ABSENT = torch.tensor(float("nan"), dtype=torch.float64)
