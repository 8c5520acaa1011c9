"""`concat+raw`: a representation beside the raw features it was made of, as one vector for a penalised probe.

Representation and raw features get half of the total variance each, and of the raw half every modality the same share:
the system `pretrained + raw` of evaluations. Columns are standardised over the training rows of the run, whatever rows
are embedded later; a missing modality counts as its training mean. The total variance is the number of columns, as in a
plain concatenation, so that a penalty means the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.features import Scaling, standardise

FUSION = "concat+raw"


class BesideRaw(nn.Module):
    """`(x - mean) * factor` of every column: those of the representation, then each modality's raw features.

    Args:
        width: R', of the representation.
        widths: Modality -> D of its raw features, in their order.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, width: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.widths = dict(widths)
        self.width = width + sum(widths.values())
        self.register_buffer("mean", torch.zeros(self.width, dtype=torch.float64))
        self.register_buffer("factor", torch.ones(self.width, dtype=torch.float64))

    @classmethod
    def fit(
        cls, representation: ArrayLike, features: Mapping[str, ArrayLike], present: Mapping[str, ArrayLike]
    ) -> BesideRaw:
        """Of training rows: representation (N, R'), 0 in what is missing; modality -> (N, D), and its presence (N,).

        Raises ValueError for a modality that no row has.
        """
        known = np.asarray(representation, dtype=np.float64)
        rows = np.arange(len(known))
        raw = standardise(features, present, rows)
        means = []
        for name, values in features.items():
            here = np.asarray(present[name], dtype=bool)
            means.append(Scaling.fit(np.asarray(values)[here]))
        blocks = Blocks.with_raw(known, raw)
        _, factors = blocks.columns("halves")
        # Once more over all rows, the filled ones too: each half has its share of these exactly.
        filled = Scaling.fit(blocks.matrix)
        inner = np.concatenate([np.ones(known.shape[1]), *(scaling.deviation for scaling in means)])
        shift = np.concatenate([filled.mean[: known.shape[1]], *(scaling.mean for scaling in means)])
        made = cls(known.shape[1], {name: array.shape[1] for name, array in raw.items()})
        made.mean.copy_(torch.from_numpy(shift))
        made.factor.copy_(torch.from_numpy(factors / (filled.deviation * inner)))
        return made

    def join(
        self, representation: NDArray[np.floating], features: Mapping[str, NDArray[np.floating]]
    ) -> NDArray[np.floating]:
        """(B, R' + sum of D): representation (B, R'); features: modality -> (B, D), rows with a NaN missing."""
        parts, at, mean = [representation], representation.shape[1], self.mean.cpu().numpy()
        for name, width in self.widths.items():
            centre = mean[at : at + width]
            values = features.get(name)
            if values is None:
                parts.append(np.broadcast_to(centre, (len(representation), width)))
            else:
                parts.append(np.where(np.isnan(values).any(axis=1, keepdims=True), centre, values))
            at += width
        joined: NDArray[np.floating] = (np.concatenate(parts, axis=1) - mean) * self.factor.cpu().numpy()
        return joined.astype(representation.dtype)
