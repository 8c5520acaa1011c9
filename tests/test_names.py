"""Names are text and stay distinct, whatever they are made of and wherever they are written: many are, and are read
back by another reader of the format."""

# ruff: noqa: RUF001 - characters that look alike are the point

from __future__ import annotations

import ast
import csv
import io
import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from matplotlib.text import Text

from conclugen.common.options import Command
from conclugen.common.tables import csv_text, markdown_head, markdown_row, one_line, prose
from conclugen.evaluation.judge import Score
from conclugen.evaluation.statistics import Interval
from ray_jobs import evaluation, plots
from ray_jobs.embedding import timeline
from tuning.report import page, tables

FIXED = (
    *("calm", "Calm", "a b", "a  b", " a", "a ", "", "_x", "_x_", "a_b", "1", "1.0", "nan", "None", "—"),
    *("$\\bad$", "$x^2$", "a $5", "/", "a/b", "..", "../x", "a/../b", "/etc/hostname", "#", "# a", "a #", "#1"),
    *("|", "a|b", "a\\|b", "\\", "a\\", "\\n", "\n", "a\nb", "a\\nb", "a\rb", "a\r\nb", "a\tb", "\0", "\x1b[31mred"),
    *("<script>alert(1)</script>", "&lt;", "<", "&amp;", "&", "'a'", '"a"', "'a\\nb'", "a'b", "{x}", "%s", "{"),
    *("=1+1", "+1", "-1", "@x", "'=1+1", "'x", "\t=1", " =1", "＝1", "*b*", "**b**", "`c`", "~s~", "[l](javascript:1)"),
    *("![i](x)", "[x]: y", "[ ] z", "é", "e\u0301", "ﬁ", "fi", "n\u0303o", "中立", "高兴", "بهجة", "שמח", "\u202eabc"),
    *("می\u200cخواهم", "میخواهم", "\U0001f600", "\U0001f622", "a\u00a0b", "a\u200bb", "\ufeffa", "é" * 100, "x" * 200),
)


@dataclass(frozen=True)
class _Nothing:
    """Nothing.

    Attributes:
        x: Nothing.
    """

    x: int = 0


def _drawn() -> list[str]:
    g = random.Random(15)
    alphabet = "ab1_-+=@'\"$\\/|#<>&;*`~[](){}!.,:% \n\r\t\0é\u0301中ש\u202e\u200d\u00a0\U0001f600"
    return ["".join(g.choices(alphabet, k=g.randrange(1, 7))) for _ in range(150)]


NAMES = list(dict.fromkeys([*FIXED, *_drawn()]))


def _meant(shown: str) -> str:
    """The name that `one_line` has written: in quotes, as Python reads it, or as it stands."""
    return str(ast.literal_eval(shown)) if shown[:1] in ("'", '"') else shown


class _Page(HTMLParser):
    """Texts of the elements of some kind, and all tags."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of, self.inside, self.found, self.tags = of, False, list[str](), set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == self.of:
            self.inside = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != self.of

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1] += data


def _columns_of_markdown(text: str) -> list[list[str]]:
    """The cells of every row of the tables, as CommonMark with GitHub's tables reads them."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            assert all(child.type in ("text", "text_special") for child in token.children or ()), token.content
            rows[-1].append("".join(child.content for child in token.children or ()))
    return rows


def test_markdown_reads_back() -> None:
    lines = [*markdown_head(["name", "score"]), *(markdown_row([name, "0.5"]) for name in NAMES)]
    found = _columns_of_markdown("\n".join(lines))
    assert [len(row) for row in found] == [2] * (1 + len(NAMES))
    assert [_meant(row[0]) for row in found[1:]] == NAMES


def _by_pandas(file: io.StringIO) -> list[list[str]]:
    return pd.read_csv(file, header=None, dtype=str, na_filter=False).to_numpy().tolist()


@pytest.mark.parametrize("read", [csv.reader, _by_pandas])
def test_csv_reads_back_and_holds_no_formula(read: Callable[[io.StringIO], list[list[str]]]) -> None:
    names = [name for name in NAMES if "\0" not in name]  # pandas ends a field there
    text = csv_text([("name", "value"), *((name, -0.5) for name in names)])
    rows = list(read(io.StringIO(text, newline="")))[1:]
    assert [row[1] for row in rows] == ["-0.5"] * len(names)
    assert [row[0][1:] if row[0].startswith("'") else row[0] for row in rows] == names
    assert not [row for row in rows if row[0].strip()[:1] in tuple("=+-@＝")]


