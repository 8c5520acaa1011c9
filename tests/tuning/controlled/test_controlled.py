"""Known factors: that the features hold them as said, what is refused, and one small experiment from shards to page."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from conclugen import Batch, Pretrainer
from conclugen.encoders import face_expression
from conclugen.evaluation.config import JudgingConfig
from conclugen.evaluation.protocol import Fold
from conclugen.layers import standardize
from shards import Manifest, View
from shards.format import publication
from tests.conclugen.encoders.test_face_encoders import weights_of
from tuning.ablation import cell
from tuning.controlled import experiment, page, rendered
from tuning.controlled.__main__ import run
from tuning.controlled.experiment import write_shards
from tuning.controlled.factors import FactorsConfig, draw
from tuning.controlled.job import ControlledJob
from tuning.controlled.rendered import RenderedConfig
from tuning.systems import System

pytestmark = pytest.mark.usefixtures("blank_pictures")

SMALL = FactorsConfig(widths={"video": 24, "audio": 20}, speakers=9, clips=12)


def accuracy(model: Any, x: Any, label: Any) -> float:
    """Fitted on three quarters of the rows, asked of the rest."""
    cut = len(x) * 3 // 4
    return float(model.fit(x[:cut], label[:cut]).score(x[cut:], label[cut:]))


def test_each_factor_is_where_it_is_said_to_be() -> None:
    config = FactorsConfig(widths={"video": 24, "audio": 20}, speakers=40, clips=60, noise=0.1, speaker=0, clusters=5)
    rows = draw(config, 3)
    order = np.random.default_rng(0).permutation(len(rows.speaker))
    x = {m: values[order] for m, values in rows.features.items()}
    label = {name: values[order] for name, values in rows.labels.items()}
    linear = LogisticRegression(max_iter=500)
    for modality in ("video", "audio"):
        assert accuracy(linear, x[modality], label["shared"]) > 0.75
        assert accuracy(linear, x[modality], label["cluster"]) > 0.6
        assert accuracy(linear, x[modality], label[f"unique_{modality}"]) > 0.75
    assert accuracy(linear, x["audio"], label["unique_video"]) < 0.35
    assert accuracy(linear, x["video"], label["unique_audio"]) < 0.35
    both = np.concatenate(list(x.values()), axis=1)
    assert 0.42 < accuracy(linear, both, label["synergy"]) < 0.58
    assert all(accuracy(SVC(), x[m], label["synergy"]) < 0.58 for m in x)
    assert accuracy(SVC(C=10.0), both, label["synergy"]) > 0.75


def test_the_clean_column_is_the_last_modality_without_its_noise() -> None:
    rows = draw(dataclasses.replace(SMALL, noise=2.0), 1)
    noise = rows.features["audio"] - rows.features["clean_audio"]
    assert noise.std() == pytest.approx(2.0, rel=0.05) and abs(noise.mean()) < 0.2
    np.testing.assert_allclose(rows.features["clean_audio"].std(axis=0), 1, rtol=1e-5)


def test_rows_are_made_of_configuration_and_seed_alone() -> None:
    first, again, other = draw(SMALL, 1), draw(SMALL, 1), draw(SMALL, 2)
    for m, x in first.features.items():
        np.testing.assert_array_equal(x, again.features[m])
        assert not np.allclose(x, other.features[m])
        assert x.dtype == np.float32 and x.shape == (108, SMALL.widths[m.removeprefix("clean_")])
    assert set(first.labels) == set(SMALL.labels)
    trait = {int(s): set(first.labels["speaker"][first.speaker == s].tolist()) for s in range(9)}
    assert all(len(values) == 1 for values in trait.values())
    tested = [trait[s] for s in range(SMALL.test_speakers)]
    assert {0} in tested and {1} in tested, "test speakers of one kind only tell nothing"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shared": 30}, r"factors.widths.video: found 24, expected 43 or more, the dimensions of its factors"),
        ({"noise": -0.1}, r"factors.noise: found -0.1, expected a number of 0 or more"),
        ({"noise": math.nan}, r"factors.noise: found nan"),
        ({"cluster_spread": math.inf}, r"factors.cluster_spread"),
        ({"shared": 1}, r"factors.shared: found 1, expected 0, or 2 or more"),
        ({"unique": -2}, r"factors.unique: found -2"),
        ({"clusters": 1}, r"factors.clusters: found 1"),
        ({"cluster_dimensions": 0}, r"factors.cluster_dimensions: found 0"),
        ({"speaker": -1}, r"factors.speaker: found -1"),
        ({"speakers": 3}, r"factors.speakers: found 3"),
        ({"clips": 1}, r"factors.clips: found 1"),
        ({"widths": {"video": 24}}, r"factors.widths.*two modalities"),
        ({"widths": {"a b": 24, "audio": 20}}, r"factors.widths: found 'a b'"),
        ({"shared": 0, "unique": 0, "clusters": 0, "speaker": 0, "synergy": False}, r"factors: found 'none'"),
    ],
)
def test_factors_that_cannot_be_are_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        dataclasses.replace(SMALL, **changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"systems": ("contrastiv",)}, "systems: .*did you mean 'contrastive'"),
        ({"systems": ("contrastive:much",)}, r"'contrastive:much': the weight must be a number"),
        ({"systems": ("contrastive+contrastive",)}, "names a task twice"),
        ({"systems": ("share=contrastive:0.5+reconstruction:0.7",)}, r"must sum to 1, got 1.2"),
        ({"systems": ()}, "systems"),
        ({"data_seeds": (1, 1)}, "data_seeds"),
        ({"global_batch": 73}, "global_batch: found 73, expected at most 72"),
    ],
)
def test_experiments_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ControlledJob(**{"factors": SMALL, "global_batch": 36, **changes})


def test_a_system_is_written_as_tasks_and_weights() -> None:
    system = System.parse("share=reconstruction:0.4+contrastive:0.6")
    assert system.tasks == ("contrastive", "reconstruction") and system.weighting == "share"
    config = ControlledJob(factors=SMALL, global_batch=36).config(system)
    assert {name: task.weight for name, task in config.tasks.active.items()} == {
        "contrastive": 0.6,
        "reconstruction": 0.4,
    }
    alone = ControlledJob(factors=SMALL, global_batch=36, systems=("alone",)).all_systems
    assert {"contrastive", "clustering", "reconstruction", "siglip"} <= {each.name for each in alone}
    beside = next(each for each in alone if each.name == "reconstruction+pase")
    config = ControlledJob(factors=SMALL, global_batch=36).config(beside)
    assert config.tasks.pase.targets == ("clean_audio",) and config.modalities == ("video", "audio")


def test_from_shards_to_page_and_on_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ControlledJob(
        name="one",
        output=str(tmp_path),
        systems=("contrastive+reconstruction",),
        data_seeds=(0, 1),
        epochs=6,
        global_batch=36,
        representation_dim=8,
        projection_dim=4,
        factors=SMALL,
        judging=JudgingConfig(fractions=(0.5, 1.0), draws=2, inner_folds=2, with_raw=False),
        parallel=1,
    )
    assert run(job) == 0
    assert capsys.readouterr().out.count("data seed") == 4
    manifest = Manifest.open(tmp_path / "one" / "seed-1")
    views = [View.open(manifest, name) for name in ("train", "test")]
    assert [view.rows for view in views] == [72, 36]
    text = (tmp_path / "one" / "page.md").read_text()
    assert (
        "| contrastive+reconstruction | " in text and "chance 0.17" in text and "Shares of the heads' gradient" in text
    )
    assert all((tmp_path / "one" / f"{label}.png").stat().st_size > 1000 for label in SMALL.labels)

    cells = sorted((tmp_path / "one" / "cells").iterdir())
    assert len(cells) == 4
    before = {cell: cell.stat().st_mtime_ns for cell in cells}
    assert run(dataclasses.replace(job, systems=("contrastive+reconstruction", "reconstruction"))) == 0
    assert capsys.readouterr().out.count("data seed") == 2, "what is there is not run again"
    assert all(cell.stat().st_mtime_ns == time for cell, time in before.items())

    content = json.loads(cells[0].read_text())
    cells[0].write_text(json.dumps({**content, "accuracy": 3}))
    with pytest.raises(ValueError, match=rf"{cells[0].name} is not what a cell found.*remove it"):
        run(job)
    with pytest.raises(ValueError, match=r"features of other factors.*--run"):
        run(dataclasses.replace(job, factors=dataclasses.replace(SMALL, noise=0.9)))


def test_a_system_is_trained_and_what_is_beside_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ControlledJob(
        name="one",
        output=str(tmp_path),
        systems=("contrastive",),
        epochs=3,
        global_batch=36,
        representation_dim=8,
        projection_dim=4,
        factors=SMALL,
        judging=JudgingConfig(fractions=(1.0,), draws=1, inner_folds=2, with_raw=False),
    )
    write_shards(job, 0)
    steps: list[int] = []
    monkeypatch.setattr(experiment.cell, "train", lambda *given: steps.append(given[4]))
    beside = experiment.find(job, experiment.Cell(None, 0))
    assert steps == [] and {"raw", experiment.UNTRAINED} <= {name.partition(",")[0] for name in beside.accuracy}
    [system, *_] = job.all_systems
    assert set(experiment.find(job, experiment.Cell(system, 0)).accuracy) == {system.name}
    assert steps == [3 * (72 // 36)]


def test_shards_that_were_being_published_at_a_stop_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped once all is staged, and once the first file is in its place: then the same command continues."""
    expected = write_shards(ControlledJob(name="whole", output=str(tmp_path), factors=SMALL, global_batch=36), 0)
    for renames in (0, 1):
        job = ControlledJob(name=f"stopped{renames}", output=str(tmp_path), factors=SMALL, global_batch=36)
        real, left = Path.replace, [renames]

        def replace(path: Path, target: Path, real: Any = real, left: list[int] = left) -> Path:
            if publication.STAGING in path.parts and publication.STAGING not in target.parts:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            return real(path, target)  # type: ignore[no-any-return]

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Path, "replace", replace)
            write_shards(job, 0)
        assert publication.pending(job.folder / "seed-0") is not None
        assert write_shards(job, 0).digest == expected.digest
        assert View.names(Manifest.open(job.folder / "seed-0")) == ["test", "train"]


