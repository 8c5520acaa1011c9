"""Task gradients that point against each other: how much, and what the update is made of.

Everything follows from the inner products of the task gradients, a matrix of T x T numbers: what PCGrad makes of them
is again a weighted sum of the gradients themselves.

Shape suffixes: T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from conclugen import random

Gradients = Sequence[Tensor | None]
"""One task's gradient by parameter; None where the task does not reach the parameter."""


def shared(gradients_T: Sequence[Gradients]) -> list[bool]:
    """For each parameter: do two tasks or more reach it?"""
    return [sum(g is not None for g in column) >= 2 for column in zip(*gradients_T, strict=True)]


def gram(gradients_T: Sequence[Gradients], among: Sequence[bool]) -> Tensor:
    """Inner products (T, T) float64 of the tasks' gradients over the parameters marked in `among`."""
    count = len(gradients_T)
    device = next(g.device for gradients in gradients_T for g in gradients if g is not None)
    gram_TT = torch.zeros(count, count, dtype=torch.float64, device=device)
    for column, counts in zip(zip(*gradients_T, strict=True), among, strict=True):
        if counts:
            some = next(g for g in column if g is not None)
            rows_TN = torch.stack([torch.zeros_like(some) if g is None else g for g in column]).flatten(1)
            gram_TT += (rows_TN @ rows_TN.T).double()
    return gram_TT


def cosines(gram_TT: Tensor) -> Tensor:
    """Cosine similarity (T, T) of the gradients; 0 where one is zero."""
    norm_T = gram_TT.diagonal().sqrt()
    scale_TT = norm_T.unsqueeze(1) * norm_T
    return torch.where(scale_TT > 0, gram_TT / scale_TT.clamp(min=torch.finfo(gram_TT.dtype).tiny), 0)


def pcgrad(gram_TT: Tensor, order: Sequence[Sequence[int]]) -> Tensor:
    """PCGrad (Yu et al. 2020, arXiv 2001.06782, algorithm 1): (T,) how often each task's gradient is in the update.

    Each task's gradient in turn is projected onto the normal plane of every other one's that it points against, those
    taken in `order[i]`; the update is the sum of the projected gradients. gram_TT: of the weighted gradients.
    """
    coefficient_TT = torch.eye(len(gram_TT), dtype=gram_TT.dtype, device=gram_TT.device)
    smallest = torch.finfo(gram_TT.dtype).tiny
    for i, others in enumerate(order):
        for j in others:
            inner = coefficient_TT[i] @ gram_TT[j]
            coefficient_TT[i, j] -= inner.clamp(max=0) / gram_TT[j, j].clamp(min=smallest)
    return coefficient_TT.sum(0)


def projection_order(count: int, seed: int, step: int) -> list[list[int]]:
    """For each task the others in a random order, drawn from (seed, "pcgrad", step, task)."""
    return [[j for j in random.order(seed, "pcgrad", step, i, count) if j != i] for i in range(count)]
