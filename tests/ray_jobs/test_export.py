"""`conclugen export`: the folder reads back equal, and its card says what the run's own files say."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

import conclugen
from conclugen import Pretrainer, export, presets
from conclugen.common.atomic import write_json
from ray_jobs import sharing
from ray_jobs.export import main
from ray_jobs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("blank_pictures")

WIDTHS = {"video": 5, "audio": 4}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished run that was evaluated once."""
    config = presets.build(
        "contrast_only_video_audio", global_batch=8, epochs=1, model={"representation_dim": 8, "projection_dim": 8}
    )
    moments = {m: (np.zeros(w), np.ones(w)) for m, w in WIDTHS.items()}
    folder = RunFolder(tmp_path / "runs" / "first")
    info = {"modalities": {m: [m] for m in WIDTHS}, "data": {"data.manifest": "0123abcd"}}
    export.save(folder.model, Pretrainer(config, WIDTHS, 1, standardization=moments), info)
    write_json(folder.config, {"data": {"folder": "/data/mine", "view": "train"}, "run": {"commit": "feed-dirty"}})
    (folder.evaluation / "mine-mood").mkdir(parents=True)
    cells = [
        {"system": "pretrained", "method": "probe", "fraction": 0.1, "scores": {"accuracy": 0.5}, "intervals": {}},
        {
            **{"system": "pretrained", "method": "probe", "fraction": 1.0, "scores": {"accuracy": 0.625}},
            "intervals": {"accuracy": [0.5, 0.75]},
        },
        {"system": "raw", "method": "probe", "fraction": 1.0, "scores": {"accuracy": 0.7}, "intervals": {}},
    ]
    job = {"label": "mood", "data": {"folder": "/data/mine"}}
    found = {"job": job, "main_score": "accuracy", "verdict": "No difference is shown: none.", "cells": cells}
    write_json(folder.evaluation / "mine-mood/scores.json", found)
    return tmp_path / "runs"


def test_an_export_reads_back_and_its_card_says_what_the_run_says(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["first", "--output", str(runs), "--licence", "cc-by-4.0"]) == 0
    folder = runs / "first/export"
    assert f"{folder / 'model.safetensors'}" in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "heads.pt2"} <= names
    x = {m: np.random.default_rng(0).normal(size=(3, w)).astype(np.float32) for m, w in WIDTHS.items()}
    mine, theirs = conclugen.load(runs / "first/model"), conclugen.load(folder)
    np.testing.assert_array_equal(mine.embed(x), theirs.embed(x))
    _, head, body = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    stated = yaml.safe_load(head)
    assert stated["license"] == "cc-by-4.0" and stated["library_name"] == "conclugen"
    (model,) = stated["model-index"]
    assert [one["metrics"][0]["value"] for one in model["results"]] == [0.5, 0.625]
    for said in (
        "0123abcd",
        "feed-dirty",
        "No difference is shown",
        "| pretrained, probe | 0.500 | 0.625 [0.500, 0.750] |",
    ):
        assert said in body, said
    assert "| raw, probe | — | 0.700 |" in body and "/data/" not in body


def test_a_card_of_a_run_that_says_little_says_what_is_not_known(runs: Path) -> None:
    """No evaluation, no licence, features of unknown origin, a commit that nobody noted."""
    shutil.rmtree(runs / "first/evaluation")
    (runs / "first/config.json").write_text("{}")
    assert main(["first", "--output", str(runs), "--no-programs"]) == 0
    _, head, body = (runs / "first/export/README.md").read_text("utf-8").split("---\n", 2)
    assert "license" not in yaml.safe_load(head) and yaml.safe_load(head)["model-index"][0]["results"] == []
    for said in (
        "It was not evaluated on labels.",
        "Not known: it was trained on features.",
        "None is stated: ask whoever shares this model.",
        "data set: not known",
        "code: not known",
    ):
        assert said in body, said


def test_what_is_there_is_replaced_only_where_it_is_an_export(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["first", "--output", str(runs), "--no-programs"]) == 0
    assert not (runs / "first/export/heads.pt2").exists()
    assert main(["first", "--output", str(runs)]) == 2
    assert "--folder: " in (said := capsys.readouterr().err) and "give --overwrite" in said
    assert main(["first", "--output", str(runs), "--no-programs", "--overwrite"]) == 0
    assert main(["first", "--output", str(runs), "--folder", str(runs / "first/model"), "--overwrite"]) == 2
    assert "it is not an export" in capsys.readouterr().err
    assert main(["frist", "--output", str(runs)]) == 2
    assert "did you mean 'first'?" in capsys.readouterr().err


