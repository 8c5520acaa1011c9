"""The contrastive losses with the whole matrix of similarities in memory and gradients by autograd, to compare with."""

import torch
from torch import Tensor
from torch.nn import functional

FEWEST_MATES = 4


def candidates(valid: Tensor, group: Tensor | None) -> Tensor:
    """(N, N) bool: which columns each row is compared with, itself included."""
    allowed = valid.unsqueeze(1) & valid
    if group is not None:
        mates = allowed & (group.unsqueeze(1) == group) & (group >= 0)
        allowed = torch.where(mates.sum(1, keepdim=True) > FEWEST_MATES, mates, allowed)
    return allowed


def cross_entropy_rows(logits: Tensor, allowed: Tensor) -> Tensor:
    """Sum over rows that have a candidate besides themselves of the cross-entropy against the diagonal."""
    rows = allowed.sum(1) >= 2
    masked = logits[rows].masked_fill(~allowed[rows], -torch.inf)
    labels = torch.arange(len(logits))[rows]
    return functional.cross_entropy(masked, labels, reduction="sum")


def contrastive(
    z: Tensor, present: Tensor, group: Tensor | None, margin: float, scale: Tensor, pairs: list[tuple[int, int]]
) -> Tensor:
    """z (M, N, P), not normalised; present (M, N)."""
    unit = functional.normalize(z, dim=2)
    total = z.new_zeros(())
    for a, b in pairs:
        allowed = candidates(present[a] & present[b], group)
        count = max(1, int((allowed.sum(1) >= 2).sum()))
        for query, key in ((a, b), (b, a)):
            similarity = unit[query] @ unit[key].T - margin * torch.eye(z.shape[1], dtype=z.dtype)
            total = total + cross_entropy_rows(similarity * scale, allowed) / count
    return total


def nt_xent(z: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """z (2, N, P), not normalised: the mean over both views of the valid rows."""
    unit = functional.normalize(z[:, valid], dim=2).flatten(0, 1)
    count = len(unit) // 2
    logits = (unit @ unit.T / temperature).masked_fill(torch.eye(2 * count, dtype=torch.bool), -torch.inf)
    return functional.cross_entropy(logits, torch.arange(2 * count).roll(count))
