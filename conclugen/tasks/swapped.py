"""Swapped prediction: each modality tells the prototypes that the row's other modality was assigned (SwAV).

With unit vectors z_m of the n rows where a pair of modalities (a, b) is present, K unit prototypes c_k, and q_m the
assignment of modality m over the global batch:

    L(a, b) = - 1/n  sum_i  q_a,i . log softmax(z_b,i . c / temperature) + q_b,i . log softmax(z_a,i . c / temperature)

Caron et al. 2020 (arXiv 2006.09882, equations 1 to 3 and 5), between modalities instead of views; the pairs form a ring
and are summed. The assignment is the matrix nearest to exp(z . c / epsilon) whose rows sum to 1 and whose columns have
equal sums: every prototype stands for as many rows, so it can't collapse. Sinkhorn's iterations find it (in logarithms,
so that no score is too large); each ends with the rows, and it is done once the columns' shares are within `tolerance`.
Assignments have no gradient. All ranks compute the same ones, from the scores of all of them.

Shape suffixes: M modalities, B rows of this rank, N rows of all ranks, P projection, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conclugen.fields import IDENTITY, SCHEDULABLE, finite, require
from conclugen.search_space import Range, Searched
from conclugen.tasks.base import Inputs, Run, Task, check_two_modalities, check_weight
from conclugen.tasks.contrastive import ring
from conclugen.tasks.deferred import distributed, functional, heads, torch

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.latents import Latents

_READ_EVERY = 50  # steps, where reading a value waits for a GPU


@dataclass(frozen=True)
class SwappedConfig:
    """Cross-entropy of each modality's prototypes against those that another modality of the row was assigned.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        prototypes: Number of prototypes K.
        temperature: What scores are divided by where they are predicted.
        epsilon: What they are divided by where they are assigned: the smaller, the harder the assignment.
        iterations: Iterations of Sinkhorn at most.
        tolerance: Share of the rows that may be assigned to the wrong prototypes for all to have equally many; a step
            in which more are, after all iterations, ends the run.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    prototypes: int = field(default=32, metadata=IDENTITY)
    temperature: float = field(default=0.1, metadata=IDENTITY)
    epsilon: float = field(default=0.05, metadata=IDENTITY)
    iterations: int = field(default=200, metadata=IDENTITY)
    tolerance: float = field(default=0.05, metadata=IDENTITY)

    def __post_init__(self) -> None:
        check_weight("swapped", self.weight)
        require(self.prototypes >= 2, "tasks.swapped.prototypes", self.prototypes, "2 or more")
        for name in ("temperature", "epsilon"):
            value = getattr(self, name)
            require(finite(value) and 0 < value <= 1, f"tasks.swapped.{name}", value, f"0 < {name} <= 1")
        require(self.iterations >= 1, "tasks.swapped.iterations", self.iterations, "1 or more")
        require(0 < self.tolerance < 1, "tasks.swapped.tolerance", self.tolerance, "0 < share < 1")


