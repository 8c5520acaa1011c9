"""What `pack` reads: arrays of an .npz or HDF5 file, or of a folder of .npy, .npz or .csv files."""

from __future__ import annotations

import zipfile
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from conclugen.common import machine
from conclugen.common.names import did_you_mean
from shards.names import suffix
from shards.packing.clip_csv import read_clip_csv
from shards.packing.columns import Column2D, FileColumn, Source, array_column
from shards.packing.hdf5 import HDF5, open_hdf5
from shards.packing.pooling import Pooling


class ArraySource:
    """An .npz file, or a folder of `<name>.npy` files, whose arrays have one row (or sequence) for each sample."""

    def __init__(self, path: Path, pooling: Pooling) -> None:
        self._path, self._pooling = path, pooling
        self._files = {file.stem: file for file in sorted(path.glob("*.npy"))} if path.is_dir() else {}
        self._npz: Any = None if path.is_dir() else _open_npz(path)
        self._loaded: dict[str, np.ndarray] = {}
        self.names: tuple[str, ...] = tuple(self._files) if self._npz is None else tuple(self._npz.files)

    keys = None

    def constants(self, name: str) -> np.ndarray:
        return self._load(name)

    def column(self, name: str) -> Column2D:
        return array_column(name, self._load(name), self._pooling)

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
                self._loaded[name] = unpacked(self._path, self._npz, name)
        return self._loaded[name]


class FileSource:
    """A folder of one file a sample: `COLUMN/[SPLIT/]KEY.npy` (or .csv of a clip), or `[SPLIT/]KEY.npz` with an array
    for each column, or `KEY.csv` with the one column `csv`.

    The keys are those of all columns together, sorted; a key must be of one split only. The field `split` is the name
    of the folder in between, where there is one.
    """

    def __init__(self, path: Path, pooling: Pooling, csv_columns: tuple[str, ...] = ()) -> None:
        self._path, self._pooling, self._csv_columns = path, pooling, csv_columns
        self._files: dict[str, dict[str, Any]] = {}
        self._split: dict[str, str] = {}
        self._csv_names: dict[str, tuple[str, ...]] = {}  # of each column, as its first file has them
        self._pooled: dict[Path, np.ndarray] = {}
        for file in _with_suffix(path, "npz"):
            for name in _array_names(file):
                self._add(name, file, path, (file, name))
        for file in _with_suffix(path, "csv"):
            if file.parent == path:
                self._add("csv", file, path, file)
        if not self._files:
            for folder in sorted(item for item in path.iterdir() if item.is_dir()):
                for file in _with_suffix(folder, "npy", "csv"):
                    self._add(folder.name, file, folder, file)
        self._keys = sorted({key for files in self._files.values() for key in files})
        self.names: tuple[str, ...] = (*self._files, *(["split"] if self._split else []))

    def _add(self, column: str, file: Path, folder: Path, place: Any) -> None:
        files, key = self._files.setdefault(column, {}), file.stem
        if key in files:
            raise ValueError(f"{file}: another file is named {file.stem} in the same column; names must differ")
        files[key] = place
        split = file.parent.name if file.parent != folder else ""
        if self._split.setdefault(key, split) != split:
            raise ValueError(f"{file}: the sample {key!r} is of split {self._split[key]!r} in another column")

    @cached_property
    def keys(self) -> np.ndarray:
        return np.array(self._keys)

    def column(self, name: str) -> FileColumn:
        if name not in self._files:
            raise ValueError(f"{self._path} has no column {name!r} of files, {did_you_mean(name, self._files)}")
        return FileColumn(partial(self._load, name), [self._files[name].get(key) for key in self._keys])

    def _load(self, column: str, place: Any) -> np.ndarray:
        if isinstance(place, tuple):
            file, name = place
            archive = _open_npz(file)
            return self._pooling.vector(f"{file}: array {name!r}", unpacked(file, archive, name))
        if suffix(place) == ".npy":
            return self._pooling.vector(str(place), load_npy(place))
        if place not in self._pooled:  # read for its width, for its gaps and to be written
            self._pooled[place] = self._from_csv(column, place)
        return self._pooled[place]

    def _from_csv(self, column: str, place: Path) -> np.ndarray:
        names, sequence, valid = read_clip_csv(place, self._csv_columns)
        known = self._csv_names.setdefault(column, names)
        if names != known:
            other = next(iter(set(names) ^ set(known)), "the order")
            raise ValueError(f"{place}: its columns differ from the first file's in {other!r}")
        if self._pooling.kind is not None:
            return self._pooling(sequence, valid)
        return self._pooling.vector(str(place), sequence).astype(np.float32)

    def field(self, name: str) -> np.ndarray:
        if name != "split":
            raise ValueError(f"{self._path} has no field {name!r}, {did_you_mean(name, ['split'])}; give a --table")
        return np.array([self._split[key] for key in self._keys])

    def constants(self, name: str) -> np.ndarray:
        raise ValueError(f"a folder of one file a sample has no array {name!r}; list the classes instead")


