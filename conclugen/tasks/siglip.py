"""Sigmoid loss for pairs of modalities: each pair of rows is a yes-or-no question of its own (SigLIP).

For a pair of modalities (a, b) with unit vectors a_i, b_j over the n rows where both are present:

    L(a, b) = - 1/n  sum_i sum_j  log sigmoid(z_ij (t a_i . b_j + bias)),    z_ij = 1 for i = j, else -1

Zhai, Mustafa, Kolesnikov & Beyer 2023 (arXiv 2303.15343, equation 1 and algorithm 1): t = exp(t') and the bias are
learned, from t = 10 and -10 on, so that the many negatives do not outweigh the positive at the start. The pairs form a
ring and are summed, as in `conclugen.tasks.contrastive`. No normalisation over rows or columns: a block of rows needs
to know of no other, so scores exist in blocks of rows only, computed again in the backward pass.

Shape suffixes: M modalities, B rows of this rank, N rows of all ranks, P projection, r rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conclugen.fields import FREE, IDENTITY, SCHEDULABLE, finite, require
from conclugen.search_space import Range, Searched
from conclugen.tasks.base import Inputs, Run, Task, check_block_rows, check_two_modalities, check_weight
from conclugen.tasks.contrastive import keys_of_all, ring
from conclugen.tasks.deferred import blockwise, checkpoint, functional, nn, torch

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.latents import Latents


@dataclass(frozen=True)
class SiglipConfig:
    """A sigmoid cross-entropy for every pair of rows, for each pair of modalities.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        inverse_temperature: What similarities are multiplied by at the start; it is learned, and kept within 1 to 100.
        bias: Added to the scaled similarities at the start; it is learned.
        block_rows: Rows whose similarities are in memory at a time; None: all up to 4,096 rows, then as many as suit
            the device (2^24 scores on a CPU). Like the number of workers it changes rounding only.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    inverse_temperature: float = field(default=10.0, metadata=IDENTITY)
    bias: float = field(default=-10.0, metadata=IDENTITY)
    block_rows: int | None = field(default=None, metadata=FREE)

    def __post_init__(self) -> None:
        check_weight("siglip", self.weight)
        t = self.inverse_temperature
        require(1 <= t <= 100, "tasks.siglip.inverse_temperature", t, "1 <= inverse temperature <= 100")
        require(finite(self.bias), "tasks.siglip.bias", self.bias, "a number")
        check_block_rows("siglip", self.block_rows)


def block_sum(
    a_rP: Tensor, b_NP: Tensor, own_r: Tensor, valid_r: Tensor, valid_N: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """Sum over the pairs of valid rows of a block and all valid rows. own_r: the column that belongs to each row."""
    score_rN = (a_rP @ b_NP.T) * scale + bias
    own_rN = own_r.unsqueeze(1) == torch.arange(len(b_NP), device=b_NP.device)
    # - log sigmoid(x) is softplus(-x), here exact in float64 as well.
    loss_rN = blockwise.softplus(torch.where(own_rN, -score_rN, score_rN))
    return torch.where(valid_r.unsqueeze(1) & valid_N, loss_rN, 0).sum()


class Siglip(Task):
    """The loss over all pairs of the ring; owns the logarithm of the inverse temperature and the bias."""

    name, title = "siglip", "multi-modal sigmoid loss (SigLIP)"
    Config = SiglipConfig
    order = 50
    negatives = "any"
    searched = (
        Searched(
            "siglip_inverse_temperature",
            "tasks.siglip.inverse_temperature",
            Range(2.0, 50.0),
            Range(2.0, 50.0),
            "Inverse temperature from which the siglip task starts.",
        ),
    )
    variants = {"blocks of two rows": {"block_rows": 2}, "balanced start": {"bias": 0.0, "inverse_temperature": 2.0}}

    @classmethod
    def inputs(cls, config: SiglipConfig, modalities: tuple[str, ...]) -> Inputs:
        check_two_modalities("siglip", modalities)
        return Inputs(projection=True, representation=False)

    @classmethod
    def flops(cls, config: SiglipConfig, run: Run, widths: Mapping[str, int]) -> int:
        return len(ring(len(run.modalities))) * 6 * run.global_batch**2 * run.model.projection_dim

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.inverse_temperature)))
        self.bias = nn.Parameter(torch.tensor(float(config.bias)))

    def scale(self) -> Tensor:
        """Inverse temperature, 1 to 100."""
        return self.log_scale.exp().clamp(1.0, 100.0)

    def metrics(self) -> dict[str, Tensor]:
        return {"siglip/inverse_temperature": self.scale().detach(), "siglip/bias": self.bias.detach().clone()}

    def forward(self, latents: Latents) -> Tensor:
        assert latents.projections is not None
        presence = latents.presence
        z_MBP = functional.normalize(latents.projections, dim=2)
        pairs = ring(len(latents.modalities))
        key_NP = keys_of_all(z_MBP, pairs)
        own_B = torch.arange(z_MBP.shape[1], device=z_MBP.device) + presence.offset
        scale, shares = self.scale(), []
        for a, b in pairs:
            valid_B, valid_N = presence.local[a] & presence.local[b], presence.all[a] & presence.all[b]
            total = self._sum(z_MBP[a], key_NP[b], own_B, valid_B, valid_N, scale)
            rows = valid_N.sum()
            shares.append(torch.where(rows >= 2, total / rows.clamp(min=1), total * 0))
        return torch.stack(shares).sum()

    def _sum(
        self, a_BP: Tensor, b_NP: Tensor, own_B: Tensor, valid_B: Tensor, valid_N: Tensor, scale: Tensor
    ) -> Tensor:
        rows = self.config.block_rows or blockwise.default_rows(len(b_NP), b_NP.device)
        blocks = []
        for start in range(0, len(a_BP), rows):
            part = slice(start, start + rows)
            block = (a_BP[part], b_NP, own_B[part], valid_B[part], valid_N, scale, self.bias)
            blocks.append(checkpoint.checkpoint(block_sum, *block, use_reentrant=False, preserve_rng_state=False))
        return torch.stack(blocks).sum()
