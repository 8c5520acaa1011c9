"""Held-out folds over groups, by which a probe chooses its strength or its number of neighbours."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from conclugen.downstream.checks import Integers


def group_folds(groups: ArrayLike, folds: int, all_groups: ArrayLike | None = None) -> Integers:
    """(N,) fold of each row: the position of its group in the sorted list of groups, modulo `folds`.

    `all_groups` is the list to sort where it is longer than the groups of these rows (a few labelled rows of many
    training speakers): so a speaker's fold does not depend on which rows happen to be labelled.
    Raises `ValueError` where a fold would be empty (too few groups).
    """
    own = np.asarray(groups)
    listed = np.unique(own if all_groups is None else np.asarray(all_groups))
    missing = np.setdiff1d(own, listed)
    if len(missing):
        raise ValueError(f"groups: {missing[0]!r} of the labelled rows is not among the {len(listed)} training groups")
    if folds < 2:
        raise ValueError(f"inner_folds: {folds}; choosing by held-out groups needs at least 2 folds")
    fold = np.searchsorted(listed, own) % folds
    empty = np.setdiff1d(np.arange(folds), fold)
    if len(empty):
        raise ValueError(
            f"groups: {len(np.unique(own))} group(s) with labels leave {len(empty)} of {folds} inner folds empty; "
            "label rows of more speakers, use fewer inner folds, or give one value instead of a list to choose from"
        )
    return fold.astype(np.int64)


def best(candidates: Sequence[float], scores: Sequence[float]) -> int:
    """Index of the highest score; of equal ones the first."""
    if len(candidates) != len(scores):
        raise ValueError(f"{len(scores)} scores for {len(candidates)} candidates")
    return int(np.argmax(np.asarray(scores)))
