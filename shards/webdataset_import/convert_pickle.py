"""`python -m shards convert-pickle`: the field's pickled feature files to .npz, without executing anything of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common.atomic import atomic_file
from shards import names
from shards.access import LOCAL_RESULT, LOCAL_SOURCE, refuse_url
from shards.options import ConvertPickleJob
from shards.webdataset_import.pickled import PickleError, read_pickle

SPLITS = ("train", "valid", "val", "dev", "test")
_LAYOUTS = (
    "expected a dict of splits (train, valid, test), each a dict of fields, or a dict of fields, each with one value "
    "for every sample (as MMSA and MultiBench have them)"
)


def arrays_of(document: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays of all samples by field, and fields that were left out, with the reason.

    Splits follow one another; the array `split` says which is whose. A field has one value for every sample of its
    split: numbers (n, ...), whose trailing axes of length 1 are dropped, text (n,), or sequences, which are padded with
    zeros to the longest; `<field>_lengths` then says how long each is, unless the file has one. Parts of a key (video,
    start, end) are joined by `_`. Raises ValueError for a document that is laid out otherwise.
    """
    if not isinstance(document, dict) or not document:
        raise ValueError(f"found {type(document).__name__}; {_LAYOUTS}")
    parts = {str(name): part for name, part in document.items() if isinstance(part, dict)}
    if len(parts) not in (0, len(document)):
        raise ValueError(f"found a dict of which some are splits and some are not: {', '.join(map(str, document))}")
    splits: Mapping[str, Any] = parts or {"": document}
    counts = {split: _count(split, fields) for split, fields in splits.items()}
    made: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    for field in dict.fromkeys(str(name) for fields in splits.values() for name in fields):
        try:
            items = [_items(fields.get(field), counts[split], split) for split, fields in splits.items()]
            made.update(_joined(field, [item for part in items for item in part], made))
        except ValueError as error:
            left_out[field] = str(error)
    if not made:
        raise ValueError(f"no field can be an array: {left_out}; {_LAYOUTS}")
    if parts:
        made["split"] = np.array([split for split, count in counts.items() for _ in range(count)])
    return made, left_out


def _count(split: str, fields: Mapping[Any, Any]) -> int:
    """Samples of a split: the length that most of its fields have."""
    lengths = Counter(len(value) for value in fields.values() if _is_listed(value))
    if not lengths:
        raise ValueError(f"split {split!r} has no arrays or lists; {_LAYOUTS}")
    return lengths.most_common(1)[0][0]


def _is_listed(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _items(value: Any, count: int, split: str) -> list[Any]:
    where = f" in {split!r}" if split else ""
    if value is None:
        raise ValueError(f"it is missing{where}")
    if not _is_listed(value):
        raise ValueError(f"{type(value).__name__}{where}, expected one value for every sample")
    if len(value) != count:
        raise ValueError(f"{len(value)} values{where}, the split has {count} samples")
    return list(value)


def _joined(field: str, items: list[Any], made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The array of a field, and of the lengths of its sequences where they differ."""
    if any(_is_text(item) for item in items):
        return {field: np.array([_text(item) for item in items])}
    if field.lower() in ("id", "ids", "key", "keys") or any(_has_text(item) for item in items):
        return {field: np.array(["_".join(_text(part) for part in _flat(item)) for item in items])}
    try:
        arrays = [np.asarray(item, None if isinstance(item, np.ndarray) else np.float64) for item in items]
    except (TypeError, ValueError):
        raise ValueError("it has lists that are not arrays of numbers") from None
    if any(array.dtype.kind not in "fiub" for array in arrays):
        raise ValueError("it has objects that are not numbers or text")
    shapes = {array.shape for array in arrays}
    if len(shapes) == 1:
        whole = np.stack(arrays)
        while whole.ndim > 1 and whole.shape[-1] == 1:
            whole = whole[..., 0]
        return {field: whole}
    if len({shape[1:] for shape in shapes}) != 1 or () in shapes:
        raise ValueError(f"its samples have differing shapes, such as {sorted(shapes)[:3]}")
    longest = max(shape[0] for shape in shapes)
    padded = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), np.result_type(*arrays))
    for number, array in enumerate(arrays):
        padded[number, : len(array)] = array
    lengths = {} if f"{field}_lengths" in made else {f"{field}_lengths": np.array([len(array) for array in arrays])}
    return {field: padded, **lengths}


def _flat(item: Any) -> list[Any]:
    if isinstance(item, np.ndarray):
        return [part for value in item.reshape(-1).tolist() for part in _flat(value)]
    return [part for value in item for part in _flat(value)] if isinstance(item, list) else [item]


def _is_text(item: Any) -> bool:
    return isinstance(item, str | bytes)


def _has_text(item: Any) -> bool:
    return isinstance(item, list | np.ndarray) and any(_is_text(part) for part in _flat(item))


def _text(value: Any) -> str:
    """Of a key or a transcript; empty where it is missing. Python 2's bytes are UTF-8."""
    if isinstance(value, bytes | str):
        return names.text(value) or ""
    return names.name(value) or "" if not isinstance(value, float) or value.is_integer() else repr(value)


def convert(source: Path, out: Path, overwrite: bool = False) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Write an .npz of the arrays; returns them and the fields that were left out. Raises ValueError or OSError."""
    refuse_url("FILE", source, LOCAL_SOURCE)
    refuse_url("--out", out, LOCAL_RESULT)
    if names.suffix(out) != ".npz":
        raise ValueError(f"--out {out}: expected a name ending in .npz")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} exists; choose another name, or replace it with --overwrite")
    try:
        arrays, left_out = arrays_of(read_pickle(source))
    except PickleError as error:
        raise ValueError(f"{source} is not converted: {error}") from None
    with atomic_file(out) as file:
        np.savez(file, allow_pickle=False, **arrays)
    return arrays, left_out


# Command line


def run(job: ConvertPickleJob) -> int:
    """Convert; returns the exit status."""
    arrays, left_out = convert(job.source, job.output, job.overwrite)
    for name, array in arrays.items():
        print(f"{name}: {array.dtype} {array.shape}")
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    counts = Counter(arrays["split"].tolist()) if "split" in arrays else {}
    print(f"{job.output}: {len(arrays)} arrays" + "".join(f", {count} {split}" for split, count in counts.items()))
    return 0
