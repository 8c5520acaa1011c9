"""One representation of a clip from those of its modalities."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common.names import did_you_mean
from conclugen.downstream.checks import Floats


def fuse(
    representations: Mapping[str, ArrayLike],
    how: str = "concat",
    present: Mapping[str, ArrayLike] | None = None,
    modalities: tuple[str, ...] | None = None,
) -> tuple[Floats, NDArray[np.bool_]]:
    """`(N, R')` float64 and `usable` (N,) bool: rows that have at least one of the modalities used.

    how: `"concat"` (a missing modality is a block of zeros), `"mean"` over the modalities that are present (equal
    widths needed), or the name of one modality. `present`: modality -> (N,) bool; without it, a row with NaN is
    missing. `modalities`: which, and their order; default: all, in the mapping's order. Rows that are not usable
    are zero.
    """
    chosen = tuple(representations) if modalities is None else modalities
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
