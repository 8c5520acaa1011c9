"""A report as a list of blocks (headings, texts, tables, charts), and the same blocks as HTML and as Markdown."""

import itertools
import string
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from conclugen.common import tables
from conclugen.common.tables import markdown_row, one_line, prose
from tuning.report.tables import Entry, Table

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
    """Side by side, in HTML alone: `.png` files stand beside the Markdown. pictures: (caption, file name) of these."""

    svgs: tuple[str, ...]
    pictures: tuple[tuple[str, str], ...] = ()


Block = Heading | Text | Charts | Table


def html(title: str, lead: str, blocks: Sequence[Block]) -> str:
    """One page that needs nothing besides itself."""
    files = resources.files(__package__)
    page = string.Template(files.joinpath("report.html").read_text(encoding="utf-8"))
    contents = [f'<a href="#{block.anchor}">{_told(block.text)}</a>' for block in blocks if isinstance(block, Heading)]
    return page.substitute(
        title=_told(title),
        lead=_told(lead),
        style=files.joinpath("report.css").read_text(encoding="utf-8"),
        contents="\n".join(contents),
        body="\n".join(_html(block) for block in blocks),
    )


def markdown(title: str, lead: str, blocks: Sequence[Block]) -> str:
    """The same in GitHub's Markdown."""
    parts = [f"# {tables.markdown(title)}", tables.markdown(lead)]
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


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f'<h2 id="{block.anchor}">{_told(block.text)}</h2>'
    if isinstance(block, Text):
        if block.listed:
            return '<ul class="findings">' + "".join(f"<li>{_told(item)}</li>" for item in block.items) + "</ul>"
        return "".join(f"<p>{_told(item)}</p>" for item in block.items)
    if isinstance(block, Charts):
        return f'<div class="charts">{"".join(block.svgs)}</div>'
    return _html_table(block)


def _html_table(table: Table) -> str:
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
            cells.append(f'<th scope="colgroup" colspan="{span}"{kind}>{_named(path[-1])}</th>')
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
        body.append(f'<tr><th scope="row">{_named(line.name)}</th>{"".join(cells)}</tr>')
    note = f'<p class="note">{_told(table.note)}</p>' if table.note else ""
    foot = "".join(f"<li>{_told(text)}</li>" for text in table.footnotes)
    foot = f'<ul class="footnotes">{foot}</ul>' if foot else ""
    return (
        f"<h3>{_told(table.title)}</h3>{note}"
        f'<div class="scroll"><table>{head}<tbody>{"".join(body)}</tbody></table></div>{foot}'
    )


def _html_cell(entry: Entry, starts: bool) -> str:
    kinds = " ".join(kind for kind in (entry.mark, "group-start" if starts else "") if kind)
    kind = f' class="{kinds}"' if kinds else ""
    hint = f' title="{_told(entry.hint)}"' if entry.hint else ""
    return f"<td{kind}{hint}>{_named(entry.text)}</td>"


def _group_starts(table: Table) -> set[int]:
    """Columns at which the heading above the innermost one changes: a rule stands before them."""
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
