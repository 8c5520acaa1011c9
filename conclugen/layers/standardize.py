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
    """(x - mean) / deviation, cut to +-clip. (B, D) -> (B, D).

    corpora: number of corpora by whose own moments their rows are standardised; 0: all rows by the same.
    """

    mean: Tensor
    deviation: Tensor
    corpus_mean: Tensor
    corpus_deviation: Tensor

    def __init__(self, width: int, clip: float, corpora: int = 0) -> None:
        super().__init__()
        self.clip, self.corpora = clip, corpora
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        if corpora:
            self.register_buffer("corpus_mean", torch.zeros(corpora, width))
            self.register_buffer("corpus_deviation", torch.ones(corpora, width))

    def set(self, name: str, mean: ArrayLike, deviation: ArrayLike) -> None:
        """Take the fitted values, constants as `without_constants` has them; for every corpus too, until
        `set_corpus`.

        Raises ValueError naming modality and field on a wrong width or a value that can't be.
        """
        self._check(name, mean, deviation)
        self.mean.copy_(torch.as_tensor(np.asarray(mean, dtype=np.float64)))
        self.deviation.copy_(torch.as_tensor(without_constants(mean, deviation)))
        if self.corpora:
            self.corpus_mean.copy_(self.mean.expand_as(self.corpus_mean))
            self.corpus_deviation.copy_(self.deviation.expand_as(self.corpus_deviation))

    def set_corpus(self, corpus: int, name: str, mean: ArrayLike, deviation: ArrayLike) -> None:
        """`set` for the rows of one corpus alone."""
        self._check(name, mean, deviation)
        self.corpus_mean[corpus] = torch.as_tensor(np.asarray(mean, dtype=np.float64)).to(self.mean)
        self.corpus_deviation[corpus] = torch.as_tensor(without_constants(mean, deviation)).to(self.mean)

    def _check(self, name: str, mean: ArrayLike, deviation: ArrayLike) -> None:
        for field, buffer, array in (("mean", self.mean, mean), ("deviation", self.deviation, deviation)):
            values = torch.as_tensor(np.asarray(array, dtype=np.float64))
            if values.shape != buffer.shape:
                raise ValueError(
                    f"standardization[{name!r}] {field}: found shape {tuple(values.shape)}, "
                    f"expected {tuple(buffer.shape)}"
                )
            if not bool(torch.isfinite(values).all()) or (field == "deviation" and not bool((values >= 0).all())):
                raise ValueError(f"standardization[{name!r}] {field}: expected finite values, deviations of 0 or more")

    def forward(self, x_BD: Tensor, corpus_B: Tensor | None = None) -> Tensor:
        """corpus_B: (B,) int64, each row's corpus, -1 for none that is known: by the moments of all."""
        mean, deviation = self.mean, self.deviation
        if self.corpora and corpus_B is not None:
            # -1 is the last row of each table.
            mean = torch.cat([self.corpus_mean, mean.unsqueeze(0)])[corpus_B]
            deviation = torch.cat([self.corpus_deviation, deviation.unsqueeze(0)])[corpus_B]
        return ((x_BD - mean) / deviation).clamp(-self.clip, self.clip)
