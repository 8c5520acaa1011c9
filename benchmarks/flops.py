"""Floating-point operations of matrix products that a pretraining step needs, counted from its configuration.

Needed, not executed: products that are computed again to save memory count once, and so do k-means, element-wise
arithmetic and the optimiser not at all. A linear map a to b costs 2ab for a row forward, and as much again each for the
gradients of its weight and of its input; the features at the bottom have no gradient.
"""

from collections.abc import Mapping

from conclugen.config import PretrainConfig
from conclugen.tasks import registry


def step_flops(config: PretrainConfig, widths: Mapping[str, int]) -> dict[str, int]:
    """FLOPs of one step over the global batch, by part: "heads", "projection" and each task with products of its
    own."""
    model, B = config.model, config.global_batch
    counted: dict[str, int] = {"heads": 0, "projection": 0}
    hidden = max(1, model.representation_dim // model.projection_shrink)
    projection = 6 * (model.representation_dim * hidden + hidden * model.projection_dim)
    passed: dict[tuple[str, ...], bool] = {}  # views that go through the heads once, and whether through the projection
    for reads in config.inputs.values():
        modalities = tuple(view.modality for view in reads.views) or config.modalities
        own = tuple(view.name for view in reads.views)
        if own not in passed:
            counted["heads"] += B * sum(_head(config, m, widths[m]) for m in modalities)
        if reads.projection and not passed.get(own, False):
            counted["projection"] += len(modalities) * B * projection
        passed[own] = passed.get(own, False) or reads.projection
    for name, task in config.tasks.active.items():
        counted[name] = registry.get(name).flops(task, config, widths)
    return counted


def similarity_flops(flops: Mapping[str, int]) -> int:
    """FLOPs that the similarities in a `step_flops` take as they are executed: each is multiplied out again in the
    backward pass, so four products of 2 B^2 P for each pair instead of three. They run in TF32 on a GPU, not in
    bfloat16."""
    similar = (name for name, task in registry.registered().items() if task.similarities)
    return sum(flops.get(name, 0) for name in similar) * 4 // 3


def _head(config: PretrainConfig, modality: str, width: int) -> int:
    """One row through a gated unit and what follows it, forward and backward."""
    R = config.model.representation_dim
    own_width = modality in config.model.own_width_modalities
    out = width if own_width else R
    return 4 * width * out + 2 * 6 * out * out + (6 * width * R if own_width else 0)
