"""Periodic all-gather of small status messages: on the host, through gloo (no device waits), with a time limit."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

_EVERY_S = 2.0
_MOST_STEPS = 1000


class RankMeeting:
    """Meetings of all ranks after steps that all of them know in advance. One rank alone meets itself.

    How many steps lie between two of them follows from rank 0's clock, about 2 seconds' worth, and is agreed on at the
    meeting before. It decides nothing about training, only how soon ranks hear of each other's corrupt samples and
    notices.

    Args:
        timeout_s: How long a rank waits for the others before it raises RuntimeError.
    """

    def __init__(self, rank: int, world: int, timeout_s: float):
        self._rank, self._world = rank, world
        self._group = None
        if world > 1:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._next: int | None = None
        self._last = (0, time.monotonic())

    def due(self, step: int) -> bool:
        """Whether the ranks meet after this step: the first of an attempt, and then as agreed."""
        return self._next is None or step >= self._next

    def hold(self, step: int, note: Any) -> list[Any]:
        """Exchange JSON-able notes: every rank gets those of all, in order of ranks."""
        notes = self.exchange((self._steps_until_next(step), note))
        self._next = step + int(notes[0][0])
        return [note for _, note in notes]

    def exchange(self, note: Any) -> list[Any]:
        """The same between meetings, wherever all ranks know that they want it."""
        text = json.dumps(note).encode()
        facts = self._gather(torch.tensor([len(text)]))
        longest = max(int(length) for length in facts)
        sent = torch.zeros(longest, dtype=torch.uint8)
        sent[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        received = self._gather(sent)
        return [json.loads(bytes(x[: int(n)].tolist())) for x, n in zip(received, facts, strict=True)]

    def _steps_until_next(self, step: int) -> int:
        (before, then), now = self._last, time.monotonic()
        self._last = (step, now)
        seconds = (now - then) / max(1, step - before)
        return max(1, min(_MOST_STEPS, round(_EVERY_S / max(seconds, 1e-6)))) if before else 1

    def _gather(self, mine: torch.Tensor) -> list[torch.Tensor]:
        if self._group is None:
            return [mine]
        parts = [torch.empty_like(mine) for _ in range(self._world)]
        distributed.all_gather(parts, mine, group=self._group)
        return parts
