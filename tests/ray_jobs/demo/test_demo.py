"""The demo removes what an earlier demo made, and nothing else; from rendered video it comes to counts that add up."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pandas as pd
import pytest

from conclugen.common.atomic import hidden_beside
from conclugen.common.ending import resumable
from ray_jobs.demo import steps, summary
from ray_jobs.demo.__main__ import clear, main
from ray_jobs.demo.steps import DemoConfig
from ray_jobs.embedding.clips import Embedded
from shards.adapters.clip_set import Clip, ClipSet
from shards.clips.plan import BuildPlan
from shards.corpus.emotions import EMOTIONS
from shards.corpus.writing import CorpusConfig


def test_only_a_folder_of_the_demo_is_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "demo"
    output.mkdir(parents=True)
    hidden_beside(output / ".conclugen-demo").touch()  # a kill amid the mark's writing
    clear(output)
    (output / "runs").mkdir()
    clear(output)
    assert [path.name for path in output.iterdir()] == [".conclugen-demo"]
    assert "removing the last demo" in capsys.readouterr().out
    thesis = tmp_path / "precious" / "thesis"
    thesis.mkdir(parents=True)
    (thesis / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="has no demo in it"):
        clear(tmp_path / "precious")
    assert main(["--output", str(tmp_path / "precious")]) == 2
    assert "error: --output" in capsys.readouterr().err
    assert (thesis / "a.txt").read_text() == "mine"


def test_a_kill_while_a_demo_is_removed_does_not_lock_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "faces.png").touch()

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("ray_jobs.demo.__main__.shutil.rmtree", killed)
        clear(tmp_path)
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".conclugen-demo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speakers", "5"], "--speakers: must be at least 6 for training, validation and test, got 5"),
        (["--takes", "0"], "takes is 0, expected 1 to 1000"),
        (["--seed", "-1"], "seed is -1, expected 0 or more"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "demo"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_what_is_judged_is_what_is_shown(tmp_path: Path) -> None:
    """Each share of labels has a column of the summary's table: `10% of labels`, `all labels`."""
    job = steps._evaluation(DemoConfig(tmp_path))
    assert job.comparison.fractions == (0.1, 1.0)
    assert (job.run, job.output) == ("demo", steps._pretraining(DemoConfig(tmp_path)).run.output)


def test_a_task_renders_its_own_clips_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "write_clip", lambda folder, plan: (folder, plan))
    assert steps._write_some(tmp_path, [3, 1, 2]) == [(tmp_path, 3), (tmp_path, 1), (tmp_path, 2)]  # type: ignore[list-item, comparison-overlap]


def test_every_speaker_of_the_demo_is_in_one_part() -> None:
    assert sum(steps.SHARES.values()) == pytest.approx(1) and set(steps.SHARES) == {"train", "valid", "test"}
    assert steps.SHARES["train"] > 2 * max(steps.SHARES["valid"], steps.SHARES["test"])


def test_clips_of_the_demo_are_few_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard costs a process; as many as a build makes of its own accord would be 17."""
    made = ClipSet("made", tmp_path, (), tuple(Clip(f"c{number}", f"{number}.mp4") for number in range(130)))
    plans: list[BuildPlan] = []

    def built(plan: BuildPlan, cpus: float) -> NoReturn:
        plans.append(plan)
        raise InterruptedError

    monkeypatch.setattr(steps.registry, "resolve", lambda _: [])
    monkeypatch.setattr(steps.ray_cluster, "connect", lambda _: None)
    monkeypatch.setattr(steps, "write_corpus", lambda *_: None)
    monkeypatch.setattr(steps, "read_clips", lambda *_, **__: made)
    monkeypatch.setattr(steps, "build", built)
    with pytest.raises(InterruptedError):
        steps.run(DemoConfig(tmp_path))
    assert [len(task.clips) for task in plans[0].tasks] == [60, 60, 10]


def test_a_demo_that_is_stopped_does_not_pass_on_what_a_job_within_it_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: DemoConfig) -> NoReturn:
        with resumable(lambda: "run demo: 3 of 6 steps were made; the same command resumes there"):
            raise KeyboardInterrupt

    monkeypatch.setattr(steps, "run", stopped)
    assert main(["--output", str(tmp_path / "demo")]) == 130
    assert "interrupted: the demo is unfinished; the same command starts it over\n" in capsys.readouterr().err


def test_the_new_clip_s_emotion_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a few seeds each of several emotions is taken, from a table that has them always in one order."""
    embedded = Embedded("x.mp4", ((0.0, 1.0),), np.ones((1, 4), np.float32), None, {})
    rows = [SimpleNamespace(emotion=name, path=f"{name}.mp4", transcript="a") for name in EMOTIONS]
    monkeypatch.setattr(steps, "write_corpus", lambda folder, config: rows)
    monkeypatch.setattr(steps.RunModel, "open", lambda folder, label: SimpleNamespace(encoder_names=(), probe=None))
    monkeypatch.setattr(steps, "embed_files", lambda *_: [embedded])
    taken = set()
    for seed in range(12):
        config = DemoConfig(tmp_path, CorpusConfig(seed=seed))
        made = steps._embed_new_clip(config, (), SimpleNamespace(folder=None))  # type: ignore[arg-type]
        assert made.path == tmp_path / "new_clip" / f"{made.row.emotion}.mp4"
        taken.add(made.row.emotion)
    assert len(taken) > 3


def test_the_new_clip_is_told_of_as_a_whole() -> None:
    """Not of a window in it, which come after the whole."""
    whole, window = [3.0, 4.0, 0.0], [1.0, 1.0, 1.0]
    said = np.array([[0.2, 0.7, 0.1], [1, 0, 0]])
    embedded = Embedded("x.mp4", ((0, 2), (0, 1)), np.array([whole, window]), said, {})
    row = SimpleNamespace(emotion="sad", transcript="bin blue")
    clip = SimpleNamespace(embedded=embedded, row=row, path="x.mp4", classes=("angry", "calm", "sad"))
    assert summary._new_clip(SimpleNamespace(new_clip=clip)) == [  # type: ignore[arg-type]
        'one new clip (sad, "bin blue"): x.mp4',
        "  embedding: 3 numbers, norm 5.00: [3.00, 4.00, 0.00, ...]",
        "  the probe says: calm 0.70, angry 0.20, sad 0.10",
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo_ends_with_a_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A tiny corpus through every step; the counts that are told agree with the files."""
    output = tmp_path / "demo"
    size = ["--speakers", "8", "--takes", "2", "--epochs", "4", "--global-batch", "16"]
    assert main(["--output", str(output), *size]) == 0
    printed = capfd.readouterr().out
    for line in ("pretrained heads", "the same heads, untrained", "majority class", "MLflow run", "ui --backend-store"):
        assert line in printed
    assert re.search(r"pretraining: \d+ steps with 2 workers", printed)
    assert "96 clips rendered (8 speakers) = 96 in clip shards + 0 quarantined; 96 = 96 with features + 0" in printed
    (scores,) = (output / "runs/demo/evaluation").glob("*/scores.json")
    assert {cell["fraction"] for cell in json.loads(scores.read_text())["cells"]} == {0.1, 1.0}, "no more than is shown"
    assert (output / "faces.png").stat().st_size > 10_000
    table = pd.read_csv(output / "video/clips.csv")
    assert len(table) == 96 == len(list((output / "video/clips").rglob("*.mp4")))
    for folder in ("clips", "features"):
        assert json.loads((output / folder / "summary.json").read_text())["written"] == 96
    wordless = int(table["transcript"].isna().sum())
    assert f"{wordless} no transcript" in printed
