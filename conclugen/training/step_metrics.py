"""What a step reports: names and values that are the same on every rank."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conclugen import distributed
from conclugen.training.gradients import Computed
from conclugen.training.model import Model


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


def of_corpora(model: Model, corpus_B: Tensor, names: Sequence[str], active: Sequence[str]) -> dict[str, Tensor]:
    """Of each corpus by itself, where several are mixed: 0-d tensors by name, equal on all ranks, in one collective.

    share/<corpus>: of the rows of the global batch. loss/<task>/<corpus>: the task's loss as the mean over its rows of
    the corpus (the sum over the terms of the loss, those left out that no row of the corpus counts in), unweighted; NaN
    where none counts in any. Negatives and clusters are those of the whole loss. Of tasks that note their rows
    (`Task.note`).

    corpus_B: (B,) int64, -1 for padding.
    """
    known = torch.arange(len(names), device=corpus_B.device)
    rows_C = (corpus_B.unsqueeze(1) == known).sum(0).double()
    noted = {name: model.task(name).take_noted() for name in active}
    parts = [torch.stack([rows_C, rows_C]).unsqueeze(0), *(part for part in noted.values() if part is not None)]
    total = distributed.all_sum(torch.cat(parts))
    rows_C = total[0, 0]
    metrics = {f"share/{name}": share for name, share in zip(names, rows_C / rows_C.sum().clamp(min=1), strict=True)}
    at = 1
    for task, part in noted.items():
        if part is None:
            continue
        sums_TC, counts_TC = total[at : at + len(part)].unbind(1)
        at += len(part)
        loss_C = (sums_TC / counts_TC.clamp(min=1)).sum(0)
        loss_C = torch.where(counts_TC.sum(0) > 0, loss_C, torch.nan)
        metrics |= {f"loss/{task}/{name}": loss for name, loss in zip(names, loss_C, strict=True)}
    return metrics


def _tensor(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
