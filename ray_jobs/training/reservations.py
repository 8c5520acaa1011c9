"""What Ray Train reserves for a run's workers, and what becomes of it when a controller is killed.

An actor of Ray keeps account of who wants which CPUs and GPUs, and tells a run that would do with fewer workers how
many there is room for. A controller that is killed leaves its reservation there for three minutes: the next start would
be told that what its predecessor had is taken, and wait for it or go on with fewer workers than it could have.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

_ANSWER_WITHIN_S = 5.0


def cancel(attempt: str) -> None:
    """Give back what an earlier start of the run reserved (`placement_groups.Trainer` names reservations by starts)."""
    _ask("cancel_request", f"train-{attempt}")


def count_anew() -> None:
    """Make the actor look at the nodes now; by itself it does so every 20 s."""
    _ask("get_reserved_resources", "conclugen", recompute=True)


def _ask(what: str, *arguments: Any, **options: Any) -> None:
    """Where the actor does not run yet it knows nothing old; where it does not answer, time must do."""
    with contextlib.suppress(ValueError, RayError, GetTimeoutError):
        accounts = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(getattr(accounts, what).remote(*arguments, **options), timeout=_ANSWER_WITHIN_S)
