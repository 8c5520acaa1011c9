"""`protocols.json`: what protocols found of a run, as plain data, and the page that is made of it.

    {"schema": ..., "version": 1, "protocols": {NAME: {
        "title": ..., "reason": "", "tables": [{"name", "columns", "rows"}], "charts": [...], "headline": {...},
        "rules": [...], "holes": [...], "label": ..., "options": {...}, ...
    }}}

A protocol that could not be measured has a `reason` and nothing else. Loads no torch: reports read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common.names import file_name
from conclugen.common.reading import read_mapping
from conclugen.common.tables import markdown, markdown_head, markdown_row
from conclugen.evaluation.protocols import registry
from conclugen.evaluation.protocols.base import Cell, Chart, Table
from conclugen.evaluation.protocols.registry import Done

DOCUMENT, PAGE, FOLDER = "protocols.json", "protocols.md", "protocols"
SCHEMA, VERSION = "conclugen-protocols", 1


def plain(one: Done) -> dict[str, Any]:
    """Of an answer what JSON holds."""
    answer: dict[str, Any] = {"title": one.title, "reason": one.reason}
    if one.outcome is not None:
        answer |= json.loads(json.dumps(_finite(asdict(one.outcome))))
    return answer


def _finite(value: Any) -> Any:
    """None for every number that JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def load(path: Path) -> dict[str, Any]:
    """A document. Raises ValueError, naming the file, where it holds none of this version."""
    try:
        found = read_mapping(path)
        if (found["schema"], found["version"]) != (SCHEMA, VERSION):
            raise ValueError(f"version {found['version']!r} of {found['schema']!r}")
        for name, answer in found["protocols"].items():
            answer["title"], answer["label"], answer["data"]["folder"], answer["data"]["train"], answer["data"]["test"]
            answer["units"], answer["unit"]
            if not answer["reason"]:
                tables(answer), charts(answer), list(map(str, [*answer["rules"], *answer["holes"]]))
            elif not isinstance(answer["reason"], str):
                raise ValueError(f"the reason of {name!r} is not text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
        raise ValueError(
            f"{path}: has no protocols that can be read ({reason}); ask them again: conclugen evaluate --protocol"
        ) from cause
    return dict(found)


def earlier(path: Path) -> dict[str, Any]:
    """The document of earlier protocols; an empty one where there is none that can be read."""
    try:
        return load(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        print(f"note: {path} has no protocols of this version and is replaced", flush=True)
    return {"schema": SCHEMA, "version": VERSION, "protocols": {}}


def tables(answer: Mapping[str, Any]) -> list[Table]:
    """Of one protocol; ValueError for rows that do not fit their columns."""
    found = []
    for table in answer["tables"]:
        columns = tuple(map(str, table["columns"]))
        rows = tuple(tuple(_cell(cell) for cell in row) for row in table["rows"])
        if not columns or any(len(row) != len(columns) for row in rows):
            raise ValueError(f"table {table['name']!r}: rows of other lengths than its {len(columns)} columns")
        found.append(Table(str(table["name"]), columns, rows))
    return found


def charts(answer: Mapping[str, Any]) -> list[Chart]:
    """Of one protocol."""
    found = []
    for chart in answer["charts"]:
        series = {
            str(name): tuple((float(x), _number(y), _number(low), _number(high)) for x, y, low, high in points)
            for name, points in chart["series"].items()
        }
        if not series or not all(series.values()):
            raise ValueError(f"chart {chart['name']!r}: a line without points")
        name, title, xlabel, ylabel = (str(chart[key]) for key in ("name", "title", "xlabel", "ylabel"))
        ticks = {float(x): str(name) for x, name in chart["ticks"].items()}
        found.append(Chart(name, title, xlabel, ylabel, series, bool(chart["log"]), bool(chart["diagonal"]), ticks))
    return found


def in_order(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Protocols as the registry lists them, others behind."""
    listed = list(registry.registered())
    place = {name: i for i, name in enumerate(listed)}
    return sorted(document["protocols"].items(), key=lambda item: place.get(item[0], len(listed)))


def told(answer: Mapping[str, Any]) -> str:
    """What one protocol was asked of, of which model and by which settings; earlier documents do not tell the last."""
    data, settings = answer["data"], answer.get("settings")
    asked = (
        f"Label {answer['label']} of {Path(str(data['folder'])).name}, trained on {data['train']}, judged on "
        f"{answer.get('judged') or data['test']}; intervals over {answer['units']} units ({answer['unit']})."
    )
    if not isinstance(settings, Mapping):
        return asked
    shown_ = "; ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return f"{asked} Model of {answer.get('steps')} steps; {shown_}."


def _cell(value: Any) -> Cell:
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{value!r} cannot be a table cell")


def _number(value: Any) -> Any:
    return None if value is None else float(value)


def page(document: Mapping[str, Any]) -> str:
    """Every protocol of a document as Markdown."""
    parts = ["# Protocols", "What each answers, and by which formulae: docs/protocols.md."]
    for name, answer in in_order(document):
        parts += [f"## {markdown(answer['title'])}", markdown(told(answer))]
        if answer["reason"]:
            parts.append(f"Not measured: {markdown(answer['reason'])}")
            continue
        for table in answer["tables"]:
            parts.append(f"**{markdown(table['name'])}**")
            lines = markdown_head(list(map(str, table["columns"])))
            parts.append("\n".join([*lines, *(markdown_row([shown(cell) for cell in row]) for row in table["rows"])]))
        parts += [
            f"![{markdown(chart['title'])}]({FOLDER}/{file_name(name)}/{file_name(chart['name'])}.png)"
            for chart in answer["charts"]
        ]
        parts.append("\n".join(f"- {markdown(rule)}" for rule in answer["rules"]))
        if answer["holes"]:
            parts.append("\n".join(["Not measured:", "", *(f"- {markdown(hole)}" for hole in answer["holes"])]))
    return "\n\n".join(parts) + "\n"


def shown(cell: Cell) -> str:
    """A cell as people read it; a dash for a hole."""
    if cell is None:
        return "—"
    if isinstance(cell, str | int):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.3f}"
