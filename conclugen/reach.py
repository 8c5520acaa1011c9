"""How far features lie from those that a model knows: what is far outside, its numbers say little about.

The distance of a row is the root mean square of its standardised features: about 1 where they are spread as in
training. It is compared with the distances of rows that were held out, speakers that nothing was learned from: a clip
of the same kind lies beyond 99 % of them in one case of a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.layers.standardize import without_constants

_POINTS = 201
FAR = 0.99
"""Share of known rows that lie nearer, beyond which a row is called far outside."""

Moments = Mapping[str, tuple[ArrayLike, ArrayLike]]


def distances(features: Mapping[str, ArrayLike], moments: Moments) -> dict[str, NDArray[np.float64]]:
    """Modality -> (B,) of its (B, D) features, NaN where they are missing (a NaN). moments: modality -> (mean,
    deviation), (D,) each; a feature that is constant there is divided by 1, as the model divides it."""
    found = {}
    for name, values in features.items():
        if name in moments:
            mean, deviation = moments[name]
            x = (np.asarray(values, np.float64) - np.asarray(mean)) / without_constants(mean, deviation)
            found[name] = np.sqrt(np.square(x).mean(axis=1))
    return found


def fit(known: Mapping[str, NDArray[np.float64]]) -> dict[str, list[float]]:
    """Modality -> 201 quantiles of the distances of known rows, 0 to 1, as plain data; not of fewer than 2 rows."""
    there = {name: values[np.isfinite(values)] for name, values in known.items()}
    points = np.linspace(0, 1, _POINTS)
    return {name: np.quantile(values, points).tolist() for name, values in there.items() if len(values) > 1}


def nearer(distance: float, quantiles: ArrayLike) -> float:
    """Share of known rows that lie nearer, 0 to 1."""
    known = np.asarray(quantiles, np.float64)
    return float(np.interp(distance, known, np.linspace(0, 1, len(known))))
