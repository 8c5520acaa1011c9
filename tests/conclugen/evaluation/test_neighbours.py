"""Nearest neighbours against a loop over rows."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from conclugen.evaluation.features import Scaling
from conclugen.evaluation.neighbours import neighbour_vote


def slow_vote(X, y, z, classes, k):
    """One test row, one loop, as the definition says."""
    similarities = [float(x @ z / np.linalg.norm(x) / np.linalg.norm(z)) for x in X]
    vote = np.zeros(classes)
    for row in sorted(range(len(X)), key=lambda i: -similarities[i])[:k]:
        vote[y[row]] += np.exp(similarities[row] / 0.07)
    return vote / vote.sum()


@pytest.fixture
def data():
    rng = np.random.default_rng(2)
    y = np.arange(90) % 3
    X = rng.normal(size=(90, 6)) + np.eye(3, 6)[y] * 1.5
    return X, y, rng.integers(0, 9, 90)


@pytest.mark.parametrize("k", [1, 7, 90])
def test_given_k_is_the_definition(data, k):
    X, y, groups = data
    Z = np.random.default_rng(8).normal(size=(11, 6))
    found = neighbour_vote(X, y, groups, Z, 3, neighbours=[k], scaling=Scaling.none(6))
    np.testing.assert_allclose(found.probabilities, [slow_vote(X, y, z, 3, k) for z in Z], rtol=1e-9)
    assert found.k == k
    assert found.scores == {}


def test_k_is_chosen_on_held_out_groups(data):
    X, y, groups = data
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    found = neighbour_vote(X, y, groups, X[:4], 3, neighbours=[1, 9, 30, 1000])
    fold = np.searchsorted(np.unique(groups), groups) % 3
    assert set(found.scores) == {1, 9, 30}
    for k, score in found.scores.items():
        hits = []
        for held_out in range(3):
            kept, judged = fold != held_out, np.flatnonzero(fold == held_out)
            votes = [slow_vote(scaled[kept], y[kept], scaled[row], 3, k).argmax() for row in judged]
            hits.append(np.mean(votes == y[judged]))
        assert score == pytest.approx(np.mean(hits))
    assert found.k == max(found.scores, key=lambda k: (found.scores[k], -k))


def test_a_row_of_zeros_is_similar_to_nothing(data):
    X, y, groups = data
    found = neighbour_vote(X, y, groups, np.zeros((1, 6)), 3, neighbours=[90], scaling=Scaling.none(6))
    np.testing.assert_allclose(found.probabilities, [[1 / 3, 1 / 3, 1 / 3]])


def test_more_test_rows_than_a_block(data):
    X, y, groups = data
    Z = np.random.default_rng(0).normal(size=(1100, 6))
    whole = neighbour_vote(X, y, groups, Z, 3, neighbours=[5]).probabilities
    parts = [neighbour_vote(X, y, groups, part, 3, neighbours=[5]).probabilities for part in np.array_split(Z, 7)]
    np.testing.assert_allclose(whole, np.concatenate(parts))


def test_refusals(data):
    X, y, groups = data
    with pytest.raises(ValueError, match=r"none lies within 1\.\.90"):
        neighbour_vote(X, y, groups, X, 3, neighbours=[0, 91])
    with pytest.raises(ValueError, match="test_features: 1 of 90 rows hold NaN"):
        neighbour_vote(X, y, groups, np.where(np.arange(90)[:, None] == 4, np.nan, X), 3)


def test_without_ties_it_is_scikit_learns_vote_and_with_ties_the_earlier_row_is_nearer(data):
    """scikit-learn takes any of equally near rows: which, is a matter of its partial sort."""
    X, y, groups = data
    Z = np.random.default_rng(8).normal(size=(200, 6))
    for k in (1, 7, 90):
        peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07))
        found = neighbour_vote(X, y, groups, Z, 3, neighbours=[k], scaling=Scaling.none(6))
        np.testing.assert_allclose(found.probabilities, peer.fit(X, y).predict_proba(Z), rtol=1e-9)
    ties = np.repeat(X[:1], 90, axis=0)
    found = neighbour_vote(ties, y, groups, X[:1], 3, neighbours=[4], scaling=Scaling.none(6))
    np.testing.assert_allclose(found.probabilities, [[0.5, 0.25, 0.25]])
