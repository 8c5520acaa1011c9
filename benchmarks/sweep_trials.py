"""What a sweep costs beside a plain loop: the same configurations, one after another in this process, and as a sweep.

    python -m benchmarks.sweep_trials --space laptop --data.folder data/mine --data.label emotion --trials 16 \
        --name bench

Both train and measure the same trials to the same milestones, without early stopping. The loop tracks nothing; it is
what a user would write in a notebook.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tuning.sweep.__main__ import COMMAND
from tuning.sweep.job import SweepJob
from tuning.sweep.search import RandomSearch
from tuning.sweep.sweep import prepare, sweep
from tuning.sweep.trial import Trial, warm_up

_DEFAULT_TRIALS = 16


@dataclass(frozen=True)
class LoopTimes:
    """seconds: of the whole loop; start: before it, what torch loads once a process; work: of training and measuring in
    the loop; values: the objective of each trial."""

    seconds: float
    start: float
    work: float
    values: tuple[float, ...]


def loop(job: SweepJob) -> LoopTimes:
    """The sweep's trials in a plain loop."""
    ready = prepare(job)
    torch.set_num_threads(job.resources.cpus_per_worker)
    search = RandomSearch(ready.space, job.search_seed)
    milestones = job.schedule.milestones(ready.space, "none")
    values, work = [], 0.0
    began = time.perf_counter()
    warm_up()
    start = time.perf_counter() - began
    began = time.perf_counter()
    for number in range(job.trials or _DEFAULT_TRIALS):
        choices = search.ask(number, 0)
        assert choices is not None
        trial = Trial(ready.space.config(choices), ready.shared)
        measures: dict[str, float] = {}
        for epoch in milestones:
            measures = trial.advance(epoch)
        values.append(measures[job.objective])
        work += trial.seconds.train + trial.seconds.measure
    return LoopTimes(time.perf_counter() - began, start, work, tuple(values))


def main(argv: Sequence[str] | None = None) -> int:
    job = COMMAND.parse(sys.argv[1:] if argv is None else argv)
    trials = job.trials or _DEFAULT_TRIALS
    job = dataclasses.replace(job, trials=trials, search="random", scheduler="none")
    plain = loop(job)
    began = time.perf_counter()
    result = sweep(job)
    whole = time.perf_counter() - began
    swept = tuple(result.store.value(number) for number in range(trials) if number in result.store.outcomes)
    lines = [
        f"{trials} trials, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; same: {swept == plain.values}",
        "| | trials/min | seconds of work each | overhead each | once a process |",
        "|---|---|---|---|---|",
        f"| plain loop | {60 * trials / plain.seconds:.1f} | {plain.work / trials:.2f} "
        f"| {(plain.seconds - plain.work) / trials:.3f} s | {plain.start:.2f} s |",
    ]
    if result.costs:
        costs = result.costs
        work = costs["train_seconds"] + costs["measure_seconds"]
        lines.append(
            f"| sweep | {costs['trials_per_minute']:.1f} | {work:.2f} | {costs['overhead_seconds']:.3f} s "
            f"| {costs['process_start_seconds']:.2f} s, {costs['processes']:.0f} of them |"
        )
    lines.append(f"sweep in all, with Ray's start and the tracking: {whole:.1f} s")
    text = "\n".join(lines)
    print(text)
    (Path(job.folder) / "bench.md").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
