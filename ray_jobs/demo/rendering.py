"""Renders the corpus in Ray tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from conclugen.common import machine
from shards.clips.clip_progress import ClipProgress
from shards.corpus import ClipPlan, ClipRow, write_clip

_CLIPS_PER_TASK = 8


def _write_some(folder: Path, plans: Sequence[ClipPlan]) -> list[ClipRow]:
    return [write_clip(folder, plan) for plan in plans]


def render_in_tasks(folder: Path, plans: Sequence[ClipPlan]) -> Iterator[ClipRow]:
    """Write the planned clips below a folder that all nodes see, a task for each core at a time; rows as they come."""
    remote: Any = ray.remote(num_cpus=1)(_write_some)
    waiting = [plans[start : start + _CLIPS_PER_TASK] for start in range(0, len(plans), _CLIPS_PER_TASK)][::-1]
    running: list[Any] = []
    progress, done = ClipProgress(len(plans)), 0
    while waiting or running:
        # A local Ray is told of more CPUs than there are cores; more renderers than cores would gain nothing.
        while waiting and len(running) < machine.cores():
            running.append(remote.remote(folder, waiting.pop()))
        ready, running = ray.wait(running, num_returns=1)
        for reference in ready:
            rows = ray.get(reference)
            done += len(rows)
            yield from rows
        progress.show(done, last=done == len(plans))
