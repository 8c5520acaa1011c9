"""Solvers of the linear probes: L2-penalised logistic regression and ridge regression, exact and quick; and both on a
weighted sum of layers whose weights are learned with them.

The first two work in the coordinates of the centred training matrix's own right singular vectors. That loses nothing:
the bias carries no penalty and takes up the centre; the optimum of an L2-penalised linear model lies in the span of the
training rows, so N rows of width D > N give a problem of N columns; and rotating the columns leaves the penalty as it
is. In these coordinates the Hessian of the logistic loss at equal probabilities is diagonal; variables scaled by it
make L-BFGS converge in tens of steps rather than hundreds.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from conclugen.common.extras import require
from conclugen.evaluation.checks import Floats

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Link = Literal["softmax", "sigmoid", "identity"]

# Directions whose singular value is below this share of the largest are lost in rounding of the Gram matrix anyway.
_RANK_TOLERANCE = 1e-7
_GRADIENT_TOLERANCE = 1e-6
_MAX_ITERATIONS = 1000
# Below so many multiplications a product, or rows of a square matrix, threads of the linear algebra wait for each other
# longer than they compute; on a busy machine seven times as long.
_LEAST_PRODUCT_FOR_THREADS = 1 << 25
_LEAST_SQUARE_FOR_THREADS = 1024


@dataclass(frozen=True)
class Rotation:
    """Of a matrix X (N, D): column means `centre` (D,), and of X - centre the right singular vectors `basis` (D, r),
    the singular values (r,), r <= min(N, D), and the coordinates `scores` (N, r)."""

    centre: Floats
    basis: Floats
    singular: Floats
    scores: Floats

    @classmethod
    def of(cls, X: Floats) -> "Rotation":
        """From the eigenvectors of the smaller Gram matrix: O(min(N, D)^3 + N D min(N, D))."""
        centre = X.mean(axis=0)
        centred = X - centre
        wide = X.shape[0] < X.shape[1]
        with _threads(min(X.shape) >= _LEAST_SQUARE_FOR_THREADS):
            eigenvalues, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
        singular = np.sqrt(np.maximum(eigenvalues, 0.0))
        kept = singular > _RANK_TOLERANCE * max(float(singular[-1]), 1e-300)
        singular, vectors = singular[kept], vectors[:, kept]
        if wide:
            return cls(centre, centred.T @ (vectors / singular), singular, vectors * singular)
        return cls(centre, vectors, singular, centred @ vectors)

    def linear(self, weight: Floats, bias: Floats) -> "Linear":
        """The model of the original columns that `scores @ weight + bias` is."""
        original = self.basis @ weight
        return Linear(original, bias - self.centre @ original)


@dataclass(frozen=True)
class Linear:
    """`X @ weight + bias`: weight (D, K), bias (K,)."""

    weight: Floats
    bias: Floats

    def __call__(self, X: Floats) -> Floats:
        return X @ self.weight + self.bias


@dataclass(frozen=True)
class LayerBlock:
    """Columns of a matrix that are a network's layers side by side, the first one first: `layers` times `width` of
    them, from `start` on. name: for those who read the weights."""

    name: str
    start: int
    layers: int
    width: int

    @property
    def columns(self) -> slice:
        return slice(self.start, self.start + self.layers * self.width)


@dataclass(frozen=True)
class WeighedLayers(Linear):
    """A model of weighted sums of layers, written as one of all columns. mixtures: name of each block -> the weights of
    its layers, which sum to 1."""

    mixtures: Mapping[str, Floats]


def _threads(several: bool) -> AbstractContextManager[object]:
    """Linear algebra by one thread, or by as many as are set."""
    return nullcontext() if several else _linear_algebra().limit(limits=1)


@cache
def _linear_algebra() -> "ThreadpoolController":
    """The libraries of linear algebra that numpy and scipy bring. Finding them takes as long as a small fit does."""
    require("fitting a probe", "threadpoolctl")
    require("fitting a probe", "scipy")
    import scipy.optimize  # noqa: F401 - loads its own
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def softmax(logits: Floats) -> Floats:
    """Row-wise softmax of (N, K)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def sigmoid(logits: Floats) -> Floats:
    """Elementwise logistic function, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def _loss_and_residual(logits: Floats, target: Floats, weight: Floats, link: Link) -> tuple[float, Floats]:
    """Sum of the weighted losses and its derivative by the logits (of `identity`, half of the squared errors)."""
    if link == "identity":
        residual = weight * (logits - target)
        return 0.5 * float((residual * (logits - target)).sum()), residual
    if link == "softmax":
        shifted = logits - logits.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        total = exponentials.sum(axis=1, keepdims=True)
        loss = float((weight * (np.log(total) - (shifted * target).sum(axis=1, keepdims=True))).sum())
        return loss, weight * (exponentials / total - target)
    loss = float((weight * (np.logaddexp(0.0, logits) - target * logits)).sum())
    return loss, weight * (sigmoid(logits) - target)


def logistic_path(
    rotation: Rotation, target: Floats, strengths: list[float], link: Link, weight: Floats | None = None
) -> list[Linear]:
    """Minimisers of `sum_i weight_i loss_i + |W|^2 / (2 C)`, one for each C in the given order (quickest ascending).

    target (N, K): one-hot rows for softmax cross-entropy, {0, 1} for K independent sigmoid cross-entropies.
    weight: (N, 1) or, for sigmoid, (N, K); 1 where not given. The bias carries no penalty. Each C starts from the
    solution of the one before it.
    """
    require("fitting a probe", "scipy")
    from scipy.optimize import minimize  # training processes import this package and solve nothing

    rows, classes = target.shape
    weights = np.ones((rows, 1)) if weight is None else weight
    curvature = 1.0 / classes if link == "softmax" else 0.25
    mean_weight = float(weights.mean())
    W, b = np.zeros((len(rotation.singular), classes)), np.zeros(classes)
    models = []
    with _threads(rotation.scores.size * classes >= _LEAST_PRODUCT_FOR_THREADS):
        for strength in strengths:
            penalty = 1.0 / (strength * rows)
            scale = 1.0 / np.sqrt(curvature * mean_weight * rotation.singular**2 / rows + penalty)[:, None]
            bias_scale = 1.0 / np.sqrt(curvature * mean_weight)
            scaled = rotation.scores * scale.T
            shrink = penalty * scale**2

            # The defaults bind this pass's arrays to the function that scipy calls.
            def objective(
                flat: Floats, scaled: Floats = scaled, shrink: Floats = shrink, bias_scale: float = bias_scale
            ) -> tuple[float, Floats]:
                theta = flat.reshape(-1, classes)
                logits = scaled @ theta[:-1] + theta[-1] * bias_scale
                loss, residual = _loss_and_residual(logits, target, weights, link)
                gradient = np.empty_like(theta)
                gradient[:-1] = scaled.T @ residual / rows + shrink * theta[:-1]
                gradient[-1] = residual.sum(axis=0) * bias_scale / rows
                return loss / rows + 0.5 * float((shrink * theta[:-1] ** 2).sum()), gradient.ravel()

            start = np.concatenate([(W / scale).ravel(), b / bias_scale])
            options = {
                "maxiter": _MAX_ITERATIONS,
                "maxfun": 2 * _MAX_ITERATIONS,
                "gtol": _GRADIENT_TOLERANCE,
                "ftol": 0.0,
            }
            found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
            if np.abs(found.jac).max() > 100 * _GRADIENT_TOLERANCE:
                warnings.warn(f"logistic regression (C = {strength}) stopped early: {found.message}", stacklevel=2)
            theta = found.x.reshape(-1, classes)
            W, b = theta[:-1] * scale, theta[-1] * bias_scale
            models.append(rotation.linear(W, b))
    return models


def layered_path(
    X: Floats,
    blocks: Sequence[LayerBlock],
    target: Floats,
    strengths: list[float],
    link: Link,
    weight: Floats | None = None,
) -> list[WeighedLayers]:
    """Minimisers, for each C, of the same sums as `logistic_path` and `ridge_path` have (the latter for `identity`) on
    features in which every block of X (N, D) is replaced by `sum_l s_l X_l`, over the linear model and s = softmax(a)
    at once: the weighted sum of layers of Peters et al. (2018, eq. 1) and SUPERB (Yang et al. 2021).

    Not convex in both: each C starts at equal weights and a model of zeros. The solution of another C may have left but
    one layer, from which no gradient leads back.
    """
    require("fitting a probe", "scipy")
    from scipy.optimize import minimize  # as above

    rows, outputs = target.shape
    weights = np.ones((rows, 1)) if weight is None else weight
    # (layers, N width) each: mixing and its derivative are products with a vector.
    stacks = [
        np.ascontiguousarray(X[:, b.columns].reshape(rows, b.layers, b.width).swapaxes(0, 1)).reshape(b.layers, -1)
        for b in blocks
    ]
    single = np.ones(X.shape[1], bool)
    for block in blocks:
        single[block.columns] = False
    rest = X[:, single]
    free, width = sum(b.layers for b in blocks), sum(b.width for b in blocks) + rest.shape[1]
    ends = np.cumsum([0, *(b.layers for b in blocks)])
    places = np.cumsum([0, *(b.width for b in blocks)])

    def parts(flat: Floats) -> tuple[list[Floats], Floats, Floats]:
        theta = flat[free:].reshape(-1, outputs)
        return [softmax(flat[None, i:j])[0] for i, j in pairwise(ends)], theta[:-1], theta[-1]

    models, start = [], np.zeros(free + (width + 1) * outputs)
    for strength in strengths:
        penalty = 1.0 / (strength * rows)

        def objective(flat: Floats, penalty: float = penalty) -> tuple[float, Floats]:
            mixtures, W, b = parts(flat)
            mixed = [(s @ stack).reshape(rows, -1) for s, stack in zip(mixtures, stacks, strict=True)]
            Z = np.hstack([*mixed, rest])
            loss, residual = _loss_and_residual(Z @ W + b, target, weights, link)
            by_mixture = []
            for s, stack, (i, j) in zip(mixtures, stacks, pairwise(places), strict=True):
                by_weight = stack @ (residual @ W[i:j].T).ravel() / rows
                by_mixture.append(s * (by_weight - s @ by_weight))
            by_W = Z.T @ residual / rows + penalty * W
            gradient = np.concatenate([*by_mixture, by_W.ravel(), residual.sum(axis=0) / rows])
            return loss / rows + 0.5 * penalty * float((W**2).sum()), gradient

        options = {"maxiter": _MAX_ITERATIONS, "maxfun": 2 * _MAX_ITERATIONS, "gtol": _GRADIENT_TOLERANCE, "ftol": 0.0}
        with _threads(X.size >= _LEAST_PRODUCT_FOR_THREADS):
            found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        if np.abs(found.jac).max() > 100 * _GRADIENT_TOLERANCE:
            warnings.warn(f"weighted layers (C = {strength}) stopped early: {found.message}", stacklevel=2)
        mixtures, W, bias = parts(found.x)
        whole = np.empty((X.shape[1], outputs))
        whole[single] = W[places[-1] :]
        for block, s, (i, j) in zip(blocks, mixtures, pairwise(places), strict=True):
            whole[block.columns] = (s[:, None, None] * W[i:j]).reshape(-1, outputs)
        named = {block.name: s for block, s in zip(blocks, mixtures, strict=True)}
        models.append(WeighedLayers(whole, bias.copy(), named))
    return models


def ridge_path(rotation: Rotation, target: Floats, strengths: list[float]) -> list[Linear]:
    """Minimisers of `sum_i |y_i - x_i W - b|^2 / 2 + |W|^2 / (2 C)` for each C, in closed form. target (N, T)."""
    mean = target.mean(axis=0)
    projected = rotation.scores.T @ (target - mean)
    shrunk = [projected / (rotation.singular**2 + 1.0 / strength)[:, None] for strength in strengths]
    return [rotation.linear(weight, mean) for weight in shrunk]
