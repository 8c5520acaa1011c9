"""A report against numbers worked out by hand, from ledgers made up for it; holes stay visible, nothing is fetched."""

import base64
import csv
import itertools
import os
import re
import runpy
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from conclugen.tasks import registry
from ray_jobs.tracking.journal import Journal, read_records
from tests.campaigns.results_fuzz.folders import MAKERS
from tuning.ledger import Ledger, LedgerError, Record, record_key
from tuning.report import drawings
from tuning.report.__main__ import main
from tuning.report.findings import (
    against_references,
    all_against_fewer,
    configured_against_all,
    sentences,
    summary,
)
from tuning.report.report import being_written, report, track
from tuning.report.sweep_response import by_tasks, compared, importance, weight_response
from tuning.report.systems import Results, best
from tuning.report.tables import claim_table, reference_table, results_table

pytestmark = pytest.mark.usefixtures("blank_pictures")

TASKS = ("contrastive", "clustering", "reconstruction")
GROUPS = [str(n) for n in range(1, 13)]


def cell(
    tasks,
    accuracy,
    seed,
    dataset="faces",
    system="pretrained",
    recipe="improved",
    modalities=("video", "audio"),
    **tags,
):
    """Accuracy at 3 %, the same 0.2 higher at 100 %; groups lie around it, evenly, so that their mean is it."""
    offsets = np.linspace(-0.05, 0.05, len(GROUPS))
    return Record(
        key=record_key(
            {"t": tasks, "s": system, "m": modalities, "r": recipe}, dataset=dataset, seed=seed, protocol="p"
        ),
        kind="cell",
        status="finished",
        tags={
            "dataset": dataset,
            "system": system,
            "recipe": recipe if system != "raw" else "",
            "tasks": list(tasks),
            "modalities": list(modalities),
            "complete": len(modalities) == 2,
            "seed": seed,
            "rows": [],
        }
        | tags,
        metrics={
            "accuracy@0.03": accuracy,
            "accuracy@1": accuracy + 0.2,
            "f1_weighted@0.03": accuracy - 0.01,
            "f1_weighted@1": accuracy + 0.19,
            "recall/calm@0.03": accuracy,
            "recall/happy@0.03": accuracy,
        }
        | ({"recall@1/video-audio": accuracy / 10} if "contrastive" in tasks else {})
        | {f"recall@{k}/video-audio": k * accuracy / 20 for k in (5, 10) if "contrastive" in tasks},
        groups={
            "rows": dict.fromkeys(GROUPS, 10.0),
            "accuracy@0.03": {g: accuracy + o for g, o in zip(GROUPS, offsets, strict=True)},
            "accuracy@1": {g: accuracy + 0.2 - o for g, o in zip(GROUPS, offsets, strict=True)},
        },
        cost={"seconds": 10.0 + seed, "cpu_seconds": 9.0, "samples": 100.0, "peak_memory_bytes": 2.0**20 * 50},
    )


COMBINATIONS = [c for n in (1, 2, 3) for c in itertools.combinations(TASKS, n)]
# Of each combination the accuracies of seeds 1 and 2.
ACCURACY = dict(
    zip(
        COMBINATIONS,
        [(0.50, 0.54), (0.30, 0.34), (0.44, 0.44), (0.57, 0.59), (0.55, 0.55), (0.40, 0.42), (0.62, 0.60)],
        strict=True,
    )
)


@pytest.fixture
def folder(tmp_path):
    """All combinations but one seed of clustering + reconstruction, which failed; baselines; an unserved preset."""
    place = tmp_path / "first"
    with Ledger.open(place) as ledger:
        for tasks, numbers in ACCURACY.items():
            for seed, accuracy in enumerate(numbers, 1):
                record = cell(tasks, accuracy, seed)
                if tasks == ("clustering", "reconstruction") and seed == 2:
                    record = Record(record.key, "cell", "failed", tags=record.tags, reason="OSError: <no> memory")
                ledger.append(record)
        for seed in (1, 2):
            ledger.append(cell((), 0.45, seed, system="untrained"))
        ledger.append(cell((), 0.41, 0, system="raw"))
        ledger.append(cell((), 0.47, 0, system="raw", modalities=("audio",)))
        tags = cell(("simclr",), 0, 1, modalities=("video_3d",)).tags
        hole = {**tags, "unserved": True, "rows": ["presets/simclr"]}
        ledger.append(Record("hole", "cell", "failed", tags=hole, reason="needs modality 'video_3d'"))
    return place


def results(folder):
    return Results.of(Ledger.open(folder).records())


