"""Multi-modal contrastive loss with a masked margin, or a learned temperature, over the global batch.

For a pair of modalities (a, b) with unit vectors a_i, b_j over rows where both are present, and s the inverse
temperature:

    L(a, b) = - 1/n  sum_i [ log softmax_j (s (a_i . b_j - margin [i = j]))_i  +  log softmax_j (s (b_i . a_j - margin
    [i = j]))_i ]

Ilharco, Zhang & Baldridge 2019 (arXiv 1909.08782, equations 1 to 3) with s = 1; the pairs form a ring and are summed
(ConCluGen, arXiv 2404.10904, equations 1 and 2). With margin 0 and a learned s it is the loss of CLIP.
Similarities exist in blocks of rows only (`conclugen.losses.blockwise`).

Shape suffixes: B rows of this rank, N rows of all ranks, P projection.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen import distributed
from conclugen.fields import FREE, IDENTITY, SCHEDULABLE, choose, finite, require
from conclugen.latents import Latents
from conclugen.losses.blockwise import Compared, Sweep, check_block_rows, log_sums, surplus

NEGATIVES = ("all", "same_group")
# With fewer others of a row's group than this, telling it from them alone would teach next to nothing.
FEWEST_MATES = 4


@dataclass(frozen=True)
class ContrastiveConfig:
    """weight: in the mean over tasks. margin: taken off the positive's similarity. temperature: None (published: none),
    or where it starts; learn_temperature: it is a parameter, kept within 0.01 to 1. negatives: "all" rows, or those of
    the "same_group" (a speaker), which can't be told apart by who is speaking. block_rows: rows whose similarities are
    in memory at a time; None: all up to 4,096 rows, then as many as have 2^24. Like the number of workers it changes
    rounding only."""

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    margin: float = field(default=0.001, metadata=IDENTITY)
    temperature: float | None = field(default=None, metadata=IDENTITY)
    learn_temperature: bool = field(default=False, metadata=IDENTITY)
    negatives: str = field(default="all", metadata=IDENTITY)
    block_rows: int | None = field(default=None, metadata=FREE)

    def __post_init__(self) -> None:
        require(finite(self.weight) and self.weight > 0, "tasks.contrastive.weight", self.weight, "a number above 0")
        require(0 <= self.margin < 1, "tasks.contrastive.margin", self.margin, "0 <= margin < 1")
        if self.temperature is not None:
            t = self.temperature
            require(0.01 <= t <= 1, "tasks.contrastive.temperature", t, "0.01 <= temperature <= 1")
        elif self.learn_temperature:
            raise ValueError("tasks.contrastive.learn_temperature: needs a temperature to start from, found None")
        choose("tasks.contrastive.negatives", self.negatives, NEGATIVES)
        check_block_rows("tasks.contrastive.block_rows", self.block_rows)


def ring(count: int) -> list[tuple[int, int]]:
    """Pairs of `count` modalities, each with the next and the last with the first; two modalities give one pair."""
    return [(0, 1)] if count == 2 else [(m, (m + 1) % count) for m in range(count)]


def comparisons(
    valid_B: Tensor, valid_N: Tensor, offset: int, group_N: Tensor | None = None
) -> tuple[Compared, Tensor]:
    """Which rows are compared, and which of all rows have a negative at all and so count, (N,) bool.

    With groups a row is compared with its own group, unless the batch holds fewer than FEWEST_MATES others of it or
    the row has no group (-1): then with all. A row counts if it is valid and has at least one other to compare with.
    """
    if group_N is None:
        return Compared(valid_B, valid_N, offset), valid_N & (valid_N.sum() >= 2)
    grouped_N = torch.where(valid_N, group_N, -1)
    sorted_N = grouped_N.sort().values
    upper_N, lower_N = (torch.searchsorted(sorted_N, grouped_N, right=right) for right in (True, False))
    within_N = (grouped_N >= 0) & (upper_N - lower_N > FEWEST_MATES)
    counted_N = valid_N & (within_N | (valid_N.sum() >= 2))
    return Compared(valid_B, valid_N, offset, grouped_N, within_N), counted_N


def pair_sum(
    a_BP: Tensor,
    b_BP: Tensor,
    b_NP: Tensor,
    compared: Compared,
    counted_B: Tensor,
    margin: float,
    scale: Tensor | float,
    sweep: Sweep | None = None,
) -> Tensor:
    """Sum over counted rows of both cross-entropies of a pair of modalities. Unit vectors; b_NP: those of all ranks.

    With x the log-sum over the negatives and p the positive's logit, a cross-entropy is log(1 + exp(x - p)).
    """
    row_B, column_B = log_sums(a_BP, b_NP, scale, compared, sweep)
    positive_B = ((a_BP * b_BP).sum(1) - margin) * scale
    return torch.where(counted_B, surplus(row_B - positive_B) + surplus(column_B - positive_B), 0).sum()


class Contrastive(nn.Module):
    """The loss over all pairs of the ring; owns the temperature where it is learned."""

    def __init__(self, config: ContrastiveConfig, tf32: bool = False) -> None:
        """tf32: similarities on a GPU are multiplied out in TensorFloat-32."""
        super().__init__()
        self.config = config
        self.sweep = Sweep(config.block_rows, tf32)
        self.log_scale = None
        if config.temperature is not None and config.learn_temperature:
            self.log_scale = nn.Parameter(torch.tensor(config.temperature).double().log().neg().float())

    def scale(self) -> Tensor | float:
        """Inverse temperature, 1 to 100."""
        if self.log_scale is not None:
            return self.log_scale.exp().clamp(1.0, 100.0)
        return 1.0 if self.config.temperature is None else 1.0 / self.config.temperature

    def forward(self, latents: Latents) -> Tensor:
        assert latents.projections is not None
        presence, scale = latents.presence, self.scale()
        z_MBP = functional.normalize(latents.projections, dim=2)
        z_MNP = distributed.gather(z_MBP.transpose(0, 1)).transpose(0, 1)
        shares = []
        for a, b in ring(len(latents.modalities)):
            compared, counted_N = comparisons(
                presence.local[a] & presence.local[b],
                presence.all[a] & presence.all[b],
                presence.offset,
                presence.all_group,
            )
            total = pair_sum(
                z_MBP[a],
                z_MBP[b],
                z_MNP[b],
                compared,
                compared.local(counted_N),
                self.config.margin,
                scale,
                self.sweep,
            )
            shares.append(total / counted_N.sum().clamp(min=1))
        return torch.stack(shares).sum()
