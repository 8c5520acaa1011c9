"""Gradients of several tasks, summed over ranks: their norms, inner products and weighted sums.

Whole gradients of T tasks summed on every rank are T all-reduces. Here each rank sums its part of the numbers and
combines the tasks there: a reduce-scatter of each gradient and one all-gather of the combination move as much as
(T + 1) / 2 all-reduces, and what the combination depends on, norms and inner products, is added up from the parts.
A parameter that one task alone reaches travels once.

Shape suffixes: T tasks, n numbers of a bucket on this rank.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from conclugen import distributed
from conclugen.training import gradient_conflicts
from conclugen.training.gradient_conflicts import Gradients

# Numbers of one reduce-scatter, over all its tasks.
BUCKET_ELEMENTS = 1 << 22


class SummedGradients(Protocol):
    """T tasks' gradients of the global batch, the same on every rank."""

    def head_norms(self) -> Tensor:
        """Norm (T,) float64 of each over the heads' parameters."""

    def gram(self) -> Tensor:
        """Inner products (T, T) float64 over the parameters that several tasks reach."""

    def combined(self, shared_T: Tensor, alone_T: Tensor) -> list[Tensor | None]:
        """For each parameter the weighted sum of its gradients; None where no task reaches it. shared_T: weights where
        several tasks reach the parameter; alone_T: where one does."""


def summed(partial: Sequence[Gradients], heads: int, wire: torch.dtype | None = None) -> SummedGradients:
    """The sums over ranks of what each rank has of the tasks' gradients, by parameter, the heads' first.

    heads: number of their parameters. wire: the type in which gradients travel, and are added where the transport adds
    them; None: their own. Every rank must call it, with None in the same places.
    """
    some = any(g is not None for gradients in partial for g in gradients)
    return _Sharded(partial, heads, wire) if some and distributed.world_size() > 1 else _Whole(partial, heads)


class _Whole:
    """Of one rank."""

    def __init__(self, gradients_T: Sequence[Gradients], heads: int) -> None:
        self.gradients_T, self.heads = gradients_T, heads
        self.among = gradient_conflicts.shared(gradients_T)

    def head_norms(self) -> Tensor:
        heads = [[g for g in gradients[: self.heads] if g is not None] for gradients in self.gradients_T]
        device = next((g.device for own in heads for g in own), None)
        zero = torch.zeros((), dtype=torch.float64, device=device)
        norms = [sum((g.double().square().sum() for g in own), zero).sqrt() for own in heads]
        return torch.stack(norms) if norms else zero.expand(0)

    def gram(self) -> Tensor:
        return gradient_conflicts.gram(self.gradients_T, self.among)

    def combined(self, shared_T: Tensor, alone_T: Tensor) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for is_shared, column in zip(self.among, zip(*self.gradients_T, strict=True), strict=True):
            some = next((g for g in column if g is not None), None)
            if some is None:
                found.append(None)
                continue
            scales = (shared_T if is_shared else alone_T).to(some.dtype).unbind()
            found.append(torch.stack([g * s for g, s in zip(column, scales, strict=True) if g is not None]).sum(0))
        return found


@dataclass(frozen=True)
class _Bucket:
    """Parameters that the same tasks reach, of the heads or of the rest. sums (T, n): of those tasks' gradients over
    ranks, this rank's part."""

    parameters: list[int]
    shapes: list[torch.Size]
    tasks: tuple[int, ...]
    of_heads: bool
    sums: Tensor


class _Sharded:
    """Of several ranks, each of which holds a part of the numbers."""

    def __init__(self, partial: Sequence[Gradients], heads: int, wire: torch.dtype | None) -> None:
        self.wire, self.parameters = wire, len(partial[0])
        some = next(g for gradients in partial for g in gradients if g is not None)
        self.dtype = some.dtype
        self.buckets = [self._scattered(partial, *group) for group in _grouped(partial, heads)]
        count = len(partial)
        facts = torch.zeros(count + 1, count, dtype=torch.float64, device=some.device)
        for bucket in self.buckets:
            at = torch.tensor(bucket.tasks, device=some.device)
            if len(bucket.tasks) > 1:
                facts[at.unsqueeze(1), at] += (bucket.sums @ bucket.sums.T).double()
            if bucket.of_heads:
                facts[count, at] += bucket.sums.double().square().sum(1)
        facts = distributed.all_sum(facts)
        self._gram_TT, self._squares_T = facts[:count], facts[count]

    def head_norms(self) -> Tensor:
        return self._squares_T.sqrt()

    def gram(self) -> Tensor:
        return self._gram_TT

    def combined(self, shared_T: Tensor, alone_T: Tensor) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * self.parameters
        coming: list[tuple[_Bucket, Callable[[], Tensor]]] = []
        for bucket in self.buckets:
            weights_T = (shared_T if len(bucket.tasks) > 1 else alone_T).to(self.dtype)[list(bucket.tasks)]
            sum_n = (bucket.sums * weights_T.unsqueeze(1)).sum(0)
            coming.append((bucket, distributed.gather_behind(sum_n.to(self.wire))))
        for bucket, gathered in coming:
            sizes = [shape.numel() for shape in bucket.shapes]
            pieces = gathered()[: sum(sizes)].to(self.dtype).split(sizes)
            for index, piece, shape in zip(bucket.parameters, pieces, bucket.shapes, strict=True):
                found[index] = piece.view(shape)
        return found

    def _scattered(
        self, partial: Sequence[Gradients], tasks: tuple[int, ...], of_heads: bool, indices: list[int]
    ) -> _Bucket:
        world = distributed.world_size()
        columns = [[g for index in indices if (g := partial[task][index]) is not None] for task in tasks]
        flat_TN = torch.stack([torch.cat([g.flatten() for g in column]) for column in columns])
        padded_TN = functional.pad(flat_TN, (0, -flat_TN.shape[1] % world))
        parts_WTn = padded_TN.unflatten(1, (world, -1)).transpose(0, 1).to(self.wire)
        sums_Tn = distributed.sum_scattered(parts_WTn, self.dtype)
        return _Bucket(indices, [g.shape for g in columns[0]], tasks, of_heads, sums_Tn)


def _grouped(partial: Sequence[Gradients], heads: int) -> Iterator[tuple[tuple[int, ...], bool, list[int]]]:
    """Parameters by the tasks that reach them, heads and others apart, cut into buckets."""
    groups: dict[tuple[tuple[int, ...], bool], list[tuple[int, int]]] = defaultdict(list)
    for index, column in enumerate(zip(*partial, strict=True)):
        reached = [(task, g.numel()) for task, g in enumerate(column) if g is not None]
        if reached:
            groups[tuple(task for task, _ in reached), index < heads].append((index, reached[0][1]))
    for (tasks, of_heads), members in groups.items():
        bucket: list[int] = []
        held = 0
        for index, size in members:
            if bucket and (held + size) * len(tasks) > BUCKET_ELEMENTS:
                yield tasks, of_heads, bucket
                bucket, held = [], 0
            bucket.append(index)
            held += size
        yield tasks, of_heads, bucket