def test_an_export_that_fails_leaves_the_one_that_is_there(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["first", "--output", str(runs), "--no-programs"]) == 0
    before = {path.name: path.read_bytes() for path in (runs / "first/export").iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sharing, "write_text", full)
    assert main(["first", "--output", str(runs), "--no-programs", "--overwrite"]) != 0
    assert {path.name: path.read_bytes() for path in (runs / "first/export").iterdir()} == before
    assert not [path for path in (runs / "first").iterdir() if path.name.startswith(".export")]


@pytest.mark.parametrize("name", ["model", "model/model.safetensors", "model/config.json", "config.json"])
def test_what_links_lead_to_is_not_shared(name: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole, and yet not of the run."""
    shutil.move(runs / "first" / name, runs.parent / "elsewhere")
    (runs / "first" / name).symlink_to(runs.parent / "elsewhere")
    assert main(["first", "--output", str(runs), "--no-programs"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{runs}/first/" in said and "leads out of" in said, said
    assert not (runs / "first/export").exists()


@pytest.mark.parametrize("name", ["model/MODEL_CARD.md", "model/config.json"])
def test_links_that_lead_in_a_circle_are_refused_in_a_line(
    name: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs / "first" / name
    path.unlink()
    path.symlink_to(path.name)
    assert main(["first", "--output", str(runs), "--no-programs"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said and not (runs / "first/export").exists(), said


def test_an_export_in_place_of_a_link_leaves_what_it_leads_to(runs: Path) -> None:
    assert main(["first", "--output", str(runs), "--no-programs"]) == 0
    (runs / "first/export").rename(runs.parent / "other")
    (runs / "first/export").symlink_to(runs.parent / "other")
    before = {path.name: path.read_bytes() for path in (runs.parent / "other").iterdir()}
    (runs / "first/config.json").write_text('{"data": {"folder": "/data/else"}}')
    assert main(["first", "--output", str(runs), "--no-programs", "--overwrite"]) == 0
    assert not (runs / "first/export").is_symlink() and "else" in (runs / "first/export/README.md").read_text()
    assert {path.name: path.read_bytes() for path in (runs.parent / "other").iterdir()} == before
    assert {path.name for path in (runs / "first").iterdir()} == {"config.json", "evaluation", "export", "model"}


def _no_mapping(run: Path) -> None:
    write_json(run / "config.json", {"data": [], "run": 3})


def _no_scores(run: Path) -> None:
    write_json(run / "evaluation/mine-mood/scores.json", {"job": {"label": "mood"}, "cells": 3})


def _text_for_numbers(run: Path) -> None:
    scores = json.loads((run / "evaluation/mine-mood/scores.json").read_text())
    scores["cells"][0]["scores"]["accuracy"] = "high"
    write_json(run / "evaluation/mine-mood/scores.json", scores)


def _endless_share(run: Path) -> None:
    scores = json.loads((run / "evaluation/mine-mood/scores.json").read_text())
    scores["cells"][0]["fraction"] = 10**400
    write_json(run / "evaluation/mine-mood/scores.json", scores)


def _no_text(run: Path) -> None:
    (run / "model/MODEL_CARD.md").write_bytes(b"\xff\xfe\x80")


def _leaving(name: str) -> Callable[[Path], None]:
    def put(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to(run.parents[1] / "secret")

    return put


def _pipe(run: Path) -> None:
    (run / "model/MODEL_CARD.md").unlink()
    os.mkfifo(run / "model/MODEL_CARD.md")


@pytest.mark.parametrize(
    "damage",
    [
        *(_no_mapping, _no_scores, _text_for_numbers, _endless_share, _no_text, _pipe),
        *(_leaving("model/MODEL_CARD.md"), _leaving("evaluation/mine-mood/scores.json")),
    ],
)
def test_a_run_of_somebody_else_is_refused_in_a_line_and_its_links_are_not_shared(
    damage: Callable[[Path], None], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs.parent / "secret").write_text('{"of": "this user"}')
    damage(runs / "first")
    assert main(["first", "--output", str(runs), "--no-programs"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(runs / "first") in said and "this user" not in said, said
    assert not (runs / "first/export").exists()
