"""Renders the corpus in Ray tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from shards.corpus import ClipPlan, ClipRow, write_clip

_CLIPS_PER_TASK = 8
_SHOW_EVERY = 5.0  # seconds between progress lines


def _write_some(folder: Path, plans: Sequence[ClipPlan]) -> list[ClipRow]:
    return [write_clip(folder, plan) for plan in plans]


def render_in_tasks(folder: Path, plans: Sequence[ClipPlan]) -> Iterator[ClipRow]:
    """Write the planned clips below a folder that all nodes see, a task for each core at a time; rows as they come."""
    remote: Any = ray.remote(num_cpus=1)(_write_some)
    waiting = [plans[start : start + _CLIPS_PER_TASK] for start in range(0, len(plans), _CLIPS_PER_TASK)][::-1]
    running: list[Any] = []
    done = 0
    began = shown = time.monotonic()
    while waiting or running:
        # A local Ray is told of more CPUs than there are cores; more renderers than cores would gain nothing.
        while waiting and len(running) < (os.cpu_count() or 1):
            running.append(remote.remote(folder, waiting.pop()))
        ready, running = ray.wait(running, num_returns=1)
        for reference in ready:
            rows = ray.get(reference)
            done += len(rows)
            yield from rows
        now = time.monotonic()
        if now - shown > _SHOW_EVERY or done == len(plans):
            shown = now
            print(f"{done:,}/{len(plans):,} clips  {done / (now - began):.1f} clips/s", flush=True)
