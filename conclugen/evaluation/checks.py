"""What every evaluation asks of its arrays before it computes anything."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def class_name(index: int, names: Sequence[str] | None) -> str:
    """`'happy' (3)` where names are known, `3` where not."""
    return f"{names[index]!r} ({index})" if names is not None else str(index)


def matrix(values: ArrayLike, what: str) -> Floats:
    """(N, D) float64 without NaN or infinity; `ValueError` names the first bad row and column."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"{what}: expected a matrix of shape (rows, width), found shape {array.shape}")
    if not len(array):
        raise ValueError(f"{what}: no rows; give at least one")
    bad = ~np.isfinite(array)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{what}: {int(bad.any(axis=1).sum())} of {len(array)} rows hold NaN or infinity, the first at row {row}, "
            f"column {column} ({array[row, column]}); leave out rows without a representation, "
            "or fuse modalities so that a missing one counts as zero (conclugen.evaluation.features.fuse)"
        )
    return array


def class_labels(values: ArrayLike, classes: int, what: str, names: Sequence[str] | None = None) -> Integers:
    """(N,) int64 in 0..classes-1; `ValueError` on missing (-1), unknown or fractional labels."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{what}: expected one class index per row, shape (rows,), found shape {array.shape}")
    if classes < 2:
        raise ValueError(f"{what}: {classes} class(es) declared; a classification needs at least 2")
    if names is not None and len(names) != classes:
        raise ValueError(f"{what}: {len(names)} class names for {classes} classes")
    whole = array.astype(np.int64)
    if array.dtype.kind not in "iub" and not np.array_equal(whole, array):
        raise ValueError(f"{what}: class labels must be whole numbers, found dtype {array.dtype} with fractions or NaN")
    outside = (whole < 0) | (whole >= classes)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"{what}: {int(outside.sum())} of {len(whole)} labels lie outside 0..{classes - 1}, the first at row {row} "
            f"({whole[row]}); -1 marks a missing label: select the labelled rows first"
        )
    return whole


def binary(labels: Floats, what: str) -> None:
    """`ValueError` unless every entry is 0 or 1."""
    if not np.isin(labels, (0.0, 1.0)).all():
        found = labels[~np.isin(labels, (0.0, 1.0))][0]
        raise ValueError(
            f"{what}: multi-label targets must be 0 or 1, found {found}; binarise them (as published: present when > 0)"
        )


def same_length(expected: int, **arrays: ArrayLike) -> None:
    """Every named array has `expected` rows."""
    for name, values in arrays.items():
        if len(np.asarray(values)) != expected:
            raise ValueError(f"{name}: {len(np.asarray(values))} rows, expected {expected} as in the features")


def trainable_classes(
    target: Integers, classes: int, names: Sequence[str] | None = None, allow_absent: bool = False
) -> None:
    """`ValueError` where the training rows hold one class only, or (unless allowed) lack a declared class."""
    support = np.bincount(target, minlength=classes)
    present = np.flatnonzero(support)
    if len(present) < 2:
        raise ValueError(
            f"training labels: all {len(target)} rows are of class {class_name(int(present[0]), names)}; "
            "a classifier needs two classes: label more rows, or draw them by class"
        )
    if not allow_absent and len(present) < classes:
        absent = ", ".join(class_name(int(index), names) for index in np.flatnonzero(support == 0))
        raise ValueError(
            f"training labels: no row of class {absent}; label more rows, draw them by class, or pack the label with "
            "the classes that there are (conclugen pack --label NAME=FIELD:class:A,B,...); in code "
            "allow_absent_classes=True trains on the others"
        )


def disjoint_groups(train_groups: ArrayLike, test_groups: ArrayLike, where: str = "groups") -> None:
    """`ValueError` where a group (speaker, video) is on both sides of a split."""
    shared = np.intersect1d(np.asarray(train_groups), np.asarray(test_groups))
    if len(shared):
        shown = ", ".join(str(group) for group in shared[:5])
        raise ValueError(
            f"{where}: {len(shared)} group(s) are in training and in test ({shown}), so the score would measure "
            "recognition of speakers; split by group (shards: conclugen split FOLDER --by group)"
        )
