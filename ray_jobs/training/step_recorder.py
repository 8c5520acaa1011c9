"""Collects what optimiser steps give, without forcing the device to wait, and writes it to the run's journal.

Rank 0 writes the journal itself: `ray.train.report` is a barrier of all workers that lasts until the controller's next
look, far too long for every few steps. The driver tails the file for the progress line and for MLflow. Steps that a
restart repeats are dropped by the journal. A checkpoint is only written once the journal has, on disk, every step up to
it: a run that resumes there would never repeat them.
"""

from __future__ import annotations

import errno
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from conclugen import Pretrainer
from conclugen.common import uris
from conclugen.tasks import registry
from conclugen.training.checkpoint import Snapshot
from ray_jobs.run_config import PretrainJob
from ray_jobs.run_folder import RunFolder
from ray_jobs.training import run_metrics
from ray_jobs.training.input_gauge import InputGauge, InputTimes
from ray_jobs.training.validation import CorporaValidation, Validation, beside
from ray_jobs.training.wait_warning import WaitWatch
from shards.reading.stream_counters import StreamCounters

Item = TypeVar("Item")
Measures = Callable[[Snapshot], dict[str, float]]
"""Measures the model of a snapshot."""


class NullRecorder:
    """What the other ranks have in its place: measures its input for the ranks' meetings, and records nothing."""

    def __init__(self) -> None:
        self.input = InputGauge()

    def timed(self, batches: Iterable[Item], counters: StreamCounters) -> Iterator[Item]:
        return self.input.timed(batches, counters)

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        pass

    def write(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def warn_of_waits(self, inputs: Sequence[InputTimes]) -> None:
        pass

    def validate(self, pretrainer: Pretrainer, warn: bool = True) -> Measures | None:
        return None


class StepRecorder(NullRecorder):
    """Values and timing of steps, and validation measures, to the journal in the run's folder.

    Args:
        folder: The run's folder; its journal exists already.
        job: For the size of a batch and the names of tasks.
        validation: The held-out rows that are measured at checkpoints, if there are any.
        attempt: The start of the run that this process belongs to.
        ideal_seconds: Of a step, where that is known (`run_metrics`).
        about: What is known of the data that tasks warn of (`source.mates`); asked once they do.
    """

    def __init__(
        self,
        folder: RunFolder,
        job: PretrainJob,
        validation: Validation | CorporaValidation | None,
        attempt: str,
        ideal_seconds: float | None = None,
        about: Callable[[], Mapping[str, float]] = dict,
    ):
        super().__init__()
        self._folder, self._attempt = folder, attempt
        self._run, self._ideal_seconds = job.run.name, ideal_seconds
        self._unwritten: list[dict[str, Any]] = []
        self._journal = folder.open_journal()
        self._validation = validation
        self._timer = StepTimer(job.pretrain.global_batch, self.input)
        self._wait_watch = WaitWatch(job)
        self._unwarned, self._about = set(job.pretrain.tasks.active), about

    def timed(self, batches: Iterable[Item], counters: StreamCounters) -> Iterator[Item]:
        """Hand the batches through, and measure what the loop waits for."""
        return self._timer.timed(batches, counters)

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Note the values of a step. They stay on the device until `write`."""
        self._timer.add(step, values)

    def write(self) -> None:
        """Journal every step since the last call.

        Where the disk takes none they are kept for the next call, and the run continues. Raises SupersededError where a
        later attempt of the run writes.
        """
        self._folder.check_attempt(self._attempt)
        taken = self._timer.take()
        self._warn(taken)
        if taken:
            run_metrics.tell_report(self._run, taken[-1], self._ideal_seconds)
        self._unwritten += taken
        try:
            while self._unwritten:
                values = dict(self._unwritten[0])
                self._journal.metrics(values.pop("step"), values, series="train")
                del self._unwritten[0]
        except OSError as error:
            print(
                f"warning: cannot write to the journal ({uris.scrub(error)}); {len(self._unwritten)} step(s) buffered",
                flush=True,
            )

    def _warn(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Print what tasks say of the data, by these steps' means and what is known of it; of each task once."""
        names = {name for step in steps for name in step}
        means = {name: statistics.fmean(step[name] for step in steps if name in step) for name in names}
        for task in [task for task in self._unwarned if steps]:
            if not registry.get(task).step_warnings(means):
                continue
            self._unwarned.discard(task)
            for warning in registry.get(task).step_warnings(means | dict(self._about())):
                print(f"warning: {warning}", flush=True)

    def sync(self) -> None:
        """Put what is journalled on the disk. Raises OSError where steps still wait for room."""
        self._folder.check_attempt(self._attempt)
        if self._unwritten:
            raise OSError(errno.ENOSPC, "the journal has not taken all steps yet", str(self._folder.journal))
        self._folder.sync_journal()

    def warn_of_waits(self, inputs: Sequence[InputTimes]) -> None:
        """Warn where a rank waits for data; inputs: what each rank measured so far, in order."""
        warning = self._wait_watch.judge(inputs)
        if warning is not None:
            print(f"warning: {warning}", flush=True)

    def validate(self, pretrainer: Pretrainer, warn: bool = True) -> Measures | None:
        """Begin to look at the validation view, None where there is none. What is returned is given a snapshot of now
        in another thread; it measures training health, journals and returns it. warn: print what is wrong with it."""
        if self._validation is None:
            return None
        with self.input.paused():
            measured = beside(self._validation, pretrainer, warn=warn)
        step = pretrainer.step_number

        def measures(state: Snapshot) -> dict[str, float]:
            found = measured(state)
            self._journal.metrics(step, found, series="validation")
            return found

        return measures


class StepTimer:
    """Values of steps with the time they took and the share of it spent waiting for data.

    Args:
        global_batch: Rows of a global batch.
        gauge: Measures the input; a new one where none is given.
    """

    def __init__(self, global_batch: int, gauge: InputGauge | None = None):
        self.global_batch = global_batch
        self._gauge = gauge or InputGauge()
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._taken = InputTimes()

    def timed(self, batches: Iterable[Item], counters: StreamCounters | None = None) -> Iterator[Item]:
        """Hand the batches through, and count from the first one on the seconds that the loop waits for each.

        counters: of the stream that they come from, where it has one.
        """
        self._taken = InputTimes()
        return self._gauge.timed(batches, counters)

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        self._pending.append((step, values))

    def take(self) -> list[dict[str, Any]]:
        """Everything since the last call, one dict a step: `step` and the values.

        The last one also has the period's `samples_per_second`, `step_seconds` and `data_wait_share`, and, where the
        stream reads ahead, `input_queue_depth`: batches that were ready when one was asked for, on average.
        """
        if not self._pending:
            return []
        table = _on_host([values for _, values in self._pending])
        now = self._gauge.times()
        period, self._taken = now - self._taken, now
        records = [{"step": step, **values} for (step, _), values in zip(self._pending, table, strict=True)]
        records[-1] |= {
            "samples_per_second": len(self._pending) * self.global_batch / period.seconds,
            "step_seconds": period.seconds / len(self._pending),
            "data_wait_share": period.wait_share,
        }
        if now.capacity:
            records[-1]["input_queue_depth"] = period.queue_depth
        self._pending.clear()
        return records


def _on_host(steps: Sequence[Mapping[str, Tensor]]) -> list[dict[str, float]]:
    """The steps' values as numbers, sorted by name; one copy from each device for all of them, for which it is waited
    once."""
    flat = [(i, name, values[name].detach()) for i, values in enumerate(steps) for name in sorted(values)]
    found: list[dict[str, float]] = [dict.fromkeys(sorted(values), 0.0) for values in steps]
    for device in {x.device for _, _, x in flat}:
        there = [(i, name, x) for i, name, x in flat if x.device == device]
        by_dtype = [[item for item in there if item[2].dtype == dtype] for dtype in {x.dtype for _, _, x in there}]
        sent = torch.cat([torch.stack([x for _, _, x in items]).double() for items in by_dtype]).cpu()
        for (i, name, _), value in zip((item for items in by_dtype for item in items), sent.tolist(), strict=True):
            found[i][name] = value
    return found
