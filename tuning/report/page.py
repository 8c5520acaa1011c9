"""A report as a list of blocks (headings, texts, tables, charts), and the same blocks as HTML and as Markdown."""

from __future__ import annotations

import base64
import itertools
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from conclugen.common import tables
from conclugen.common.names import file_name
from conclugen.common.reading import inside, open_regular
from conclugen.common.tables import csv_text, markdown_row, one_line, prose
from ray_jobs import figure_style
from tuning.report.drawings import Drawing
from tuning.report.latex import PREAMBLE, latex_table
from tuning.report.tables import Entry, Table

_LARGEST_PICTURE = 64 << 20
_TYPES = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}
_MARKDOWN = {"best": "**{}**", "second": "<u>{}</u>", "significant": "**{}**"}


@dataclass(frozen=True)
class Heading:
    """Of a section; `anchor` is what the contents point at."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Text:
    """One paragraph, or a list of findings."""

    items: tuple[str, ...]
    listed: bool = False


@dataclass(frozen=True)
class Charts:
    """Pictures of the page's folder, (caption, name of a PNG), side by side; HTML has them within it, and offers every
    format. drawings: those that are yet to be drawn."""

    pictures: tuple[tuple[str, str], ...]
    drawings: tuple[Drawing, ...] = ()

    @classmethod
    def of(cls, drawings: Iterable[Drawing]) -> Charts:
        shown = tuple(drawings)
        return cls(tuple((drawing.caption, f"{drawing.name}.png") for drawing in shown), shown)


Block = Heading | Text | Charts | Table


def html(
    title: str, lead: Sequence[str], blocks: Sequence[Block], folder: Path, codes: Mapping[str, str] | None = None
) -> str:
    """One page that needs nothing besides itself.

    Args:
        title: Of the page.
        lead: What won and by how much: paragraphs before everything else.
        blocks: What follows.
        folder: Where its pictures lie.
        codes: Name of a task -> its code in combinations of them.
    """
    files = resources.files(__package__)
    page = string.Template(files.joinpath("report.html").read_text(encoding="utf-8"))
    contents = [f'<a href="#{block.anchor}">{_told(block.text)}</a>' for block in blocks if isinstance(block, Heading)]
    return page.substitute(
        title=_told(title),
        lead="\n".join(f'<p class="lead">{_told(line)}</p>' for line in lead),
        style=files.joinpath("report.css").read_text(encoding="utf-8"),
        contents="\n".join(contents),
        body="\n".join(_html(block, folder, codes or {}) for block in blocks),
    )


def markdown(title: str, lead: Sequence[str], blocks: Sequence[Block]) -> str:
    """The same in GitHub's Markdown."""
    parts = [f"# {tables.markdown(title)}", *map(tables.markdown, lead)]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {tables.markdown(block.text)}")
        elif isinstance(block, Text):
            items = [tables.markdown(item) for item in block.items]
            parts.append("\n".join(f"- {item}" for item in items) if block.listed else "\n\n".join(items))
        elif isinstance(block, Charts):
            parts += [f"![{tables.markdown(caption)}]({name})" for caption, name in block.pictures]
        else:
            parts.append(_markdown_table(block))
    return "\n\n".join(part for part in parts if part) + "\n"


def _html(block: Block, folder: Path, codes: Mapping[str, str]) -> str:
    if isinstance(block, Heading):
        return f'<h2 id="{block.anchor}">{_told(block.text)}</h2>'
    if isinstance(block, Text):
        if block.listed:
            return '<ul class="findings">' + "".join(f"<li>{_told(item)}</li>" for item in block.items) + "</ul>"
        return "".join(f"<p>{_told(item)}</p>" for item in block.items)
    if isinstance(block, Charts):
        return _html_charts(block, folder)
    return _html_table(block, codes)


def _html_charts(charts: Charts, folder: Path) -> str:
    shown = []
    for caption, name in charts.pictures:
        kept = {path.suffix[1:]: _content(folder, path) for path in figure_style.files_of(folder / name)}
        kept = {kind: data for kind, data in kept.items() if data}
        within = [kind for kind in ("svg", "png") if kind in kept]
        if within:
            stem, told = Path(name).stem, _told(caption)
            links = " ".join(_link(f"{stem}.{kind}", _TYPES[kind], data, kind.upper()) for kind, data in kept.items())
            kind = min(within, key=lambda kind: len(kept[kind]))  # many points are many bytes of SVG
            source = f"data:{_TYPES[kind]};base64,{base64.b64encode(kept[kind]).decode()}"
            shown.append(f'<figure><img alt="{told}" src="{source}"><figcaption>{told} {links}</figcaption></figure>')
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def _content(folder: Path, path: Path) -> bytes:
    """Of a picture of the folder, which may be somebody else's; nothing where it has none in this format."""
    if not path.exists():
        return b""
    with open_regular(inside(folder, path.absolute()), _LARGEST_PICTURE) as file:
        return file.read()


def _link(name: str, kind: str, data: bytes, text: str) -> str:
    """Offers a file that is within the page."""
    encoded = base64.b64encode(data).decode()
    return f'<a download="{_told(name)}" href="data:{kind};base64,{encoded}">{text}</a>'


