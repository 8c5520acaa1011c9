"""Tables for papers, read back by a strict reader of the little LaTeX that they are made of, and set where LaTeX is."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conclugen.common.tables import tex_name
from tuning.report.latex import latex, latex_table
from tuning.report.tables import Entry, Line, Table

NAMES = (
    "$x^2$ & 50 % of #1 {a_b} ~",
    "\\undefined \\input{secret}",
    "[wide] names",
    "* starred",
    "a--b ,, ''c'' ``d`` ?`",
    'say "<b>"|',
    "Müller, naïve Ångström, Łódź, garçon",
    "日本語 😀",
    "--- ± \u00d7 ²",
)
TABLE = Table(
    "Every combination: 100 % & more",
    "representation",
    (("faces", "accuracy", "3 %"), ("faces", "accuracy", "100 %"), ("mosi_x", "F1", "3 %")),
    (
        Line(NAMES[2], (Entry("41.0"), Entry("9.1"), Entry("— [1]", "hole")), "without heads"),
        Line(
            NAMES[0],
            (
                Entry("52.0 ± 2.8", "second"),
                Entry("101.1 ± 10.1", "best"),
                Entry("+3.1 [-1.0, +15.2] p < 0.001", "significant"),
            ),
            "recipe improved",
        ),
        Line(
            NAMES[3],
            (Entry("58.0 ± 11.4", "best"), Entry("7.3 ± 0.1", "second"), Entry("0.0 [-11.0, +5.2] p 0.012")),
            "recipe improved",
        ),
    ),
    "In %, mean ± deviation.",
    ("[1] needs modality 'video_3d'",),
)
_TEXT = {
    "textbackslash": "\\",
    "textasciicircum": "^",
    "textasciitilde": "~",
    "textasciigrave": "`",
    "textbar": "|",
    "textless": "<",
    "textgreater": ">",
    "dots": "…",
    "ss": "ß",
    "l": "ł",
    "L": "Ł",
}
_ACCENTS = {"'": "́", "`": "̀", "^": "̂", '"': "̈", "~": "̃", "r": "̊", "c": "̧", "v": "̌"}
_MATHS = {r"$\pm$": "±", r"$\times$": "\u00d7", r"$\cdot$": "·", "$-$": "-", "$+$": "+", "$<$": "<"}


class Reader:
    """Of text as it is written here: every other use of a special character is an error."""

    def __init__(self, source: str) -> None:
        self.source, self.at = source, 0

    def text(self, until: str = "") -> str:
        """What is set, up to the end or an unmatched brace; formatting commands are left out."""
        found = ""
        while self.at < len(self.source):
            rest = self.source[self.at :]
            maths = next((key for key in _MATHS if rest.startswith(key)), None)
            command = re.match(r"\\([A-Za-z]+|.)", rest, re.DOTALL)
            if maths is not None:
                self.at += len(maths)
                found += _MATHS[maths]
            elif command is not None:
                self.at += command.end()
                found += self._command(command[1])
            elif rest.startswith("{}"):
                self.at += 2
            elif rest[0] == "}":
                assert until, f"a brace too many before {rest!r}"
                return found
            else:
                assert rest[0] not in "{$&#_%^~", f"{rest[0]!r} is not escaped in {self.source!r}"
                ligature = re.match(r"---|--|,,|''|``|\?`|!`", rest)
                assert ligature is None or ligature[0] in ("---", "--"), f"{ligature[0]!r} is one character"
                found += {"---": "—", "--": "\u2013"}.get(ligature[0] if ligature else "", rest[0])
                self.at += len(ligature[0]) if ligature else 1
        assert not until, "a brace is missing"
        return found

    def _argument(self) -> str:
        assert self.source[self.at] == "{", self.source[self.at :]
        self.at += 1
        found = self.text(until="}")
        self.at += 1
        return found

    def _command(self, name: str) -> str:
        if name in "{}$&#_%":
            return name
        if name in _ACCENTS:
            return _composed(self._argument() + _ACCENTS[name])
        if name in ("textbf", "underline", "emph", "textsuperscript"):
            inner = self._argument()
            return "²" if name == "textsuperscript" else inner
        if name == "phantom":
            self._argument()
            return ""
        if name == "char":
            assert self.source.startswith("34{}", self.at)
            self.at += 4
            return '"'
        assert name in _TEXT, f"\\{name} is no command that is written here"
        assert self.source.startswith("{}", self.at), "a command takes the space behind it"
        self.at += 2
        return _TEXT[name]


def _composed(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text)


def read(source: str) -> str:
    return Reader(source).text()


def rows_of(grid: str) -> Iterator[list[tuple[str, int]]]:
    """(text, columns) of each cell of each row of a `tabular`; its rules must be booktabs'."""
    body = re.fullmatch(
        r"\\begin\{tabular\}\{[lr]+\}\n\\toprule\n(.*)\n\\bottomrule\n\\end\{tabular\}", grid, re.DOTALL
    )
    assert body is not None, grid
    for line in body[1].split("\n"):
        if line in (r"\midrule", r"\addlinespace"):
            continue
        row = re.fullmatch(r"(.*) \\\\((?:\\cmidrule\(lr\)\{\d+-\d+\})*)", line)
        assert row is not None, line
        cells = []
        for cell in re.split(r"(?<!\\)&", row[1]):
            wide = re.fullmatch(r"\s*\\multicolumn\{(\d+)\}\{[lc]\}\{(.*)\}\s*", cell)
            cells.append((read(wide[2]), int(wide[1])) if wide else (read(cell.strip()), 1))
        yield cells


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_back_as_it_was_in_letters_that_every_engine_has(name: str) -> None:
    written = tex_name(name)
    assert written.isascii()
    expected = "".join(c if c in "±\u00d7²—" or ord(c) < 0x180 else ascii(c)[1:-1] for c in name)
    assert read(written) == expected


