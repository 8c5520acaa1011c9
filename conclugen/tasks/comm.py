"""Contrast of the row as a whole: one representation of all modalities, against itself and against each of them (CoMM).

With z' and z'' the representations of two corruptions of a row, fused from all of its modalities, z'_m and z''_m those
of modality m alone, and N(a, b) the NT-Xent loss between two sets of n rows (`conclugen.tasks.simclr`):

    L = 1/(M + 1)  [ N(z', z'')  +  sum_m  1/2 (N(z'_m, z'') + N(z''_m, z')) ]

Dufumier et al. 2025 (arXiv 2409.07402, equations 6 and 7), as a mean and over corrupted modalities, as in the authors'
code. The first term asks for all that two corruptions of a row share: what modalities have in common, what one alone
has, and what only their combination tells. Contrast between modalities asks for the first alone.

The fusion is f(r) = W2 relu(W1 [r_1; ...; r_M]), a modality that is missing or left out being 0 (published: a
transformer over tokens; here each modality is one vector), behind which the projection is the model's kind. A
corruption masks a share of each modality's features and puts those of another row of the same speaker in their place:
so no corruption can be recognised by its speaker (published: augmented inputs; marginal draws after SCARF, Bahri
et al. 2022, arXiv 2106.15147). `negatives` of the same group are ours as well.

Shape suffixes: B rows of this rank, N rows of all ranks, M modalities, S sets of rows, R representation, P projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conclugen.fields import FREE, IDENTITY, SCHEDULABLE, choose, require
from conclugen.search_space import Range, Searched
from conclugen.tasks.base import Inputs, Run, Task, View, check_block_rows, check_two_modalities, check_weight
from conclugen.tasks.contrastive import NEGATIVES, comparisons
from conclugen.tasks.deferred import blockwise, distributed, functional, heads, torch
from conclugen.tasks.simclr import nt_xent_sum

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.latents import Latents

CORRUPTIONS = ("same_group", "all", "zeros")
_VIEWS = (1, 2)


@dataclass(frozen=True)
class CommConfig:
    """NT-Xent between two corruptions of a row as a whole, and between each modality and the whole.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        mask: Share of each modality's features that a corruption changes, drawn for each row and step.
        corruption: What they become: those of another row of the "same_group" (a speaker), of a row of "all", or
            "zeros".
        temperature: What similarities are divided by.
        negatives: "all" rows, or those of the "same_group".
        block_rows: Rows whose similarities are in memory at a time; None: all up to 4,096 rows, then as many as have
            2^24. Like the number of workers it changes rounding only.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    mask: float = field(default=0.3, metadata=IDENTITY)
    corruption: str = field(default="same_group", metadata=IDENTITY)
    temperature: float = field(default=0.1, metadata=IDENTITY)
    negatives: str = field(default="all", metadata=IDENTITY)
    block_rows: int | None = field(default=None, metadata=FREE)

    def __post_init__(self) -> None:
        check_weight("comm", self.weight)
        require(0 < self.mask < 1, "tasks.comm.mask", self.mask, "0 < share < 1")
        choose("tasks.comm.corruption", self.corruption, CORRUPTIONS)
        require(0 < self.temperature <= 1, "tasks.comm.temperature", self.temperature, "0 < temperature <= 1")
        choose("tasks.comm.negatives", self.negatives, NEGATIVES)
        check_block_rows("comm", self.block_rows)


