"""Cells that are kept as files: under an address of what they were made from, and with a record of all of it.

An address holds those options alone that are not at their defaults, so that an option that the project gains voids no
cell. A default that changes would go unseen by that: the record holds every option with its value, and a cell whose
record says otherwise than what is asked for today does not count. An option that is not in a record came after the
cell; its default is what the code did before it. Where that does not hold, or the same options give other numbers for
another reason than rounding, `NUMBERS` is raised, which every address holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conclugen.common.atomic import atomic_path
from conclugen.common.options import to_plain
from conclugen.common.revision import running_revision

NUMBERS = 2  # k-means gives a row to the first of centroids that are equal but for rounding
"""Raised when the code gives other numbers for the same options (`tests/benchmarks/reproduce/test_kept.py` sees it)."""
_RECORD = "made_from"
_PACKAGES = ("numpy", "scikit-learn", "scipy", "torch")


def unlike_defaults(config: Any, base: Any = None) -> dict[str, Any]:
    """The fields of a dataclass that differ from those of `base`, by default from what it declares, as plain data; of a
    nested one its own that do. A nested one in whose place there is none by default is named in any case."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = _default(field) if base is None else getattr(base, field.name)
        if dataclasses.is_dataclass(value):
            alike = type(default) is type(value)
            own = unlike_defaults(value, default if alike else None)
            if own or not alike:
                found[field.name] = own
        elif to_plain(value) != to_plain(default):
            found[field.name] = to_plain(value)
    return found


def address(what: Mapping[str, Any]) -> str:
    """Hex digest of named values: of dataclasses what differs from their defaults."""
    plain = {name: unlike_defaults(one) if dataclasses.is_dataclass(one) else one for name, one in what.items()}
    return hashlib.sha256(json.dumps([NUMBERS, plain], sort_keys=True).encode()).hexdigest()[:16]


def options(what: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> plain value of every option of the dataclasses among named values."""
    return {
        f"{name}.{option}": value
        for name, one in what.items()
        if dataclasses.is_dataclass(one)
        for option, value in _leaves(one)
    }


def save(path: Path, what: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], revision: str = "") -> None:
    """Arrays and the record of what they were made from. revision: of the code that made them; by default this."""
    record = {
        "options": options(what),
        "revision": revision or running_revision(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{_RECORD: np.asarray(json.dumps(record))}, **arrays)  # type: ignore[arg-type]


def record(path: Path) -> dict[str, Any] | None:
    """What a cell was made from: `options`, `revision` and `packages`; None where there is no cell with a record."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = json.loads(str(stored[_RECORD]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return found if isinstance(found, dict) else None


def holds(path: Path, what: Mapping[str, Any]) -> bool:
    """Whether a cell is there whose record says nothing else than this."""
    found = record(path)
    if found is None:
        return False
    stored, wanted = found["options"], json.loads(json.dumps(options(what)))
    # Where one side has no nested configuration, and so none of its options, the other must have none either.
    absent = {name for side, other in ((stored, wanted), (wanted, stored)) for name in side if _within(name, other)}
    return not absent and all(stored.get(name, value) == value for name, value in wanted.items())


def _within(name: str, names: Mapping[str, Any]) -> bool:
    """Whether a part that an option belongs to is itself an option of these."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in names for depth in range(1, len(parts)))


def revisions(paths: Iterable[Path]) -> dict[str, int]:
    """Revision -> how many of these cells its code made, the most first."""
    counts: dict[str, int] = {}
    for path in paths:
        if (found := record(path)) is not None:
            counts[found["revision"]] = counts.get(found["revision"], 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _leaves(config: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", to_plain(value)