def as_csv(table: Table) -> str:
    """A table's texts as CSV."""
    head = [table.corner or "name", *(", ".join(column) for column in table.head)]
    sections = any(line.section for line in table.lines)
    rows = [[line.name, *(entry.text for entry in line.entries)] for line in table.lines]
    if sections:
        head, rows = ["section", *head], [[line.section, *row] for line, row in zip(table.lines, rows, strict=True)]
    return csv_text([head, *rows])


def codes_of(tasks: Sequence[str]) -> dict[str, str]:
    """The first letters of each task's name, as few as tell them apart, three at least."""
    longest = max(map(len, tasks), default=0)
    length = next((n for n in range(3, longest) if len({task[:n] for task in tasks}) == len(tasks)), longest)
    return {task: task[:length] for task in tasks}


def _short(name: str, codes: Mapping[str, str]) -> str:
    """A name with codes for the tasks of a combination; a task by itself keeps its name."""
    if not codes:
        return name
    task = "|".join(map(re.escape, sorted(codes, key=len, reverse=True)))
    combination = re.compile(rf"(?<![\w])(?:{task})(?: \+ (?:{task}))+(?![\w])")
    return combination.sub(lambda found: "+".join(codes[part] for part in found[0].split(" + ")), name)


def _html_table(table: Table, codes: Mapping[str, str]) -> str:
    starts = _group_starts(table)
    rows: list[str] = []
    levels = len(table.head[0]) if table.head else 1
    for level in range(levels):
        cells = []
        if level == 0:
            cells.append(f'<th class="corner" scope="col" rowspan="{levels}">{_named(table.corner)}</th>')
        at = 0
        for path, columns in itertools.groupby(table.head, key=lambda column: column[: level + 1]):
            span = len(list(columns))
            kind = ' class="group-start"' if at in starts else ""
            cells.append(f'<th scope="colgroup" colspan="{span}"{kind}{_titled(path[-1], codes)}</th>')
            at += span
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = f"<thead>{''.join(rows)}</thead>"
    body: list[str] = []
    section = ""
    for line in table.lines:
        if line.section != section:
            section = line.section
            width = len(table.head) + 1
            body.append(f'<tr class="section"><th colspan="{width}" scope="rowgroup">{_named(section)}</th></tr>')
        cells = [_html_cell(entry, index in starts) for index, entry in enumerate(line.entries)]
        body.append(f'<tr><th scope="row"{_titled(line.name, codes)}</th>{"".join(cells)}</tr>')
    note = f'<p class="note">{_told(table.note)}</p>' if table.note else ""
    foot = "".join(f"<li>{_told(text)}</li>" for text in table.footnotes)
    foot = f'<ul class="footnotes">{foot}</ul>' if foot else ""
    return (
        f"<h3>{_told(table.title)}</h3>{note}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_told(table.title)}">'
        f"<table>{head}<tbody>{''.join(body)}</tbody></table></div>{foot}{_downloads(table)}"
    )


def _downloads(table: Table) -> str:
    if not table.lines:
        return ""
    name = file_name(re.sub(r"[^\w.-]+", "-", table.title.lower()).strip("-") or "table")
    tex = f"{PREAMBLE}\n{latex_table(table)}"
    links = [
        _link(f"{name}.csv", "text/csv", as_csv(table).encode(), "CSV"),
        _link(f"{name}.tex", "text/plain", tex.encode(), "LaTeX"),
    ]
    return f'<p class="downloads">Table: {" ".join(links)}</p>'


def _titled(name: str, codes: Mapping[str, str]) -> str:
    """The rest of a cell that holds a name: as it is shown, with the whole name as a hint where that is longer."""
    short = _short(name, codes)
    return f">{_named(name)}" if short == name else f' title="{_told(name)}">{_named(short)}'


def _html_cell(entry: Entry, starts: bool) -> str:
    kinds = " ".join(kind for kind in (entry.mark, "group-start" if starts else "") if kind)
    kind = f' class="{kinds}"' if kinds else ""
    hint = f' title="{_told(entry.hint)}"' if entry.hint else ""
    return f"<td{kind}{hint}>{_named(entry.text)}</td>"


def _group_starts(table: Table) -> set[int]:
    """Columns at which the heading above the innermost one changes: with a rule before them."""
    above = [column[:-1] for column in table.head]
    return {index for index in range(len(above)) if index == 0 or (above[index] and above[index] != above[index - 1])}


def _markdown_table(table: Table) -> str:
    head = [table.corner, *(", ".join(column) for column in table.head)]
    lines = [markdown_row(head), "|---" + "|---:" * len(table.head) + "|"]
    section = ""
    for line in table.lines:
        if line.section != section:
            section = line.section
            lines.append("| *" + tables.markdown(section) + "* |" + " |" * len(table.head))
        marks = [_MARKDOWN.get(entry.mark, "{}") for entry in line.entries]
        lines.append(markdown_row([line.name, *(entry.text for entry in line.entries)], ["{}", *marks]))
    footnotes = "\n".join(f"- {tables.markdown(text)}" for text in table.footnotes)
    parts = [f"### {tables.markdown(table.title)}", tables.markdown(table.note), "\n".join(lines), footnotes]
    return "\n\n".join(part for part in parts if part)


def _named(text: str) -> str:
    """A name or a figure in HTML."""
    return escape(one_line(text)) if text else ""


def _told(text: str) -> str:
    """A sentence in HTML."""
    return escape(prose(text))