def test_the_table_is_that_worked_out_by_hand(folder):
    made = results_table(results(folder), results(folder).combinations(), "t", ["accuracy"])
    assert made.head == (("faces", "accuracy", "3% of labels"), ("faces", "accuracy", "100% of labels"))
    at_three = {line.name: (line.entries[0].text, line.entries[0].mark) for line in made.lines}
    assert at_three == {
        "raw features: all modalities": ("41.0", ""),
        "raw features: audio": ("47.0", ""),
        "untrained heads": ("45.0 ± 0.0", ""),
        "contrastive": ("52.0 ± 2.8", ""),  # 0.02 * sqrt(2)
        "clustering": ("32.0 ± 2.8", ""),
        "reconstruction": ("44.0 ± 0.0", ""),
        "contrastive + clustering": ("58.0 ± 1.4", "second"),
        "contrastive + reconstruction": ("55.0 ± 0.0", ""),
        "clustering + reconstruction": ("40.0", ""),  # one seed has no deviation
        "contrastive + clustering + reconstruction": ("61.0 ± 1.4", "best"),
    }
    hint = {line.name: line.entries[0].hint for line in made.lines}
    assert hint["clustering + reconstruction"] == "1 seed, 1 missing"


def test_a_row_that_a_set_cannot_serve_is_a_marked_hole_with_its_reason(folder):
    made = results_table(results(folder), results(folder).presets(), "t", ["accuracy"])
    lines = {line.name: line.entries[0] for line in made.lines}
    assert lines["simclr"].mark == "hole" and lines["simclr"].text == "— [1]"
    assert made.footnotes == ("[1] faces: needs modality 'video_3d'",)
    assert lines["conclugen"].text == "61.0 ± 1.4" and lines["generative_only"].text == "44.0 ± 0.0"


def test_the_claim_is_compared_with_every_smaller_combination_and_no_other(folder):
    family = all_against_fewer(results(folder), "faces", "improved", 0.03)
    three = "contrastive + clustering + reconstruction [improved]"
    assert {c.first for c in family.comparisons} == {three}
    expected = {" + ".join(t) + " [improved]": 0.61 - sum(n) / 2 for t, n in ACCURACY.items() if len(t) < 3}
    # Its second seed failed: only the first is compared, of three tasks as well.
    expected["clustering + reconstruction [improved]"] = 0.62 - 0.40
    assert {c.second: pytest.approx(c.difference) for c in family.comparisons} == expected
    # All 12 speakers on one side: 2 / 2^12, times the 6 comparisons of the family.
    assert [c.p_value for c in family.comparisons] == [pytest.approx(2 / 2**12)] * 6
    assert [c.adjusted for c in family.comparisons] == [pytest.approx(6 * 2 / 2**12)] * 6
    (told,) = sentences(family)
    assert "three tasks better than each smaller combination? yes" in told
    # Of three speakers no p is below 1/4: the same numbers neither show a difference nor that there is none.
    three_only = [replace(c, interval=replace(c.interval, groups=3)) for c in family.comparisons]
    (told,) = sentences(replace(family, comparisons=tuple(three_only)))
    assert "smaller combination? cannot be told with 3 speakers: minus contrastive (" in told and " no" not in told


def test_a_named_configuration_is_compared_with_three_tasks_and_counts_in_no_combination(folder):
    """It is of the contrastive task alone, and better than everything: the claim's table must not see it."""
    before = results(folder)
    with Ledger.open(folder) as ledger:
        for seed in (1, 2):
            own = cell(("contrastive",), 0.70, seed, configuration="searched")
            ledger.append(Record(**{**own.__dict__, "key": f"searched{seed}"}))
    made = results(folder)
    family = configured_against_all(made, "faces", "improved", 0.03)
    (found,) = family.comparisons
    assert (found.first, found.second) == ("searched [improved]", " + ".join(TASKS) + " [improved]")
    assert found.difference == pytest.approx(0.70 - 0.61) and found.p_value == found.adjusted
    rows = results_table(made, made.configurations(), "t", ["accuracy"]).lines
    assert [(line.name, line.entries[0].text, line.entries[0].mark) for line in rows] == [
        (" + ".join(TASKS), "61.0 ± 1.4", "second"),
        ("searched", "70.0 ± 0.0", "best"),
    ]
    for rows_of in (Results.combinations, Results.presets, Results.subsets):
        assert rows_of(made) == rows_of(before)
    place = ("faces", "improved", 0.03)
    assert all_against_fewer(made, *place) == all_against_fewer(before, *place)
    references = {c.second for c in against_references(made, *place).comparisons}
    assert references == {c.second for c in against_references(before, *place).comparisons}
    text = {path.name: path.read_text("utf-8") for path in report(folder) if path.suffix in (".html", ".md", ".csv")}
    assert "Named configurations beside all three tasks" in text["report.html"]
    assert "| searched minus contrastive + clustering + reconstruction | " in text["report.md"]
    assert ",searched,contrastive,video+audio,1,accuracy@0.03,0.7" in text["report.csv"]


