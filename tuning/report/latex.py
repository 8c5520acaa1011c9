"""A report's tables for papers: booktabs, numbers under each other, the best bold, the second underlined.

What is written sets with any LaTeX that has the packages booktabs and graphicx; every name is text. The parts of a
number that others of its column are longer in are filled by `phantom`, so points stand under points without further
packages, also where a sign, a deviation or an interval is missing.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from conclugen.common.tables import tex, tex_name
from tuning.report.tables import Entry, Line, Table

PREAMBLE = "% \\usepackage{booktabs,graphicx}  in the preamble of the paper"
_MARKS = {"best": r"\textbf{{{}}}", "significant": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}
_NUMBER = re.compile(r"((?:< )?[+-]?\d[\d,]*(?:\.\d+)?)")
_SIGNS = {"": "", "+": "$+$", "-": "$-$", "<": "$<$ "}
_MOST_COLUMNS = 6  # of numbers beside names at full size


def latex(tables: Sequence[Table], about: str) -> str:
    """All of them, each a `table*` of its own. about: what every caption ends with (speakers, seeds)."""
    labels = Counter(map(_label, tables))
    met: Counter[str] = Counter()
    shown = []
    for table in tables:
        label = _label(table)
        met[label] += 1
        shown.append(latex_table(table, about, f"{label}-{met[label]}" if labels[label] > 1 else label))
    return "\n".join([PREAMBLE, *shown])


def _label(table: Table) -> str:
    return re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-") or "table"


def latex_table(table: Table, about: str = "", label: str = "") -> str:
    """One table with its caption and the label `tab:` and its title, unless another is given."""
    columns = len(table.head)
    aligned = list(map(_aligned, zip(*(line.entries for line in table.lines), strict=True))) if table.lines else []
    left = ["l" if all(line.entries[at].mark == "words" for line in table.lines) else "r" for at in range(columns)]
    body = []
    for section, lines in itertools.groupby(enumerate(table.lines), key=lambda pair: pair[1].section):
        if section:
            body.append(rf"\multicolumn{{{columns + 1}}}{{l}}{{\emph{{{tex_name(section)}}}}} \\")
        for number, line in lines:
            body.append(_row(line, [column[number] for column in aligned]))
        body.append(r"\addlinespace")
    grid = "\n".join(
        [
            rf"\begin{{tabular}}{{l{''.join(left)}}}",
            r"\toprule",
            *_heads(table),
            r"\midrule",
            *body[:-1],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
    if columns > _MOST_COLUMNS:
        grid = f"\\resizebox{{\\textwidth}}{{!}}{{%\n{grid}}}"
    foot = " ".join(table.footnotes)
    caption = " ".join(filter(None, (f"{table.title}.", table.note, about, foot)))
    return "\n".join(
        [
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{tex(caption)}}}",
            rf"\label{{tab:{label or _label(table)}}}",
            grid,
            r"\end{table*}",
            "",
        ]
    )


def _heads(table: Table) -> list[str]:
    """The lines of headings from the outermost on, with a rule below what spans several columns."""
    levels = len(table.head[0]) if table.head else 0
    lines = []
    for level in range(levels):
        cells, rules, at = [tex_name(table.corner) if level == levels - 1 else ""], [], 2
        for path, columns in itertools.groupby(table.head, key=lambda column: column[: level + 1]):
            span = len(list(columns))
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{tex_name(path[-1])}}}")
            if level < levels - 1 and span > 1:
                rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
            at += span
        lines.append(" & ".join(cells) + r" \\" + "".join(rules))
    return lines


def _row(line: Line, cells: Sequence[str]) -> str:
    name = tex_name(line.name)
    # A line break takes what follows in brackets, or a star, for its own.
    return " & ".join(["{}" * name.startswith(("[", "*")) + name, *cells]) + r" \\"


def _aligned(entries: Sequence[Entry]) -> list[str]:
    """The cells of a column, those with the same numbers equally wide, part by part. Of each the first number has the
    mark: the others are its deviation, its interval, its p-value."""
    split = [[e.text] if e.mark in ("hole", "words") else _NUMBER.split(e.text) for e in entries]
    longest = max((own for own in split), key=len, default=[])
    fits = [
        len(own) > 1 and [*own[:-1:2], own[-1] or longest[len(own) - 1]] == longest[: len(own) : 2] for own in split
    ]
    numbers = [[_Number.of(text) for text in own[1::2]] for own, fit in zip(split, fits, strict=True) if fit]
    widest = [_Number.widest(place) for place in _by_place(numbers)]
    cells = []
    for own, fit, entry in zip(split, fits, entries, strict=True):
        if not fit:
            cells.append(_MARKS.get(entry.mark, "{}").format(tex_name(entry.text)))
            continue
        cell = ""
        for place, wide in enumerate(widest):
            between = _between(longest[2 * place])
            if 2 * place + 1 < len(own):
                number = _Number.of(own[2 * place + 1])
                shown = _MARKS[entry.mark].format(number.tex) if place == 0 and entry.mark else number.tex
                cell += between + number.missing_before(wide) + shown + number.missing_behind(wide)
            else:
                cell += rf"\phantom{{{between}{wide.tex}}}"
        last = _between(longest[-1])
        cells.append(cell + (last if len(own) == len(longest) else rf"\phantom{{{last}}}" if last else ""))
    return cells


@dataclass(frozen=True)
class _Number:
    """before: `<`, a sign, or nothing; whole: its digits before the point; part: the point and what follows."""

    before: str
    whole: str
    part: str

    @classmethod
    def of(cls, text: str) -> _Number:
        found = re.fullmatch(r"((?:< )?[+-]?)([\d,]+)(\.\d+)?", text)
        assert found is not None, text
        return cls(found[1].strip(), found[2], found[3] or "")

    @classmethod
    def widest(cls, numbers: Sequence[_Number]) -> _Number:
        """One that has the longest of each part."""
        return cls(*(max((getattr(each, name) for each in numbers), key=len) for name in ("before", "whole", "part")))

    @property
    def tex(self) -> str:
        return _SIGNS[self.before] + self.whole + self.part

    def missing_before(self, wide: _Number) -> str:
        return _phantom(_SIGNS[wide.before] * (not self.before) + wide.whole[len(self.whole) :])

    def missing_behind(self, wide: _Number) -> str:
        return _phantom(wide.part[len(self.part) :])


def _by_place(rows: Sequence[Sequence[_Number]]) -> list[list[_Number]]:
    """The first numbers of all rows, the second ones of those that have them, and so on."""
    return [[row[at] for row in rows if at < len(row)] for at in range(max(map(len, rows), default=0))]


def _between(text: str) -> str:
    """Text between numbers, with the spaces at its ends."""
    return " " * text.startswith(" ") + tex(text) + " " * (text.endswith(" ") and text != " ")


def _phantom(text: str) -> str:
    return rf"\phantom{{{text}}}" if text else ""
