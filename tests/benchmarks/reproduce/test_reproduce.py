"""The result page made from tiny sets: numbers recounted, cells kept, training confined to the fold, errors named."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from benchmarks.reproduce import differences, evaluation
from benchmarks.reproduce import page as results_page
from benchmarks.reproduce import reproduce as module
from benchmarks.reproduce.evaluation import Evaluation
from benchmarks.reproduce.feature_files import find_protocol, read_meld, read_mosi, read_ravdess
from benchmarks.reproduce.reproduce import (
    Cells,
    Settings,
    heads,
    learned_systems,
    main,
    pretrained,
    raw_systems,
    read,
    reproduce,
)
from conclugen.evaluation.config import RIDGE_STRENGTHS
from conclugen.evaluation.features import normalise
from ray_jobs import pretrain

pytestmark = pytest.mark.usefixtures("blank_pictures")

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
    """8 actors of 16 clips, 2 emotions; actors 7 and 8 for design, two test folds of two. 40 videos of 15; 24 dialogues
    of 10, of which one class in three is rare."""
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
    emotion = np.where(np.arange(240) % 10 < 6, 0, np.arange(240) % 3)
    words = (rng.normal(size=(240, 4)) + np.eye(3, 4)[emotion]).astype(np.float32)
    np.savez(
        tmp_path / "meld_dev_features.npz",
        dialogue=np.asarray([f"d{i // 10}" for i in range(240)]),
        speaker=np.asarray([f"s{i % 5}" for i in range(240)]),
        emotion=emotion,
        emotion_names=np.asarray(["neutral", "joy", "anger"]),
        visual_au105=words[:, :1],
        audio_mel300=words[:, 1:3],
        text_minilm384=words,
    )
    return tmp_path


@pytest.mark.slow
def test_page_recounts_and_a_second_run_trains_nothing(folder, monkeypatch, capsys):
    results = folder / "docs" / "results.md"
    sets, tiny = ("ravdess", "mosi_text"), replace(TINY, seeds=(127, 128))
    reproduce(folder, folder / "out", results, draws=2, sets=sets, settings=tiny, draw_seed=3)
    page = results.read_text()
    cells = {p.name for p in (folder / "out" / "cells").glob("*.npz") if not p.name.startswith("heads")}
    # Of several modalities 9 raw rows and supervised for each seed, 7 learned for each seed; of text alone 5, 1 and 6.
    assert len(cells) == 2 * 2 * (9 + 2 + 7 * 2) + 5 + 2 + 6 * 2
    assert len(list((folder / "out" / "cells").glob("heads-*.npz"))) == 2 * 2 * (2 * 2 + 1)
    printed = [line for line in capsys.readouterr().out.splitlines() if "pretraining" not in line]
    assert len(printed) == len(cells)
    assert {p.name for p in (folder / "docs" / "figures").glob("*.png")} == {
        *("ravdess_inductive.png", "ravdess_speaker_normalised.png", "mosi_text_inductive.png")
    }
    data = read_ravdess(folder, draws=2, draw_seed=3)
    hits = []
    for fold in data.protocol.folds:
        (path,) = (folder / "out" / "cells").glob(f"ravdess-inductive-{fold.number}-raw_balanced-*.npz")
        predicted = Evaluation.load(path).predicted[0.25][:, fold.test_rows]
        assert predicted.shape[0] == 2
        hits.append((predicted == data.protocol.target.values[fold.test_rows]).mean())
    row = (
        page.partition("## RAVDESS, eight emotions, inductive")[2].partition("\n| raw balanced |")[2].partition("\n")[0]
    )
    assert f"{np.mean(hits):.3f}" in row.split("/")[0]
    for told in ("**Take** `", "| `improved + raw` |", "0.867", "--seeds 127,128 --draw-seed 3"):
        assert told in page
    assert page.count("improved minus untrained heads, improved") == 3
    assert page.count("](figures/") == 3
    assert str(folder) not in page

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "pretrained", never)
    reproduce(folder, folder / "out", results, draws=2, sets=sets, settings=tiny, draw_seed=3)
    assert results.read_text() == page
    with pytest.raises(AssertionError, match="trained again"):
        reproduce(folder, folder / "out", results, draws=2, sets=sets, settings=replace(tiny, epochs=3), draw_seed=3)
    # Of what is there a page can be made: the rows that lack a cell are named, a seed that lacks one is left out.
    for path in (folder / "out" / "cells").glob("*raw_balanced+boosted_trees*"):
        path.unlink()
    data = read("ravdess", folder, 2, draw_seed=3)
    configs = {"improved": tiny.config("improved", tuple(data.features))}
    kept = Cells(folder / "out" / "cells", 2, tiny.seeds, kept=True)
    kept._cell("ravdess-inductive-1", heads("improved")[1], data, configs, 128)[0].unlink()
    reproduce(folder, folder / "out", results, draws=2, sets=sets, settings=tiny, draw_seed=3, kept=True)
    page = results.read_text()
    assert page.count("Not run: `raw balanced, boosted trees`.") == 2
    assert "| improved (1 seed) |" in page and "| improved (2 seeds) |" in page
    assert kept.systems(data, "inductive", heads("improved"), configs)["improved"].seeds == 1


def test_rows_are_those_of_the_judge_and_slow_ones_come_later():
    several, alone = raw_systems(("audio", "text")), raw_systems(("text",))
    assert [row.name for row in several] == [
        *("raw", "best single modality", "raw, block weights chosen", "raw balanced", "raw balanced, shrinkage lda"),
        *("raw balanced, rbf machine", "raw balanced, boosted trees", "raw balanced, self training"),
        *("raw balanced, late fusion", "raw, supervised"),
    ]
    assert [row.name for row in alone] == [
        *("raw", "raw, shrinkage lda", "raw, rbf machine", "raw, boosted trees", "raw, self training"),
        "raw, supervised",
    ]
    assert [row.name for row in several if row.order == 0 and row.method == "probe"] == [
        *("raw", "best single modality", "raw balanced")
    ]
    assert [row.name for row in learned_systems("improved", True)] == [
        *("untrained heads, improved", "improved", "improved, block weights chosen", "improved + raw")
    ]
    assert [row.name for row in learned_systems("paper", True)] == ["untrained heads, paper", "paper", "paper + raw"]
    assert {row.order for row in learned_systems("paper", True)} == {3}
    raw = {"audio": np.arange(6.0).reshape(3, 2), "text": np.ones((3, 3))}
    assert raw_systems(tuple(raw))[3].blocks(raw, {}).choices == {"balanced": {"audio": 1.0, "text": 1.0}}


def test_a_cell_is_the_mean_over_seeds_and_draws(folder):
    mosi = read_mosi(folder, draws=1)
    configs = {"improved": TINY.config("improved", tuple(mosi.features))}
    cells = Cells(folder / "cells", 1, (127, 128))
    for seed in cells.seeds:
        cells.make(mosi, "inductive", heads("improved"), configs, seed)
    found = cells.systems(mosi, "inductive", heads("improved"), configs)["improved"]
    tested = mosi.protocol.test_rows
    kept = [
        Evaluation.load(p).predicted[0.1] for p in (folder / "cells").glob("mosi_audio_text-inductive-0-improved-*")
    ]
    assert len(kept) == 2 and found.by_seed(mosi.protocol, 0.1).shape == (2, 1, 600)
    mean = np.mean([(rows[:, tested] == mosi.protocol.target.values[tested]).mean() for rows in kept])
    assert differences.mean(mosi.protocol, found, 0.1, "accuracy") == pytest.approx(mean)


def test_a_page_of_a_partly_finished_run_pairs_the_seeds_that_both_rows_have(folder):
    settings = replace(TINY, seeds=(127, 128, 129))
    mosi = read_mosi(folder, draws=1)
    configs = {"improved": settings.config("improved", tuple(mosi.features))}
    cells = Cells(folder / "out" / "cells", 1, settings.seeds)
    raw, (before, after), with_raw = raw_systems(mosi.shown)[0], heads("improved"), learned_systems("improved", True)[3]
    for seed, rows in ((127, [raw, before, after]), (128, [before, after]), (129, [before, with_raw])):
        cells.make(mosi, "inductive", rows, configs, seed)
    what = (folder, folder / "out", folder / "results.md", None, 1, ["mosi_audio_text"], ["improved"], settings)
    reproduce(*what, kept=True)
    page = (folder / "results.md").read_text()
    tested, truth = mosi.protocol.test_rows, mosi.protocol.target.values[mosi.protocol.test_rows]

    def hits(row, seed):
        path, _ = cells._cell("mosi_audio_text-inductive-0", row, mosi, configs, seed)
        return (Evaluation.load(path).predicted[0.1][:, tested] == truth).mean()

    gain = np.mean([hits(after, seed) - hits(before, seed) for seed in (127, 128)])
    line = page.partition("| improved minus untrained heads, improved |")[2].partition("\n")[0].split(" | ")[1]
    assert line.startswith(f"{gain:+.3f} [") and "(2 common seeds)" in line
    assert "a table lacks up to 9 rows without pretraining, named below it" in page
    # Raw features have no seed: a row of any seed stands beside them.
    assert "common" not in page.partition("\n| improved + raw | ")[2].partition("\n")[0]
    for seed in (127, 128):
        cells._cell("mosi_audio_text-inductive-0", before, mosi, configs, seed)[0].unlink()
    reproduce(*what, kept=True)
    page = (folder / "results.md").read_text()
    assert "| improved minus untrained heads, improved | — (no common seed) | — (no common seed) |" in page


@pytest.mark.parametrize("recipe", ["improved", "paper"])
@pytest.mark.parametrize("settings", [Settings(), TINY])
def test_the_printed_commands_are_those_of_the_settings(recipe, settings):
    modalities = ("video", "audio")
    command = results_page.pretrain_command(settings, recipe, modalities)
    for name, value in (("MODALITIES", ",".join(modalities)), ("SEED", settings.seeds[0])):
        command = command.replace(name, str(value))
    job = pretrain.COMMAND.parse(command.split()[3:])
    assert job.pretrain == settings.config(recipe, modalities)


def test_sentiment_of_the_text_head_is_scored_as_recomputed(folder):
    mosi = read_mosi(folder, 1, "mosi_text")
    fold = mosi.protocol.folds[0]
    configs = {"improved": TINY.config("improved", tuple(mosi.features))}
    cells = Cells(folder / "cells", 1, (127,))
    cells.make(mosi, "inductive", heads("improved")[1:], configs, 127)
    features = normalise(mosi.features, "inductive", fold.train_rows, mosi.protocol.groups)
    assert tuple(features) == ("audio", "text") and mosi.shown == ("text",)
    _, trained = pretrained(configs["improved"], features, mosi.group, fold)
    text = trained["text"].astype(np.float64)
    text = (text - text[fold.train_rows].mean(0)) / text[fold.train_rows].std(0)
    found = cells.systems(mosi, "inductive", heads("improved")[1:], configs)["improved"].values[0]
    assert np.isnan(found[fold.train_rows]).all()
    fits = []
    for strength in RIDGE_STRENGTHS:
        model = Ridge(alpha=1 / strength).fit(text[fold.train_rows], mosi.values[fold.train_rows])
        fits.append(model.predict(text[fold.test_rows]))
    assert min(np.abs(found[fold.test_rows] - fit).max() for fit in fits) < 1e-3


def test_meld_is_folded_over_dialogues_and_judged_by_recall(folder):
    data = read_meld(folder, draws=2)
    assert [len(np.unique(data.protocol.groups[fold.test_rows])) for fold in data.protocol.folds] == [6] * 4
    assert (data.measure, data.protocol.probe.class_weights, data.protocol.probe.select_by) == (
        "uar",
        "balanced",
        "uar",
    )
    assert len(np.unique(data.group)) == 5  # negatives are of one speaker, who is in training and in test


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
        read_mosi(folder, 1, "mosi_all")


def test_cells_of_which_some_have_continuous_scores_are_not_averaged():
    some, none = np.ones((1, 2)), None
    assert np.array_equal(evaluation._together([some, 3 * some], np.concatenate), [[1, 1], [3, 3]])
    assert evaluation._together([none, none], np.concatenate) is None
    with pytest.raises(ValueError, match="1 of 2 cells"):
        evaluation._together([some, none], np.concatenate)
