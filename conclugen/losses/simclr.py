"""NT-Xent over two augmented views of one modality (Chen et al. 2020, arXiv 2002.05709, equation 1).

    L = - 1/2n  sum over the 2n views i of  log softmax over k != i of (z_i . z_k / tau), at i's other view

Shape suffixes: B rows of this rank, N rows of all ranks, P projection.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen import distributed
from conclugen.fields import IDENTITY, SCHEDULABLE, finite, require


@dataclass(frozen=True)
class SimclrConfig:
    """weight: in the mean over tasks. modality: whose views are compared. second_view: the batch's modality that holds
    the other view; None makes both views by masking: each feature is set to 0 with probability `mask`, drawn from
    (seed, step, row).
    The masking is this project's own deviation, for data without a second view; the paper's views are augmented
    clips."""

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    modality: str = field(default="video_3d", metadata=IDENTITY)
    second_view: str | None = field(default=None, metadata=IDENTITY)
    mask: float = field(default=0.3, metadata=IDENTITY)
    temperature: float = field(default=0.07, metadata=IDENTITY)

    def __post_init__(self) -> None:
        require(finite(self.weight) and self.weight > 0, "tasks.simclr.weight", self.weight, "a number above 0")
        require(0 < self.mask < 1, "tasks.simclr.mask", self.mask, "0 < share < 1")
        require(0 < self.temperature <= 1, "tasks.simclr.temperature", self.temperature, "0 < temperature <= 1")
        differs = self.second_view != self.modality
        require(differs, "tasks.simclr.second_view", self.second_view, f"a view other than {self.modality!r}")


def nt_xent_sum(
    z_2BP: Tensor, z_2NP: Tensor, valid_B: Tensor, valid_N: Tensor, offset: int, temperature: float
) -> Tensor:
    """Sum over both views of valid rows of the cross-entropy. Unit vectors; z_2BP: this rank's, z_2NP: all ranks'."""
    N = z_2NP.shape[1]
    own_B = torch.arange(z_2BP.shape[1], device=z_2BP.device) + offset
    keys = z_2NP.flatten(0, 1)
    valid_keys = valid_N.repeat(2)
    total = z_2BP.new_zeros(())
    for view in range(2):
        logits = z_2BP[view] @ keys.T / temperature
        lowest = torch.finfo(logits.dtype).min
        masked = logits.masked_fill(~valid_keys, lowest).scatter(1, (own_B + view * N).unsqueeze(1), lowest)
        positive_B = logits.gather(1, (own_B + (1 - view) * N).unsqueeze(1)).squeeze(1)
        total = total + torch.where(valid_B, torch.logsumexp(masked, dim=1) - positive_B, 0).sum()
    return total


class Simclr(nn.Module):
    """projections (2, B, P) of both views, valid (B,) and (N,): rows where both views exist."""

    def __init__(self, config: SimclrConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, projections_2BP: Tensor, valid_B: Tensor, valid_N: Tensor, offset: int) -> Tensor:
        z_2BP = functional.normalize(projections_2BP, dim=2)
        z_2NP = distributed.gather(z_2BP.transpose(0, 1)).transpose(0, 1)
        count = 2 * valid_N.sum().clamp(min=1)
        return nt_xent_sum(z_2BP, z_2NP, valid_B, valid_N, offset, self.config.temperature) / count