def test_a_named_configuration_stands_alone_and_beside_raw(folder):
    """Each number under its own name: one row with either would hide which it is."""
    with Ledger.open(folder) as ledger:
        for seed in (1, 2):
            own = cell(("contrastive",), 0.70, seed, configuration="searched")
            metrics = own.metrics | {"with_raw/accuracy@0.03": 0.40}
            groups = own.groups | {"with_raw/accuracy@0.03": dict.fromkeys(GROUPS, 0.40)}
            record = Record(**{**own.__dict__, "key": f"searched{seed}", "metrics": metrics, "groups": groups})
            ledger.append(record)
    made = results(folder)
    rows = results_table(made, made.configurations(), "t", ["accuracy"]).lines
    assert [(line.name, line.entries[0].text) for line in rows] == [
        (" + ".join(TASKS), "61.0 ± 1.4"),
        ("searched", "70.0 ± 0.0"),
        ("searched + raw", "40.0 ± 0.0"),
    ]
    text = next(path for path in report(folder) if path.name == "report.md").read_text("utf-8")
    assert "| searched + raw minus contrastive + clustering + reconstruction | " in text


def test_the_answer_is_no_where_one_combination_is_as_good(folder):
    """At 100 % the sign of the offsets is turned about, the differences are not; so one more cell makes them equal."""
    ledger = Ledger.open(folder)
    for seed in (1, 2):
        own = cell(("contrastive", "clustering"), 0.61, seed)
        ledger.append(own)
    (told,) = sentences(all_against_fewer(results(folder), "faces", "improved", 1.0))
    assert "? no:" in told and "not shown to differ from contrastive + clustering (0.0, p 1.000)" in told


def test_the_summary_counts_settings(folder):
    made = results(folder)
    families = [all_against_fewer(made, "faces", "improved", fraction) for fraction in (0.03, 1.0)]
    assert "Of 2 settings" in summary(families) and "smaller combination in 2, and" in summary(families)
    assert "nothing can be said yet" in summary([all_against_fewer(made, "faces", "paper", 0.03)])


def test_references_are_the_best_single_task_untrained_heads_and_best_raw_features(folder):
    family = against_references(results(folder), "faces", "improved", 0.03)
    assert {c.second for c in family.comparisons} == {
        "contrastive [improved]",
        "untrained heads [improved]",
        "raw features: audio",
    }
    assert len(family.comparisons) == 7 * 3 - 1  # the best single task is not compared with itself
    found = {(c.first, c.second): c.difference for c in family.comparisons}
    assert found["reconstruction [improved]", "raw features: audio"] == pytest.approx(0.44 - 0.47)


def test_seeds_that_differences_do_without_are_told_below_the_table(folder):
    """One seed of clustering + reconstruction failed; of contrastive a third one was run, at one share only."""
    page = report(folder)[1].read_text()
    whole = "contrastive + clustering + reconstruction"
    assert (
        f"- faces, improved, 3% and 100% of labels: without seed 2, which not both systems have: {whole} minus " in page
    )
    claim = claim_table([all_against_fewer(results(folder), "faces", "improved", 0.03)], "t", "")
    assert claim.footnotes == (
        "faces, improved, 3% of labels: without seed 2, which not both systems have: "
        f"{whole} minus clustering + reconstruction.",
    )
    third = cell(("contrastive",), 0.5, 3)
    with Ledger.open(folder) as ledger:
        ledger.append(replace(third, groups={n: own for n, own in third.groups.items() if n != "accuracy@1"}))
    families = [all_against_fewer(results(folder), "faces", "improved", fraction) for fraction in (0.03, 1.0)]
    assert claim_table(families, "t", "").footnotes == (
        "faces, improved, 3% and 100% of labels: without seed 3, which not both systems have: "
        f"{whole} minus contrastive.",
        "faces, improved, 3% and 100% of labels: without seed 2, which not both systems have: "
        f"{whole} minus clustering + reconstruction.",
    )
    references = reference_table([against_references(results(folder), "faces", "improved", 1.0)], "t", "").footnotes
    assert any(
        "100% of labels: without seed 3, " in note and "contrastive minus raw features: audio" in note
        for note in references
    )


def test_the_reference_table_names_each_reference_in_its_column(folder):
    families = [against_references(results(folder), "faces", "improved", fraction) for fraction in (0.03, 1.0)]
    made = reference_table(families, "t", "")
    kinds = ("minus best single task", "minus untrained heads", "minus strongest raw row")
    assert made.head == tuple((kind, share) for kind in kinds for share in ("3% of labels", "100% of labels"))
    lines = {line.name: line.entries for line in made.lines}
    assert lines["contrastive"][0].mark == "hole"  # with itself
    assert lines["contrastive"][2].text.startswith("+7.0 [") and "untrained heads" in lines["contrastive"][2].hint
    assert lines["contrastive"][4].text.startswith("+5.0 [") and "raw features: audio" in lines["contrastive"][4].hint


