"""Floating-point operations of matrix products that a pretraining step needs, counted from its configuration.

Needed, not executed: products that are computed again to save memory count once, and so do k-means, element-wise
arithmetic and the optimiser not at all. A linear map a to b costs 2ab for a row forward, and as much again each for the
gradients of its weight and of its input; the features at the bottom have no gradient.
"""

from collections.abc import Mapping

from conclugen.config import PretrainConfig


def step_flops(config: PretrainConfig, widths: Mapping[str, int]) -> dict[str, int]:
    """FLOPs of one step over the global batch, by part: "heads", "projection" and each task with products of its
    own."""
    model, tasks = config.model, config.tasks
    R, P, H, B = (
        model.representation_dim,
        model.projection_dim,
        model.reconstruction_hidden_dim,
        config.global_batch,
    )
    modalities = config.modalities
    counted: dict[str, int] = {"heads": 0, "projection": 0}
    stacked = 0
    if any(name != "simclr" for name in tasks.active):
        counted["heads"] += B * sum(_head(config, m, widths[m]) for m in modalities)
    if tasks.contrastive is not None or tasks.clustering is not None:
        stacked += len(modalities)
    if tasks.simclr is not None:
        counted["heads"] += 2 * B * _head(config, tasks.simclr.modality, widths[tasks.simclr.modality])
        stacked += 2
        counted["simclr"] = 3 * 6 * B * B * P
    hidden = max(1, R // model.projection_shrink)
    counted["projection"] = stacked * B * 6 * (R * hidden + hidden * P)
    if tasks.contrastive is not None:
        pairs = 1 if len(modalities) == 2 else len(modalities)
        counted["contrastive"] = pairs * 6 * B * B * P
    if tasks.clustering is not None:
        K = tasks.clustering.clusters
        scored = 1 if tasks.clustering.mode == "joint" else len(modalities)
        counted["clustering"] = B * (len(modalities) * 6 * P * K + scored * 4 * K * K)
    if tasks.reconstruction is not None:
        decoded = len(modalities) - 1 if tasks.reconstruction.cross_modal else 1
        counted["reconstruction"] = B * decoded * sum(6 * (R * H + H * widths[m]) for m in modalities)
    return counted


def similarity_flops(flops: Mapping[str, int]) -> int:
    """FLOPs that the similarities in a `step_flops` take as they are executed: each is multiplied out once more in the
    backward pass, so four products of 2 B^2 P for each pair instead of three. They run in TF32 on a GPU, not in
    bfloat16."""
    return (flops.get("contrastive", 0) + flops.get("simclr", 0)) * 4 // 3


def _head(config: PretrainConfig, modality: str, width: int) -> int:
    """One row through a gated unit and what follows it, forward and backward."""
    R = config.model.representation_dim
    own_width = modality in config.model.own_width_modalities
    out = width if own_width else R
    return 4 * width * out + 2 * 6 * out * out + (6 * width * R if own_width else 0)
