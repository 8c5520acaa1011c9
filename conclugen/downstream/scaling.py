"""Standardisation that is fitted on some rows and applied to others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.downstream.checks import Floats

# A column whose deviation is this small against its own size is constant up to rounding: it is centred, not blown up.
_CONSTANT = 1e-9


@dataclass(frozen=True)
class Scaling:
    """`(x - mean) / deviation` by column; both (D,) float64. A constant column has deviation 1."""

    mean: Floats
    deviation: Floats

    @classmethod
    def fit(cls, values: ArrayLike) -> "Scaling":
        """Mean and population deviation of each column over the rows in which it is not NaN (missing)."""
        array = np.asarray(values, dtype=np.float64)
        known = np.isfinite(array)
        count = known.sum(axis=0)
        if not len(array) or not count.all():
            empty = int((count == 0).sum()) if len(array) else array.shape[1]
            raise ValueError(
                f"features: {empty} of {array.shape[1]} columns have no value in the {len(array)} rows to standardise "
                "on; fit on rows that have this modality, or leave the modality out"
            )
        filled = np.where(known, array, 0.0)
        mean = filled.sum(axis=0) / count
        centred = np.where(known, array - mean, 0.0)
        deviation = np.sqrt((centred**2).sum(axis=0) / count)
        deviation[deviation <= _CONSTANT * np.maximum(np.abs(filled).max(axis=0), 1e-300)] = 1.0
        return cls(mean, deviation)

    @classmethod
    def none(cls, width: int) -> "Scaling":
        """Leaves (N, width) features as they are."""
        return cls(np.zeros(width), np.ones(width))

    def apply(self, values: ArrayLike) -> Floats:
        """(N, D) standardised; NaN (missing) stays NaN."""
        return (np.asarray(values, dtype=np.float64) - self.mean) / self.deviation


def standardize_by_group(values: ArrayLike, groups: NDArray[np.generic]) -> Floats:
    """Each group's rows standardised by that group's own mean and deviation (transductive: unlabelled rows only)."""
    array = np.asarray(values, dtype=np.float64)
    if len(groups) != len(array):
        raise ValueError(f"groups: {len(groups)} rows, expected {len(array)} as in the features")
    result = np.empty_like(array)
    for group in np.unique(groups):
        rows = groups == group
        result[rows] = Scaling.fit(array[rows]).apply(array[rows])
    return result
