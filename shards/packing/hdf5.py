"""HDF5 files: arrays with a row for each sample, or a group for each sample (as the CMU SDK's .csd files are)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common.extras import require
from conclugen.common.names import did_you_mean
from shards.packing.columns import Column2D, FileColumn, Source, array_column
from shards.packing.pooling import Pooling

HDF5 = (".h5", ".hdf5", ".hdf", ".csd")
_PLAIN = "fiubSUO"
_ABOUT = frozenset(["metadata", "intervals"])  # of the CMU SDK: what is said of the data, and where a row lies


def open_hdf5(path: Path, pooling: Pooling) -> Source:
    """The arrays of a file, or its groups of one sample each; ValueError for a file that can't be read or has neither.

    Arrays are read in parts. Links to other files are not followed, and references to objects are refused.
    """
    require("reading HDF5", "h5py")
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"--source {path} cannot be read as HDF5: {error}") from None
    top: Any = file
    while True:
        arrays = [name for name, item in _items(top) if isinstance(item, h5py.Dataset) and item.ndim]
        groups = [name for name, item in _items(top) if isinstance(item, h5py.Group)]
        if arrays:
            return _ArraysOfFile(path, {name: top[name] for name in arrays}, pooling)
        if len(groups) != 1:
            break
        top = top[groups[0]]  # such as "All Labels/data" of a .csd
    if not groups:
        raise ValueError(f"--source {path} has no arrays")
    return _GroupsOfFile(path, top, groups, pooling)


def _items(group: Any) -> Iterator[tuple[str, Any]]:
    """Members that lie in this file."""
    import h5py

    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink) and name not in _ABOUT:
            yield name, group[name]


class _ArraysOfFile:
    """Datasets with a row for each sample."""

    keys = None

    def __init__(self, path: Path, arrays: dict[str, Any], pooling: Pooling) -> None:
        self._path, self._arrays, self._pooling = path, arrays, pooling
        self.names: Sequence[str] = tuple(arrays)

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            raise ValueError(f"{self._path.name} has no array {name!r}, {did_you_mean(name, self._arrays)}")
        return self._arrays[name]

    def column(self, name: str) -> Column2D:
        return array_column(name, self._array(name), self._pooling)

    def field(self, name: str) -> np.ndarray:
        array = self._array(name)
        if array.ndim != 1:
            raise ValueError(f"array {name!r} has shape {array.shape}, expected one value for each sample")
        return self.constants(name)

    def constants(self, name: str) -> np.ndarray:
        return _read(f"{self._path}: array {name!r}", self._array(name))


class _GroupsOfFile:
    """A group for each sample, named by its key, with a dataset for each column, (D,), (1, D) or by pooling (T, D)."""

    def __init__(self, path: Path, top: Any, groups: list[str], pooling: Pooling) -> None:
        import h5py

        self._path, self._top, self._pooling = path, top, pooling
        self._keys = sorted(groups)
        self._held = {
            key: {name for name, item in _items(top[key]) if isinstance(item, h5py.Dataset)} for key in self._keys
        }
        self.names: Sequence[str] = sorted(set().union(*self._held.values()))
        if not self.names:
            raise ValueError(f"--source {path}: the group {self._keys[0]!r} has no arrays")

    @cached_property
    def keys(self) -> np.ndarray:
        return np.array(self._keys)

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise ValueError(f"{self._path.name} has no array {name!r}, {did_you_mean(name, self.names)}")

    def column(self, name: str) -> Column2D:
        self._check(name)
        return FileColumn(self._load, [f"{key}/{name}" if name in self._held[key] else None for key in self._keys])

    def _load(self, place: str) -> np.ndarray:
        what = f"{self._path}: {place}"
        return self._pooling.vector(what, _read(what, self._top[place]))

    def field(self, name: str) -> np.ndarray:
        self._check(name)
        values = np.empty(len(self._keys), object)
        for number, key in enumerate(self._keys):
            if name in self._held[key]:
                value = _read(f"{self._path}: {key}/{name}", self._top[key][name])
                if value.size != 1:
                    raise ValueError(f"{self._path}: {key}/{name} has shape {value.shape}, expected one value")
                values[number] = value.reshape(-1)[0]
        return values

    def constants(self, name: str) -> np.ndarray:
        raise ValueError(f"a file with a group for each sample has no array {name!r}; list the classes instead")


def _read(what: str, dataset: Any) -> np.ndarray:
    """All of a dataset: numbers, or text as HDF5 has it."""
    import h5py

    if dataset.dtype.kind not in _PLAIN or h5py.check_ref_dtype(dataset.dtype) is not None:
        raise ValueError(f"{what} has the type {dataset.dtype}, expected numbers or text")
    array: np.ndarray = np.asarray(dataset[()])
    if array.dtype.kind == "O" and not all(isinstance(value, bytes | str) for value in array.reshape(-1)):
        raise ValueError(f"{what} holds objects, expected numbers or text")
    return array
