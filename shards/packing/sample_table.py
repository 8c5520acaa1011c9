"""The table beside a source: a row for each sample, in the samples' order or joined by their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shards import names
from shards.format.tables import Table, read_table

_NAMED = 5


class SampleTable:
    """Rows of a table, one for each sample, in the order of the samples.

    Joined by key, keys of both sides are read as `names.name` reads them; rows that are given twice, identically, count
    once; rows of no sample are left over, and named in `unmatched`.
    """

    def __init__(self, path: Path, key: str | None, keys: np.ndarray | None, encoding: str | None = None) -> None:
        """key: the table's column that holds the samples' keys, to put its rows into their order; None: as they are.

        Raises ValueError for a table that can't be read, samples without a row, and different rows of one key.
        """
        self.table = read_table(path, encoding)
        self.repeated = 0
        self.unmatched: list[str] = []
        if key is None:
            return
        if keys is None:
            raise ValueError("--table-key joins the table by key, but the samples have no keys: give --key")
        self.table = self._joined(self.table, key, [_name("key", value) for value in keys.tolist()])

    def _joined(self, table: Table, column: str, keys: list[str | None]) -> Table:
        path = table.path
        listed = [
            _name(f"{path}, row {number}: {column}", value)
            for number, value in zip(table.numbers, table.column(column), strict=True)
        ]
        kept, rivals = table.once(listed)
        problems = dict.fromkeys(
            f"{column} {listed[same[0]]!r} is listed twice, in rows "
            f"{' and '.join(str(table.numbers[index]) for index in same)}, which differ; keep the right one"
            for same in rivals.values()
        )
        if problems:
            raise ValueError(f"{path}: " + "; ".join([*problems][:_NAMED]))
        self.repeated = len(table) - len(kept)
        rows = {listed[index]: index for index in kept}
        absent = [name for name in keys if name not in rows]
        if absent:
            samples = ", ".join(repr(name) for name in absent[:_NAMED])
            raise ValueError(f"{path}: {len(absent)} samples are not listed in {column}, such as {samples}")
        wanted = set(keys)
        self.unmatched = [f"row {table.numbers[i]}: {name}" for name, i in rows.items() if name not in wanted]
        return table.take([rows[name] for name in keys])

    def lines(self) -> list[str]:
        """How the table was read, in words."""
        lines = [f"{self.table.path.name}: {len(self.table.numbers)} rows, {self.table.how}"]
        if self.repeated:
            lines.append(f"rows given again, identically, and counted once: {self.repeated}")
        return lines

    def doubts(self) -> list[str]:
        """What may be meant otherwise."""
        doubts = list(self.table.doubts)
        if self.unmatched:
            more = ", ..." if len(self.unmatched) > _NAMED else ""
            listed = ", ".join(self.unmatched[:_NAMED])
            doubts.append(
                f"rows of {self.table.path.name} that belong to no sample: {len(self.unmatched)} ({listed}{more})"
            )
        return doubts

    @property
    def names(self) -> tuple[str, ...]:
        return self.table.names

    def field(self, name: str) -> np.ndarray:
        """(n,) values; ValueError for an unknown name."""
        column = self.table.column(name)
        values = np.empty(len(column), object)
        values[:] = column
        return values

    def place(self, number: int) -> str:
        """What a message calls the row of a sample."""
        return f"row {self.table.numbers[number]} of {self.table.path.name}"


def _name(what: str, value: Any) -> str | None:
    try:
        return names.name(value)
    except ValueError as error:
        raise ValueError(f"{what} is {error}") from None
