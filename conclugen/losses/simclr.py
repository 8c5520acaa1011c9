"""NT-Xent over two augmented views of one modality (Chen et al. 2020, arXiv 2002.05709, equation 1).

    L = - 1/2n  sum over the 2n views i of  log softmax over k != i of (z_i . z_k / tau), at i's other view

Shape suffixes: B rows of this rank, N rows of all ranks, P projection.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen import distributed
from conclugen.fields import FREE, IDENTITY, SCHEDULABLE, finite, require
from conclugen.losses.blockwise import Compared, Sweep, check_block_rows, log_sums, row_log_sums, surplus


@dataclass(frozen=True)
class SimclrConfig:
    """weight: in the mean over tasks. modality: whose views are compared. second_view: the batch's modality that holds
    the other view; None makes both views by masking: each feature is set to 0 with probability `mask`, drawn from
    (seed, step, row); a stored second view leaves `mask` without effect.
    The masking is this project's own deviation, for data without a second view; the paper's views are augmented
    clips. block_rows: as in `ContrastiveConfig`."""

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    modality: str = field(default="video_3d", metadata=IDENTITY)
    second_view: str | None = field(default=None, metadata=IDENTITY)
    mask: float = field(default=0.3, metadata=IDENTITY)
    temperature: float = field(default=0.07, metadata=IDENTITY)
    block_rows: int | None = field(default=None, metadata=FREE)

    def __post_init__(self) -> None:
        require(finite(self.weight) and self.weight > 0, "tasks.simclr.weight", self.weight, "a number above 0")
        require(0 < self.mask < 1, "tasks.simclr.mask", self.mask, "0 < share < 1")
        require(0 < self.temperature <= 1, "tasks.simclr.temperature", self.temperature, "0 < temperature <= 1")
        differs = self.second_view != self.modality
        check_block_rows("tasks.simclr.block_rows", self.block_rows)
        require(differs, "tasks.simclr.second_view", self.second_view, f"a view other than {self.modality!r}")


def nt_xent_sum(
    z_2BP: Tensor, z_2NP: Tensor, compared: Compared, temperature: float, sweep: Sweep | None = None
) -> Tensor:
    """Sum over both views of valid rows of the cross-entropy. Unit vectors; z_2BP: this rank's, z_2NP: all ranks'.

    The negatives of a view are the other rows in the other view (the rows, or columns, of one matrix) and in its own.
    """
    scale = 1 / temperature
    others = log_sums(z_2BP[0], z_2NP[1], scale, compared, sweep)
    positive_B = (z_2BP[0] * z_2BP[1]).sum(1) * scale
    losses = []
    for view, other_B in enumerate(others):
        own_B = row_log_sums(z_2BP[view], z_2NP[view], scale, compared, sweep)
        losses.append(surplus(torch.logaddexp(other_B, own_B) - positive_B))
    return torch.where(compared.valid, losses[0] + losses[1], 0).sum()


class Simclr(nn.Module):
    """projections (2, B, P) of both views, valid (B,) and (N,): rows where both views exist."""

    def __init__(self, config: SimclrConfig, tf32: bool = False) -> None:
        """tf32: similarities on a GPU are multiplied out in TensorFloat-32."""
        super().__init__()
        self.config = config
        self.sweep = Sweep(config.block_rows, tf32)

    def forward(self, projections_2BP: Tensor, valid_B: Tensor, valid_N: Tensor, offset: int) -> Tensor:
        z_2BP = functional.normalize(projections_2BP, dim=2)
        z_2NP = distributed.gather(z_2BP.transpose(0, 1)).transpose(0, 1)
        count = 2 * valid_N.sum().clamp(min=1)
        compared = Compared(valid_B, valid_N, offset)
        return nt_xent_sum(z_2BP, z_2NP, compared, self.config.temperature, self.sweep) / count
