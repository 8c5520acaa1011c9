"""How a build's tasks are handed out and listened to, with a made-up Ray; with a real one: `tests/cluster`."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ray_jobs.building import _run


class Stream:
    """What a task tells: one number, then its report. Asked after its end it fails the test."""

    def __init__(self, name: str) -> None:
        self.told = iter([f"{name} 1", f"{name} whole"])
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        assert not self.ended, "a task that has ended is still listened to"
        told = next(self.told, None)
        if told is None:
            self.ended = True
            raise StopIteration
        return told


@pytest.mark.parametrize(("cpus", "most"), [(1, 2), (3, 6)])
def test_every_task_is_heard_to_its_end_and_a_few_wait_for_each_cpu(
    monkeypatch: pytest.MonkeyPatch, cpus: int, most: int
) -> None:
    begun: list[Stream] = []

    def remote(task: Any) -> Stream:
        begun.append(Stream(task.name))
        assert sum(not stream.ended for stream in begun) <= most
        return begun[-1]

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    monkeypatch.setattr(ray, "wait", lambda running, num_returns: (running[-1:], running[:-1]))
    monkeypatch.setattr(ray, "get", lambda told: told)
    names = [f"clips-{n}" for n in range(7)]
    heard = list(_run(SimpleNamespace(remote=remote), [SimpleNamespace(name=name) for name in names], 1.0))  # type: ignore[misc]
    assert sorted(heard) == sorted((name, f"{name} {what}") for name in names for what in ("1", "whole"))  # type: ignore[comparison-overlap]
    assert len(begun) == 7 and all(stream.ended for stream in begun)
