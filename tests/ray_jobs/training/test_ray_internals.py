"""What the Train controllers of this process leave behind when they are killed, on a clock and accounts of the test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs.training import ray_internals
from tests.clock import Clock

OWN, OTHER = b"own", b"other"


class Accounts:
    """Placement groups as Ray tells of them: each has a creator, whose death is written down at a time."""

    def __init__(self, clock: Clock, groups: list[tuple[bytes, bytes, float]]) -> None:
        self.clock, self.groups = clock, groups
        self.removed: list[bytes] = []

    def listed(self, _: str) -> list[Any]:
        return [
            SimpleNamespace(placement_group_id=name, creator_actor_id=by, creator_actor_dead=self.clock.now >= dead_at)
            for name, by, dead_at in self.groups
            if name not in self.removed
        ]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Free what the dead hold of these groups: (ids removed, seconds that it took)."""

    def run(*groups: tuple[bytes, bytes, float]) -> tuple[list[bytes], float]:
        clock = Clock()
        accounts = Accounts(clock, list(groups))
        monkeypatch.setattr(ray_internals, "time", SimpleNamespace(monotonic=clock.read, sleep=clock.sleep))
        monkeypatch.setattr(ray_internals.ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "1"))
        monkeypatch.setattr(ray_internals.ray, "PlacementGroupID", lambda name: name)
        monkeypatch.setattr(ray_internals, "PlacementGroup", lambda name: name)
        monkeypatch.setattr(ray_internals, "remove_placement_group", accounts.removed.append)
        monkeypatch.setattr(ray_internals, "_groups", accounts.listed)
        monkeypatch.setattr(ray_internals, "_is_own", lambda actor: actor == OWN)
        return accounts.removed if ray_internals.release_orphaned_placement_groups() == len(
            accounts.removed
        ) else [], clock.now

    return run


def test_a_controller_whose_death_is_written_down_late_is_waited_for(free: Any) -> None:
    """Ray tells the driver first; left alone, its group would hold the next attempt's CPUs for ever."""
    removed, took = free((b"a", OWN, 7.0))
    assert removed == [b"a"] and 7 <= took <= 9


def test_others_are_not_waited_for_and_lose_their_group_only_when_they_are_dead(free: Any) -> None:
    assert free((b"a", OTHER, 30.0)) == ([], pytest.approx(1.0, abs=0.3))
    removed, took = free((b"a", OTHER, 0.5), (b"b", OTHER, 30.0))
    assert removed == [b"a"] and took < 3


def test_a_controller_that_lives_on_is_waited_for_within_a_minute(free: Any) -> None:
    removed, took = free((b"a", OWN, 1e9))
    assert removed == [] and took == pytest.approx(60.0, abs=0.3)
