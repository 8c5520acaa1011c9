"""Heads between frozen features and losses: gated unit, representation head, shared projection, decoder.

Shape suffixes: B rows, M modalities, D feature width, R representation, P projection, H hidden.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen import random
from conclugen.batch_norm import ModalityBatchNorm
from conclugen.fields import IDENTITY, choose, require

ACTIVATIONS = ("relu", "none")
INITIALISATIONS = ("uniform", "orthogonal")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and formulae of the heads; the defaults are the published formulae.

    representation_dim R, projection_dim P, reconstruction_hidden_dim H: widths.
    own_width_modalities: of the modalities learned, those whose gated unit keeps the feature width; a linear map then
    leads to R.
    representation_activation, projection_activation: what ends the gated unit and the projection, "relu" or "none".
    projection_shrink: the projection's hidden width is R over this.
    initialisation: of the gated units' outer maps: "uniform" (torch's default), or "orthogonal", which keeps distances
    between inputs and so begins from a representation that has lost little of them.
    standardize: features are standardised by buffers fitted on the training rows, then cut to +-input_clip.
    feature_mask: share of input features set to 0 during training, drawn for each row and step; not of simclr's views.
    Sizes of a projection or a decoder have no effect where no active task has one.
    """

    representation_dim: int = field(default=4096, metadata=IDENTITY)
    projection_dim: int = field(default=512, metadata=IDENTITY)
    reconstruction_hidden_dim: int = field(default=1024, metadata=IDENTITY)
    own_width_modalities: tuple[str, ...] = field(default=("audio",), metadata=IDENTITY)
    representation_activation: str = field(default="relu", metadata=IDENTITY)
    projection_activation: str = field(default="relu", metadata=IDENTITY)
    initialisation: str = field(default="uniform", metadata=IDENTITY)
    projection_shrink: int = field(default=8, metadata=IDENTITY)
    standardize: bool = field(default=False, metadata=IDENTITY)
    input_clip: float = field(default=8.0, metadata=IDENTITY)
    feature_mask: float = field(default=0.0, metadata=IDENTITY)

    def __post_init__(self) -> None:
        for name in ("representation_dim", "projection_dim", "reconstruction_hidden_dim", "projection_shrink"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "1 or more")
        choose("model.representation_activation", self.representation_activation, ACTIVATIONS)
        choose("model.projection_activation", self.projection_activation, ACTIVATIONS)
        choose("model.initialisation", self.initialisation, INITIALISATIONS)
        require(self.input_clip > 0, "model.input_clip", self.input_clip, "a number above 0")
        require(0 <= self.feature_mask < 1, "model.feature_mask", self.feature_mask, "0 <= share < 1")


class Linear(nn.Linear):
    """A linear map whose values come from `initialise`, never from an ambient generator."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is: `initialise` sets it."""

    def initialise(self, seed: int, name: str) -> None:
        """Uniform in +-1/sqrt(inputs), torch's own default, drawn from (seed, name)."""
        bound = self.in_features**-0.5
        rows = torch.arange(self.out_features, device=self.weight.device)
        draws = random.uniform(seed, f"initialise {name}", 0, rows, self.in_features + 1)
        values = (draws * 2 - 1) * bound
        self.weight.data.copy_(values[:, : self.in_features])
        if self.bias is not None:
            self.bias.data.copy_(values[:, self.in_features])

    def initialise_orthogonal(self, seed: int, name: str, gain: float) -> None:
        """gain times a matrix with orthonormal rows or columns (Saxe et al. 2014), drawn from (seed, name); bias 0.

        The Q factor of a Gaussian matrix (Box-Muller on the seeded uniform draws), in float64, its signs fixed by R's
        diagonal, so that it is uniformly distributed.
        """
        long, short = max(self.weight.shape), min(self.weight.shape)
        draws = random.uniform(seed, f"initialise {name}", 0, torch.arange(long), 2 * short)
        normal = (-2 * (1 - draws[:, :short]).log()).sqrt() * (2 * math.pi * draws[:, short:]).cos()
        q, r = torch.linalg.qr(normal)
        q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
        self.weight.data.copy_(gain * (q if self.out_features >= self.in_features else q.T))
        if self.bias is not None:
            self.bias.data.zero_()


def activate(x: Tensor, activation: str) -> Tensor:
    return functional.relu(x) if activation == "relu" else x


class GatedUnit(nn.Module):
    """Gated embedding unit: h = relu(W1 x); g = GLU([h, W2 h]) = h * sigmoid(W2 h); relu(W3 g).

    The context gate follows Miech, Laptev & Sivic 2018 (arXiv 1804.02516, equations 3 to 5); both outer ReLUs and the
    third map are ConCluGen's (arXiv 2404.10904). (B, D) -> (B, R).
    """

    def __init__(self, width: int, out: int, activation: str = "relu") -> None:
        super().__init__()
        self.input = Linear(width, out)
        self.gate = Linear(out, out)
        self.output = Linear(out, out)
        self.activation = activation

    def forward(self, x_BD: Tensor) -> Tensor:
        h = functional.relu(self.input(x_BD))
        h = h * self.gate(h).sigmoid()
        return activate(self.output(h), self.activation)


class RepresentationHead(nn.Module):
    """Features of one modality to its representation, (B, D) -> (B, R).

    With `own_width` the gated unit keeps the width D and a linear map, without activation, leads to R.
    """

    def __init__(self, width: int, representation_dim: int, activation: str, own_width: bool) -> None:
        super().__init__()
        self.unit = GatedUnit(width, width if own_width else representation_dim, activation)
        self.to_representation = Linear(width, representation_dim) if own_width else None

    def forward(self, x_BD: Tensor) -> Tensor:
        r = self.unit(x_BD)
        return r if self.to_representation is None else self.to_representation(r)


class Projection(nn.Module):
    """Head shared by all modalities: linear R to R/shrink, batch norm of each modality apart, ReLU, linear to P,
    activation.

    r (M, B, R), present (M, B) -> (M, B, P).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = max(1, config.representation_dim // config.projection_shrink)
        # Without a bias: batch norm takes any constant away again, and AdamW would make a walk of its rounding noise.
        self.hidden = Linear(config.representation_dim, hidden, bias=False)
        self.norm = ModalityBatchNorm(hidden)
        self.output = Linear(hidden, config.projection_dim)
        self.activation = config.projection_activation

    def forward(self, r_MBR: Tensor, present_MB: Tensor) -> Tensor:
        h = functional.relu(self.norm(self.hidden(r_MBR), present_MB))
        return activate(self.output(h), self.activation)


class Decoder(nn.Module):
    """Representation to the frozen feature: linear R to H, ReLU, linear to D, activation. (B, R) -> (B, D)."""

    def __init__(self, representation_dim: int, hidden_dim: int, width: int, activation: str) -> None:
        super().__init__()
        self.hidden = Linear(representation_dim, hidden_dim)
        self.output = Linear(hidden_dim, width)
        self.activation = activation

    def forward(self, r_BR: Tensor) -> Tensor:
        return activate(self.output(functional.relu(self.hidden(r_BR))), self.activation)
