"""Losses and gradients that are not finite: noticed without waiting for the device, and kept out of the parameters."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient was NaN or infinite. The parameters are those before that step; nothing since was applied."""

    def __init__(self, step: int, tasks: list[str]) -> None:
        self.step, self.tasks = step, tasks
        super().__init__(
            f"step {step}: {' and '.join(tasks)} not finite. No update was applied from this step on, and this "
            "state can't be saved: resume from the last checkpoint with a lower learning rate, a clip_norm, or "
            "float32; look for infinite features if it comes back at once"
        )

    def __reduce__(self) -> tuple[type["NonFiniteLossError"], tuple[int, list[str]]]:
        # Exceptions are rebuilt from their message alone; a worker must be able to hand this one to its job.
        return type(self), (self.step, self.tasks)


class FiniteGuard:
    """Remembers, on the device, the first step that was not finite, and which losses."""

    def __init__(self, tasks: Sequence[str], device: torch.device) -> None:
        self._tasks = list(tasks)
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._bad_tasks = torch.zeros(len(self._tasks), dtype=torch.bool, device=device)

    def note(
        self,
        optimizer: torch.optim.Optimizer,
        step: int,
        losses: Mapping[str, Tensor],
        total: Tensor,
        grad_norm: Tensor,
    ) -> None:
        """Take note of a step; from the first bad one on `optimizer.step` changes nothing."""
        loss_T = torch.stack([losses[name] for name in self._tasks])
        bad = ~(torch.isfinite(total) & torch.isfinite(grad_norm) & torch.isfinite(loss_T).all())
        first = bad & (self._bad_step < 0)
        self._bad_step = torch.where(first, step, self._bad_step)
        self._bad_tasks = torch.where(first, ~torch.isfinite(loss_T), self._bad_tasks)
        # The fused kernel leaves everything as it is where this is 1; it is how torch.amp.GradScaler skips a step.
        optimizer.found_inf = (self._bad_step >= 0).float()  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raise NonFiniteLossError if any step so far was not finite. Waits for the device."""
        step = int(self._bad_step)
        if step >= 0:
            bad = [f"loss/{name}" for name, flag in zip(self._tasks, self._bad_tasks.tolist(), strict=True) if flag]
            raise NonFiniteLossError(step, bad or ["gradient"])
