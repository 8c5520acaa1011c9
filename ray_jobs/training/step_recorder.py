"""Collects what optimiser steps give, without forcing the device to wait, and writes it to the run's journal.

Rank 0 writes the journal itself: `ray.train.report` is a barrier of all workers that lasts until the controller's next
look, far too long for every few steps. The driver tails the file for the progress line and for MLflow. Steps that a
restart repeats are dropped by the journal. A checkpoint is only written once the journal has, on disk, every step up to
it: a run that goes on from there would never repeat them.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from conclugen import Pretrainer
from ray_jobs.run_config import PretrainJob
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal
from ray_jobs.training.validation import Validation
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

    def sync(self) -> None:
        pass

    def validate(self, pretrainer: Pretrainer) -> dict[str, float]:
        return {}


class StepRecorder(SilentRecorder):
    """Values and timing of steps, and validation measures, to the journal in the run's folder.

    Args:
        folder: The run's folder; its journal exists already.
        job: For the size of a batch and the validation view.
        manifest: Of the shards that hold that view.
        attempt: The start of the run that this process belongs to.
    """

    def __init__(self, folder: RunFolder, job: PretrainJob, manifest: Manifest, attempt: str):
        self._folder, self._attempt = folder, attempt
        self._unwritten: list[dict[str, Any]] = []
        self._journal = Journal(folder.journal)
        self._validation = Validation.open(job.data, manifest, job.pretrain.modalities)
        self._timer = StepTimer(job.pretrain.global_batch)

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        return self._timer.timed(batches)

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Note the values of a step. They stay on the device until `write`."""
        self._timer.add(step, values)

    def write(self) -> None:
        """Journal every step since the last call.

        Where the disk takes none they are kept for the next call, and the run goes on. Raises SupersededError where a
        later start of the run writes.
        """
        self._folder.check_attempt(self._attempt)
        self._unwritten += self._timer.take()
        try:
            while self._unwritten:
                values = dict(self._unwritten[0])
                self._journal.metrics(values.pop("step"), values, series="train")
                del self._unwritten[0]
        except OSError as error:
            print(f"warning: the journal takes no more ({error}); {len(self._unwritten)} step(s) wait", flush=True)

    def sync(self) -> None:
        """Put what is journalled on the disk. Raises OSError where steps still wait for room."""
        self._folder.check_attempt(self._attempt)
        if self._unwritten:
            raise OSError(errno.ENOSPC, "the journal has not taken all steps yet", str(self._folder.journal))
        file = os.open(self._folder.journal, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def validate(self, pretrainer: Pretrainer) -> dict[str, float]:
        """Measure training health on the validation view, if there is one; journalled and returned."""
        if self._validation is None:
            return {}
        measures = self._validation.measure(pretrainer)
        if pretrainer.step_number > 0:  # before the first step only their names are asked for
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
        started = False
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if not started:  # the stream's start-up says nothing about its pace
                self._since = before = time.perf_counter()
                started = True
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
