"""From modalities to one matrix: standardisation that is fitted on some rows and applied to others, and fusion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common.names import did_you_mean
from conclugen.evaluation.checks import Floats
from conclugen.evaluation.config import MODES
from conclugen.fields import choose

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


def normalise(
    features: Mapping[str, ArrayLike], mode: str, train_rows: NDArray[np.int64], groups: NDArray[Any]
) -> dict[str, Floats]:
    """Each modality's (N, D) features standardised, for all rows. NaN (missing) counts in no mean and stays NaN.

    mode: `inductive`, on `train_rows`: nothing of a test speaker is used; or `speaker_normalised`, each group by its
    own unlabelled rows (transductive, and much easier). Results of the two are never compared.
    """
    choose("mode", mode, MODES)
    if mode == "speaker_normalised":
        return {name: standardize_by_group(values, groups) for name, values in features.items()}
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in features.items()}
    return {name: Scaling.fit(array[train_rows]).apply(array) for name, array in arrays.items()}


def standardise(
    features: Mapping[str, ArrayLike],
    present: Mapping[str, ArrayLike],
    train_rows: NDArray[np.integer],
    groups: NDArray[Any] | None = None,
) -> dict[str, Floats]:
    """(N, D_m) of each modality, standardised on those training rows that have it; or, where (N,) groups are given,
    each group's on those of its own rows (transductive).

    A missing modality is zero, the training mean: to a linear probe it is as if average, and no indicator of presence
    is added, since which modalities a clip lacks can itself tell the label. Raises ValueError for a modality that no
    training row has.
    """
    standardised = {}
    for name, values in features.items():
        array, here = np.asarray(values, dtype=np.float64), np.asarray(present[name], dtype=bool)
        rows = train_rows[here[train_rows]]
        if not len(rows):
            raise ValueError(f"{name}: no training row has this modality; leave it out of the comparison")
        if groups is None:
            standardised[name] = np.where(here[:, None], Scaling.fit(array[rows]).apply(array), 0.0)
        else:
            standardised[name] = np.zeros_like(array)
            standardised[name][here] = standardize_by_group(array[here], groups[here])
    return standardised


def fuse(
    representations: Mapping[str, ArrayLike],
    how: str = "concat",
    present: Mapping[str, ArrayLike] | None = None,
    modalities: Sequence[str] | None = None,
) -> tuple[Floats, NDArray[np.bool_]]:
    """`(N, R')` float64 and `usable` (N,) bool: rows that have at least one of the modalities used.

    how: `"concat"` (a missing modality is a block of zeros), `"mean"` over the modalities that are present (equal
    widths needed), or the name of one modality. `present`: modality -> (N,) bool; without it, a row with NaN is
    missing. `modalities`: which, and their order; default: all, in the mapping's order. Rows that are not usable
    are zero.
    """
    chosen = tuple(representations) if modalities is None else tuple(modalities)
    if how not in ("concat", "mean"):
        chosen = (how,)
    for name in chosen:
        if name not in representations:
            known = did_you_mean(name, ["concat", "mean", *representations])
            raise ValueError(f"fusion: {name!r} is unknown; {known}")
    if not chosen:
        raise ValueError("fusion: no modality given")
    arrays = {name: np.asarray(representations[name], dtype=np.float64) for name in chosen}
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"fusion: modalities differ in their number of rows: {rows}")
    here: dict[str, NDArray[np.bool_]] = {}
    for name, array in arrays.items():
        given = present.get(name) if present is not None else None
        here[name] = np.asarray(np.isfinite(array).all(axis=1) if given is None else given, dtype=bool)
        if not np.isfinite(array[here[name]]).all():
            raise ValueError(f"fusion: {name} has NaN or infinity in rows that are marked present")
    zeroed = [np.where(here[name][:, None], array, 0.0) for name, array in arrays.items()]
    count = np.stack(list(here.values())).sum(axis=0)
    if how == "mean":
        widths = {name: array.shape[1] for name, array in arrays.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"fusion: a mean needs equal widths, found {widths}; use 'concat' or one modality")
        fused = np.sum(zeroed, axis=0) / np.maximum(count, 1)[:, None]
    else:
        fused = np.concatenate(zeroed, axis=1)
    return fused, count > 0
