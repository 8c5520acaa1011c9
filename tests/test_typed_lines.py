"""What a newcomer typed, line by line: each does the obvious thing, or is answered by one line that holds what to type.

The study is a folder of clips with a German spreadsheet beside it; the features are 26 rows without any text.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conclugen.__main__ import main
from conclugen.common import commands
from ray_jobs import building
from ray_jobs.training import pretraining
from shards import Manifest, View
from shards.clips.summary import BuildSummary
from shards.packing.command import pack
from shards.packing.inputs import PackOptions
from shards.planning.split import make_views

DONE = 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("typed")
    (place / "study").mkdir()
    rows = []
    for number in range(12):
        (place / f"study/p{number % 4}_{number}.mp4").write_bytes(b"x")
        rows.append((f"p{number % 4}_{number}.mp4", f"p{number % 4}", ("happy", "sad")[number // 4 % 2]))
    for name, separator, more in (("labels", ",", []), ("german", ";", []), ("more", ",", [("gone.mp4", "p1", "sad")])):
        lines = [separator.join(row) for row in [("filename", "person", "emotion"), *rows, *more]]
        (place / f"{name}.csv").write_text("\n".join(lines), "utf-8")
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(26, 4)).astype(np.float32) for name in ("video", "audio")}
    np.savez(place / "mine.npz", **arrays, who=np.arange(26) % 6, **{"text": np.full((26, 3), np.nan, np.float32)})  # type: ignore[arg-type]
    for folder, columns in (("mine", ("video", "audio")),):
        options = PackOptions(place / "mine.npz", place / folder, {name: name for name in columns}, group="who")
        manifest, _ = pack(options)
        for view in make_views(manifest, "group", {"train": 1.0})[0]:
            view.save()
    return place


@pytest.fixture(autouse=True)
def done(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be worked on: nothing starts Ray, decodes or trains here."""
    monkeypatch.chdir(place)
    found: list[Any] = []

    def build(plan: Any, *_: Any) -> BuildSummary:
        found.append(plan)
        return BuildSummary(plan.name, plan.found, plan.found, 1, 0)

    def train(job: Any, *_: Any) -> Any:
        found.append(job)
        raise ValueError("would train")

    monkeypatch.setattr(building, "connect", lambda *_: None)
    monkeypatch.setattr(building, "build", build)
    monkeypatch.setattr(pretraining, "_pretrain", train)
    return found


# Number in the log, what was typed (of the jobs' names of that time those of today), its status, what is said.
LINES = [
    (1, "build study", 2, r"missing: --output FOLDER; .* conclugen build study --output FOLDER"),
    (2, "build --source study --out out-2", DONE, r"study: 12 clips"),
    (3, "build study --table labels.csv --label emotion --out out-3", DONE, r"label emotion \(class\): happy"),
    (4, "build study --table labels.csv --label emotion:class --out out-4", DONE, r"path is its column 'filename'"),
    (
        5,
        "build study --table labels.csv --field path=filename --field speaker=person --out out-5",
        DONE,
        "speakers: 4",
    ),
    (6, "build study --table german.csv --label emotion --out out-6", DONE, "semicolon"),
    (7, "build study --table more.csv --label emotion --out out-7", 2, "missing: gone.mp4.*--allow-incomplete"),
    (
        8,
        "build study --table more.csv --label emotion --out out-8 --allow-incomplete",
        DONE,
        "next: .* features --data",
    ),
    (9, "features out-9", 2, r"missing: --output FOLDER; .* conclugen features out-9 --output FOLDER"),
    (10, "split mine --by group --parts train=0.7,test=0.3 --overwrite", DONE, r"next: .* run mine"),
    (
        11,
        "pretrain --data mine --run x --modalities video,audio",
        2,
        r"--batch: 4096 is more than the .* give --batch 16",
    ),
    (12, "pretrain --data mine --run x --batch 8", 2, r"needs modality 'text'.*--modalities audio,video"),
    (13, "pretrain --data mine --run x --batch 8 --pretrain.modalities video,audio", 2, "would train"),
    (14, "pretrain --data mine --run x --batch 8 --modalities video,audio --epochs 3", 2, "would train"),
    (15, "pretrain --data mine --run x --epochs three", 2, "--epochs: must be a whole number, got 'three'"),
    (16, "evaluate --run frist --label emotion --data mine", 2, "--run: no run 'frist'"),
    (17, "embed study/p0_0.mp4 --run frist", 2, "run 'frist': there is no folder"),
    # What the log tells in words: a wrong type, a place that can't be written to, a column that is not there.
    (18, "pretrain --data mine --run x --batch many", 2, "--batch: must be a whole number, got 'many'"),
    (18, "pretrain --data mine --run x --batch 1.5", 2, "--batch: must be a whole number, got '1.5'"),
    (18, "pretrain --data mine --run x --pretrain.optimizer.lr fast", 2, "--lr: must be a number, got 'fast'"),
    (18, "run study --epochs many", 2, "--epochs: must be a whole number"),
    (19, "build study --output /proc/x/y", 2, "--output: /proc/x"),
    (19, "pretrain --data mine --modalities video,audio --batch 8 --run x --output /proc/x", 2, "--output: /proc/x"),
    (19, "run study --labels labels.csv --label emotion --group person --output /proc/x", 2, "--output: /proc/x"),
    (20, "check study --labels labels.csv --label mood", 2, "'mood'.*emotion"),
    (20, "build study --table labels.csv --label mood --output out-20", 2, "'mood'.*emotion"),
    (20, "run study --labels labels.csv --label mood --group person", 2, "'mood'.*emotion"),
    (20, "run study --labels labels.csv --label emotion --group speakers", 2, "--group.*'speakers'.*person"),
    (20, "pack mine.npz --output packed --column video --column sound=adio", 2, "'adio'.*audio"),
    (20, "run mine.npz --label feeling", 2, "feeling"),
]