def sinkhorn(scores_NK: Tensor, valid_N: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """(N, K) float64 assignment: rows of valid rows sum to 1, columns to equal parts; and the share of rows that would
    have to move for the columns to be equal, 0-d. Other rows are 0. scores: already divided by epsilon."""
    lowest = torch.finfo(torch.float64).min / 4
    log_NK = scores_NK.double().masked_fill(~valid_N.unsqueeze(1), lowest)
    count, clusters = valid_N.sum().clamp(min=1), scores_NK.shape[1]
    q_NK = torch.zeros_like(log_NK)
    off = torch.ones((), dtype=torch.float64, device=log_NK.device)
    for _ in range(iterations):
        log_NK = log_NK - log_NK.logsumexp(0, keepdim=True)
        log_NK = log_NK.masked_fill(~valid_N.unsqueeze(1), lowest)
        log_NK = log_NK - log_NK.logsumexp(1, keepdim=True)
        q_NK = torch.where(valid_N.unsqueeze(1), log_NK.exp(), 0)
        off = (q_NK.sum(0) / count - 1 / clusters).abs().sum() / 2
        log_NK = log_NK.masked_fill(~valid_N.unsqueeze(1), lowest)
        if off.device.type == "cpu" and float(off) <= tolerance:
            break
    return q_NK, torch.where(valid_N.any(), off, 0)


class Swapped(Task):
    """The loss over all pairs of the ring; owns the prototypes."""

    name, title = "swapped", "swapped prediction of prototypes (SwAV)"
    Config = SwappedConfig
    order = 70
    searched = (
        Searched(
            "prototypes",
            "tasks.swapped.prototypes",
            (8, 32, 128, 512),
            (8, 16, 32),
            "K, where the swapped task is active.",
        ),
        Searched(
            "swapped_epsilon",
            "tasks.swapped.epsilon",
            Range(0.03, 0.2),
            Range(0.05, 0.2),
            "Softness of the assignment of the swapped task.",
        ),
    )
    tiny = {"prototypes": 3, "epsilon": 0.2}
    variants = {"hard": {"epsilon": 0.1, "temperature": 0.3}}

    @classmethod
    def inputs(cls, config: SwappedConfig, modalities: tuple[str, ...]) -> Inputs:
        check_two_modalities("swapped", modalities)
        return Inputs(projection=True, representation=False)

    @classmethod
    def flops(cls, config: SwappedConfig, run: Run, widths: Mapping[str, int]) -> int:
        return len(run.modalities) * 6 * run.global_batch * run.model.projection_dim * config.prototypes

    @classmethod
    def build(cls, config: SwappedConfig, run: Run, widths: Mapping[str, int]) -> Swapped:
        return cls(config, run.model.projection_dim)

    def __init__(self, config: SwappedConfig, projection_dim: int) -> None:
        super().__init__(config)
        self.prototypes = heads.Linear(projection_dim, config.prototypes, bias=False)
        self._off: Tensor | None = None
        self._worst: Tensor | None = None

    def metrics(self) -> dict[str, Tensor]:
        """The share of rows that the assignment has on the wrong prototypes."""
        return {} if self._off is None else {"swapped/unbalanced": self._off}

    def forward(self, latents: Latents) -> Tensor:
        assert latents.projections is not None
        config, presence = self.config, latents.presence
        z_MBP = functional.normalize(latents.projections, dim=2)
        scores_MBK = z_MBP @ functional.normalize(self.prototypes.weight, dim=1).T
        q_MBK = self._assigned(scores_MBK.detach(), presence.all, presence.offset, latents.step)
        log_MBK = (scores_MBK / config.temperature).log_softmax(2)
        shares = []
        for a, b in ring(len(latents.modalities)):
            both_B, count = presence.local[a] & presence.local[b], (presence.all[a] & presence.all[b]).sum()
            losses_B = -(q_MBK[a] * log_MBK[b] + q_MBK[b] * log_MBK[a]).sum(1)
            total = torch.where(both_B, losses_B, 0).sum()
            shares.append(torch.where(count >= 2, total / count.clamp(min=1), total * 0))
        return torch.stack(shares).sum()

    def _assigned(self, scores_MBK: Tensor, valid_MN: Tensor, offset: int, step: int) -> Tensor:
        """Assignment of this rank's rows in each modality (M, B, K). Raises ValueError where it is out of balance."""
        scores_MNK = distributed.gather(scores_MBK.transpose(0, 1)).transpose(0, 1) / self.config.epsilon
        found = [
            sinkhorn(scores_NK, valid_N, self.config.iterations, self.config.tolerance)
            for scores_NK, valid_N in zip(scores_MNK, valid_MN, strict=True)
        ]
        off = torch.stack([off for _, off in found]).max()
        self._off = off
        self._worst = off if self._worst is None else torch.maximum(self._worst, off)
        if off.device.type == "cpu" or step % _READ_EVERY == _READ_EVERY - 1:
            self._check(float(self._worst))
        q_MNK = torch.stack([q_NK for q_NK, _ in found]).to(scores_MBK.dtype)
        return q_MNK[:, offset : offset + scores_MBK.shape[1]]

    def _check(self, off: float) -> None:
        config = self.config
        if off > config.tolerance:
            raise ValueError(
                f"tasks.swapped: after {config.iterations} iterations Sinkhorn's assignment has {off:.0%} of the rows "
                f"on the wrong prototypes, more than tolerance={config.tolerance:g}; raise epsilon "
                f"({config.epsilon:g}) or iterations, or lower prototypes ({config.prototypes})"
            )