def test_raw_rows_and_representation_beside_raw_stand_in_tables_and_sentences(tmp_path):
    """The strongest raw row is named with every comparison; few units can tell nothing; absent classes are named."""
    confusion = {"confusion/calm@0.03": {"calm": 6.0, "happy": 2.0}, "confusion/happy@0.03": {"happy": 4.0}}
    counts = {"class_rows": {"calm": 8.0, "happy": 4.0, "fear": 0.0}}
    few = {"rows": dict.fromkeys("abcd", 3.0)}
    own = {"accuracy@0.03": dict(zip("abcd", (0.5, 0.6, 0.7, 0.8), strict=True))}
    other = {"accuracy@0.03": dict(zip("abcd", (0.4, 0.5, 0.6, 0.7), strict=True))}
    with Ledger.open(tmp_path / "first") as ledger:
        for seed, accuracy in ((1, 0.6), (2, 0.7)):
            record = cell(TASKS, accuracy, seed, unit="dialogue")
            beside = {"with_raw/accuracy@0.03": accuracy + 0.1, "with_raw/uar@0.03": 0.5, "uar@0.03": accuracy - 0.1}
            groups = few | own | counts | confusion | {"with_raw/accuracy@0.03": own["accuracy@0.03"]}
            metrics = {"accuracy@0.03": accuracy, **beside}
            ledger.append(replace(record, metrics=metrics, groups=groups))
        for system, method, accuracy in (
            ("raw", "", 0.41),
            ("raw balanced", "", 0.55),
            ("raw balanced", "rbf_machine", 0.5),
        ):
            record = cell((), accuracy, 0, system=system, **({"method": method} if method else {}))
            key = record_key({"s": system, "m": method}, dataset="faces", seed=0, protocol="p")
            tags = {**record.tags, "recipe": ""}
            metrics = {"accuracy@0.03": accuracy, "uar@0.03": accuracy - 0.2}
            ledger.append(replace(record, key=key, tags=tags, metrics=metrics, groups=few | other | counts))
    files = {path.name: path for path in report(tmp_path / "first")}
    page = files["report.md"].read_text()
    whole = "contrastive + clustering + reconstruction"
    table = page[page.index("Representation + raw, each half of the variance") :]
    assert f"| {whole} + raw | **75.0 ± 7.1** | **50.0 ± 0.0** |" in table
    for name, accuracy, uar in (("raw balanced", "55.0", "35.0"), ("raw balanced, rbf machine", "50.0", "30.0")):
        assert f"| {name} | " in table and f"{accuracy}" in table and uar in table
    assert "| raw features: all modalities | 41.0 | 21.0 |" in table
    assert "faces: no test row of class fear; macro scores are of the other classes." in page
    start = "- faces, improved, 3% of labels: strongest raw row raw balanced; minus it: "
    (line,) = (text for text in page.splitlines() if text.startswith(start))
    both = line.removeprefix(start).removesuffix(".").split("; ")
    for told, first in zip(both, (whole, f"{whole} + raw"), strict=True):
        assert told.startswith(f"{first} +10.0 [+10.0, +10.0], p ")
        assert told.endswith(", cannot be told with 4 dialogues")
    taken = page[page.index("confusion of") :]
    assert "| calm | 8 | 75.0 | 25.0 | 0.0 |" in taken and "| happy | 4 | 0.0 | 100.0 | 0.0 |" in taken
    assert "accuracy by dialogue, 3% of labels" in page


