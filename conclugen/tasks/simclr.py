"""NT-Xent over two augmented views of one modality (Chen et al. 2020, arXiv 2002.05709, equation 1).

    L = - 1/2n  sum over the 2n views i of  log softmax over k != i of (z_i . z_k / tau), at i's other view

Shape suffixes: B rows of this rank, N rows of all ranks, P projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conclugen.fields import FREE, IDENTITY, SCHEDULABLE, choose, require
from conclugen.tasks.base import Inputs, Run, Task, View, check_block_rows, check_weight
from conclugen.tasks.deferred import blockwise, distributed, functional, torch

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.blockwise import Compared, Sweep
    from conclugen.latents import Latents


@dataclass(frozen=True)
class SimclrConfig:
    """NT-Xent of two views of one modality.

    Without a stored second view both are made by masking features: this project's own deviation, for data without one;
    the paper's views are augmented clips.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        modality: Whose views are compared.
        second_view: The batch's modality that holds the other view; None: both views are made by masking.
        mask: Probability with which each feature of a made view is set to 0, drawn from (seed, step, row); a stored
            second view leaves it without effect.
        temperature: What similarities are divided by.
        block_rows: Rows whose similarities are in memory at a time; None: all up to 4,096 rows, then as many as suit
            the device (2^24 scores on a CPU). Like the number of workers it changes rounding only.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    modality: str = field(default="video_3d", metadata=IDENTITY)
    second_view: str | None = field(default=None, metadata=IDENTITY)
    mask: float = field(default=0.3, metadata=IDENTITY)
    temperature: float = field(default=0.07, metadata=IDENTITY)
    block_rows: int | None = field(default=None, metadata=FREE)

    def __post_init__(self) -> None:
        check_weight("simclr", self.weight)
        require(0 < self.mask < 1, "tasks.simclr.mask", self.mask, "0 < share < 1")
        require(0 < self.temperature <= 1, "tasks.simclr.temperature", self.temperature, "0 < temperature <= 1")
        differs = self.second_view != self.modality
        check_block_rows("simclr", self.block_rows)
        require(differs, "tasks.simclr.second_view", self.second_view, f"a view other than {self.modality!r}")


def nt_xent_sum(
    z_2BP: Tensor, z_2NP: Tensor, compared: Compared, temperature: float, sweep: Sweep | None = None
) -> Tensor:
    """Sum over both views of valid rows of the cross-entropy. Unit vectors; z_2BP: this rank's, z_2NP: all ranks'.

    The negatives of a view are the other rows in the other view (the rows, or columns, of one matrix) and in its own.
    """
    scale = 1 / temperature
    others = blockwise.log_sums(z_2BP[0], z_2NP[1], scale, compared, sweep)
    positive_B = (z_2BP[0] * z_2BP[1]).sum(1) * scale
    losses = []
    for view, other_B in enumerate(others):
        own_B = blockwise.row_log_sums(z_2BP[view], z_2NP[view], scale, compared, sweep)
        losses.append(blockwise.softplus(torch.logaddexp(other_B, own_B) - positive_B))
    return torch.where(compared.valid, losses[0] + losses[1], 0).sum()


class Simclr(Task):
    """The loss over the rows that have both views."""

    name, title = "simclr", "contrast of two views of one modality (SimCLR)"
    Config = SimclrConfig
    order = 40
    similarities = True
    negatives = "any"
    absent_as_null = True
    presets = {"simclr": ("video_3d",)}
    variants = {"blocks of two rows": {"block_rows": 2}}

    @classmethod
    def inputs(cls, config: SimclrConfig, modalities: tuple[str, ...]) -> Inputs:
        choose("tasks.simclr.modality", config.modality, modalities)
        names = ("simclr view 1", "simclr view 2")
        if config.second_view is None:
            views = tuple(View(name, config.modality, config.modality, config.mask, name) for name in names)
        else:
            sources = (config.modality, config.second_view)
            views = tuple(View(name, config.modality, source) for name, source in zip(names, sources, strict=True))
        return Inputs(views, together=True, projection=True, representation=False, masked_by="mask")

    @classmethod
    def adapted(cls, config: SimclrConfig, modalities: tuple[str, ...]) -> SimclrConfig:
        """Views of the first modality that is learned."""
        return replace(config, modality=modalities[0]) if modalities else config

    @classmethod
    def without_training_views(cls, config: SimclrConfig) -> SimclrConfig:
        """A second view is what training compares with; labelled shards need not have it."""
        return replace(config, second_view=None)

    @classmethod
    def flops(cls, config: SimclrConfig, run: Run, widths: Mapping[str, int]) -> int:
        return 3 * 6 * run.global_batch**2 * run.model.projection_dim

    @classmethod
    def build(cls, config: SimclrConfig, run: Run, widths: Mapping[str, int]) -> Simclr:
        return cls(config, tf32=run.precision == "bfloat16")

    def __init__(self, config: SimclrConfig, tf32: bool = False) -> None:
        """tf32: similarities on a GPU are multiplied out in TensorFloat-32."""
        super().__init__(config)
        self.sweep = blockwise.Sweep(config.block_rows, tf32)

    def compile_regions(self, options: Mapping[str, Any]) -> None:
        self.sweep = replace(self.sweep, compiled=True)

    def forward(self, latents: Latents) -> Tensor:
        assert latents.projections is not None
        presence = latents.presence
        z_2BP = functional.normalize(latents.projections, dim=2)
        z_2NP = distributed.gather(z_2BP.transpose(0, 1)).transpose(0, 1)
        valid_N = presence.all[0]  # of both views: they count together
        compared = blockwise.Compared(presence.local[0], valid_N, presence.offset)
        count = 2 * valid_N.sum().clamp(min=1)
        return nt_xent_sum(z_2BP, z_2NP, compared, self.config.temperature, self.sweep) / count
