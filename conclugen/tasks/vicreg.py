"""Variance, invariance and covariance of the modalities' projections: collapse is barred without negatives (VICReg).

With z_m the projections of modality m over its n_m present rows of the global batch, (a, b) the pairs of the ring, C_m
the covariance matrix (over n_m - 1) of z_m, and P its width:

    L =   invariance  sum_(a,b)  1 / (n_ab P)  sum_i | z_a,i - z_b,i |^2
        + variance    sum_m      1 / P  sum_j  max(0, 1 - sqrt(C_m,jj + 1e-4))
        + covariance  sum_m      1 / P  sum_(j != k)  C_m,jk^2

Bardes, Ponce & LeCun 2022 (arXiv 2105.04906, equations 1 to 6), between modalities instead of views; the squared
distance is a mean over features, as in the authors' code, with which the published factors 25, 25 and 1 go.
Means and covariances are those of the global batch: sums over ranks with their gradient, of P^2 numbers a modality.

Shape suffixes: M modalities, B rows of this rank, P projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conclugen.fields import IDENTITY, SCHEDULABLE, finite, require
from conclugen.search_space import Range, Searched
from conclugen.tasks.base import Inputs, Run, Task, check_two_modalities, check_weight
from conclugen.tasks.deferred import distributed, functional, torch

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.latents import Latents

_SMALLEST_VARIANCE = 1e-4  # under the root, whose slope has no bound at 0


@dataclass(frozen=True)
class VicregConfig:
    """Factors of the three terms.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        invariance: Factor of the distance between a row's modalities.
        variance: Factor of what the features' standard deviations lack to 1.
        covariance: Factor of the squared covariances between features.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    invariance: float = field(default=25.0, metadata=IDENTITY)
    variance: float = field(default=25.0, metadata=IDENTITY)
    covariance: float = field(default=1.0, metadata=IDENTITY)

    def __post_init__(self) -> None:
        check_weight("vicreg", self.weight)
        for name in ("invariance", "variance", "covariance"):
            value = getattr(self, name)
            require(finite(value) and value >= 0, f"tasks.vicreg.{name}", value, "a number of 0 or more")
        if self.variance == 0:
            require(self.invariance == 0, "tasks.vicreg.variance", 0, "a number above 0: invariance alone collapses")


def global_covariance(z_MBP: Tensor, present_MB: Tensor, count_M: Tensor) -> Tensor:
    """Covariance (M, P, P) of each modality over its present rows of all ranks; 0 where there are fewer than two."""
    mask_MB1 = present_MB.unsqueeze(2)
    mean_MP = distributed.total(torch.where(mask_MB1, z_MBP, 0).sum(1)) / count_M.clamp(min=1).unsqueeze(1)
    centred_MBP = torch.where(mask_MB1, z_MBP - mean_MP.unsqueeze(1), 0)
    sum_MPP = distributed.total(centred_MBP.transpose(1, 2) @ centred_MBP)
    return sum_MPP / (count_M - 1).clamp(min=1).view(-1, 1, 1)


class Vicreg(Task):
    """The three terms over all modalities; nothing of its own is learned."""

    name, title = "vicreg", "variance, invariance and covariance of modalities (VICReg)"
    Config = VicregConfig
    order = 60
    weights = (Range(1e-4, 1.1), Range(0.01, 0.5))
    searched = (
        Searched(
            "vicreg_covariance",
            "tasks.vicreg.covariance",
            Range(0.1, 10.0),
            Range(0.1, 10.0),
            "Factor of the covariance term of the vicreg task.",
        ),
    )
    variants = {"covariance alone": {"invariance": 0.0, "variance": 0.0}, "strong covariance": {"covariance": 25.0}}

    @classmethod
    def inputs(cls, config: VicregConfig, modalities: tuple[str, ...]) -> Inputs:
        check_two_modalities("vicreg", modalities)
        return Inputs(projection=True, representation=False)

    @classmethod
    def flops(cls, config: VicregConfig, run: Run, widths: Mapping[str, int]) -> int:
        return len(run.modalities) * 6 * run.global_batch * run.model.projection_dim**2

    def forward(self, latents: Latents) -> Tensor:
        assert latents.projections is not None
        config, presence, z_MBP = self.config, latents.presence, latents.projections
        modalities, width = z_MBP.shape[0], z_MBP.shape[2]
        count_M = presence.all.sum(1)
        covariance_MPP = global_covariance(z_MBP, presence.local, count_M)
        variance_MP = covariance_MPP.diagonal(dim1=1, dim2=2)
        lacking_M = functional.relu(1 - (variance_MP + _SMALLEST_VARIANCE).sqrt()).mean(1)
        crossed_M = (covariance_MPP.square().sum((1, 2)) - variance_MP.square().sum(1)) / width
        statistics_M = config.variance * lacking_M + config.covariance * crossed_M
        # The same on every rank, hence a part of it each; a modality in fewer than two rows has no statistics.
        shares = [torch.where(count_M >= 2, statistics_M, statistics_M * 0).sum() / distributed.world_size()]
        for a in range(1 if modalities == 2 else modalities):
            b = (a + 1) % modalities
            both_B, both_N = presence.local[a] & presence.local[b], presence.all[a] & presence.all[b]
            distance_B = (z_MBP[a] - z_MBP[b]).square().mean(1)
            shares.append(config.invariance * torch.where(both_B, distance_B, 0).sum() / both_N.sum().clamp(min=1))
        return torch.stack(shares).sum()
