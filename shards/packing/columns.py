"""What a source of features offers to `pack`: columns by row, fields, keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from shards.packing.pooling import POOLS, Pooling


class Source(Protocol):
    """n samples with numeric columns (each row (D,)) and fields (one value for each sample)."""

    @property
    def names(self) -> Sequence[str]:
        """Everything that `column` or `field` may be asked for."""

    def column(self, name: str) -> Column2D:
        """A numeric column; ValueError where it is missing or no (n, D) array of numbers."""

    def field(self, name: str) -> np.ndarray:
        """(n,) values; ValueError where it is missing or has another shape."""

    def constants(self, name: str) -> np.ndarray:
        """A 1-D array of any length, such as class names."""

    @property
    def keys(self) -> np.ndarray | None:
        """(n,) names that the source itself has for its samples, if it has any."""


class Column2D(Protocol):
    """A column of n rows, read by range: `rows(start, stop)` is (stop - start, width), a missing row is NaN."""

    count: int
    width: int
    dtype: np.dtype

    def rows(self, start: int, stop: int) -> np.ndarray: ...

    def row(self, number: int) -> np.ndarray: ...


class ArrayColumn:
    """A column that is one (n, D) array, in memory or mapped."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        if array.ndim != 2 or array.dtype.kind not in "fiub" or not array.shape[1]:
            raise ValueError(f"array {name!r} has shape {array.shape} and dtype {array.dtype}, expected numbers (n, D)")
        self._array = array
        self.count, self.width = array.shape
        self.dtype = array.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._array[start:stop]

    def row(self, number: int) -> np.ndarray:
        return self._array[number]


class FileColumn:
    """A column of one vector a sample, each read where it is kept; a sample without one is missing there. load: the
    vector (D,) of a place; places: of each sample, or None."""

    def __init__(self, load: Callable[[Any], np.ndarray], places: Sequence[Any | None]) -> None:
        self._load, self._places = load, places
        self.count = len(places)
        first = load(next(place for place in places if place is not None))
        self.width, self.dtype = len(first), first.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self.row(number) for number in range(start, stop)])

    def row(self, number: int) -> np.ndarray:
        place = self._places[number]
        if place is None:
            return np.full(self.width, np.nan, self.dtype if self.dtype.kind == "f" else np.float64)
        array = self._load(place)
        if len(array) != self.width or array.dtype != self.dtype:
            raise ValueError(
                f"{place}: found {array.dtype} ({len(array)},), expected {self.dtype} ({self.width},) as in the first"
            )
        return array


class PooledColumn:
    """A column of one sequence (T, D) a sample, of an (n, T, D) array."""

    def __init__(self, array: Any, pooling: Pooling) -> None:
        self._array, self._pooling = array, pooling
        self.count, self.width = len(array), pooling.width(array.shape[2])
        self.dtype = np.dtype(np.float32)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self.row(number) for number in range(start, stop)])

    def row(self, number: int) -> np.ndarray:
        return self._pooling(self._array[number])


def array_column(name: str, array: Any, pooling: Pooling) -> Column2D:
    """A column of an (n, D) array, or of an (n, T, D) one by pooling. ValueError for anything else."""
    if array.ndim != 3 or array.dtype.kind not in "fiub" or 0 in array.shape[1:]:
        return ArrayColumn(name, array)
    if pooling.kind is None:
        raise ValueError(
            f"array {name!r} has shape {array.shape}: a sequence for each sample; say how it becomes a vector: "
            f"--pool {', '.join(POOLS)}"
        )
    return PooledColumn(array, pooling)
