"""k-means against an independent version in plain loops."""

import numpy as np
import pytest
import torch

from conclugen import kmeans
from conclugen.kmeans import cosine_kmeans, draw_rows
from conclugen.random import uniform
from tests.conclugen.slow_kmeans import slow_kmeans


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("iterations", [1, 2, 100])
def test_against_plain_loops(seed: int, iterations: int) -> None:
    g = np.random.default_rng(seed)
    pool, valid = g.standard_normal((40, 4)), g.random(40) > 0.3
    start = pool[valid][:4] if seed else np.repeat(pool[valid][:2], 2, axis=0)  # doubled starts leave clusters empty
    expected, labels = slow_kmeans(pool[valid], start, iterations)
    tensors = [torch.from_numpy(x) for x in (pool, valid, start)]
    result = cosine_kmeans(*tensors, max_iterations=iterations)
    np.testing.assert_allclose(result.centroids.numpy(), expected, atol=1e-12)
    assert result.labels[tensors[1]].tolist() == labels
    if seed == 0 and iterations == 1:
        assert (expected == 0).all(axis=1).any(), "the case must have an empty cluster"


def test_iterations_past_convergence_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is not asked whether it may stop: what it runs beyond that must not show."""
    pool = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    everywhere = torch.ones(50, dtype=torch.bool)
    stopped = cosine_kmeans(pool, everywhere, pool[:3], tolerance=0.5)
    assert bool(stopped.converged)
    monkeypatch.setattr(kmeans, "_READABLE", frozenset())
    ran_on = cosine_kmeans(pool, everywhere, pool[:3], tolerance=0.5)
    assert torch.equal(ran_on.centroids, stopped.centroids) and torch.equal(ran_on.labels, stopped.labels)
    tighter = cosine_kmeans(pool, everywhere, pool[:3])
    assert not torch.equal(tighter.centroids, stopped.centroids), "the case must resume where nothing stops it"


def test_empty_clusters_are_reseeded() -> None:
    pool = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    start = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    everywhere = torch.ones(3, dtype=torch.bool)
    reseeded = cosine_kmeans(pool, everywhere, start, reseed_KC=pool[[2, 2]])
    torch.testing.assert_close(reseeded.centroids[1], pool[2])
    assert float(cosine_kmeans(pool, everywhere, start).centroids[1].abs().sum()) == 0


def test_start_rows_are_drawn_with_replacement_from_the_valid_ones() -> None:
    pool = torch.arange(10.0).unsqueeze(1)
    valid = torch.tensor([False, True] * 5)
    draws = uniform(3, "kmeans", 17, torch.arange(4), 1).squeeze(1)
    odd = [1.0, 3.0, 5.0, 7.0, 9.0]
    expected = [odd[int(u * 5)] for u in draws.tolist()]
    assert draw_rows(pool, valid, 4, seed=3, step=17).squeeze(1).tolist() == expected
    many = draw_rows(pool, valid, 400, seed=3, step=18).squeeze(1).tolist()
    assert sorted(set(many)) == odd
    assert draw_rows(pool, torch.zeros(10, dtype=torch.bool), 3, 3, 17).abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_of_centroids_that_are_equal_but_for_rounding_the_first_has_the_rows(dtype: torch.dtype) -> None:
    """Starts are drawn with replacement. Which of two equal ones a row joins may not hang on the last bit, in which the
    pool of one process and that of several ranks differ; a nearer one is nearer."""
    g = torch.Generator().manual_seed(5)
    pool = torch.randn(7, 8, dtype=dtype, generator=g)
    everywhere, eps = torch.ones(7, dtype=torch.bool), torch.finfo(dtype).eps
    start = pool[[0, 1, 2, 3, 0]].clone()
    plain = cosine_kmeans(pool, everywhere, start, max_iterations=1).labels
    assert not (plain == 4).any() and (plain == 0).sum() >= 1
    for sign in (1, -1):
        moved = start.clone()
        moved[4] += sign * 2 * eps * pool[plain == 0].sum(0)  # nearer to the rows of the first, or farther from them
        assert torch.equal(cosine_kmeans(pool, everywhere, moved, max_iterations=1).labels, plain)
    start[4] = pool[plain == 0].mean(0) if (plain == 0).sum() > 1 else pool[0] + 0.01 * pool[4]
    start[0] = pool[0] - 0.5 * pool[1]
    assert (cosine_kmeans(pool, everywhere, start, max_iterations=1).labels == 4).any()