FACES = RenderedConfig(speakers=6, clips=4)


def test_rendered_face_and_voice_act_emotions_of_their_own() -> None:
    """What encoders are handed: two clips that differ in the voice's emotion alone have the same pictures, and two that
    differ in the face's the same sound."""
    seen: dict[tuple[int, int], tuple[Any, Any]] = {}

    class Kept:
        def __init__(self, kind: str) -> None:
            takes = SimpleNamespace(kind=kind, rate=1.0 if kind == "frames" else 16_000, size=(48, 40), key=kind)
            self.info = SimpleNamespace(takes=takes, name=kind)
            self.last: Any = None

        def encode(self, batch: list[Any]) -> Any:
            (self.last,) = batch
            return np.zeros((1, 2), np.float32)

    encoders: Any = {"video": Kept("frames"), "audio": Kept("wave")}
    for acted in itertools.product((0, 1), (0, 1)):
        rendered._encoded(FACES, encoders, (7, 2, 1), np.array(acted))
        seen[acted] = encoders["video"].last, encoders["audio"].last
    assert seen[0, 0][0].shape[1:] == (48, 40, 3) and seen[0, 0][0].dtype == np.uint8
    assert 1 <= len(seen[0, 0][0]) <= 6 and seen[0, 0][1].ndim == 1
    for voice in (0, 1):
        np.testing.assert_array_equal(seen[0, voice][1], seen[1, voice][1])
        difference = np.abs(seen[0, voice][0].astype(int) - seen[1, voice][0])
        assert difference.max() > 20, "another face"
    assert seen[0, 0][1].shape != seen[0, 1][1].shape or np.abs(seen[0, 0][1] - seen[0, 1][1]).mean() > 0.01
    wrong: Any = {"audio": Kept("mel")}
    with pytest.raises(ValueError, match=r"rendered.audio: encoder 'mel' takes mel, expected frames, or sound"):
        rendered._encoded(FACES, wrong, (7, 2, 1), np.array([0, 0]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"emotions": ("happy", "happy")}, r"rendered.emotions.*two different"),
        ({"emotions": ("happy", "glad")}, r"rendered.emotions.*'glad'"),
        ({"speakers": 5}, r"rendered.speakers: found 5"),
        ({"clips": 1}, r"rendered.clips: found 1"),
    ],
)
def test_clips_that_cannot_be_rendered_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(FACES, **changes)


