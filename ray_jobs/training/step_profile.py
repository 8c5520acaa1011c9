"""A trace of a few steps of a rank, by torch's profiler: what runs on CPU and GPU, and when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from conclugen.common import uris
from conclugen.common.atomic import write_text
from ray_jobs.run_config import RunConfig

# Steps of an attempt that are left out: buffers are made and kernels compiled in them. One more warms the profiler.
_SETTLE_STEPS = 10
_DEFAULT_STEPS = 5
_TABLE_ROWS = 40


class StepProfile:
    """Traces `steps` steps once the start has settled, sooner in a run that ends before; `step` follows each step.

    Writes `step-<first>-rank-<rank>.json.gz` (Chrome's trace format, which Perfetto reads) and a table of the longest
    operations beside it. A trace that cannot be written is a warning: training continues.

    Args:
        folder: Where to; made when there is something to write.
        first: Number of the attempt's first step, counted from 1.
        left: Steps until the run's end, 2 or more: one warms the profiler.
    """

    def __init__(self, folder: Path, rank: int, steps: int, first: int, left: int):
        steps = min(steps, left - 1)
        settle = min(_SETTLE_STEPS, left - steps - 1)
        self._traced = range(first + settle + 1, first + settle + 1 + steps)
        self._folder, self._rank = folder, rank
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=settle, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,
        )

    def __enter__(self) -> StepProfile:
        self._profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._profiler.stop()

    def step(self) -> None:
        """A step is done."""
        self._profiler.step()

    def _write(self, profiler: Any) -> None:
        begin = time.perf_counter()
        trace = self._folder / f"step-{self._traced.start:06d}-rank-{self._rank}.json.gz"
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        partial = trace.with_name(f".{trace.name}")  # its name's end says how it is written
        try:
            self._folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(partial))
            partial.replace(trace)
            table = profiler.key_averages().table(sort_by=by, row_limit=_TABLE_ROWS)
            listed = trace.with_name(trace.name.replace(".json.gz", ".txt"))
            write_text(listed, f"{table}\n")
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                partial.unlink()
            print(f"warning: run.profile: no trace could be written to {trace}: {uris.scrub(error)}", flush=True)
            return
        seconds = time.perf_counter() - begin
        steps = f"steps {self._traced.start} to {self._traced[-1]} of rank {self._rank}"
        print(f"trace of {steps} in {trace} (written in {seconds:.1f} s)", flush=True)


class NoProfile:
    """In its place where nothing is traced."""

    def step(self) -> None:
        pass


@contextmanager
def profiled(run: RunConfig, folder: Path, rank: int, step: int, last: int) -> Iterator[StepProfile | NoProfile]:
    """What `run.profile` asks of this rank. step: steps done before this attempt. last: the run's last one."""
    wanted = run.profile and (rank == 0 or run.profile_ranks == "all") and last - step >= 2
    if not wanted:
        yield NoProfile()
        return
    steps = _DEFAULT_STEPS if run.profile is True else int(run.profile)
    with StepProfile(folder, rank, steps, step + 1, last - step) as profile:
        yield profile
