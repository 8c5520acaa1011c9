"""Multi-modal reconstruction: mean squared error to the frozen feature, summed over modalities.

    L = sum_m  1 / (n_m D_m)  sum over present rows of | decoder_m(r) - x_m |^2            (arXiv 2404.10904, equation
    4)

with r the representation of m itself or, `cross_modal`, of each other modality of the row in turn: then the mean over
the other modalities s of the same error over rows where s and m are both present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conclugen.fields import IDENTITY, SCHEDULABLE, choose, require
from conclugen.model_config import ACTIVATIONS
from conclugen.search_space import Searched
from conclugen.tasks.base import Inputs, Run, Task, check_weight
from conclugen.tasks.deferred import heads, nn, torch

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.latents import Latents

_ALL = ("video", "audio", "text")


@dataclass(frozen=True)
class ReconstructionConfig:
    """Squared error of each modality's frozen feature, decoded from a representation.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        output_activation: What ends the decoders: "relu" (published; can't reach negative targets) or "none".
        cross_modal: Decode each modality from the others instead of from itself.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    output_activation: str = field(default="relu", metadata=IDENTITY)
    cross_modal: bool = field(default=False, metadata=IDENTITY)

    def __post_init__(self) -> None:
        check_weight("reconstruction", self.weight)
        choose("tasks.reconstruction.output_activation", self.output_activation, ACTIVATIONS)


def squared_errors(prediction_BD: Tensor, target_BD: Tensor, valid_B: Tensor) -> Tensor:
    """Squared error's mean over features, (B,); 0 in rows that are not valid."""
    return torch.where(valid_B, (prediction_BD - target_BD).square().mean(1), 0)


class Reconstruction(Task):
    """One decoder for each modality."""

    name, title = "reconstruction", "multi-modal reconstruction of the frozen features"
    Config = ReconstructionConfig
    order = 30
    row_wise = True
    lower_precision = True
    absent_as_null = True
    recipes = {"improved": ReconstructionConfig(output_activation="none")}
    presets = {"conclugen": _ALL, "contrast_generative": _ALL, "generative_only": _ALL}
    searched = (
        Searched(
            "reconstruction_hidden_dim",
            "model.reconstruction_hidden_dim",
            (512, 768, 1024, 1536),
            (64, 128, 256),
            "H, where the reconstruction task is active.",
            ablation=512,
        ),
    )
    variants = {"cross-modal": {"cross_modal": True, "output_activation": "none"}}

    @classmethod
    def inputs(cls, config: ReconstructionConfig, modalities: tuple[str, ...]) -> Inputs:
        enough = len(modalities) >= 2 or not config.cross_modal
        remedy = "two or more: reconstruction.cross_modal decodes one from another"
        require(enough, "modalities", modalities, remedy)
        return Inputs()

    @classmethod
    def flops(cls, config: ReconstructionConfig, run: Run, widths: Mapping[str, int]) -> int:
        R, H = run.model.representation_dim, run.model.reconstruction_hidden_dim
        decoded = len(run.modalities) - 1 if config.cross_modal else 1
        return run.global_batch * decoded * sum(6 * (R * H + H * widths[m]) for m in run.modalities)

    @classmethod
    def build(cls, config: ReconstructionConfig, run: Run, widths: Mapping[str, int]) -> Reconstruction:
        decoded = {m: widths[m] for m in run.modalities}
        return cls(config, decoded, run.model.representation_dim, run.model.reconstruction_hidden_dim)

    def __init__(
        self, config: ReconstructionConfig, widths: Mapping[str, int], representation_dim: int, hidden_dim: int
    ) -> None:
        super().__init__(config)
        activation = config.output_activation
        decoders = {m: heads.Decoder(representation_dim, hidden_dim, width, activation) for m, width in widths.items()}
        self.decoders = nn.ModuleDict(decoders)

    def compile_regions(self, options: Mapping[str, Any]) -> None:
        self.corpora = 0  # rows are noted outside of what is compiled alone
        self.compile(**options)

    def forward(self, latents: Latents) -> Tensor:
        modalities, presence = latents.modalities, latents.presence
        shares = []
        for t, target in enumerate(modalities):
            sources = [s for s in range(len(modalities)) if s != t] if self.config.cross_modal else [t]
            for s in sources:
                prediction = self.decoders[target](latents.representations[modalities[s]])
                with torch.autocast(prediction.device.type, enabled=False):
                    truth = latents.targets[target]
                    valid_B = presence.local[s] & presence.local[t]
                    count = (presence.all[s] & presence.all[t]).sum().clamp(min=1)
                    error_B = squared_errors(prediction.to(truth.dtype), truth, valid_B)
                    self.note(f"{s}-{t}", error_B / len(sources), valid_B, presence)
                    shares.append(error_B.sum() / (count * len(sources)))
        return torch.stack(shares).sum()
