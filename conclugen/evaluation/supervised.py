"""A fusion network trained on the labels alone: what the heads are worth without pretraining.

The product's own heads (`conclugen.layers.heads`), one for each modality, side by side behind dropout and a linear
layer, all of it trained by the labelled rows. How long is chosen on held-out training groups: one network for each
inner fold, trained beside the others, until their mean score on the rows left out no longer rises (of equal scores the
lower loss is the better); then a network of all labelled rows trains for as many epochs as served best. Nothing is
drawn from ambient generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from conclugen.evaluation.checks import Floats, Integers
from conclugen.layers.heads import GatedUnit, Linear, RepresentationHead
from conclugen.random import uniform

_EVALUATED = "supervised"
Score = Callable[[NDArray[Any], NDArray[Any]], float]


@dataclass(frozen=True)
class Fusion:
    """Sizes and training of the network; chosen on the design actors of RAVDESS, the same for every set.

    Attributes:
        width: Of each modality's representation.
        dropout: Share of the representation that is hidden from each row.
        lr, weight_decay: Of AdamW.
        batch: Rows of a step.
        epochs: At most.
        patience: Epochs without a better held-out score before training stops.
    """

    width: int = 64
    dropout: float = 0.5
    lr: float = 3e-3
    weight_decay: float = 1e-2
    batch: int = 32
    epochs: int = 100
    patience: int = 15


DEFAULT = Fusion()


class _Network(nn.Module):
    """(B, D_m) of each modality -> (B, K) logits."""

    def __init__(self, widths: Sequence[int], classes: int, config: Fusion, seed: int) -> None:
        super().__init__()
        self.seed, self.dropout = seed, config.dropout
        self.heads = nn.ModuleList([RepresentationHead(width, config.width, "none", False) for width in widths])
        self.output = Linear(config.width * len(widths), classes)
        self.widths = list(widths)
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                module.initialise(seed, f"{_EVALUATED}.{name}")
        for index, head in enumerate(self.heads):  # as the recipe `improved` begins
            unit = head.unit
            assert isinstance(unit, GatedUnit)
            unit.input.initialise_orthogonal(seed, f"{_EVALUATED}.{index}.input", math.sqrt(2))
            unit.output.initialise_orthogonal(seed, f"{_EVALUATED}.{index}.output", 1.0)

    def forward(self, x_BD: Tensor, row_B: Tensor | None = None, step: int = 0) -> Tensor:
        """row_B: numbers of the rows that are trained on, which dropout is drawn for; without it there is none."""
        parts = x_BD.split(self.widths, dim=1)
        r_BR = torch.cat([head(x) for head, x in zip(self.heads, parts, strict=True)], dim=1)
        if row_B is not None and self.dropout > 0:
            draw_BR = uniform(self.seed, f"{_EVALUATED}.dropout", step, row_B, r_BR.shape[1], dtype=torch.float32)
            r_BR = r_BR * (draw_BR >= self.dropout) / (1 - self.dropout)
        logits: Tensor = self.output(r_BR)
        return logits


class _Trained:
    """A network and its optimiser on some of the labelled rows."""

    def __init__(self, x_ND: Tensor, y_N: Tensor, weight_K: Tensor | None, network: _Network, config: Fusion) -> None:
        self.x_ND, self.y_N, self.weight_K, self.network, self.config = x_ND, y_N, weight_K, network, config
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.row_N = torch.arange(len(x_ND))
        self.steps = 0

    def epoch(self, number: int) -> None:
        """One pass over the rows in this epoch's order."""
        order_N = uniform(self.network.seed, f"{_EVALUATED}.order", number, self.row_N, 1)[:, 0].argsort(stable=True)
        for row_B in order_N.split(self.config.batch):
            logits = self.network(self.x_ND[row_B], row_B, self.steps)
            loss = functional.cross_entropy(logits, self.y_N[row_B], self.weight_K)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.steps += 1

    @torch.no_grad()
    def judged(self, x_ND: Tensor, y_N: Tensor, score: Score) -> tuple[float, float]:
        """Score and minus the loss on rows left out."""
        logits = self.network(x_ND)
        loss = float(functional.cross_entropy(logits, y_N, self.weight_K))
        return score(y_N.numpy(), logits.argmax(dim=1).numpy()), -loss


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products of so few rows are slower on several threads, and on a busy machine many times as slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def fusion_network(
    X: Floats,
    y: Integers,
    fold: Integers,
    test: Floats,
    widths: Sequence[int],
    score: Score,
    *,
    weights: Floats | None = None,
    seed: int = 127,
    config: Fusion = DEFAULT,
) -> tuple[Integers, int]:
    """Predicted classes (t,) of the test rows, and the number of epochs that was chosen.

    X (n, D), test (t, D): standardised, modalities side by side, so many columns of each as `widths` says. y (n,): all
    classes from 0 to the largest. fold (n,): inner fold of each row. score: (true, predicted) classes -> a number, the
    higher the better. weights (K,): of the classes in the loss.

    Raises:
        ValueError: a loss that is not finite.
    """
    classes = int(y.max()) + 1
    x_ND, y_N = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(y, dtype=torch.int64)
    weight_K = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)

    def start(rows: Tensor) -> _Trained:
        return _Trained(x_ND[rows], y_N[rows], weight_K, _Network(widths, classes, config, seed), config)

    fold_N = torch.as_tensor(fold)
    parts = [(start(fold_N != held_out), fold_N == held_out) for held_out in np.unique(fold).tolist()]
    best, chosen = (-math.inf, -math.inf), 0
    for epoch in range(config.epochs):
        judged = []
        for trained, held_out in parts:
            trained.epoch(epoch)
            judged.append(trained.judged(x_ND[held_out], y_N[held_out], score))
        rate, loss = np.mean(judged, axis=0).tolist()
        if not math.isfinite(loss):
            raise ValueError(f"supervised network: held-out loss {-loss} in epoch {epoch}; check the features' scale")
        if (rate, loss) > best:
            best, chosen = (rate, loss), epoch
        if epoch - chosen >= config.patience:
            break
    final = start(torch.ones(len(X), dtype=torch.bool))
    for epoch in range(chosen + 1):
        final.epoch(epoch)
    with torch.no_grad():
        logits = final.network(torch.as_tensor(test, dtype=torch.float32))
    return logits.argmax(dim=1).numpy().astype(np.int64), chosen + 1
