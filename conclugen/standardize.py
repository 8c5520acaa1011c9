"""Standardisation of input features: fitted on training rows, kept as buffers, exported with the model."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn


class Moments:
    """Running count, mean and deviation of each feature over the rows seen, merged as in Chan, Golub & LeVeque 1979."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self._m2 = np.zeros(width)

    def update(self, x: ArrayLike, present: ArrayLike | None = None) -> "Moments":
        """Take in rows x (B, D); rows that are not present, or hold a NaN, do not count."""
        rows = np.asarray(x, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(f"features: found shape {rows.shape}, expected (rows, {len(self.mean)})")
        keep = ~np.isnan(rows).any(axis=1)
        if present is not None:
            keep &= np.asarray(present, dtype=bool)
        rows = rows[keep]
        if len(rows):
            mean = rows.mean(axis=0)
            m2 = ((rows - mean) ** 2).sum(axis=0)
            total = self.count + len(rows)
            difference = mean - self.mean
            self.mean = self.mean + difference * (len(rows) / total)
            self._m2 = self._m2 + m2 + difference**2 * (self.count * len(rows) / total)
            self.count = total
        return self

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Population standard deviation (D,); 1 for a feature that is constant up to rounding."""
        deviation = np.sqrt(self._m2 / max(1, self.count))
        return np.where(deviation <= 1e-8 * np.maximum(1.0, np.abs(self.mean)), 1.0, deviation)

    def result(self, name: str = "features") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(mean (D,), deviation (D,)). Raises ValueError when no row was present."""
        if self.count == 0:
            raise ValueError(
                f"{name}: every row is missing, so there is nothing to standardise by; leave the modality out"
            )
        return self.mean, self.deviation


def fit(
    features: Mapping[str, ArrayLike], present: Mapping[str, ArrayLike] | None = None
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(mean, deviation) of each modality's array (N, D) over its present rows; hand it only training rows."""
    masks = present or {}
    return {m: Moments(np.shape(x)[1]).update(x, masks.get(m)).result(m) for m, x in features.items()}


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
        """Take the fitted values. Raises ValueError naming modality and field on a wrong width or a value that can't
        be."""
        for field, buffer, array in (("mean", self.mean, mean), ("deviation", self.deviation, deviation)):
            values = torch.as_tensor(np.asarray(array, dtype=np.float64))
            if values.shape != buffer.shape:
                raise ValueError(
                    f"standardization[{name!r}] {field}: found shape {tuple(values.shape)}, "
                    f"expected {tuple(buffer.shape)}"
                )
            if not bool(torch.isfinite(values).all()) or (field == "deviation" and not bool((values > 0).all())):
                raise ValueError(f"standardization[{name!r}] {field}: expected finite values, deviations above 0")
            buffer.copy_(values)

    def forward(self, x_BD: Tensor) -> Tensor:
        return ((x_BD - self.mean) / self.deviation).clamp(-self.clip, self.clip)
