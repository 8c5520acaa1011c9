"""Nearest neighbours by cosine similarity: what a representation's neighbourhoods say without any training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from conclugen.evaluation import checks
from conclugen.evaluation.checks import Floats, Integers
from conclugen.evaluation.features import Scaling
from conclugen.evaluation.protocol import group_folds

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
# Votes weigh exp(similarity / temperature), as Wu et al. 2018 (arXiv 1805.01978) do.
_TEMPERATURE = 0.07
# Test rows judged at a time: bounds the similarity matrix to a few hundred MB against 100,000 training rows.
_BLOCK = 512


@dataclass(frozen=True)
class NeighbourVote:
    """`probabilities` (N, K): each class's share of the vote. `scores`: k -> accuracy on held-out training groups."""

    predictions: Integers
    probabilities: Floats
    k: int
    scores: dict[int, float]


def neighbour_vote(
    train_features: ArrayLike,
    target: ArrayLike,
    groups: ArrayLike,
    test_features: ArrayLike,
    classes: int,
    *,
    all_groups: ArrayLike | None = None,
    neighbours: Sequence[int] = NEIGHBOURS,
    inner_folds: int = 3,
    scaling: Scaling | None = None,
) -> NeighbourVote:
    """Weighted vote of the k most similar training rows; k chosen on held-out training groups, of equals the smallest.

    Features (N, D) are standardised on the training rows (or by `scaling`); a row that is then all zero is similar to
    nothing: its similarities are 0. A k beyond the number of training rows is left out of the choice. One k: no choice.
    Raises `ValueError`: NaN in features, missing label, too few groups, no usable k.
    """
    X, Z = checks.matrix(train_features, "train_features"), checks.matrix(test_features, "test_features")
    checks.same_length(len(X), target=target, groups=groups)
    y = checks.class_labels(target, classes, "target")
    scaling = Scaling.fit(X) if scaling is None else scaling
    X, Z = _unit(scaling.apply(X)), _unit(scaling.apply(Z))
    allowed = sorted({k for k in neighbours if 1 <= k <= len(X)})
    if not allowed:
        raise ValueError(f"neighbours: {list(neighbours)}; none lies within 1..{len(X)}, the number of training rows")
    scores: dict[int, float] = {}
    chosen = allowed[0]
    if len(allowed) > 1:
        hits = np.zeros(len(allowed))
        fold = group_folds(groups, inner_folds, all_groups)
        for held_out in range(inner_folds):
            kept, judged = fold != held_out, fold == held_out
            votes = _votes(X[kept], y[kept], X[judged], classes, allowed)
            hits += [(vote.argmax(axis=1) == y[judged]).mean() / inner_folds for vote in votes]
        scores = {k: float(hit) for k, hit in zip(allowed, hits, strict=True)}
        chosen = allowed[int(hits.argmax())]
    vote = _votes(X, y, Z, classes, [chosen])[0]
    return NeighbourVote(vote.argmax(axis=1), vote, chosen, scores)


def _unit(values: Floats) -> Floats:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1.0)


def _votes(train: Floats, y: Integers, test: Floats, classes: int, ks: list[int]) -> list[Floats]:
    """For each k the (N, K) shares of the vote. Of equally similar rows the earlier one is the nearer."""
    onehot = np.eye(classes)[y]
    votes = [np.empty((len(test), classes)) for _ in ks]
    for start in range(0, len(test), _BLOCK):
        similarity = test[start : start + _BLOCK] @ train.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : max(ks)]
        best_similarity = np.take_along_axis(similarity, nearest, axis=1)
        weight = np.exp((best_similarity - best_similarity[:, :1]) / _TEMPERATURE)
        running = np.cumsum(weight[:, :, None] * onehot[nearest], axis=1)
        for vote, k in zip(votes, ks, strict=True):
            total = running[:, min(k, running.shape[1]) - 1]
            vote[start : start + _BLOCK] = total / total.sum(axis=1, keepdims=True)
    return votes
