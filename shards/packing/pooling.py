"""How a sequence of vectors (frames, windows, words) becomes the one vector of a sample: as asked for alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conclugen.common.names import did_you_mean

POOLS = ("mean", "mean-std", "max")


@dataclass(frozen=True)
class Pooling:
    """kind: `mean` over the valid rows, `mean-std` (means, then population deviations: twice as wide), `max`, or None
    where no sequence may come. zero_padding: rows of zeros alone are padding, not counted. Rows with a number that is
    not finite are never counted."""

    kind: str | None = None
    zero_padding: bool = False

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in POOLS:
            raise ValueError(f"--pool {self.kind!r} is unknown, {did_you_mean(self.kind, POOLS)}")
        if self.zero_padding and self.kind is None:
            raise ValueError("--zero-padding says which rows of sequences count: give --pool as well")

    def width(self, features: int) -> int:
        """Of the vector that (T, features) becomes."""
        return 2 * features if self.kind == "mean-std" else features

    def __call__(self, sequence: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """(T, D) to (width,) float32, NaN where no row is valid. valid: (T,) bool, rows that may count at all."""
        assert self.kind is not None
        x = sequence.astype(np.float64)
        counts = np.isfinite(x).all(axis=1)
        if valid is not None:
            counts &= valid
        if self.zero_padding:
            counts &= (x != 0).any(axis=1)
        x = x[counts]
        if not len(x):
            return np.full(self.width(sequence.shape[1]), np.nan, np.float32)
        if self.kind == "max":
            return x.max(axis=0).astype(np.float32)
        mean = x.mean(axis=0)
        pooled = mean if self.kind == "mean" else np.concatenate([mean, x.std(axis=0)])
        return pooled.astype(np.float32)

    def vector(self, what: str, array: np.ndarray) -> np.ndarray:
        """(D,) or (1, D) as they are, (T, D) pooled; ValueError, naming `what`, for anything else."""
        if array.dtype.kind not in "fiub" or array.ndim not in (1, 2) or not array.size or not array.shape[-1]:
            raise ValueError(f"{what}: shape {array.shape}, dtype {array.dtype}, expected numbers (D,) or (T, D)")
        if array.ndim == 1:
            return array
        if self.kind is not None:
            return self(array)
        if len(array) == 1:
            return array[0]
        raise ValueError(
            f"{what}: a sequence of {len(array)} vectors; say how it becomes one: --pool {', '.join(POOLS)}"
        )
