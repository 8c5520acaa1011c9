"""Collectives with the right gradients. Without a process group each is the identity of a world of one.

Convention of this package: on each rank a loss returns its *share*, the sum over the rank's own rows divided by the
global count, so that the sum over ranks is the loss of the global batch. Whatever is gathered takes part in the shares
of all ranks; its gradient is therefore the sum over ranks, and so is that of every parameter.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Small tensors travel together, up to so many numbers; a larger one travels alone.
_BUCKET_ELEMENTS = 1 << 22


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def rank() -> int:
    return dist.get_rank() if active() else 0


def gather(x: Tensor) -> Tensor:
    """Concatenate `x` (B, ...) of all ranks along rows, in rank order: (W B, ...), bitwise the same on every rank.

    Differentiable: backward sums over ranks the gradients that arrive for this rank's rows. B must be equal on all
    ranks.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def exchange(x: Tensor) -> Tensor:
    """Part r of `x` (W B, ...) goes to rank r; returns what all ranks have for this one, in rank order: (W B, ...).

    Differentiable: gradients travel back the same way.
    """
    if world_size() == 1:
        return x
    exchanged: Tensor = _Exchange.apply(x)
    return exchanged


def all_sum(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, without gradient; `x` itself is left as it was."""
    x = x.detach()
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def total(x: Tensor) -> Tensor:
    """Sum of `x` over ranks. Differentiable: backward sums over ranks the gradients that arrive for it."""
    if world_size() == 1:
        return x
    summed: Tensor = _Total.apply(x)
    return summed


def all_sum_each(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum of each over ranks, without gradient, in few collectives; the tensors themselves are left as they were."""
    if world_size() == 1:
        return [x.detach() for x in tensors]
    sums: list[Tensor] = []
    start = 0
    while start < len(tensors):
        stop, elements = start + 1, tensors[start].numel()
        while stop < len(tensors) and elements + tensors[stop].numel() <= _BUCKET_ELEMENTS:
            elements += tensors[stop].numel()
            stop += 1
        bucket = [x.detach() for x in tensors[start:stop]]
        flat = torch.cat([x.flatten() for x in bucket])
        dist.all_reduce(flat)
        pieces = flat.split([x.numel() for x in bucket])
        sums += [piece.view(x.shape) for piece, x in zip(pieces, bucket, strict=True)]
        start = stop
    return sums


def broadcast(x: Tensor) -> Tensor:
    """Overwrite `x` with rank 0's values, in place."""
    if world_size() > 1:
        dist.broadcast(x, src=0)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        gathered = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(gathered, x)
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        own = gradient.new_empty((gradient.shape[0] // world_size(), *gradient.shape[1:]))
        dist.reduce_scatter_tensor(own, gradient)
        return own


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_sum(gradients[0].contiguous())


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        exchanged = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(exchanged, x.contiguous())
        return exchanged

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Exchange.forward(None, gradients[0])
