"""Multi-modal reconstruction: mean squared error to the frozen feature, summed over modalities.

    L = sum_m  1 / (n_m D_m)  sum over present rows of | decoder_m(r) - x_m |^2            (arXiv 2404.10904, equation
    4)

with r the representation of m itself or, `cross_modal`, of each other modality of the row in turn: then the mean over
the other modalities s of the same error over rows where s and m are both present.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from conclugen.fields import IDENTITY, SCHEDULABLE, choose, finite, require
from conclugen.heads import ACTIVATIONS, Decoder
from conclugen.latents import Latents


@dataclass(frozen=True)
class ReconstructionConfig:
    """weight: in the mean over tasks. output_activation: "relu" (published; can't reach negative targets) or "none".
    cross_modal: decode each modality from the others instead of from itself."""

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    output_activation: str = field(default="relu", metadata=IDENTITY)
    cross_modal: bool = field(default=False, metadata=IDENTITY)

    def __post_init__(self) -> None:
        require(finite(self.weight) and self.weight > 0, "tasks.reconstruction.weight", self.weight, "a number above 0")
        choose("tasks.reconstruction.output_activation", self.output_activation, ACTIVATIONS)


def squared_error_sum(prediction_BD: Tensor, target_BD: Tensor, valid_B: Tensor) -> Tensor:
    """Sum over valid rows of the squared error's mean over features."""
    return torch.where(valid_B, (prediction_BD - target_BD).square().mean(1), 0).sum()


class Reconstruction(nn.Module):
    """One decoder for each modality."""

    def __init__(
        self, config: ReconstructionConfig, widths: dict[str, int], representation_dim: int, hidden_dim: int
    ) -> None:
        super().__init__()
        self.config = config
        self.decoders = nn.ModuleDict(
            {m: Decoder(representation_dim, hidden_dim, width, config.output_activation) for m, width in widths.items()}
        )

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
                    error = squared_error_sum(prediction.to(truth.dtype), truth, valid_B)
                    shares.append(error / (count * len(sources)))
        return torch.stack(shares).sum()