class Comm(Task):
    """The loss over all sets; owns the fusion and its projection."""

    name, title = "comm", "contrast of the row as a whole (CoMM)"
    Config = CommConfig
    order = 90
    similarities = True
    lower_precision = True
    negatives = "any"
    recipes = {"improved": CommConfig(negatives="same_group")}
    searched = (
        Searched(
            "comm_mask",
            "tasks.comm.mask",
            Range(0.1, 0.7, log=False),
            Range(0.2, 0.6, log=False),
            "Share of the features that the comm task corrupts.",
        ),
        Searched(
            "comm_temperature",
            "tasks.comm.temperature",
            Range(0.05, 0.5),
            Range(0.05, 0.5),
            "Temperature of the comm task.",
        ),
    )
    variants = {"any row, blocks of two": {"corruption": "all", "block_rows": 2}, "zeros": {"corruption": "zeros"}}

    @classmethod
    def inputs(cls, config: CommConfig, modalities: tuple[str, ...]) -> Inputs:
        check_two_modalities("comm", modalities)
        swap = "" if config.corruption == "zeros" else config.corruption
        names = [(m, f"comm {m} {number}") for number in _VIEWS for m in modalities]
        views = tuple(View(name, m, m, config.mask, name, swap) for m, name in names)
        within = config.corruption == "same_group"
        return Inputs(views, groups=config.negatives == "same_group", needs_groups=within, masked_by="mask")

    @classmethod
    def flops(cls, config: CommConfig, run: Run, widths: Mapping[str, int]) -> int:
        R, P, M, rows = run.model.representation_dim, run.model.projection_dim, len(run.modalities), run.global_batch
        hidden = max(1, R // run.model.projection_shrink)
        fused = 2 * (M + 1) * rows * 6 * ((M + 1) * R * R + R * hidden + hidden * P)
        return fused + (2 * M + 1) * 3 * 6 * rows**2 * P

    @classmethod
    def build(cls, config: CommConfig, run: Run, widths: Mapping[str, int]) -> Comm:
        return cls(config, run)

    def __init__(self, config: CommConfig, run: Run) -> None:
        super().__init__(config)
        R, self.modalities = run.model.representation_dim, run.modalities
        self.mix = heads.Linear(len(run.modalities) * R, R)
        # Without a bias: batch norm behind it takes any constant away again (`conclugen.layers.heads.Projection`).
        self.fuse = heads.Linear(R, R, bias=False)
        self.projection = heads.Projection(run.model)
        self.sweep = blockwise.Sweep(config.block_rows, run.precision == "bfloat16")

    def compile_regions(self, options: Mapping[str, Any]) -> None:
        self.sweep = replace(self.sweep, compiled=True)

    def joint(self, representations: Mapping[str, Tensor], present_MB: Tensor) -> Tensor:
        r_MBR = torch.stack([representations[m] for m in self.modalities])
        return self._fused(r_MBR, present_MB)

    def _fused(self, r_MBR: Tensor, present_MB: Tensor) -> Tensor:
        there_MBR = torch.where(present_MB.unsqueeze(2), r_MBR, 0)
        z: Tensor = self.fuse(functional.relu(self.mix(torch.cat(list(there_MBR), dim=1))))
        return z

    def forward(self, latents: Latents) -> Tensor:
        presence, count = latents.presence, len(self.modalities)
        local_MB, all_MN = presence.local[:count], presence.all[:count]
        alone_MM = torch.eye(count, dtype=torch.bool, device=local_MB.device)
        # Of either corruption the whole row first, then each modality alone.
        shown_SMB = torch.cat([local_MB.unsqueeze(0), local_MB & alone_MM.unsqueeze(2)])
        here_SB, here_SN = (torch.cat([mask.any(0, keepdim=True), mask]) for mask in (local_MB, all_MN))
        fused = []
        for names in (latents.modalities[:count], latents.modalities[count:]):
            r_MBR = torch.stack([latents.representations[name] for name in names])
            fused += [self._fused(r_MBR, shown_MB) for shown_MB in shown_SMB]
        z_SBP = self.projection(torch.stack(fused), torch.cat([here_SB, here_SB]))
        with torch.autocast(z_SBP.device.type, enabled=False):
            z_SBP = functional.normalize(z_SBP.to(self.projection.output.weight.dtype), dim=2)
            z_SNP = distributed.gather(z_SBP.transpose(0, 1)).transpose(0, 1)
            shares = [self._between(z_SBP, z_SNP, (0, count + 1), here_SB[0], here_SN[0], latents)]
            for m in range(1, count + 1):
                pairs = (m, count + 1), (count + 1 + m, 0)
                both = [self._between(z_SBP, z_SNP, pair, here_SB[m], here_SN[m], latents) for pair in pairs]
                shares.append(torch.stack(both).mean())
            return torch.stack(shares).mean()

    def _between(
        self,
        z_SBP: Tensor,
        z_SNP: Tensor,
        pair: tuple[int, int],
        here_B: Tensor,
        here_N: Tensor,
        latents: Latents,
    ) -> Tensor:
        """This rank's share of NT-Xent between two sets, over the rows that have the smaller of them."""
        presence = latents.presence
        group_N = presence.all_group if self.config.negatives == "same_group" else None
        compared, counted_N = comparisons(here_B, here_N, presence.offset, group_N)
        total = nt_xent_sum(z_SBP[list(pair)], z_SNP[list(pair)], compared, self.config.temperature, self.sweep)
        return total / (2 * counted_N.sum().clamp(min=1))
