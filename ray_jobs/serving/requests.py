"""What is asked over HTTP, checked field by field before the model sees it, and how it is answered.

Features come as JSON, a list of rows for each modality; `null` in the place of a row, or of a modality, is missing:

    {"features": {"video": [[0.1, 0.2], null], "audio": [[1.0], [2.0]]}}

The answer has an entry for each row, `null` where nothing of it is what the model takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conclugen.common.names import did_you_mean
from conclugen.common.reading import parse_json

WRONG, TOO_LARGE, UNUSABLE, BUSY = 400, 413, 422, 503
_LARGEST = float(np.finfo(np.float32).max)

Features = dict[str, NDArray[np.float32]]


class RefusedError(ValueError):
    """A request that is not answered: the HTTP status, one line, and for a clip the reason's name."""

    def __init__(self, status: int, message: str, reason: str | None = None):
        super().__init__(message)
        self.status, self.reason = status, reason

    def body(self) -> dict[str, str]:
        return {"error": str(self)} | ({} if self.reason is None else {"reason": self.reason})


def features_of(body: bytes, widths: Mapping[str, int], most_rows: int) -> Features:
    """Modality -> (rows, width) float32 of every modality that the model takes, a row of NaN where it is missing.

    Raises RefusedError naming the field, what was found and what is expected.
    """
    try:
        asked = parse_json(body)
    except ValueError as error:
        raise RefusedError(WRONG, f"body: expected JSON ({error})") from None
    if not isinstance(asked, dict) or "features" not in asked:
        example = f'{{"features": {{"{next(iter(widths))}": [[...], ...]}}}}'
        raise RefusedError(WRONG, f"body: expected {example}, got {_short(asked)}")
    for name in asked:
        if name != "features":
            raise RefusedError(WRONG, f"body: unknown field {name[:40]!r}, {did_you_mean(name, ['features'])}")
    given = asked["features"]
    if not isinstance(given, dict):
        raise RefusedError(WRONG, f"features: expected a mapping from modalities to rows, got {_short(given)}")
    for name in given:
        if name not in widths:
            raise RefusedError(WRONG, f"features: unknown modality {name[:40]!r}, {did_you_mean(name, widths)}")
    there = {name: rows for name, rows in given.items() if rows is not None}
    for name, rows in there.items():
        if not isinstance(rows, list):
            raise RefusedError(WRONG, f"features.{name}: expected a list of rows, got {_short(rows)}")
    counts = {name: len(rows) for name, rows in there.items()}
    if len(set(counts.values())) != 1 or not next(iter(counts.values())):
        found = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
        raise RefusedError(WRONG, f"features: expected equally many rows of each modality, 1 or more, got {found}")
    count = next(iter(counts.values()))
    if count > most_rows:
        raise RefusedError(TOO_LARGE, f"features: must be at most {most_rows} rows, got {count}; send several requests")
    missing = np.full((count, 1), np.nan, np.float32)
    return {
        name: _rows(name, there[name], width) if name in there else np.repeat(missing, width, axis=1)
        for name, width in widths.items()
    }


def _rows(name: str, rows: Sequence[Any], width: int) -> NDArray[np.float32]:
    found = np.full((len(rows), width), np.nan, np.float32)
    for number, row in enumerate(rows):
        if row is None:
            continue
        if not isinstance(row, list) or len(row) != width:
            got = f"{len(row)} numbers" if isinstance(row, list) else _short(row)
            raise RefusedError(WRONG, f"features.{name}[{number}]: expected {width} numbers or null, got {got}")
        for place, value in enumerate(row):
            if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:
                where = f"features.{name}[{number}][{place}]"
                raise RefusedError(WRONG, f"{where}: expected a number in the range of float32, got {_short(value)}")
        found[number] = row
    return found


def answer(
    vectors: NDArray[Any],
    probabilities: NDArray[Any] | None,
    present: Mapping[str, NDArray[Any]],
    nearer: Mapping[str, NDArray[Any]],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Plain data for JSON: an entry for each row, in order.

    vectors: numbers, or null where the row has nothing that the model takes; probabilities: by class, left out of a run
    without a probe; present: which modalities; nearer: share of held-out clips that lie nearer to what the model knows.
    """
    usable = np.any([np.asarray(there, bool) for there in present.values()], axis=0)
    found: dict[str, Any] = {"vectors": _listed(vectors, usable)}
    if probabilities is not None:
        rows = np.asarray(probabilities, np.float64).tolist()
        by_class = [dict(zip(classes, row, strict=True)) for row in rows]
        found["probabilities"] = [one if there else None for one, there in zip(by_class, usable, strict=True)]
    found["present"] = {name: np.asarray(there, bool).tolist() for name, there in present.items()}
    if nearer:
        found["nearer"] = {name: [None if x != x else x for x in share.tolist()] for name, share in nearer.items()}
    return found


def _listed(rows: NDArray[Any], usable: NDArray[np.bool_]) -> list[Any]:
    return [row if there else None for row, there in zip(rows.tolist(), usable, strict=True)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
