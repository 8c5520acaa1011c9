"""Weights of classes in the downstream losses: the published lists, and inverse frequency.

The published lists are those of the authors' configurations (github.com/tub-cv-group/conclugen), in the order of each
data set's label indices.
"""

from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from conclugen.common.names import did_you_mean
from conclugen.downstream.checks import Floats, class_labels

# neutral, surprise, fear, sadness, joy, disgust, anger
MELD = (4.0, 15.0, 15.0, 3.0, 1.0, 6.0, 3.0)
# neutral, calm, happy, sad, angry, fearful, disgust, surprised: neutral has half as many clips
RAVDESS = (1.875, 0.9375, 0.9375, 0.9375, 0.9375, 0.9375, 0.9375, 0.9375)
# happy, sad, anger, surprise, disgust, fear: weights of the positive rows in a binary cross-entropy
MOSEI_POSITIVE = (1.05285, 5.21507, 5.33730, 19.48985, 7.04484, 23.68800)
PUBLISHED = MappingProxyType({"meld": MELD, "ravdess": RAVDESS, "mosei": MOSEI_POSITIVE})


def published(data_set: str) -> tuple[float, ...]:
    """The published list by name; CAER has none but weighs by class frequency: see `frequency`."""
    if data_set not in PUBLISHED:
        known = did_you_mean(data_set, PUBLISHED)
        raise ValueError(f"class weights: no published list of {data_set!r}; {known}")
    return PUBLISHED[data_set]


def inverse_frequency(target: ArrayLike, classes: int) -> Floats:
    """(K,) N / (K n_k), so that every class weighs the same in sum; `ValueError` for a class without rows."""
    counts = _counts(target, classes)
    return counts.sum() / (classes * counts)


def frequency(target: ArrayLike, classes: int) -> Floats:
    """(K,) K n_k / N: what was published for CAER. It favours the majority; here to reproduce, not to recommend."""
    counts = _counts(target, classes)
    return classes * counts / counts.sum()


def positive_weights(target: ArrayLike) -> Floats:
    """(L,) negatives / positives of each label of (N, L) targets in {0, 1}; `ValueError` for a label never set."""
    labels = np.asarray(target, dtype=np.float64)
    positives = labels.sum(axis=0)
    if (positives == 0).any():
        raise ValueError(f"positive_weights: label {int(np.flatnonzero(positives == 0)[0])} has no positive row")
    return (len(labels) - positives) / positives


def _counts(target: ArrayLike, classes: int) -> Floats:
    counts = np.bincount(class_labels(target, classes, "target"), minlength=classes).astype(np.float64)
    if (counts == 0).any():
        raise ValueError(f"class weights: class {int(np.flatnonzero(counts == 0)[0])} has no row to be weighed by")
    return counts
