"""Heads between frozen features and losses: gated unit, representation head, shared projection, decoder.

Shape suffixes: B rows, M modalities, D feature width, R representation, P projection, H hidden.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen import random
from conclugen.layers.batch_norm import ModalityBatchNorm
from conclugen.model_config import ModelConfig


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
