"""Protocols in a report: what `ray_jobs.evaluate --protocol` found of runs, as sections, pictures and one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conclugen.common.names import file_name
from conclugen.common.reading import inside
from conclugen.common.tables import csv_text
from conclugen.evaluation.protocols.base import Chart
from ray_jobs.protocol_document import DOCUMENT, charts, in_order, load, shown, tables, told
from tuning.report import drawings
from tuning.report.drawings import Drawing
from tuning.report.page import Block, Charts, Heading, Text
from tuning.report.tables import Entry, Line, Table

_COLUMNS = ("evaluation", "protocol", "table", "row", "column", "value")


@dataclass(frozen=True)
class Found:
    """The document of one evaluation, called by its run and itself."""

    name: str
    document: dict[str, Any]


def found_in(places: Sequence[Path], own: Path) -> list[Found]:
    """Documents of runs' or evaluations' folders, and of the report's own folder where it is a run's.

    Raises ValueError for a folder without any, or a document that can't be read.
    """
    result = []
    for place in dict.fromkeys((own, *places)):
        listed = (place / DOCUMENT, *sorted(place.glob(f"evaluation/[!.]*/{DOCUMENT}")))
        files = [inside(place, path.relative_to(place)) for path in listed if path.exists()]
        if not files and place is not own:
            raise ValueError(
                f"--protocols: {place} has no {DOCUMENT}; give the folder of a run whose protocols were asked by "
                "conclugen evaluate --protocol"
            )
        for path in files:
            evaluation = path.parent
            run = evaluation.parent.parent.name if evaluation.parent.name == "evaluation" else ""
            result.append(Found(" ".join(filter(None, (run, evaluation.name))), load(path)))
    return result


def blocks(found: Sequence[Found]) -> Iterator[Block]:
    """A section for each evaluation and protocol."""
    for number, one in enumerate(found):
        for name, answer in in_order(one.document):
            yield Heading(f"{answer['title']}: {one.name}", f"protocol-{number}-{file_name(name)}")
            yield Text((told(answer),))
            if answer["reason"]:
                yield Text((f"Not measured: {answer['reason']}",))
                continue
            for table in tables(answer):
                lines = tuple(Line(shown(row[0]), tuple(_entry(cell) for cell in row[1:])) for row in table.rows)
                head = tuple((column,) for column in table.columns[1:])
                yield Table(table.name, table.columns[0], head, lines)
            yield Charts.of(_drawing(one, name, chart) for chart in charts(answer))
            yield Text(tuple(map(str, answer["rules"])), listed=True)
            if answer["holes"]:
                yield Text(tuple(f"Not measured: {hole}" for hole in answer["holes"]), listed=True)


def as_csv(found: Sequence[Found]) -> str:
    """Every cell of every table, one a line; a protocol that was not measured is one line with its reason."""
    rows: list[Sequence[object]] = [_COLUMNS]
    for one in found:
        for name, answer in in_order(one.document):
            if answer["reason"]:
                rows.append((one.name, name, "", "", "reason", answer["reason"]))
                continue
            for table in tables(answer):
                for number, row in enumerate(table.rows):
                    for column, cell in zip(table.columns, row, strict=True):
                        rows.append((one.name, name, table.name, number, column, "" if cell is None else cell))
    return csv_text(rows)


def _drawing(one: Found, protocol: str, chart: Chart) -> Drawing:
    return Drawing(
        file_name(f"protocol_{one.name}_{protocol}_{chart.name}"),
        chart.title,
        drawings.LINES,
        {system: [list(point) for point in line] for system, line in chart.series.items()},
        options={
            "xlabel": chart.xlabel,
            "ylabel": chart.ylabel,
            "title": chart.title,
            "log": chart.log,
            "diagonal": chart.diagonal,
            "ticks": None if chart.ticks is None else {str(at): text for at, text in chart.ticks.items()},
        },
    )


def _entry(cell: Any) -> Entry:
    return Entry(shown(cell), "hole" if cell is None else "words" if isinstance(cell, str) else "")
