"""CSV files of one clip each, a row for every frame, as OpenFace and openSMILE write them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from shards.format.tables import read_table

# What says where a row belongs and whether it is good, and is not a feature.
_PLACES = frozenset(
    [
        "frame",
        "face_id",
        "timestamp",
        "confidence",
        "success",
        "name",
        "frametime",
        "frameindex",
        "file",
        "start",
        "end",
    ]
)


def read_clip_csv(path: Path, columns: tuple[str, ...] = ()) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names of the features, (T, D) float64, and (T,) bool which rows are valid.

    A row is valid where OpenFace's `success` is 1 (in files that have it). Where several faces are listed (`face_id`),
    the one with the most valid rows is taken, the first of equals. Columns that place a row (frame, timestamp, name,
    ...) and columns of text are not features. columns: patterns such as `AU*_r` of those that are wanted; none: all.
    Raises ValueError for a file that can't be read, a value that is not a number, and patterns that match nothing.
    """
    table = read_table(path)
    known = {name.strip(): name for name in table.names}
    valid = np.ones(len(table), bool)
    if "success" in known:
        valid = _numbers(path, "success", table.column(known["success"])) == 1
    if "face_id" in known:
        faces = _numbers(path, "face_id", table.column(known["face_id"]))
        counts = {face: int(valid[faces == face].sum()) for face in np.unique(faces)}
        valid &= faces == max(counts, key=lambda face: (counts[face], -face))
    features = [name for name in known if name.lower() not in _PLACES]
    if columns:
        features = [name for name in features if any(fnmatchcase(name, pattern) for pattern in columns)]
        if not features:
            raise ValueError(
                f"{path}: no column matches {', '.join(columns)}; it has {', '.join(list(known)[:8])}, ..."
            )
    else:
        features = [name for name in features if _is_number(table.column(known[name])[:1])]
    if not features:
        raise ValueError(f"{path}: no column holds numbers")
    values = [_numbers(path, name, table.column(known[name])) for name in features]
    return tuple(features), np.stack(values, axis=1), valid


def _is_number(values: list[object]) -> bool:
    try:
        [float(str(value)) for value in values if value is not None]
    except ValueError:
        return False
    return True


def _numbers(path: Path, name: str, values: list[object]) -> np.ndarray:
    """(T,) float64, NaN where a field is empty."""
    try:
        return np.array([np.nan if value is None else float(str(value)) for value in values], np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: column {name!r}: {error}") from None
