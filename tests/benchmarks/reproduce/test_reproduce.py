"""The result page made from tiny sets: numbers recounted, cells kept, training confined to the fold, errors named."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from benchmarks.reproduce import evaluation
from benchmarks.reproduce import reproduce as module
from benchmarks.reproduce.evaluation import Evaluation
from benchmarks.reproduce.feature_files import find_protocol, read_mosi, read_ravdess
from benchmarks.reproduce.page import verdict
from benchmarks.reproduce.reproduce import Settings, main, pretrained, reproduce
from conclugen.evaluation.config import RIDGE_STRENGTHS
from conclugen.evaluation.features import normalise
from conclugen.evaluation.statistics import Interval

ACTORS = 8
TINY = Settings(
    representation_dim=16,
    projection_dim=8,
    reconstruction_hidden_dim=8,
    clusters=4,
    queue_batches=1,
    global_batch=32,
    epochs=1,
    paper_epochs=1,
    seeds=(127,),
)


@pytest.fixture
def folder(tmp_path):
    """8 actors of 16 clips, 2 emotions; actors 7 and 8 for design, two test folds of two. And 40 videos of 15."""
    rng = np.random.default_rng(0)
    actor, emotion = np.repeat(np.arange(1, ACTORS + 1), 16), np.tile([0, 1], ACTORS * 8)
    signal = rng.normal(size=(len(actor), 6)) + 2 * emotion[:, None]
    np.savez(
        tmp_path / "ravdess_features.npz",
        actor=actor,
        emotion=emotion,
        emotion_names=np.asarray(["calm", "happy"]),
        visual_au35=signal[:, :3].astype(np.float32),
        audio_egemaps88=signal[:, 3:5].astype(np.float32),
        audio_mfcc259=signal[:, 5:].astype(np.float32),
    )
    folds = []
    for tested in ([1, 3], [2, 4]):
        train = np.flatnonzero(~np.isin(actor, tested))
        folds.append({
            "test_actors": tested,
            "draws": {"0.25": [sorted(rng.choice(train, 24, replace=False).tolist()) for _ in range(3)]},
        })  # fmt: skip
    (tmp_path / "ravdess_protocol.json").write_text(
        json.dumps({"design_actors": [7, 8], "C_grid": [0.01, 1.0], "folds": folds})
    )
    positive = np.tile([0, 1], 300)
    text = (rng.normal(size=(600, 4)) + 2 * positive[:, None]).astype(np.float32)
    np.savez(
        tmp_path / "mosi_features.npz",
        ids=np.asarray([f"v{i // 15}_{i % 15}" for i in range(600)]),
        positive=positive,
        split=np.where(np.arange(600) < 420, "train", "test"),
        visual_cnn100=text[:, :2],
        audio_opensmile73=text[:, 1:3],
        text_minilm384=text,
        sentiment=np.clip(2 * text[:, 0] - 1, -3, 3),
    )
    return tmp_path


@pytest.mark.slow
def test_page_recounts_and_a_second_run_trains_nothing(folder, monkeypatch, capsys):
    results = folder / "docs" / "results.md"
    reproduce(folder, folder / "out", results, draws=2, settings=TINY)
    page = results.read_text()
    cells = sorted((folder / "out" / "cells").glob("*.npz"))
    # ravdess: 2 modes of 2 folds of 5 systems; mosi: 1 of 1 of 2 raw ones and, of 2 recipes, 4 each
    assert len(cells) == 2 * 2 * 5 + 10
    assert len(capsys.readouterr().out.splitlines()) == len(cells)
    assert {p.name for p in (folder / "docs" / "figures").glob("*.png")} == {
        "ravdess_inductive.png", "ravdess_speaker_normalised.png", "mosi_inductive.png",
    }  # fmt: skip
    data = read_ravdess(folder)
    raw = [Evaluation.load(p) for p in cells if p.name.startswith("ravdess-inductive") and "raw" in p.name]
    hits = []
    for fold in data.protocol.folds:
        whole = next(e for e in raw if (e.predicted[0.25][:, fold.test_rows] >= 0).all())
        assert whole.predicted[0.25].shape == (2, ACTORS * 16)
        hits.append((whole.predicted[0.25][:, fold.test_rows] == data.protocol.target.values[fold.test_rows]).mean())
    assert f"| raw features | {np.mean(hits):.3f} ± {np.std(hits, ddof=1):.3f} [" in page
    inductive = page.partition("### Speaker-normalised")[0]
    assert inductive.count("| raw features |") == 1
    assert page.count("- improved minus untrained heads, improved, at ") == 3
    assert "- paper minus raw features, text alone, at 3%: " in page
    assert page.count("](figures/") == 3
    assert str(folder) not in page

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "pretrained", never)
    reproduce(folder, folder / "out", results, draws=2, settings=TINY)
    assert results.read_text() == page
    with pytest.raises(AssertionError, match="trained again"):
        reproduce(folder, folder / "out", results, draws=2, settings=replace(TINY, epochs=3))


def test_a_cell_is_the_mean_over_seeds_and_draws(folder):
    reproduce(
        folder,
        folder / "out",
        folder / "results.md",
        draws=1,
        sets=("mosi",),
        recipes=("improved",),
        settings=replace(TINY, seeds=(127, 128)),
    )
    mosi = read_mosi(folder, draws=1)
    tested = mosi.protocol.test_rows
    kept = [Evaluation.load(p).predicted[0.1] for p in (folder / "out" / "cells").glob("mosi-inductive-0-improved-*")]
    assert len(kept) == 2
    mean = np.mean([(rows[:, tested] == mosi.protocol.target.values[tested]).mean() for rows in kept])
    row = (folder / "results.md").read_text().partition("\n| improved |")[2].partition("\n")[0]
    assert row.split("|")[1].startswith(f" {mean:.3f} [")


def test_sentiment_of_the_text_head_is_scored_as_recomputed(folder):
    reproduce(
        folder, folder / "out", folder / "results.md", draws=1, sets=("mosi",), recipes=("improved",), settings=TINY
    )
    mosi = read_mosi(folder, draws=1)
    fold = mosi.protocol.folds[0]
    features = normalise(mosi.features, "inductive", fold.train_rows, mosi.protocol.groups)
    _, trained = pretrained(TINY.config("improved", tuple(features)), features, mosi.group, fold)
    text = trained["text"].astype(np.float64)
    text = (text - text[fold.train_rows].mean(0)) / text[fold.train_rows].std(0)
    (path,) = (folder / "out" / "cells").glob("mosi-inductive-0-improved+text_alone-*")
    found = Evaluation.load(path).values[0]
    assert np.isnan(found[fold.train_rows]).all()
    fits = []
    for strength in RIDGE_STRENGTHS:
        model = Ridge(alpha=1 / strength).fit(text[fold.train_rows], mosi.values[fold.train_rows])
        fits.append(model.predict(text[fold.test_rows]))
    assert min(np.abs(found[fold.test_rows] - fit).max() for fit in fits) < 1e-3
    row = (folder / "results.md").read_text().rpartition("\n| improved, text alone |")[2].partition("\n")[0]
    assert row.split("|")[0].startswith(f" {np.abs(found - mosi.values)[fold.test_rows].mean():.3f} [")


@pytest.mark.parametrize("recipe", ["improved", "paper"])
def test_pretraining_sees_training_rows_only_and_changes_what_was_untrained(folder, recipe):
    data = read_ravdess(folder)
    fold = data.protocol.folds[0]
    config = TINY.config(recipe, ("video", "audio"))
    features = normalise(data.features, "inductive", fold.train_rows, data.protocol.groups)
    before, after = pretrained(config, features, data.group, fold)
    before, after = (np.concatenate(list(parts.values()), axis=1) for parts in (before, after))
    assert before.shape == after.shape == (ACTORS * 16, 2 * 16)
    assert not np.allclose(before, after)
    # Other values in the test rows leave every representation of a training row as it was.
    other = {m: x.copy() for m, x in features.items()}
    for x in other.values():
        x[fold.test_rows] = 100.0
    again = pretrained(config, other, data.group, fold)
    again_before, again_after = (np.concatenate(list(parts.values()), axis=1) for parts in again)
    np.testing.assert_allclose(again_before[fold.train_rows], before[fold.train_rows], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again_after[fold.train_rows], after[fold.train_rows], rtol=1e-5, atol=1e-6)


def test_settings_reach_the_configuration():
    config = Settings(paper_epochs=2, paper_lr=3e-4).config("paper", ("audio", "video"))
    clustering = config.tasks.clustering
    assert clustering is not None
    assert (config.recipe, config.epochs, config.global_batch, config.seed) == ("paper", 2, 256, 127)
    assert config.optimizer.lr == 3e-4
    assert Settings(epochs=7, paper_lr=3e-4).config("improved", ("audio", "video")).epochs == 7
    assert Settings(paper_lr=3e-4).config("improved", ("audio", "video")).optimizer.lr != 3e-4
    assert (clustering.clusters, clustering.queue_batches, clustering.start_epoch) == (32, 2, 0)
    untouched = Settings().config("paper", ("audio", "video")).tasks.clustering
    assert untouched is not None
    assert untouched.start_epoch > 0


def test_videos_are_the_groups_of_mosi(folder):
    data = read_mosi(folder, draws=1)
    assert len(np.unique(data.group)) == 40
    np.testing.assert_array_equal(data.group[:15], data.group[0])


def test_protocol_is_looked_for_in_three_places(folder):
    data = folder / "data"
    data.mkdir()
    with pytest.raises(ValueError) as caught:
        find_protocol(data, folder / "mine.json")
    for place in (folder / "mine.json", data / "ravdess_protocol.json", folder / "reference" / "ravdess_protocol.json"):
        assert str(place) in str(caught.value)
    (folder / "reference").mkdir()
    listing = (folder / "ravdess_protocol.json").rename(folder / "reference" / "ravdess_protocol.json")
    assert find_protocol(data) == listing


def test_wrong_input_is_named(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--data", str(folder), "--sets", "ravdes", "--output", str(tmp_path), "--results", str(tmp_path / "r")])
    assert "did you mean 'ravdess'" in capsys.readouterr().err
    stored = dict(np.load(folder / "mosi_features.npz"))
    stored["visual_cnn100"][7, 0] = np.nan
    np.savez(folder / "mosi_features.npz", **stored)
    with pytest.raises(ValueError, match="features of video: row 7 holds NaN"):
        read_mosi(folder, draws=1)


@pytest.mark.parametrize(
    ("estimate", "low", "high", "said"),
    [(0.1, 0.05, 0.2, "better"), (-0.1, -0.2, -0.05, "worse"), (0.1, -0.05, 0.2, "not better (the interval holds 0)")],
)
def test_verdict(estimate, low, high, said):
    assert verdict(Interval(estimate, low, high, 0.95, 20)) == said


def test_cells_of_which_some_have_continuous_scores_are_not_averaged():
    some, none = np.ones((1, 2)), None
    assert np.array_equal(evaluation._together([some, 3 * some], np.concatenate), [[1, 1], [3, 3]])
    assert evaluation._together([none, none], np.concatenate) is None
    with pytest.raises(ValueError, match="1 of 2 cells"):
        evaluation._together([some, none], np.concatenate)
