"""What ranks tell each other when they meet, and when they meet again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ray_jobs.training import rank_meeting
from ray_jobs.training.rank_meeting import RankMeeting
from tests.clock import Clock


@pytest.mark.parametrize("notes", [["a", "a note that is longer"], [{"é": [1, None, 0.5]}, ""], [[], []]])
def test_notes_of_unlike_lengths_arrive_whole_in_the_order_of_ranks(
    notes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks as threads; as a collective demands, both hand in tensors of one shape."""
    met, handed = threading.Barrier(2), [torch.empty(0), torch.empty(0)]

    def gathering(rank: int) -> Callable[[torch.Tensor], list[torch.Tensor]]:
        def gather(mine: torch.Tensor) -> list[torch.Tensor]:
            handed[rank] = mine
            met.wait(20)
            both = list(handed)
            met.wait(20)
            assert both[0].shape == both[1].shape and both[0].dtype == both[1].dtype
            return both

        return gather

    def exchange(rank: int) -> list[Any]:
        meeting = RankMeeting(rank, 1, 1.0)  # of more than one it would make a process group
        monkeypatch.setattr(meeting, "_gather", gathering(rank))
        return meeting.exchange(notes[rank])

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(exchange, range(2))) == [notes, notes]


def test_ranks_meet_after_two_seconds_worth_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(rank_meeting.time, "monotonic", clock.read)
    meeting = RankMeeting(0, 1, 1.0)

    def due_after(step: int, seconds: float) -> int:
        """Hold the meeting that is due after this step, so many seconds after the one before; when the next one is."""
        clock.sleep(seconds)
        assert meeting.due(step) and meeting.hold(step, {"at": step}) == [{"at": step}]
        return next(later for later in range(step, step + 5000) if meeting.due(later))

    assert due_after(7, 60.0) == 8, "at first, for how long a step takes is not known"
    assert due_after(8, 0.1) == 28  # 0.1 s a step
    assert due_after(28, 5.0) == 36  # 0.25 s
    assert due_after(36, 24.0) == 37  # 3 s: after every one
    assert due_after(37, 1e-9) == 1037  # a thousand at most
