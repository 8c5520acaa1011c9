"""Clusters and neighbours of vectors without labels, against slow versions and data whose structure is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from conclugen.evaluation.clusters import agreement, find_clusters, neighbours


def clouds(sizes: tuple[int, ...], spread: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.eye(len(sizes), 8)[owner] + spread * g.normal(size=(len(owner), 8)), owner


def test_clusters_that_are_there_are_found_whatever_the_lengths_of_vectors() -> None:
    x, owner = clouds((30, 20, 12, 10))
    scale = np.random.default_rng(1).uniform(0.1, 10, size=(len(x), 1))
    found = find_clusters(x * scale, range(2, 8))
    assert found.count == 4 and found.clear and set(found.silhouettes) == set(range(2, 8))
    np.testing.assert_array_equal(found.owner, owner)  # the largest first, as the clouds are
    assert found.silhouette == pytest.approx(silhouette_score(x, owner, metric="cosine"))
    assert agreement(found.owner, owner.tolist()) == pytest.approx(1)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for cluster in range(4):
        centre = unit[owner == cluster].mean(0)
        centre /= np.linalg.norm(centre)
        own = np.flatnonzero(owner == cluster)
        np.testing.assert_array_equal(found.typical(cluster), own[np.argsort(-(unit[own] @ centre))[:3]])


def test_one_cloud_has_no_clear_clusters_and_goes_with_nothing() -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(300, 16))
    found = find_clusters(x, range(2, 6))
    assert not found.clear
    assert abs(agreement(found.owner, g.integers(0, 4, 300).tolist())) < 0.05
    assert np.isnan(agreement(found.owner, [None] * 300)) and np.isnan(agreement(found.owner, ["a"] * 300))


def test_rows_without_a_name_do_not_count() -> None:
    x, owner = clouds((20, 20))
    names: list[str | None] = ["a" if one == 0 else "b" for one in owner]
    names[:5] = [None] * 5
    assert agreement(find_clusters(x, [2]).owner, names) == pytest.approx(1)


def test_too_few_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="2 different rows of 10 are too few"):
        find_clusters(np.repeat(np.eye(2), 5, axis=0), range(2, 6))
    with pytest.raises(ValueError, match="finite"):
        find_clusters(np.full((4, 2), np.nan), [2])


def test_neighbours_are_those_of_scikit_learn() -> None:
    x = np.random.default_rng(0).normal(size=(1500, 6))
    rows, cosines = neighbours(x, 4)
    far, near = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(x).kneighbors(x)
    np.testing.assert_array_equal(rows, near[:, 1:])
    np.testing.assert_allclose(cosines, 1 - far[:, 1:], atol=1e-12)
    assert neighbours(x[:3], 5)[0].shape == (3, 2)