def test_differences_are_paired_by_data_seed_with_students_interval() -> None:
    own, raw = [0.5, 0.7, 0.6, 0.9], [0.4, 0.5, 0.6, 0.7]
    cells = {
        seed: [
            experiment.Found(
                {"raw": {"x": {"1": b}}, "raw balanced": {"x": {"1": b - 0.1}}, "mine": {"x": {"1": a}}}, {}
            )
        ]
        for seed, (a, b) in enumerate(zip(own, raw, strict=True))
    }
    found = page.Results(cells).difference("mine", "x", "1")
    expected = stats.ttest_rel(own, raw).confidence_interval(0.95)
    assert found is not None and found.estimate == pytest.approx(0.125)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    alone = page.interval([0.3])
    assert alone is not None and math.isnan(alone.low) and not alone.excludes_zero


@pytest.mark.slow
def test_what_face_or_voice_alone_tell_is_there_and_what_both_tell_is_in_neither() -> None:
    """By a linear probe, on speakers never met; and drawn in several processes the clips are the same."""
    given = weights_of(face_expression.PUBLISHED)
    weights = {} if given is None else {"face-expression": given}
    rows = rendered.draw(RenderedConfig(speakers=9, clips=16, weights=weights), 0)
    few = dataclasses.replace(FACES, clips=2, weights=weights)
    alone, again = rendered.draw(few, 0), rendered.draw(few, 0, processes=2)
    for modality in few.widths:
        np.testing.assert_array_equal(again.features[modality], alone.features[modality])
    tested = rows.speaker < 3
    scores = {}
    for label, y in rows.labels.items():
        assert 0.35 < y.mean() < 0.65
        for modality, x in rows.features.items():
            x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
            probe = LogisticRegression(C=0.01, max_iter=500).fit(x[~tested], y[~tested])
            scores[label, modality] = probe.score(x[tested], y[tested])
    assert scores["face", "video"] > 0.75 and scores["voice", "audio"] > 0.8, scores
    chance = [scores[pair] for pair in (("face", "audio"), ("voice", "video"), ("both", "video"), ("both", "audio"))]
    assert max(chance) < 0.72 and np.mean(chance) < 0.6, scores  # 48 rows: a chance of 0.5 deviates by 0.07


