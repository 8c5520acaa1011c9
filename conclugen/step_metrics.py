"""What a step reports: names and values that are the same on every rank."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conclugen.model import Model


def collect(
    model: Model,
    losses: Mapping[str, Tensor],
    weights: Mapping[str, Tensor | float],
    cosines: Tensor | None,
    active: Sequence[str],
    **always: Tensor | float,
) -> dict[str, Tensor]:
    """0-d tensors by name.

    loss/<task> unweighted, weight/<task> before the divisor (both of active tasks), conflict/<a>/<b>: cosine of two
    tasks' gradients, temperature, clusters/used and clusters/perplexity, and whatever `always` holds.
    """
    metrics = {name: _tensor(value) for name, value in always.items()}
    metrics |= {f"loss/{name}": losses[name] for name in active}
    metrics |= {f"weight/{name}": _tensor(weights[name]) for name in active}
    if cosines is not None:
        for i, a in enumerate(active):
            metrics |= {f"conflict/{a}/{b}": cosines[i, j] for j, b in enumerate(active) if j > i}
    if model.scale is not None:
        metrics["temperature"] = 1 / model.scale.detach()
    if model.clustering is not None and "clustering" in active:
        share = model.clustering.assigned / model.clustering.assigned.sum().clamp(min=1)
        metrics["clusters/used"] = (share > 0).to(share.dtype).mean()
        metrics["clusters/perplexity"] = torch.special.entr(share).sum().exp()
    return metrics


def _tensor(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
