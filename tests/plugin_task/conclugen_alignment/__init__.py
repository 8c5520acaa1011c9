"""Alignment of modalities: the mean squared distance of matching unit vectors.

    L = sum over pairs (a, b) of the ring  1/n  sum_i | z_a,i - z_b,i |^2

Wang & Isola 2020 (arXiv 2005.10242, equation 4, alpha = 2). By itself it collapses; it is meant beside another task.
It imports torch at the top, as any module may, and counts its steps, to show state that outlives a restart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from conclugen.fields import SCHEDULABLE
from conclugen.latents import Latents
from conclugen.tasks import Inputs, Range, Searched, Task, check_two_modalities, check_weight


@dataclass(frozen=True)
class AlignmentConfig:
    """Distance of matching rows.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        power: Exponent alpha of the distance.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    power: float = field(default=2.0, metadata={"kind": "identity"})

    def __post_init__(self) -> None:
        check_weight("alignment", self.weight)
        if not 1 <= self.power <= 4:
            raise ValueError(f"tasks.alignment.power: found {self.power}, expected 1 to 4")


class Alignment(Task):
    """The distance over all pairs of the ring."""

    name, title = "alignment", "alignment of modalities"
    Config = AlignmentConfig
    searched = (
        Searched(
            "alignment_power",
            "tasks.alignment.power",
            Range(1.0, 3.0, log=False),
            Range(1.0, 3.0, log=False),
            "Exponent of the alignment task's distance.",
        ),
    )
    variants: Mapping[str, Mapping[str, Any]] = {"cubed": {"power": 3.0}}

    @classmethod
    def inputs(cls, config: AlignmentConfig, modalities: tuple[str, ...]) -> Inputs:
        check_two_modalities("alignment", modalities)
        return Inputs(projection=True, representation=False)

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__(config)
        self.steps = 0

    def forward(self, latents: Latents) -> Tensor:
        assert latents.projections is not None
        self.steps += 1
        z_MBP, presence = functional.normalize(latents.projections, dim=2), latents.presence
        shares = []
        for a in range(1 if len(z_MBP) == 2 else len(z_MBP)):
            b = (a + 1) % len(z_MBP)
            both_B, both_N = presence.local[a] & presence.local[b], presence.all[a] & presence.all[b]
            # Away from 0, where the root has no slope.
            distance_B = ((z_MBP[a] - z_MBP[b]).square().sum(1) + 1e-12) ** (self.config.power / 2)
            shares.append(torch.where(both_B, distance_B, 0).sum() / both_N.sum().clamp(min=1))
        return torch.stack(shares).sum()

    def metrics(self) -> dict[str, Tensor]:
        return {"alignment/steps": torch.tensor(float(self.steps))}

    def saved(self) -> dict[str, int]:
        return {"steps": self.steps}

    def check_saved(self, saved: Any) -> None:
        if not isinstance(saved, Mapping) or type(saved.get("steps")) is not int:
            raise ValueError(f"saved state: alignment is {saved!r}, expected steps (a number)")

    def restore(self, saved: Any) -> None:
        self.steps = saved["steps"]
