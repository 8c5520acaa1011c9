"""What `pack` reads: arrays of an .npz file or a folder of .npy files."""

from __future__ import annotations

import unicodedata
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from conclugen.common.names import did_you_mean


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
    """A column of one .npy file a sample, (D,) or (1, D); a sample without a file is missing there."""

    def __init__(self, name: str, paths: Sequence[Path | None]) -> None:
        self._paths = paths
        self.count = len(paths)
        first = next(path for path in paths if path is not None)
        array = self._load(first)
        self.width, self.dtype = array.shape[-1] if array.ndim else 0, array.dtype
        if array.dtype.kind not in "fiub" or array.shape not in ((self.width,), (1, self.width)) or not self.width:
            raise ValueError(f"{first}: shape {array.shape}, dtype {array.dtype}, expected numbers (D,) or (1, D)")

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self.row(number) for number in range(start, stop)])

    def row(self, number: int) -> np.ndarray:
        path = self._paths[number]
        if path is None:
            return np.full(self.width, np.nan, self.dtype if self.dtype.kind == "f" else np.float64)
        array = self._load(path)
        if array.shape not in ((self.width,), (1, self.width)) or array.dtype != self.dtype:
            raise ValueError(
                f"{path}: found {array.dtype} {array.shape}, expected {self.dtype} ({self.width},) as in the first file"
            )
        return array.reshape(self.width)

    @staticmethod
    def _load(path: Path) -> np.ndarray:
        return load_npy(path)


class ArraySource:
    """An .npz file, or a folder of `<name>.npy` files, whose arrays have one row for each sample."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = {file.stem: file for file in sorted(path.glob("*.npy"))} if path.is_dir() else {}
        self._npz: Any = None if path.is_dir() else _open_npz(path)
        self._loaded: dict[str, np.ndarray] = {}
        self.names: tuple[str, ...] = tuple(self._files) if self._npz is None else tuple(self._npz.files)

    keys = None

    def constants(self, name: str) -> np.ndarray:
        return self._load(name)

    def column(self, name: str) -> ArrayColumn:
        return ArrayColumn(name, self._load(name))

    def field(self, name: str) -> np.ndarray:
        array = self._load(name)
        if array.ndim != 1:
            raise ValueError(f"array {name!r} has shape {array.shape}, expected one value for each sample")
        return array

    def _load(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise ValueError(f"{self._path.name} has no array {name!r}, {did_you_mean(name, self.names)}")
        if name not in self._loaded:
            if self._npz is None:
                self._loaded[name] = load_npy(self._files[name], mapped=True)
            else:
                self._loaded[name] = self._unpacked(name)
        return self._loaded[name]

    def _unpacked(self, name: str) -> np.ndarray:
        """An array of the archive: whole in memory, so what does not fit there is refused before it is unpacked."""
        archive: zipfile.ZipFile = self._npz.zip
        member = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
        size, free = archive.getinfo(member).file_size, psutil.virtual_memory().available
        if size > free:
            raise ValueError(
                f"{self._path}: array {name!r} takes {size} bytes once it is unpacked, and {free} bytes of memory are "
                "free: unpack the archive into a folder of .npy files, which are read in parts"
            )
        try:
            array: np.ndarray = self._npz[name]
        except Exception as error:  # numpy's parser of headers, and zlib, raise nearly anything
            raise ValueError(f"{self._path}: array {name!r} cannot be read: {error}") from None
        return array


class FileSource:
    """A folder with a subfolder for each column, holding `[<split>/]<key>.npy`: one file a sample.

    The keys are those of all columns together, sorted; a key must be of one split only. The field `split` is the name
    of the folder in between, where there is one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, dict[str, Path]] = {}
        self._split: dict[str, str] = {}
        for folder in sorted(item for item in path.iterdir() if item.is_dir()):
            files = sorted(folder.glob("*.npy")) + sorted(folder.glob("*/*.npy"))
            if files:
                self._files[folder.name] = {}
            for file in files:
                self._add(folder, file)
        self._keys = sorted({key for files in self._files.values() for key in files})
        self.names: tuple[str, ...] = (*self._files, *(["split"] if self._split else []))

    def _add(self, folder: Path, file: Path) -> None:
        key = unicodedata.normalize("NFC", file.stem)  # as `shards.names` says
        if key in self._files[folder.name]:
            raise ValueError(
                f"{file}: another file is named {file.name} in the same column; names must differ "
                "(in more than the composition of Unicode)"
            )
        self._files[folder.name][key] = file
        split = file.parent.name if file.parent != folder else ""
        if self._split.setdefault(key, split) != split:
            raise ValueError(f"{file}: the sample {key!r} is of split {self._split[key]!r} in another column")

    @cached_property
    def keys(self) -> np.ndarray:
        return np.array(self._keys)

    def column(self, name: str) -> FileColumn:
        if name not in self._files:
            raise ValueError(f"{self._path} has no folder {name!r} of .npy files, {did_you_mean(name, self._files)}")
        return FileColumn(name, [self._files[name].get(key) for key in self._keys])

    def field(self, name: str) -> np.ndarray:
        if name != "split":
            raise ValueError(f"{self._path} has no field {name!r}, {did_you_mean(name, ['split'])}; give a --table")
        return np.array([self._split[key] for key in self._keys])

    def constants(self, name: str) -> np.ndarray:
        raise ValueError(f"a folder of one file a sample has no array {name!r}; list the classes instead")


def open_source(path: Path) -> ArraySource | FileSource:
    """The source at a path; ValueError where there is nothing of the kind."""
    if path.is_file():
        if path.suffix != ".npz":
            raise ValueError(f"--source {path}: expected an .npz file or a folder of .npy files")
        return ArraySource(path)
    if not path.is_dir():
        raise ValueError(f"--source {path} does not exist")
    if any(path.glob("*.npy")):
        return ArraySource(path)
    source = FileSource(path)
    if not source.names:
        raise ValueError(f"--source {path}: found neither ARRAY.npy nor COLUMN/KEY.npy nor COLUMN/SPLIT/KEY.npy in it")
    return source


def load_npy(path: Path, mapped: bool = False) -> np.ndarray:
    """An .npy file without objects; ValueError names the file."""
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
    except Exception as error:  # see `_unpacked`
        raise ValueError(f"{path} cannot be read: {error}") from None


def _open_npz(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
    except Exception as error:  # see `_unpacked`
        raise ValueError(f"{path} cannot be read as .npz: {error}") from None
    if isinstance(loaded, np.ndarray):
        raise ValueError(f"{path} cannot be read as .npz: it is a single array; name it .npy, in a folder")
    return loaded
