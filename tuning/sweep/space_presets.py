"""Search spaces by name: the published ranges, and one of small sizes for a laptop."""

from __future__ import annotations

from collections.abc import Callable

from conclugen.search_space import Range
from conclugen.tasks.registry import registered
from tuning.sweep.space import Space, Weights


def published() -> Space:
    """The published ranges. The authors' schedule of at most three epochs would never start the tasks that begin
    later in most trials; 60 epochs are ours."""
    return Space()


def laptop() -> Space:
    """Small heads, small batches and few epochs in the improved recipe: trials of seconds on one core."""
    tasks = registered()
    return Space(
        recipe=("improved",),
        weights=Weights(**{name: task.weights[1] for name, task in tasks.items()}),
        representation_dim=(64, 128, 256),
        projection_dim=(32, 64, 128),
        lr=Range(3e-4, 1e-2),
        global_batch=(128,),
        epochs=16,
        **{searched.name: searched.laptop for task in tasks.values() for searched in task.searched},
    )


SPACES: dict[str, Callable[[], Space]] = {"published": published, "laptop": laptop}
