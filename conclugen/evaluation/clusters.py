"""What there is in vectors without labels: clusters, how clear they are, what they go with, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MOST_JUDGED = 2000  # rows of a silhouette, whose cost grows with their square
_BLOCK = 1024
# Below it clusters are only parts of one cloud (Kaufman & Rousseeuw 1990, "Finding Groups in Data", table 4).
CLEAR = 0.25


@dataclass(frozen=True)
class Clusters:
    """owner (N,): each row's cluster, the largest is 0; distance (N,): to its centroid, 1 minus the cosine;
    silhouettes: number of clusters -> mean silhouette, -1 to 1, of those that were tried."""

    owner: NDArray[np.int64]
    distance: NDArray[np.float64]
    silhouettes: dict[int, float]

    @property
    def count(self) -> int:
        return int(self.owner.max()) + 1

    @property
    def silhouette(self) -> float:
        return self.silhouettes[self.count]

    @property
    def clear(self) -> bool:
        """Whether they are separate at all."""
        return self.silhouette >= CLEAR

    def typical(self, cluster: int, most: int = 3) -> NDArray[np.int64]:
        """Rows closest to the cluster's centroid."""
        own = np.flatnonzero(self.owner == cluster)
        return own[np.argsort(self.distance[own], kind="stable")[:most]]


def find_clusters(vectors: ArrayLike, counts: Iterable[int], seed: int = 0) -> Clusters:
    """k-means of (N, R) vectors of unit length, at the number of clusters whose silhouette (Rousseeuw 1987, by cosine)
    is best. ValueError where no number serves: fewer than 3 different rows."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    unit = _unit(vectors)
    some = np.random.default_rng(seed).permutation(len(unit))[:_MOST_JUDGED]
    different = len(np.unique(unit.round(6), axis=0))
    found: dict[int, tuple[float, NDArray[np.int64], NDArray[np.float64]]] = {}
    for count in counts:
        if not 2 <= count < different:
            continue
        means = KMeans(count, n_init=4, random_state=seed).fit(unit)
        owner = means.labels_
        if len(np.unique(owner[some])) < 2:
            continue
        centres = _unit(means.cluster_centers_)
        silhouette = float(silhouette_score(unit[some], owner[some], metric="cosine"))
        found[count] = (silhouette, owner, 1 - (unit * centres[owner]).sum(1))
    if not found:
        raise ValueError(f"vectors: {different} different rows of {len(unit)} are too few for clusters")
    best = max(found, key=lambda count: found[count][0])
    _, owner, distance = found[best]
    order = np.argsort(-np.bincount(owner, minlength=best), kind="stable")
    rank = np.empty(best, np.int64)
    rank[order] = np.arange(best)
    return Clusters(rank[owner], distance, {count: silhouette for count, (silhouette, _, _) in found.items()})


def agreement(owner: ArrayLike, names: Sequence[object]) -> float:
    """How far clusters go with known names: adjusted mutual information (Vinh et al. 2010), about 0 by chance, 1 where
    they are the same. Rows whose name is None do not count; NaN where fewer than two names are left."""
    from sklearn.metrics import adjusted_mutual_info_score

    known = np.array([name is not None for name in names], bool)
    named = [str(name) for name in names if name is not None]
    if len(set(named)) < 2:
        return float("nan")
    return float(adjusted_mutual_info_score(named, np.asarray(owner)[known]))


def neighbours(vectors: ArrayLike, most: int = 5) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(rows (N, k), cosines (N, k)) of each row's nearest others, the nearest first; k is at most N - 1."""
    unit = _unit(vectors)
    most = min(most, len(unit) - 1)
    rows, cosines = np.empty((len(unit), most), np.int64), np.empty((len(unit), most))
    for start in range(0, len(unit), _BLOCK):
        similar = unit[start : start + _BLOCK] @ unit.T
        own = np.arange(len(similar))
        similar[own, start + own] = -np.inf
        nearest = np.argsort(-similar, axis=1, kind="stable")[:, :most]
        rows[start : start + _BLOCK] = nearest
        cosines[start : start + _BLOCK] = np.take_along_axis(similar, nearest, axis=1)
    return rows, cosines


def _unit(vectors: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(vectors, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"vectors: shape {x.shape}; expected (N, R) finite numbers")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
