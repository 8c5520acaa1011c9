"""Multi-modal contrastive loss with a masked margin, or a learned temperature, over the global batch.

For a pair of modalities (a, b) with unit vectors a_i, b_j over rows where both are present, and s the inverse
temperature:

    L(a, b) = - 1/n  sum_i [ log softmax_j (s (a_i . b_j - margin [i = j]))_i  +  log softmax_j (s (b_i . a_j - margin
    [i = j]))_i ]

Ilharco, Zhang & Baldridge 2019 (arXiv 1909.08782, equations 1 to 3) with s = 1; the pairs form a ring and are summed
(ConCluGen, arXiv 2404.10904, equations 1 and 2). With margin 0 and a learned s it is the loss of CLIP.

Shape suffixes: B rows of this rank, N rows of all ranks, P projection.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen import distributed
from conclugen.fields import IDENTITY, SCHEDULABLE, choose, finite, require
from conclugen.latents import Latents

NEGATIVES = ("all", "same_group")
# With fewer others of a row's group than this, telling it from them alone would teach next to nothing.
FEWEST_MATES = 4


@dataclass(frozen=True)
class ContrastiveConfig:
    """weight: in the mean over tasks. margin: taken off the positive's similarity. temperature: None (published: none),
    or where it starts; learn_temperature: it is a parameter, kept within 0.01 to 1. negatives: "all" rows, or those of
    the "same_group" (a speaker), which can't be told apart by who is speaking."""

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    margin: float = field(default=0.001, metadata=IDENTITY)
    temperature: float | None = field(default=None, metadata=IDENTITY)
    learn_temperature: bool = field(default=False, metadata=IDENTITY)
    negatives: str = field(default="all", metadata=IDENTITY)

    def __post_init__(self) -> None:
        require(finite(self.weight) and self.weight > 0, "tasks.contrastive.weight", self.weight, "a number above 0")
        require(0 <= self.margin < 1, "tasks.contrastive.margin", self.margin, "0 <= margin < 1")
        if self.temperature is not None:
            t = self.temperature
            require(0.01 <= t <= 1, "tasks.contrastive.temperature", t, "0.01 <= temperature <= 1")
        elif self.learn_temperature:
            raise ValueError("tasks.contrastive.learn_temperature: needs a temperature to start from, found None")
        choose("tasks.contrastive.negatives", self.negatives, NEGATIVES)


def ring(count: int) -> list[tuple[int, int]]:
    """Pairs of `count` modalities, each with the next and the last with the first; two modalities give one pair."""
    return [(0, 1)] if count == 2 else [(m, (m + 1) % count) for m in range(count)]


def candidates(
    valid_B: Tensor, valid_N: Tensor, group_B: Tensor | None = None, group_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which columns a row is compared with, (B, N) bool, and which rows have a negative at all, (B,) bool.

    With groups the candidates are the row's own group, unless the batch holds fewer than FEWEST_MATES others of it or
    the row has no group (-1): then all. A row counts if it is valid and at least one other column is a candidate.
    """
    allowed_BN = valid_B.unsqueeze(1) & valid_N
    if group_B is not None and group_N is not None:
        mates_BN = allowed_BN & (group_B.unsqueeze(1) == group_N) & (group_N >= 0)
        enough_B1 = mates_BN.sum(1, keepdim=True) > FEWEST_MATES
        allowed_BN = torch.where(enough_B1, mates_BN, allowed_BN)
    return allowed_BN, allowed_BN.sum(1) >= 2


def directed_sum(
    query_BP: Tensor,
    key_NP: Tensor,
    allowed_BN: Tensor,
    counted_B: Tensor,
    offset: int,
    margin: float,
    scale: Tensor | float,
) -> Tensor:
    """Sum over counted rows of the cross-entropy of row i against column offset + i. Inputs are unit vectors."""
    similarity_BN = query_BP @ key_NP.T
    own_B = torch.arange(query_BP.shape[0], device=query_BP.device) + offset
    positive_B = similarity_BN.gather(1, own_B.unsqueeze(1)).squeeze(1) - margin
    if margin:
        similarity_BN = similarity_BN.scatter(1, own_B.unsqueeze(1), positive_B.unsqueeze(1))
    # The lowest finite value rather than -inf: a row without any candidate keeps a finite loss, and a zero gradient.
    logits_BN = (similarity_BN * scale).masked_fill(~allowed_BN, torch.finfo(similarity_BN.dtype).min)
    loss_B = torch.logsumexp(logits_BN, dim=1) - positive_B * scale
    return torch.where(counted_B, loss_B, 0).sum()


class Contrastive(nn.Module):
    """The loss over all pairs of the ring; owns the temperature where it is learned."""

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
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
        pairs = ring(len(latents.modalities))
        sums, counts = [], []
        for a, b in pairs:
            allowed_BN, counted_B = candidates(
                presence.local[a] & presence.local[b],
                presence.all[a] & presence.all[b],
                presence.group,
                presence.all_group,
            )
            arguments = (allowed_BN, counted_B, presence.offset, self.config.margin, scale)
            sums.append(directed_sum(z_MBP[a], z_MNP[b], *arguments) + directed_sum(z_MBP[b], z_MNP[a], *arguments))
            counts.append(counted_B.sum())
        count_pairs = distributed.all_sum(torch.stack(counts)).clamp(min=1)
        return (torch.stack(sums) / count_pairs).sum()