# How to bring what is not read as it is.
_BRING = {
    **dict.fromkeys(
        [".pkl", ".pickle", ".p"],
        "Convert it (nothing in it is executed): conclugen convert-pickle FILE --out FILE.npz",
    ),
    **dict.fromkeys([".pt", ".pth", ".bin"], "Save its tensors as arrays where it was made: numpy.savez(FILE, name=x)"),
    ".mat": "Read it with scipy.io.loadmat where it was made and save its arrays: numpy.savez(FILE, name=x)",
    **dict.fromkeys([".csv", ".tsv"], "A table of labels goes into --table; a folder of one CSV a clip is a source"),
    **dict.fromkeys([".parquet", ".feather", ".arrow"], "A table goes into --table; save its vectors as an .npz"),
    **dict.fromkeys([".tar", ".tgz", ".gz"], "Tars of arrays are read by `conclugen index FOLDER`, of "
                    "videos by `conclugen build --adapter webdataset`"),
    **dict.fromkeys([".tfrecord", ".lmdb", ".mdb", ".msgpack"], "Save its arrays where it was made, by numpy.savez"),
    ".npy": "Put it into a folder, under the name of its column: FOLDER/NAME.npy",
    ".zip": "Unpack it, and name the folder",
}  # fmt: skip


def open_source(path: Path, pooling: Pooling | None = None, csv_columns: tuple[str, ...] = ()) -> Source:
    """The source at a path; ValueError where there is nothing of the kind, with how to bring what is there instead."""
    pooling = pooling or Pooling()
    if path.is_file():
        kind = suffix(path)
        if kind == ".npz":
            return ArraySource(path, pooling)
        if kind in HDF5:
            return open_hdf5(path, pooling)
        bring = f". {_BRING[kind]}" if kind in _BRING else ""
        raise ValueError(f"--source {path}: expected .npz, HDF5 ({', '.join(HDF5)}) or a folder{bring}")
    if not path.is_dir():
        raise ValueError(f"--source {path} does not exist")
    if any(path.glob("*.npy")):
        return ArraySource(path, pooling)
    source = FileSource(path, pooling, csv_columns)
    if not source.names:
        kinds = sorted({suffix(file) for file in path.iterdir() if file.is_file()} & set(_BRING))
        bring = "".join(f". {kind}: {_BRING[kind]}" for kind in kinds[:3])
        raise ValueError(
            f"--source {path}: found neither ARRAY.npy nor KEY.npz nor KEY.csv nor COLUMN/KEY.npy nor "
            f"COLUMN/KEY.csv nor COLUMN/SPLIT/KEY.npy in it{bring}"
        )
    return source


def _with_suffix(folder: Path, *kinds: str) -> list[Path]:
    """Files in a folder, and one folder down, with one of the suffixes in any case."""
    wanted = {f".{kind}" for kind in kinds}
    return sorted(f for pattern in ("*", "*/*") for f in folder.glob(pattern) if suffix(f) in wanted and f.is_file())


def _array_names(path: Path) -> list[str]:
    return list(_open_npz(path).files)


def load_npy(path: Path, mapped: bool = False) -> np.ndarray:
    """An .npy file without objects; ValueError names the file."""
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
    except Exception as error:  # see `unpacked`
        raise ValueError(f"{path} cannot be read: {error}") from None


def unpacked(path: Path, npz: Any, name: str) -> np.ndarray:
    """An array of the archive: whole in memory, so what does not fit there is refused before it is unpacked."""
    archive: zipfile.ZipFile = npz.zip
    member = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
    size, free, limit = archive.getinfo(member).file_size, psutil.virtual_memory().available, machine.memory_limit()
    if limit is not None:
        free = min(free, limit.free)
    if size > free:
        raise ValueError(
            f"{path}: array {name!r} takes {size} bytes once it is unpacked, and {free} bytes of memory are "
            "free: unpack the archive into a folder of .npy files, which are read in parts"
        )
    try:
        array: np.ndarray = npz[name]
    except Exception as error:  # numpy's parser of headers, and zlib, raise nearly anything
        raise ValueError(f"{path}: array {name!r} cannot be read: {error}") from None
    return array


def _open_npz(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
    except Exception as error:  # see `unpacked`
        raise ValueError(f"{path} cannot be read as .npz: {error}") from None
    if isinstance(loaded, np.ndarray):
        raise ValueError(f"{path} cannot be read as .npz: it is a single array; name it .npy, in a folder")
    return loaded