def test_every_row_has_the_columns_of_the_table_and_its_texts() -> None:
    text = latex_table(TABLE, "Tested on 24 speakers. Pretraining seeds 1, 2.")
    grid = re.search(r"\\begin\{tabular\}.*\\end\{tabular\}", text, re.DOTALL)
    assert grid is not None
    rows = list(rows_of(grid[0]))
    assert all(sum(span for _, span in row) == 4 for row in rows)
    assert [[text for text, _ in row] for row in rows] == [
        ["", "faces", "mosi_x"],
        ["", "accuracy", "F1"],
        ["representation", "3 %", "100 %", "3 %"],
        ["without heads"],
        [NAMES[2], "41.0", "9.1", "— [1]"],
        ["recipe improved"],
        [NAMES[0], "52.0 ± 2.8", "101.1 ± 10.1", "+3.1 [-1.0, +15.2] p < 0.001"],
        [NAMES[3], "58.0 ± 11.4", "7.3 ± 0.1", "0.0 [-11.0, +5.2] p 0.012"],
    ]
    assert r"\textbf{101.1}" in text and r"\underline{52.0}" in text and r"\textbf{$+$3.1}" in text
    caption = re.search(r"\\caption\{(.*)\}\n", text)
    assert caption is not None
    assert read(caption[1]).endswith("Tested on 24 speakers. Pretraining seeds 1, 2. [1] needs modality 'video_3d'")
    assert r"\label{tab:every-combination-100-more}" in text


def test_points_stand_under_points() -> None:
    """Cells of a column are equally wide, digit by digit, where what is hidden counts as well; holes stand alone."""
    grid = latex_table(TABLE).split(r"\midrule")[1]
    lines = [re.split(r"(?<!\\)& ", line.removesuffix(r" \\")) for line in grid.split("\n") if line.count("& ") >= 3]
    for column in (1, 2, 3):
        cells = [line[column].strip() for line in lines if "---" not in line[column]]
        shown = [read(re.sub(r"\\phantom\{((?:[^{}])*)\}", r"\1", cell)) for cell in cells]
        # A sign stands at its number, behind the digits that others have more of.
        assert len({"".join(sorted(re.sub(r"[0-9]", "0", text).replace("-", "+"))) for text in shown}) == 1, shown
        assert len({len(text.split(".")[0]) for text in shown}) == 1, shown


def test_tables_of_the_same_title_have_labels_of_their_own() -> None:
    text = latex([TABLE, TABLE], "")
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert len(set(labels)) == 2 and all(re.fullmatch(r"tab:[a-z0-9-]+", label) for label in labels)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here; the strict reader above has read it")
def test_latex_sets_it(tmp_path: Path) -> None:
    hostile = Table("t", "", (("a",),), tuple(Line(name, (Entry("1.0", "best"),)) for name in NAMES))
    body = latex([TABLE, hostile], "Seeds 1, 2.")
    source = (
        f"\\documentclass{{article}}\n\\usepackage{{booktabs,graphicx}}\n\\begin{{document}}\n{body}\\end{{document}}\n"
    )
    (tmp_path / "t.tex").write_text(source, "utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")
