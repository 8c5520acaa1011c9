"""Tells, while a run continues, that training waits for data, why that is likely, and which setting to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.run_config import PretrainJob
from ray_jobs.training.input_gauge import InputTimes

_MOST_SHARE = 0.05
# A share is judged over so much training of each rank. What lies before the end of the first such period is start-up:
# queues fill, kernels are compiled, files are opened.
_LEAST_SECONDS, _LEAST_STEPS = 10.0, 20
# The same cause is not told again sooner.
_AGAIN_AFTER_S = 1800.0


@dataclass(frozen=True)
class Cause:
    """Why a loop waits. `name` tells causes apart."""

    name: str
    found: str
    remedy: str


class WaitWatch:
    """Judges what the ranks tell each other of their waiting; for rank 0.

    The slowest reader holds up everyone, in whose step times its waiting hides: the warning is about the rank that
    waited longest.

    Args:
        job: For the settings that a remedy names.
    """

    def __init__(self, job: PretrainJob):
        self._job = job
        self._before: list[InputTimes] = []
        self._steady = False
        self._told: dict[str, float] = {}

    def judge(self, ranks: Sequence[InputTimes]) -> str | None:
        """A warning, or None. ranks: each rank's counters since its first batch, in order."""
        before = self._before or [InputTimes()] * len(ranks)
        periods = [now - then for now, then in zip(ranks, before, strict=True)]
        if min(p.seconds for p in periods) < _LEAST_SECONDS or min(p.steps for p in periods) < _LEAST_STEPS:
            return None
        self._before = list(ranks)
        if not self._steady:
            self._steady = True
            return None
        rank = max(range(len(periods)), key=lambda r: periods[r].wait_share)
        period = periods[rank]
        if period.wait_share <= _MOST_SHARE:
            return None
        cause, now = likely_cause(period, self._job), ranks[rank].seconds
        if now - self._told.get(cause.name, -_AGAIN_AFTER_S) < _AGAIN_AFTER_S:
            return None
        self._told[cause.name] = now
        return (
            f"training waits for data {period.wait_share:.0%} of its time (rank {rank}, {period.steps} steps, "
            f"queue {period.queue_depth:.1f} of {period.capacity}): {cause.found}. {cause.remedy}"
        )


def likely_cause(period: InputTimes, job: PretrainJob) -> Cause:
    """What the counters of a period in which the loop waited point to."""
    data, run = job.data, job.run
    if period.starved < period.waited / 2:
        return Cause(
            "copy to the device",
            "batches were ready, and the time goes into their copy to the device",
            "Pack the features in float16, which halves the bytes, and leave each worker a core for that copy "
            f"(run.cpus_per_worker, now {run.cpus_per_worker})",
        )
    if period.queue_depth >= period.capacity / 2:
        return Cause(
            "bursts",
            "reading keeps up on the whole, and comes in bursts",
            f"Raise data.prefetch (now {data.prefetch})",
        )
    if data.payload == "device":
        return Cause(
            "positions",
            "the queue of positions runs empty, though they are but numbers",
            "Run fewer workers or less else on the machine: the thread that makes them gets no core",
        )
    if data.payload == "host":
        return Cause(
            "copy of rows",
            "the queue runs empty, and copying rows out of the node's memory takes all of the one thread that does it",
            "Set data.payload=device where the rows fit there, or data.rows_in=float16 under a new run.name, which "
            "halves the bytes",
        )
    if period.fetching > period.reading:
        if data.payload == "object_store":
            return Cause(
                "read tasks",
                "the queue runs empty, and the worker waits for the tasks that read",
                f"Raise data.read_tasks (now {data.read_tasks} for each worker) where cores are free, "
                "or set data.payload=worker, so that workers read the bytes themselves",
            )
        return Cause(
            "tasks of the plan",
            "the queue runs empty, and the worker waits for the tasks that hand out the plan, which find no free core",
            f"Leave cores to Ray Data: fewer run.workers on a machine (now {run.workers} in all), "
            f"or a smaller run.cpus_per_worker (now {run.cpus_per_worker})",
        )
    busy = period.reading_cpu >= period.reading / 2
    if data.payload == "object_store":
        return Cause(
            "copy from the object store",
            "the queue runs empty, and the worker is busy copying rows out of the object store",
            "Set data.payload=worker, by which bytes are copied once less"
            if busy
            else "Its thread gets no core half of that time: run fewer workers or less else on the machine",
        )
    if busy:
        return Cause(
            "reading in the worker",
            "the queue runs empty, and reading and checking take all of the one thread that does them",
            "Set data.payload=object_store, so that tasks read beside it, with data.read_tasks of them for each worker",
        )
    return Cause(
        "storage",
        "the queue runs empty, and the thread that reads is mostly held up, by storage or for want of a core",
        "Set data.payload=object_store with more data.read_tasks, so that more is asked for at once, "
        "put the shards on faster storage, or run less else on the machine",
    )
