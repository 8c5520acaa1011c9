"""Whose a row is, in three roles: the unit of splits, the speaker of negatives, the unit of intervals and tests.

Each is a column of the index: `group`, `meta.NAME`, or `row`, every row by itself. One serves all three unless others
are named. They differ where a published split divides dialogues whose speakers are in all parts (MELD): negatives then
are of one speaker, the split's unit and that of intervals is the dialogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conclugen.evaluation.protocol import own_groups
from shards import Manifest, group_id
from shards.planning.view import ROW, IndexValues

GROUP = "group"
_NAMED = 3


@dataclass(frozen=True)
class Units:
    """A column's value of every row of a data set."""

    values: IndexValues

    @classmethod
    def read(cls, manifest: Manifest, column: str, field: str) -> Units:
        """Raises ValueError, naming the option `field`, for a column that the data does not have."""
        if column == ROW:
            return cls(IndexValues.of_rows(manifest))
        try:
            manifest.schema.check_group_column(column)
        except ValueError as error:
            raise ValueError(f"{field}: {error}, or {ROW} (every row by itself)") from None
        return cls(IndexValues.read(manifest, column))

    @property
    def column(self) -> str:
        return self.values.column

    def ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) numbers of the units of these rows (global numbers), as batches have them; a row without one is a unit
        of its own."""
        if self.column == ROW:
            return own_groups(None, rows)
        known = np.array([*map(group_id, self.values.names), -1], dtype=np.int64)
        return own_groups(known[self.values.codes[rows]], rows)

    def names(self, rows: NDArray[np.int64]) -> NDArray[np.str_]:
        """(N,) names of the units of these rows; `row 12` for a row without one."""
        alone = np.array([f"{ROW} {row}" for row in rows], dtype=object)
        codes = self.values.codes[rows]
        known = np.array([*self.values.names, ""], dtype=object)[codes]
        mine = (codes < 0) | (self.column == ROW)
        return np.where(mine, alone, known).astype(str)

    @property
    def singular(self) -> str:
        """`speaker`, `dialogue`, `row`: how people call one of them."""
        return "speaker" if self.column == GROUP else self.column.removeprefix("meta.")

    def noun(self, count: int) -> str:
        """`3 speakers`, `1 dialogue`, `2 units`: how people call so many of them."""
        return f"{count} {self.singular}" if count == 1 else f"{count} {self.singular}s"


def refuse_shared(
    manifest: Manifest,
    units: Units,
    train: NDArray[Any],
    test: NDArray[Any],
    *,
    where: str,
    option: str,
    side: str = "training",
) -> None:
    """Raise ValueError where units have rows (global numbers) in training and in test: which, how many rows, and what
    to give instead; option: that names the unit; side: what the rows of `train` are for, `validation` else."""
    ours, theirs = units.names(train), units.names(test)
    shared = np.intersect1d(ours, theirs)
    if not len(shared):
        return
    rows = int(np.isin(theirs, shared).sum())
    some = ", ".join(map(repr, shared[:_NAMED].tolist())) + (", ..." if len(shared) > _NAMED else "")
    fitting = [column for column in _others(manifest, units) if _divides(manifest, column, train, test)]
    named = " or ".join(f"{option} {column}" for column in fitting[:_NAMED])
    remedy = f"where the split is a published one, name the unit that it divides: {named or f'{option} meta.NAME'}"
    raise ValueError(
        f"{where}: {len(shared)} of {len(np.union1d(ours, theirs))} values of {units.column!r} ({some}) are in "
        f"{side} and in test, {rows} of the {len(test)} test rows are theirs, and the score would measure how well "
        f"they are known; split by it (conclugen split FOLDER --by {units.column}), or, {remedy}"
    )


def group_columns(manifest: Manifest) -> list[str]:
    """The columns that can say whose a row is."""
    return [GROUP] * manifest.schema.grouped + [f"meta.{name}" for name in manifest.schema.meta]


def _others(manifest: Manifest, units: Units) -> list[str]:
    return [column for column in group_columns(manifest) if column != units.column]


def _divides(manifest: Manifest, column: str, train: NDArray[Any], test: NDArray[Any]) -> bool:
    """Whether a column's values are on one side each and group rows: neither a name of the part nor of the row."""
    codes = IndexValues.read(manifest, column).codes
    ours, theirs = (np.unique(some[some >= 0]) for some in (codes[train], codes[test]))
    known = int((codes[np.concatenate([train, test])] >= 0).sum())
    return len(theirs) > 1 and not len(np.intersect1d(ours, theirs)) and len(ours) + len(theirs) < known