@pytest.mark.parametrize(("number", "line", "status", "said"), LINES)
def test_each_typed_line_is_done_or_answered_in_one_line(
    number: int, line: str, status: int, said: str, done: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == status
    out, err = capsys.readouterr()
    lines = [one for one in err.splitlines() if not one.startswith("note: ")]
    assert len(lines) == (status == 2) or number > 17, err  # `pack` tells all that is wrong at once, a line for each
    errors = " ".join(lines)
    assert errors.count("error: ") == (status == 2) and errors.startswith("error: ") is (status == 2), err
    assert re.search(said, out if status == DONE else errors), out + err
    if number in (13, 14):
        assert done[-1].pretrain.modalities == ("video", "audio") and done[-1].pretrain.global_batch == 8
        assert number != 14 or done[-1].pretrain.epochs == 3


def test_after_packing_comes_the_split_and_after_that_the_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the README has it; by rows where no speakers are known; what is too little to be divided is learned from."""
    rng = np.random.default_rng(0)
    for name, rows, speakers in (("many", 60, 6), ("alone", 60, 0), ("pair", 60, 2), ("few", 12, 6)):
        arrays = {"v": rng.normal(size=(rows, 3)).astype(np.float32), "mood": np.arange(rows) % 2}
        np.savez(tmp_path / f"{name}.npz", **arrays, who=np.arange(rows) % max(speakers, 1))  # type: ignore[arg-type]
        out = tmp_path / f"{name} shards"
        words = [
            "pack",
            str(tmp_path / f"{name}.npz"),
            "--output",
            str(out),
            "--column",
            "v",
            "--label",
            "mood:class:a,b",
        ]

        def told(words: list[str]) -> list[str]:
            assert main(words) == DONE
            line = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
            return line[1 + [Path(word).name for word in line].index("conclugen") :]  # behind however it is typed here

        line = told(words + (["--group", "who"] if speakers else []))
        if name in ("pair", "few"):
            assert line == ["run", str(out), "--label", "mood"]
            continue
        by = "group" if speakers else "row"
        assert line == ["split", str(out), *f"--by {by} --parts train=0.7,valid=0.1,test=0.2 --seed 0".split()]
        assert told(["verify", str(out)]) == line
        assert told(line) == ["run", str(out), "--label", "mood"]
        assert set(View.names(Manifest.open(out))) == {"train", "valid", "test"}


# What prints the last lines of each command; `serve` has none, for it ends when it is stopped.
ENDS = {
    **dict.fromkeys(("pack", "index", "convert-pickle", "split", "verify", "stats"), "shards/commands.py"),
    "check": "shards/tools/check.py",
    "demo": "ray_jobs/demo/summary.py",
    "run": "tuning/run/stages.py",
    "sweep": "tuning/sweep/sweep.py",
    "render": "shards/corpus/__main__.py",
}


@pytest.mark.parametrize("name", sorted(set(commands.registered().entries) - {"serve"}))
def test_every_job_ends_by_naming_the_next(name: str) -> None:
    path = ENDS.get(name, commands.registered().entries[name].module.replace(".", "/") + ".py")
    text = (Path(__file__).parents[1] / path).read_text("utf-8")
    assert re.search(r"tell_next\(|[\"n]next[:, ]", text), path  # also of a line within a text: "...\\nnext  "


def test_every_command_that_is_named_next_exists() -> None:
    """The words behind `next: conclugen` in the sources are commands."""
    named = set()
    for package in ("shards", "ray_jobs", "tuning"):
        for path in (Path(__file__).parents[1] / package).rglob("*.py"):
            text = path.read_text("utf-8")
            named |= set(re.findall(r"""(?:tell_next|typed)\(\s*\[?f?["']([a-z-]+)""", text))
    assert named >= {"features", "run", "report"} and named <= set(commands.registered().entries)