class Page(HTMLParser):
    """Every tag closed, nothing fetched from anywhere."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.anchors, self.targets = [], [], [], []

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        assert names.get("src", "data:").startswith("data:") and tag not in ("script", "link", "iframe")
        if "download" in names:  # what it offers is within it
            assert tag == "a" and names["href"].startswith("data:")
        elif "href" in names:
            assert names["href"].startswith("#")
            self.targets.append(names["href"][1:])
        if "id" in names:
            self.anchors.append(names["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_is_whole_and_needs_nothing_besides_itself(folder):
    files = {path.name: path for path in report(folder)}
    text = files["report.html"].read_text("utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert set(page.targets) <= set(page.anchors) and page.targets
    assert "61.0 ± 1.4" in page.cells
    assert "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert {"report.md", "report.csv", "table.tex", "references.bib", "figures.py", "figures.json"} <= set(files)
    figures = ("label_efficiency_faces", "all_tasks_faces_improved")
    assert {f"{name}.{kind}" for name in figures for kind in ("png", "svg", "pdf")} <= set(files)
    assert files["label_efficiency_faces.png"].read_bytes()[:4] == b"\x89PNG"
    # Again over itself: nothing piles up.
    assert {path.name for path in report(folder)} == {path.name for path in (folder / "report").iterdir()}


@pytest.mark.usefixtures("drawn_pictures")
def test_it_begins_with_what_won_and_by_how_much(folder):
    """Then the box of set-up, as far as the journal tells of it."""
    with Journal(folder / "journal.jsonl", experiment="e", name="first") as journal:
        journal.tags(
            {"commit": "abc-dirty", "command": "conclugen ablate", "digest.faces": "d1", "encoders": "prosody"}
        )
    report(folder)
    text = (folder / "report" / "report.md").read_text("utf-8")
    three = "contrastive + clustering + reconstruction"
    won = f"faces, 3% of labels: first is {three} \\[improved], accuracy 61.0 %. It is +14.0 points [+"
    assert text.split("\n\n")[1].replace("\\", "").startswith(won.replace("\\", ""))
    assert "from the strongest raw row, raw features: audio: better (p " in text.split("\n\n")[1]
    cells = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line[:1] == "|"}
    assert cells["data, faces"] == "digest d1" and cells["commit"] == "abc-dirty" and cells["encoders"] == "prosody"
    assert cells["command"] == "conclugen ablate" and cells["seeds"] == "1, 2"
    # 9 pretrained and untrained seeds of 11 and 12 seconds each, and three of seed 0: 10.
    seconds = sum(10.0 + r.tags["seed"] for r in Ledger.open(folder).records() if r.status == "finished")
    assert cells["cost"].startswith(f"{seconds / 3600:.2f} hours")
    assert "Boersma" in (folder / "report" / "references.bib").read_text("utf-8")
    with Journal(folder / "journal.jsonl", experiment="e", name="first") as journal:
        journal.tags({"rendered": "yes"})
    report(folder)
    tex = (folder / "report" / "table.tex").read_text("utf-8")
    said = "these numbers say nothing about people"
    assert said in tex and said in (folder / "report" / "report.md").read_text("utf-8").split("\n\n")[3]
    assert said in (folder / "report" / "all_tasks_faces_improved.svg").read_text("utf-8")
    assert "Tested on faces: 12 speakers. Pretraining seeds 1, 2." in tex and r"\textbf{61.0} $\pm$ 1.4" in tex


def test_the_page_offers_its_tables_and_figures_and_names_combinations_shortly(folder):
    files = {path.name: path for path in report(folder)}
    text = files["report.html"].read_text("utf-8")
    offered = dict(re.findall(r'<a download="([^"]+)" href="data:[^;]+;base64,([^"]+)"', text))
    for name in ("label_efficiency_faces.pdf", "all_tasks_faces_improved.svg"):
        assert base64.b64decode(offered[name]) == files[name].read_bytes()
    table = list(csv.reader(base64.b64decode(offered["every-combination-of-tasks.csv"]).decode().splitlines()))
    whole = next(row for row in table if row[1] == "contrastive + clustering + reconstruction")
    assert whole == ["recipe improved", whole[1], "61.0 ± 1.4", "81.0 ± 1.4", *whole[4:]]
    assert base64.b64decode(offered["every-combination-of-tasks.tex"]).decode().count(r"\begin{tabular}") == 1
    assert '<th scope="row" title="contrastive + clustering">con+clu</th>' in text
    assert '<th scope="row">contrastive</th>' in text and "contrastive (con)" in text


@pytest.mark.usefixtures("drawn_pictures")
def test_figures_are_drawn_again_as_they_were_and_as_a_paper_wants_them(folder, monkeypatch):
    files = {path.name: path for path in report(folder)}
    place = folder / "report"
    found, stamp = drawings.load(files["figures.json"])
    assert stamp == ""
    for drawing in found:
        again = drawings.draw(drawing, folder / "again")
        for kind in ("png", "svg", "pdf"):
            assert again.with_suffix(f".{kind}").read_bytes() == files[f"{drawing.name}.{kind}"].read_bytes()
    three = "contrastive + clustering + reconstruction [improved]"
    script = files["figures.py"].read_text("utf-8")
    script = script.replace("RENAME: dict[str, str] = {}", f"RENAME: dict[str, str] = {{{three!r}: 'ours'}}")
    script = script.replace("IN_A_COLUMN: set[str] = set()", "IN_A_COLUMN: set[str] = {'label_efficiency_faces'}")
    files["figures.py"].write_text(script, "utf-8")
    runpy.run_path(str(files["figures.py"]), run_name="__main__")
    assert {path.stem for path in (place / "paper").iterdir()} == {drawing.name for drawing in found}
    svg = (place / "paper/label_efficiency_faces.svg").read_text("utf-8")
    assert 'width="234pt"' in svg and ">ours</text>" in svg and "deviation over seeds" not in svg
    files["figures.json"].write_text('{"figures": [{"name": 1}]}', "utf-8")
    with pytest.raises(ValueError, match=r"figures\.json: has no figures"):
        drawings.load(files["figures.json"])


def test_markdown_tables_have_one_width_and_the_same_numbers(folder):
    report(folder)
    text = (folder / "report" / "report.md").read_text("utf-8")
    for task in TASKS:
        assert f"- {task} ({task[:3]}): {registry.get(task).title}" in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1
    assert "| contrastive + clustering + reconstruction | **61.0 ± 1.4** | **81.0 ± 1.4** |" in text
    assert "<u>58.0 ± 1.4</u>" in text


def test_every_number_is_in_the_csv(folder):
    report(folder)
    with (folder / "report" / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {
        (r["tasks"], int(r["seed"])): float(r["value"])
        for r in rows
        if r["metric"] == "accuracy@0.03" and r["system"] == "pretrained"
    }
    expected = {("+".join(t), seed): a for t, numbers in ACCURACY.items() for seed, a in enumerate(numbers, 1)}
    del expected["clustering+reconstruction", 2]
    assert found == expected
    groups = [r for r in rows if r["metric"].startswith("accuracy@0.03/group/") and r["system"] == "raw"]
    assert len(groups) == 2 * len(GROUPS)
    (failed,) = [r for r in rows if r["metric"] == "reason" and r["status"] == "failed" and r["key"] != "hole"]
    assert failed["value"] == "OSError: <no> memory"


def test_a_cell_run_anew_counts_once(folder):
    again = cell(TASKS, 0.70, 1)
    Ledger.open(folder).append(Record(**{**again.__dict__, "key": "newer", "time": 0.0}))
    system = results(folder).find("faces", "improved", TASKS, None)
    assert system.value("accuracy@0.03").mean == pytest.approx((0.70 + 0.60) / 2)
    assert best(results(folder).of_set("faces"), "accuracy@0.03") == system


def test_it_is_logged_to_the_run_and_worth_as_much_without_a_server(folder, tmp_path):
    with Journal(folder / "journal.jsonl", experiment="e", name="first") as journal:
        journal.status("FINISHED")
    files = report(folder)
    where = track(folder, files, f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert where is not None and "run " in where
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    stored = {item.path for item in client.list_artifacts(where.split()[1], "report")}
    assert stored == {f"report/{path.name}" for path in files}
    kinds = [record["kind"] for record, _ in read_records(folder / "journal.jsonl")]
    assert kinds.count("artifact") == len(files)


def test_one_report_of_a_folder_at_a_time(folder, capsys):
    """The second is refused in one line; after the first, nothing of its lock is left."""
    asked = [str(folder), "--no-tracking"]
    with being_written(folder):
        assert main(asked) == 2
        said = capsys.readouterr().err
        assert f"{folder}/report: a report is being written here by process {os.getpid()} on " in said
        assert said.startswith("error: ") and len(said.splitlines()) == 1
        assert not (folder / "report/report.md").exists()
    assert not (folder / "report").exists()
    (folder / "report").mkdir()
    killed = folder / "report" / f".report.md.{'0' * 16}.partial"  # what a report that was killed left
    killed.write_text("x")
    assert main(asked) == 0
    assert not list((folder / "report").glob(".*"))
    with pytest.raises(LedgerError), being_written(folder / "nowhere"):
        report(folder / "nowhere")
    assert not (folder / "nowhere").exists()


def test_refusals_say_what_to_change(tmp_path, folder, capsys):
    with pytest.raises(LedgerError, match="name the output folder of an ablation or a sweep"):
        report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"scores: unknown value 'acuracy' \(did you mean 'accuracy'\?\)"):
        report(folder, scores=["acuracy"])
    Ledger.open(tmp_path / "failed").append(Record("a", "cell", "failed", tags=cell((), 0, 1).tags, reason="r"))
    with pytest.raises(ValueError, match="none of 1 cells and trials is finished"):
        report(tmp_path / "failed")
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "error: " in capsys.readouterr().err


# ---- sweeps


def trial(number, weight, width, tasks=("contrastive", "clustering"), value=None):
    rng = np.random.default_rng(number)
    value = -((np.log10(weight) + 1) ** 2) + 0.02 * rng.normal() if value is None else value
    active = {name: {"weight": weight} if name == "clustering" else {"weight": 1.0} for name in tasks}
    return Record(
        f"t{number}",
        "trial",
        "finished",
        configuration={"seed": number, "model": {"representation_dim": width}, "tasks": {"clustering": None, **active}},
        tags={"objective": "probe_accuracy", "seed": number} | {f"weight.{n}": c["weight"] for n, c in active.items()},
        metrics={"probe_accuracy": value},
    )


def test_importance_finds_the_parameter_that_matters():
    rng = np.random.default_rng(1)
    trials = [trial(n, 10 ** rng.uniform(-3, 1), int(rng.choice([64, 128, 256]))) for n in range(60)]
    found = importance(trials)
    assert found is not None and found.trials == 60
    assert list(found.parameters) == ["tasks.clustering.weight", "model.representation_dim"]
    (first, _), (second, _) = found.parameters.values()
    assert found.score > 0.8 and first > 1.0 and abs(second) < 0.1
    assert importance(trials[:11]) is None
    same = [trial(n, 0.1, 64, value=float(n)) for n in range(20)]
    assert importance(same) is None


def test_noise_explains_nothing():
    rng = np.random.default_rng(2)
    trials = [trial(n, 10 ** rng.uniform(-3, 1), 64, value=float(rng.normal())) for n in range(60)]
    found = importance(trials)
    assert found is not None and found.score < 0.1


def test_trials_that_were_stopped_are_compared_with_the_others_after_as_many_epochs():
    """Worse only because they were stopped: after three epochs the wide ones are ahead, whoever went on."""
    rng = np.random.default_rng(5)
    trials = []
    for n in range(40):
        width = int(rng.choice([64, 256]))
        after_three = (width == 256) * 0.1 + 0.001 * rng.normal()
        goes_on = n % 2 == 0
        whole = trial(n, 0.5, width, value=after_three + goes_on * 0.5)
        curve = {"epochs": [3, 9] if goes_on else [3], "curve": [after_three, after_three + 0.5][: 1 + goes_on]}
        tags = {**whole.tags, **curve, "state": "finished" if goes_on else "stopped"}
        trials.append(Record(**{**whole.__dict__, "tags": tags}))
    epoch, measured = compared(trials)
    assert epoch == 3 and max(value for _, value in measured) < 0.2
    found = importance(trials)
    assert found is not None and found.epoch == 3 and found.score > 0.9
    assert list(found.parameters) == ["model.representation_dim"]
    alone = [t for t in trials if t.tags["state"] == "finished"]
    assert compared(alone) == (None, [(t, t.metrics["probe_accuracy"]) for t in alone])


def test_the_choice_of_tasks_keeps_its_importance_and_weights_are_judged_within_it():
    """All depends on whether clustering is active, and, where it is, on its weight."""
    rng = np.random.default_rng(6)
    trials = []
    for n in range(60):
        tasks = ("contrastive", "clustering") if n % 2 else ("contrastive",)
        weight = 10 ** rng.uniform(-2, 0)
        value = ("clustering" in tasks) * (1 + 0.3 * np.log10(weight)) + 0.001 * rng.normal()
        made = trial(n, weight, int(rng.choice([64, 256])), tasks=tasks, value=value)
        trials.append(Record(**{**made.__dict__, "tags": {**made.tags, "tasks": list(tasks)}}))
    found = importance(trials)
    assert found is not None and next(iter(found.parameters)) == "tasks"
    assert "tasks.clustering.weight" not in found.parameters
    groups = by_tasks(trials)
    assert {tasks: len(own) for tasks, own in groups.items()} == {
        ("contrastive",): 30,
        ("contrastive", "clustering"): 30,
    }
    within = importance(groups["contrastive", "clustering"])
    assert within is not None and next(iter(within.parameters)) == "tasks.clustering.weight" and within.score > 0.8


def test_weight_response_shows_active_tasks_of_finished_trials():
    trials = [trial(1, 0.5, 64), trial(2, 0.1, 64), trial(3, 9.0, 64, tasks=("contrastive",))]
    trials.append(Record("dead", "trial", "failed", tags=trials[0].tags, metrics={"probe_accuracy": 1.0}, reason="r"))
    early = trial(4, 0.3, 64)
    trials.append(Record(**{**early.__dict__, "tags": {**early.tags, "state": "stopped"}}))
    response = weight_response(trials)
    assert [(p.weight, p.stopped) for p in response["clustering"]] == [(0.1, False), (0.3, True), (0.5, False)]
    assert len(response["contrastive"]) == 4


def test_a_sweep_alone_has_a_report(tmp_path):
    rng = np.random.default_rng(3)
    with Ledger.open(tmp_path / "search") as ledger:
        for n in range(20):
            ledger.append(trial(n, 10 ** rng.uniform(-3, 1), 64))
    files = {path.name: path for path in report(tmp_path / "search")}
    page, text, table = (files[f"report.{kind}"] for kind in ("html", "md", "csv"))
    drawn = {"importance_for_sweep_probe_accuracy", *(f"weight_sweep_{task}" for task in ("contrastive", "clustering"))}
    pictures = {f"{name}.{kind}" for name in drawn for kind in ("png", "svg", "pdf")} | {"figures.json", "figures.py"}
    assert set(files) == {page.name, text.name, table.name, "table.tex", "references.bib", *pictures}
    parser = Page()
    parser.feed(page.read_text("utf-8"))
    assert parser.open == [] and "weight of clustering" in page.read_text("utf-8")
    assert "| tasks.clustering.weight | " in text.read_text("utf-8") and table.name == "report.csv"


@pytest.mark.parametrize("score", ["accuracy", "uar"])
def test_systems_are_compared_by_the_score_that_probes_were_chosen_by(tmp_path, score):
    """Plain raw features are ahead in accuracy, balanced ones in UAR; the three tasks are between and above them."""
    units = [str(n) for n in range(8)]
    hits = {  # system -> recall of calm, of happy; nine rows in ten are calm
        "pretrained": (0.80, 0.60),
        "raw": (0.90, 0.10),
        "raw balanced": (0.60, 0.50),
    }
    counts = {"rows": dict.fromkeys(units, 10.0), "class_rows": {"calm": 72.0, "happy": 8.0}}
    counts |= {"rows/calm": dict.fromkeys(units, 9.0), "rows/happy": dict.fromkeys(units, 1.0)}
    with Ledger.open(tmp_path / "first") as ledger:
        for system, (calm, happy) in hits.items():
            record = cell(TASKS if system == "pretrained" else (), 0.0, 1, system=system)
            tags = {**record.tags, **({"score": score} if score == "uar" else {})}
            tags["recipe"] = "improved" if system == "pretrained" else ""
            accuracy, uar = 0.9 * calm + 0.1 * happy, (calm + happy) / 2
            own = {"accuracy@0.1": dict.fromkeys(units, accuracy)}
            own |= {"recall/calm@0.1": dict.fromkeys(units, calm), "recall/happy@0.1": dict.fromkeys(units, happy)}
            key = record_key({"s": system}, dataset="faces", seed=1, protocol="p")
            metrics = {"accuracy@0.1": accuracy, "uar@0.1": uar}
            ledger.append(replace(record, key=key, tags=tags, metrics=metrics, groups=counts | own))
    results = Results.of(Ledger.open(tmp_path / "first").records())
    (family,) = [against_references(results, "faces", "improved", f) for f in results.fractions("faces")]
    (comparison,) = family.comparisons
    second, difference = {"accuracy": ("raw features: video+audio", -0.04), "uar": ("raw balanced", 0.15)}[score]
    assert comparison.second == second and comparison.difference == pytest.approx(difference)
    assert comparison.verdict() == ("worse" if score == "accuracy" else "better")
    page = report(tmp_path / "first")[1].read_text()
    named = {"accuracy": "accuracy", "uar": "unweighted average recall"}[score]
    assert f"paired difference in {named}" in page
    by = ", by unweighted average recall" if score == "uar" else ""
    assert f"- faces, improved, 10% of labels{by}: strongest raw row {second}; minus it: " in page


@pytest.mark.parametrize("kept", [(1, 2), (2,)])
def test_seeds_that_only_one_side_has_recalls_of_are_left_out(kept):
    """Of the untrained heads some cells were judged before recalls were kept by unit; each seed differs by 0.05."""
    units = [str(n) for n in range(8)]
    counts = {"rows": dict.fromkeys(units, 10.0), "class_rows": {"calm": 40.0, "happy": 40.0}}
    counts |= {"rows/calm": dict.fromkeys(units, 5.0), "rows/happy": dict.fromkeys(units, 5.0)}
    records = []
    for seed in (0, 1, 2):
        for system, recall in (("pretrained", 0.55 + 0.1 * seed), ("untrained", 0.5 + 0.1 * seed)):
            record = cell(TASKS if system == "pretrained" else (), recall, seed, system=system)
            record = replace(record, tags={**record.tags, "score": "uar", "recipe": "improved"})
            if system == "pretrained" or seed in kept:
                own = {f"recall/{name}@0.1": dict.fromkeys(units, recall) for name in ("calm", "happy")}
                record = replace(record, groups=counts | own, metrics={"accuracy@0.1": recall, "uar@0.1": recall})
            records.append(replace(record, key=record_key({"s": system}, dataset="faces", seed=seed, protocol="p")))
    family = against_references(Results.of(records), "faces", "improved", 0.1)
    (comparison,) = family.comparisons
    assert comparison.difference == pytest.approx(0.05) and comparison.interval.low == pytest.approx(0.05)


def test_without_recalls_by_unit_nothing_is_compared_by_them(folder):
    """A ledger of an earlier version, whose probes were chosen by unweighted average recall."""
    records = [replace(r, tags={**r.tags, "score": "uar"}) for r in Ledger.open(folder).records()]
    results = Results.of(records)
    family = against_references(results, "faces", "improved", 0.03)
    assert not family.comparisons and family.missing


def test_a_ledger_without_counts_of_rows_is_reported_without_them(tmp_path):
    """As somebody else's, or a damaged one, may be: each unit's score is there, and nothing is tested."""
    MAKERS["ablation"](tmp_path / "a")
    (ledger,) = (tmp_path / "a" / "ledger").glob("*.jsonl")
    ledger.write_text(
        ledger.read_text().replace('"rows":{"s1"', '"raws":{"s1"').replace('"rows": {"s1"', '"raws": {"s1"')
    )
    assert "raws" in ledger.read_text() and main([str(tmp_path / "a"), "--no-tracking"]) == 0
    told = (tmp_path / "a" / "report" / "report.md").read_text("utf-8")
    assert "fewer than two test groups" in told and "40.0 to 50.0" in told


def test_a_table_says_which_the_best_single_modality_was(folder):
    """As far as the ledger has it: those of earlier versions do not."""
    single = cell((), 0.48, 0, system="best single modality", recipe="", complete=True)
    with Ledger.open(folder) as ledger:
        ledger.append(single)
    made = results_table(results(folder), results(folder).combinations(), "t", ["accuracy"])
    assert "best single modality" in {line.name for line in made.lines} and made.footnotes == ()
    chosen = {"choices@0.03": {"audio": 4.0, "video": 1.0}, "choices@1": {"video": 1.0}}
    with Ledger.open(folder) as ledger:
        ledger.append(replace(single, groups=single.groups | chosen, time=single.time + 1))
    made = results_table(results(folder), results(folder).combinations(), "t", ["accuracy"])
    assert made.footnotes == (
        "faces: best single modality: mostly audio (4 of 5 times) at 3%, video at 100% of labels.",
    )
