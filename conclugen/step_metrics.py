"""What a step reports: names and values that are the same on every rank."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conclugen.gradients import Computed
from conclugen.model import Model


def collect(
    model: Model,
    computed: Computed,
    weights: Mapping[str, Tensor | float],
    active: Sequence[str],
    **always: Tensor | float,
) -> dict[str, Tensor]:
    """0-d tensors by name.

    loss/<task> unweighted, weight/<task> before the divisor, share/<task> of the heads' gradient at the steps that
    measure it (all of active tasks), conflict/<a>/<b>: cosine of two tasks' gradients, what active tasks tell of
    themselves, and whatever `always` holds.
    """
    metrics = {name: _tensor(value) for name, value in always.items()}
    cosines = computed.cosines
    metrics |= {f"loss/{name}": computed.losses[name] for name in active}
    metrics |= {f"weight/{name}": _tensor(weights[name]) for name in active}
    if computed.shares is not None:
        metrics |= {f"share/{name}": share for name, share in zip(active, computed.shares.unbind(), strict=True)}
    if cosines is not None:
        for i, a in enumerate(active):
            metrics |= {f"conflict/{a}/{b}": cosines[i, j] for j, b in enumerate(active) if j > i}
    for name in active:
        metrics |= model.task(name).metrics()
    return metrics


def _tensor(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
