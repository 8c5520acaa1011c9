"""Search spaces by name: the published ranges, and one of small sizes for a laptop."""

from __future__ import annotations

from collections.abc import Callable

from tuning.sweep.space import Range, Space, Weights


def published() -> Space:
    """The published ranges. The authors' schedule of at most three epochs would never start clustering in most trials;
    60 epochs are ours."""
    return Space()


def laptop() -> Space:
    """Small heads, small batches and few epochs in the improved recipe: trials of seconds on one core."""
    return Space(
        recipe=("improved",),
        weights=Weights(Range(0.05, 2.0), Range(0.05, 2.0), Range(0.05, 2.0)),
        representation_dim=(64, 128, 256),
        projection_dim=(32, 64, 128),
        reconstruction_hidden_dim=(64, 128, 256),
        clusters=(8, 16, 32),
        queue_batches=(0, 2, 4),
        start_epoch=(0, 2),
        cluster_mode=("joint",),
        lr=Range(3e-4, 1e-2),
        global_batch=(128,),
        epochs=16,
    )


SPACES: dict[str, Callable[[], Space]] = {"published": published, "laptop": laptop}
