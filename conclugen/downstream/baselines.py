"""What every representation is shown beside: the majority, the raw features, and heads that were never trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.downstream import checks
from conclugen.downstream.checks import Floats, Integers
from conclugen.downstream.fusion import fuse
from conclugen.downstream.scaling import Scaling

# Features by modality (N, D_m), presence by modality (N,) -> representations by modality (N, R).
Embed = Callable[[Mapping[str, ArrayLike], Mapping[str, ArrayLike]], Mapping[str, ArrayLike]]


@dataclass(frozen=True)
class Majority:
    """Predicts the most frequent training class; its probabilities are the training frequencies."""

    frequencies: Floats

    @classmethod
    def fit(cls, target: ArrayLike, classes: int) -> "Majority":
        """From (N,) classes in 0..classes-1. Of equally frequent ones the first is predicted."""
        y = checks.class_labels(target, classes, "target")
        if not len(y):
            raise ValueError("target: no training rows to count")
        return cls(np.bincount(y, minlength=classes) / len(y))

    def predict(self, rows: int) -> Integers:
        return np.full(rows, int(self.frequencies.argmax()), dtype=np.int64)

    def probabilities(self, rows: int) -> Floats:
        return np.tile(self.frequencies, (rows, 1))


def raw_features(
    features: Mapping[str, ArrayLike], present: Mapping[str, ArrayLike], train_rows: NDArray[np.integer]
) -> tuple[Floats, NDArray[np.bool_]]:
    """(N, sum of D_m) features, each modality standardised on those training rows that have it, and usable rows (N,).

    A missing modality is zero, the training mean, after standardisation: to a linear probe it is as if average, and no
    indicator of presence is added, since which modalities a clip lacks can itself tell the label.
    """
    standardised = {}
    for name, values in features.items():
        array, here = np.asarray(values, dtype=np.float64), np.asarray(present[name], dtype=bool)
        rows = train_rows[here[train_rows]]
        if not len(rows):
            raise ValueError(f"{name}: no training row has this modality; leave it out of the comparison")
        standardised[name] = np.where(here[:, None], Scaling.fit(array[rows]).apply(array), 0.0)
    return fuse(standardised, "concat", present)


def untrained_heads(
    embed: Embed, features: Mapping[str, ArrayLike], present: Mapping[str, ArrayLike], fusion: str = "concat"
) -> tuple[Floats, NDArray[np.bool_]]:
    """(N, R') by a freshly initialised model's `embed`, fused as the trained ones are; and usable rows (N,)."""
    return fuse(embed(features, present), fusion, present)