def test_html_and_its_charts_read_back(tmp_path: Path) -> None:
    lines = tuple(tables.Line(name, (tables.Entry("0.5"),)) for name in NAMES)
    for number in range(len(NAMES)):
        (tmp_path / f"p{number}.svg").write_text("<svg/>")
    pictures = tuple((name, f"p{number}.png") for number, name in enumerate(NAMES))
    blocks = [tables.Table("t", "system", (("score",),), lines), page.Charts(pictures)]
    text = page.html("title", ["lead"], blocks, tmp_path)
    heads, captions = _Page("th"), _Page("figcaption")
    for reader in (heads, captions):
        reader.feed(text)
        assert "script" not in reader.tags
    assert [_meant(one) for one in heads.found[2:]] == NAMES
    assert [one.removesuffix(" SVG") for one in captions.found] == [prose(name) for name in NAMES]


def test_the_table_of_an_evaluation_reads_back(tmp_path: Path) -> None:
    """As classes and as speakers: heads of columns, rows without a test row, items of lists."""
    names = NAMES[:24]
    scores = {"accuracy": 0.5, "uar": 0.5, "f1_macro": 0.5} | {f"recall/{name}": 0.5 for name in names}
    score = Score("pretrained", "probe", 1.0, scores, {}, (0.5,), None, groups=dict.fromkeys(names, 0.5))
    absent = dict.fromkeys(NAMES[24:], 0)
    result = evaluation.EvaluateResult(
        tmp_path, "a|b\n$", "accuracy", [score], [], "class", dict.fromkeys(names, 7) | absent, dict.fromkeys(names, 7)
    )
    for row in _columns_of_markdown(evaluation.table(result)):
        if len(row) == 1 + len(names) and not row[0].startswith("pretrained"):
            shown = [_meant(cell) for cell in row[1:]]
            assert sorted(shown) == sorted(f"{name} (7 rows)" for name in names)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    return figures


def test_pictures_name_everything_and_draw_no_formula(drawn: list[Figure]) -> None:
    names = NAMES[:100]
    value = Interval(0.5, 0.4, 0.6, 0.95, 4)
    plots.confusion(np.eye(len(names)), names, "a.png")
    plots.interval_bars(dict.fromkeys(names, value), "c.png")
    plots.label_efficiency({name: {1.0: value} for name in names}, "d.png")
    plots.interval_lines({name: [(0.0, 0.5, None, None)] for name in names}, "e.png", xlabel="x", ylabel="y")
    plots.paired_differences({name: {1.0: value} for name in names}, "f.png")
    for figure in drawn:
        found = figure.findobj(Text)
        shown = {text.get_text().replace("\n", "") for text in found}
        assert set(names) <= {_meant(text) if len(text) > 1 else text for text in shown}, figure
        formulas = [text for text in found if "$" in text.get_text()]
        assert formulas and not any(text.get_parse_math() for text in formulas)
    assert len(drawn) == 5
    plots.representation_map(np.eye(24), names[:24], "b.png")  # more share one grey
    shown = {text.get_text().replace("\n", "") for text in drawn[-1].findobj(Text)}
    assert set(names[:24]) <= {_meant(text) if len(text) > 1 else text for text in shown}
    plots.panels([plots.Panel(name, {name: [(0, 1.0)]}) for name in names[30:50]], "g.png")
    titles = {text.get_text() for text in drawn[-1].findobj(Text)}
    assert set(names[30:50]) <= {_meant(title) if len(title) > 1 else title for title in titles}


def test_pictures_are_drawn_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """No character is missing from the fonts, whatever the script; the picture has a bounded size."""
    names = ["中立", "高兴", "\U0001f600", "_x", "$\\bad$", "a\nb", "é" * 100, "بهجة"]
    path = timeline.draw([(0, 1), (1, 2)], np.eye(2), np.full((2, 8), 0.1), names, tmp_path / "a.png", "中\n立")
    plots.confusion(np.eye(8), names, tmp_path / "b.png", title=names[0])
    assert path.stat().st_size > 1000 and not [w for w in recwarn if "lyph" in str(w.message)]


def test_an_error_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names in messages may come from somebody else's files."""

    def work(job: _Nothing) -> int:
        raise ValueError("class 'a\x1b[2J\u202eb\r' of é\n  its second line")

    assert Command("nothing", _Nothing, work).main([]) == 2
    assert capsys.readouterr().err == "error: class 'a\\x1b[2J\\u202eb\\r' of é\n  its second line\n"


def test_a_name_in_one_line_stays_what_it_was() -> None:
    plain = ["calm", "a_b", "中立", "é", "می\u200cخواهم"]
    assert [one_line(name) for name in plain] == plain
    assert one_line("a\nb") == "'a\\nb'"
    shown = {name: one_line(name) for name in NAMES}
    assert len(set(shown.values())) == len(NAMES)
    assert all(_meant(text) == name for name, text in shown.items())
    characters = set("".join(shown.values())) - {"\u200c", "\u200d"}
    assert not {unicodedata.category(c) for c in characters} & {"Cc", "Cf", "Zl", "Zp"}