@pytest.mark.slow
def test_comm_tells_what_only_the_combination_of_modalities_does() -> None:
    """On speakers never met, four data seeds: better than its own fusion before training, whose random maps give some
    of it away. The modalities' representations side by side are at chance, and a network that is told the labels says
    how much there was."""
    made = FactorsConfig(
        widths={"video": 32, "audio": 32},
        speakers=15,
        clips=120,
        shared=3,
        unique=3,
        clusters=0,
        speaker=3,
        synergy_size=2.0,
        noise=0.8,
    )
    job = ControlledJob(
        factors=made, systems=("comm",), global_batch=180, epochs=25, representation_dim=64, projection_dim=32
    )
    config, label = job.config(job.all_systems[0]), "synergy"
    scores: dict[str, list[float]] = {}
    for seed in range(4):
        rows = draw(made, seed)
        tested = rows.speaker < made.test_speakers
        fold = Fold(0, np.flatnonzero(~tested), np.flatnonzero(tested))
        features = {m: torch.from_numpy(rows.features[m]) for m in made.widths}
        present = {m: torch.ones(len(tested), dtype=torch.bool) for m in features}
        batch = Batch(features, present, torch.arange(len(tested)), group=torch.from_numpy(rows.speaker))
        fitted = standardize.fit({m: rows.features[m][~tested] for m in features})
        steps = len(fold.train_rows) // config.global_batch
        pretrainer = Pretrainer(config, made.widths, steps_per_epoch=steps, standardization=fitted)

        def told(x: Any, model: Any, rows: Any = rows, tested: Any = tested) -> float:
            y, x = rows.labels[label], np.asarray(x)
            x = (x - x[~tested].mean(axis=0)) / x[~tested].std(axis=0)
            return float(model.fit(x[~tested], y[~tested]).score(x[tested], y[tested]))

        linear, raw = LogisticRegression(max_iter=300), torch.cat(list(features.values()), dim=1)
        supervised = MLPClassifier((64,), early_stopping=True, max_iter=60, random_state=0)
        found = {
            "supervised": told(raw, supervised),
            "untrained": told(pretrainer.embed_jointly(batch)["comm"], linear),
        }
        cell.train(pretrainer, batch, fold, 0, steps * job.epochs)
        found["whole"] = told(pretrainer.embed_jointly(batch)["comm"], linear)
        found["side by side"] = told(torch.cat(list(pretrainer.embed(batch).values()), dim=1), linear)
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
    assert np.mean(scores["supervised"]) > 0.8 and abs(np.mean(scores["side by side"]) - 0.5) < 0.05, scores
    better = stats.ttest_rel(scores["whole"], scores["untrained"], alternative="greater")
    assert better.pvalue < 0.05 and np.mean(scores["whole"]) > 0.6, scores
