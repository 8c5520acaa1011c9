"""Cross-modal masked prediction: what is hidden of one modality, told from the rest of it and from the others.

A share `mask` of each modality's standardised features is set to 0 for the heads. With h_i,m the features of row i that
are hidden, r the representations of what is left, side by side (0 for a modality that the row lacks), D_m the width and
n_m the rows that have m:

    L = sum_m  1 / (n_m mask D_m)  sum_i  sum over j in h_i,m of (decoder_m(r_i) - x_i,m)_j^2

The masked prediction of BERT (Devlin et al. 2019, arXiv 1810.04805) on features, with the other modalities beside, as
in VATLM and M3AE (Geng et al. 2022, arXiv 2205.14204). What only one modality knows must come from its own rest, what
several know from any of them.

Shape suffixes: B rows of this rank, D feature width, R representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conclugen.fields import IDENTITY, SCHEDULABLE, require
from conclugen.search_space import Range, Searched
from conclugen.tasks.base import Inputs, Run, Task, View, check_two_modalities, check_weight
from conclugen.tasks.deferred import heads, nn, random, torch

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.latents import Latents


@dataclass(frozen=True)
class MaskedPredictionConfig:
    """Squared error of hidden features, decoded from the rest of the modality and the other modalities.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        mask: Share of each modality's features that is hidden, drawn for each row and step.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    mask: float = field(default=0.5, metadata=IDENTITY)

    def __post_init__(self) -> None:
        check_weight("masked_prediction", self.weight)
        require(0 < self.mask < 1, "tasks.masked_prediction.mask", self.mask, "0 < share < 1")


def _view(modality: str) -> str:
    return f"masked {modality}"


class MaskedPrediction(Task):
    """One decoder for each modality, which reads all representations of a row."""

    name, title = "masked_prediction", "cross-modal masked prediction"
    Config = MaskedPredictionConfig
    order = 80
    row_wise = True
    lower_precision = True
    searched = (
        Searched(
            "masked_share",
            "tasks.masked_prediction.mask",
            Range(0.15, 0.85, log=False),
            Range(0.3, 0.7, log=False),
            "Share of the features that the masked_prediction task hides.",
        ),
    )
    variants = {"little hidden": {"mask": 0.2}}

    @classmethod
    def inputs(cls, config: MaskedPredictionConfig, modalities: tuple[str, ...]) -> Inputs:
        check_two_modalities("masked_prediction", modalities)
        views = tuple(View(_view(m), m, m, config.mask, _view(m)) for m in modalities)
        return Inputs(views, masked_by="mask")

    @classmethod
    def flops(cls, config: MaskedPredictionConfig, run: Run, widths: Mapping[str, int]) -> int:
        R, H = run.model.representation_dim, run.model.reconstruction_hidden_dim
        return run.global_batch * sum(6 * (len(run.modalities) * R * H + H * widths[m]) for m in run.modalities)

    @classmethod
    def build(cls, config: MaskedPredictionConfig, run: Run, widths: Mapping[str, int]) -> MaskedPrediction:
        return cls(config, {m: widths[m] for m in run.modalities}, run)

    def __init__(self, config: MaskedPredictionConfig, widths: Mapping[str, int], run: Run) -> None:
        super().__init__(config)
        self.seed = run.seed
        read = len(widths) * run.model.representation_dim
        hidden = run.model.reconstruction_hidden_dim
        self.decoders = nn.ModuleDict({m: heads.Decoder(read, hidden, width, "none") for m, width in widths.items()})

    def compile_regions(self, options: Mapping[str, Any]) -> None:
        for decoder in self.decoders.values():
            decoder.compile(**options)

    def forward(self, latents: Latents) -> Tensor:
        presence = latents.presence
        there = [
            torch.where(presence.local[m].unsqueeze(1), latents.representations[view], 0)
            for m, view in enumerate(latents.modalities)
        ]
        row_BR = torch.cat(there, dim=1)
        shares = []
        for m, (modality, decoder) in enumerate(self.decoders.items()):
            view = _view(modality)
            prediction_BD = decoder(row_BR)
            with torch.autocast(prediction_BD.device.type, enabled=False):
                target_BD = latents.targets[view]
                # The same draws as those that hid the features from the heads.
                draws = random.uniform(
                    self.seed, view, latents.step, presence.row, target_BD.shape[1], dtype=torch.float32
                )
                hidden_BD = (draws < self.config.mask) & presence.local[m].unsqueeze(1)
                error_BD = (prediction_BD.to(target_BD.dtype) - target_BD).square()
                of_row = torch.where(hidden_BD, error_BD, 0).sum() / (self.config.mask * target_BD.shape[1])
                shares.append(of_row / presence.all[m].sum().clamp(min=1))
        return torch.stack(shares).sum()
