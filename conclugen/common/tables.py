"""Names in what people and programs read, Markdown, CSV and LaTeX: they are text, and distinct names stay distinct.

A name may hold anything: a bar ends a cell of Markdown, a newline its row, `<script>` begins HTML, `=` a formula of a
spreadsheet. What is written here reads back, by any reader of the format, as the name that it was.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence

_JOINERS = "\u200c\u200d"  # ZWNJ and ZWJ belong to the spelling of several languages
_UNSEEN = re.compile(r"^ | $|  ")
# Intervals stand in brackets, which are a link only before others; an underscore within a word is none.
_MARKUP = re.compile(r"[\\`*|$~]|^\[|\](?=[(\[:])|^#|#$|(?<![^\W_])_|_(?![^\W_])")
# What spreadsheets take for the beginning of a formula, behind white space too, and the mark of text itself.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠'\t\r]")  # noqa: RUF001 - full-width signs, which some read alike


def one_line(name: str) -> str:
    """A name as people can read it, another one for each other name.

    It stays as it is, unless something of it would not be seen or would break the line: no character at all, control
    characters and newlines, marks of direction, white space other than single spaces between words. Then, and where it
    begins with a quote, it stands in quotes with escapes, as Python writes it.
    """
    if name[:1] not in ("", "'", '"') and _printable(name) and not _UNSEEN.search(name):
        return name
    return repr(name)


def prose(text: object) -> str:
    """Sentences, in which names may stand, on one line: white space is one space, what would not be seen an escape."""
    return visible(" ".join(str(text).split()))


def visible(text: str) -> str:
    """Lines for a terminal: what would not be seen, or would command it (names may come from somebody else's files), as
    escapes."""
    return "".join(c if c in "\n\t" or _printable(c) else repr(c)[1:-1] for c in text)


def _printable(text: str) -> bool:
    return text.isprintable() or all(c.isprintable() or c in _JOINERS for c in text)


def markdown(text: object) -> str:
    """Sentences in Markdown, without markup of their own: viewers differ in which tags and formulas they render."""
    return _unmarked(prose(text))


def markdown_item(text: str) -> str:
    """An item of a list in Markdown."""
    return f"- {markdown(text)}"


def markdown_row(cells: Sequence[str], marks: Sequence[str] = ()) -> str:
    """A line of a table in Markdown. cells: names or figures; marks: what stands around each of them, as `**{}**`."""
    shown = [_unmarked(one_line(cell)) if cell else "" for cell in cells]
    marked = [mark.format(cell) for mark, cell in zip(marks, shown, strict=True)] if marks else shown
    return "| " + " | ".join(marked) + " |"


def markdown_head(cells: Sequence[str]) -> list[str]:
    """The two lines that begin a table."""
    return [markdown_row(cells), "|---" * len(cells) + "|"]


def _unmarked(line: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", line.replace("&", "&amp;").replace("<", "&lt;"))


def tex_name(name: str) -> str:
    """A name as LaTeX sets it."""
    return _tex(one_line(name)) if name else ""


def tex(text: object) -> str:
    """Sentences for LaTeX, without commands or formulae of their own."""
    return _tex(prose(text))


_TEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    **{"^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "`": r"\textasciigrave{}", "|": r"\textbar{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", '"': r"\char34{}"},
    **{"±": r"$\pm$", "\u00d7": r"$\times$", "²": r"\textsuperscript{2}", "…": r"\dots{}", "·": r"$\cdot$"},
    **{"—": "---", "\u2013": "--", "\u2019": "'", "\u2212": "$-$"},
    **{"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}"},
    **{"ł": r"\l{}", "Ł": r"\L{}", "\u0131": r"\i{}"},
}
_ACCENTS = dict(
    zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True)
)
_JOINED = {"-", ",", "'"}  # two of which fonts make one character: a dash, quotes


def _tex(line: str) -> str:
    """What every engine and font encoding sets alike; a character that they lack is an escape, as Python writes it."""
    apart = zip(line, line[1:] + " ", strict=True) if line else ()
    return "".join(_tex_character(c) + "{}" * (c in _JOINED and after in _JOINED) for c, after in apart)


def _tex_character(character: str) -> str:
    if character in _TEX:
        return _TEX[character]
    if character.isascii():
        return character
    apart = unicodedata.normalize("NFD", character)
    if len(apart) == 2 and apart[0].isascii() and apart[1] in _ACCENTS:
        return f"\\{_ACCENTS[apart[1]]}{{{apart[0]}}}"
    return _tex(ascii(character)[1:-1])


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, the first of them the columns' names.

    Text that a spreadsheet would take for a formula (`=`, `+`, `-`, `@` first) has a `'` before it, by which they mark
    text; so has text that begins with one. Who reads it back takes one away.
    """
    lines = []
    for row in rows:
        line = io.StringIO()
        # The writer quotes what holds a character of its line's end; a carriage return alone ends lines too.
        writer = csv.writer(line, lineterminator="\r\n")
        writer.writerow([f"'{v}" if isinstance(v, str) and _FORMULA.match(v) else v for v in row])
        lines.append(line.getvalue().removesuffix("\r\n"))
    return "\n".join([*lines, ""])
