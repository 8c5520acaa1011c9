"""Standardisation of input features: fitted on training rows, kept as buffers, exported with the model."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

# Deviation, relative to the mean (or to 1), below which a feature counts as constant.
_ROUNDING = 1e-8


def fit(
    features: Mapping[str, ArrayLike], present: Mapping[str, ArrayLike] | None = None
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(mean (D,), population deviation (D,)) of each modality's array (N, D); hand it only training rows.

    Rows that are not present, or hold a NaN, do not count. A constant feature's deviation is 1 (`without_constants`).
    Raises ValueError for an array that is not (rows, D), and for a modality that no row has.
    """
    masks = present or {}
    return {modality: _moments(modality, x, masks.get(modality)) for modality, x in features.items()}


def _moments(name: str, x: ArrayLike, present: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"{name}: found shape {rows.shape}, expected (rows, width)")
    keep = ~np.isnan(rows).any(axis=1)
    if present is not None:
        keep &= np.asarray(present, dtype=bool)
    rows = rows[keep]
    if not len(rows):
        raise ValueError(f"{name}: every row is missing, so there is nothing to standardise by; leave the modality out")
    mean = rows.mean(axis=0)
    return mean, without_constants(mean, rows.std(axis=0))


def without_constants(mean: ArrayLike, deviation: ArrayLike) -> NDArray[np.float64]:
    """The deviation (D,), or 1 for a feature that is constant up to rounding: what is left of it is noise, which a
    division would blow up to the size of a signal."""
    centre, spread = np.asarray(mean, dtype=np.float64), np.asarray(deviation, dtype=np.float64)
    return np.where((spread >= 0) & (spread <= _ROUNDING * np.maximum(1.0, np.abs(centre))), 1.0, spread)


class Standardize(nn.Module):
    """(x - mean) / deviation, cut to +-clip. (B, D) -> (B, D)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def set(self, name: str, mean: ArrayLike, deviation: ArrayLike) -> None:
        """Take the fitted values, constants as `without_constants` has them.

        Raises ValueError naming modality and field on a wrong width or a value that can't be.
        """
        for field, buffer, array in (("mean", self.mean, mean), ("deviation", self.deviation, deviation)):
            values = torch.as_tensor(np.asarray(array, dtype=np.float64))
            if values.shape != buffer.shape:
                raise ValueError(
                    f"standardization[{name!r}] {field}: found shape {tuple(values.shape)}, "
                    f"expected {tuple(buffer.shape)}"
                )
            if not bool(torch.isfinite(values).all()) or (field == "deviation" and not bool((values >= 0).all())):
                raise ValueError(f"standardization[{name!r}] {field}: expected finite values, deviations of 0 or more")
        self.mean.copy_(torch.as_tensor(np.asarray(mean, dtype=np.float64)))
        self.deviation.copy_(torch.as_tensor(without_constants(mean, deviation)))

    def forward(self, x_BD: Tensor) -> Tensor:
        return ((x_BD - self.mean) / self.deviation).clamp(-self.clip, self.clip)
