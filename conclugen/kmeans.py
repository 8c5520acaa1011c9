"""Cosine k-means over a masked pool, in static shapes and without ambient randomness.

Shape suffixes: N rows of the pool, K clusters, C features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from conclugen import random

# Where reading a value waits for nothing. Elsewhere all iterations run; those past convergence change nothing.
_READABLE = frozenset({"cpu"})


@dataclass(frozen=True)
class KMeansResult:
    """centroids (K, C); labels (N,) int64 (meaningless in rows that are not valid); converged: 0-d bool."""

    centroids: Tensor
    labels: Tensor
    converged: Tensor


def draw_rows(pool_NC: Tensor, valid_N: Tensor, clusters: int, seed: int, step: int) -> Tensor:
    """K valid rows drawn with replacement from (seed, "kmeans", step): (K, C). Zeros when no row is valid."""
    draws_K = random.uniform(seed, "kmeans", step, torch.arange(clusters, device=pool_NC.device), 1).squeeze(1)
    rank_N = valid_N.long().cumsum(0)
    valid_count = rank_N[-1]
    order_K = (draws_K * valid_count).long() + 1
    index_K = torch.searchsorted(rank_N, order_K).clamp(max=len(rank_N) - 1)
    return pool_NC[index_K] * (valid_count > 0).to(pool_NC.dtype)


@torch.no_grad()
def cosine_kmeans(
    pool_NC: Tensor,
    valid_N: Tensor,
    start_KC: Tensor,
    *,
    reseed_KC: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
) -> KMeansResult:
    """Lloyd's algorithm: assignment by cosine, centroids are plain means of the valid rows assigned.

    Stops after `max_iterations`, or once the squared shift of the centroids, summed, is at most `tolerance`. The labels
    precede the last update of the centroids. A GPU is never asked whether that point is reached: it runs all
    iterations, which change nothing from there on. An empty cluster becomes the zero vector, or its row of `reseed_KC`.
    Of clusters whose cosines differ by no more than rounding the first has the row: rows that start clusters are drawn
    with replacement, and which of two equal centroids is nearer may not hang on how many ranks computed the pool.
    """
    empty_KC = torch.zeros_like(start_KC) if reseed_KC is None else reseed_KC
    direction_NC = functional.normalize(pool_NC, dim=1)
    clusters_K = torch.arange(start_KC.shape[0], device=pool_NC.device)
    rank_K = start_KC.shape[0] - clusters_K
    centroids = start_KC
    labels = torch.zeros_like(valid_N, dtype=torch.int64)
    converged = torch.zeros((), dtype=torch.bool, device=pool_NC.device)
    rounding = 4 * pool_NC.shape[1] ** 0.5 * torch.finfo(pool_NC.dtype).eps
    for _ in range(max_iterations):
        cosine_NK = direction_NC @ functional.normalize(centroids, dim=1).T
        # Of equal numbers `argmax` may name any: the highest rank is that of the first.
        near_NK = cosine_NK >= cosine_NK.amax(1, keepdim=True) - rounding
        new_labels = (near_NK * rank_K).argmax(1)
        # A product with the one-hot matrix sums in a fixed order, which an atomic index_add on a GPU does not.
        member_NK = ((new_labels.unsqueeze(1) == clusters_K) & valid_N.unsqueeze(1)).to(pool_NC.dtype)
        count_K1 = member_NK.sum(0).unsqueeze(1)
        means_KC = torch.where(count_K1 > 0, member_NK.T @ pool_NC / count_K1.clamp(min=1), empty_KC)
        shift = (means_KC - centroids).square().sum()
        labels = torch.where(converged, labels, new_labels)
        centroids = torch.where(converged, centroids, means_KC)
        converged = converged | (shift <= tolerance)
        # A tensor without memory, on which a step is only counted, has no value either.
        if type(pool_NC) is Tensor and pool_NC.device.type in _READABLE and bool(converged):
            break
    return KMeansResult(centroids, labels, converged)
