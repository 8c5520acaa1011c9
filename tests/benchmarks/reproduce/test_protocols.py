"""Protocols on a small made-up data set, and on the real ones against known accuracies of raw features."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.reproduce.evaluation import Evaluation, cell, evaluate, majority, markdown, merge, paired, table
from benchmarks.reproduce.protocols import mosi, mosi_design, ravdess, ravdess_design, videos
from conclugen.evaluation import judge
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.features import normalise
from conclugen.evaluation.probe import fit_classes

NAMES = ("calm", "happy", "sad")


@pytest.fixture
def listing(tmp_path):
    """14 actors of 30 clips: 13 and 14 for design, two test folds of two actors."""
    actors, emotion = np.repeat(np.arange(1, 15), 30), np.tile([0, 1, 2], 140)
    rng = np.random.default_rng(0)
    folds = []
    for tested in ([1, 3], [2, 4]):
        train = np.flatnonzero(~np.isin(actors, tested))
        draws = {"0.1": [sorted(rng.choice(train, 36, replace=False).tolist()) for _ in range(4)]}
        folds.append({"test_actors": tested, "draws": draws})
    path = tmp_path / "protocol.json"
    path.write_text(json.dumps({"design_actors": [13, 14], "C_grid": [0.01, 1.0], "folds": folds}))
    features = rng.normal(size=(420, 5)) + np.eye(3, 5)[emotion] * 2 + actors[:, None] * 0.3
    return path, actors, emotion, features


def test_splits_are_those_of_the_file(listing):
    path, actors, emotion, _ = listing
    protocol = ravdess(path, actors, emotion, NAMES)
    listed = json.loads(path.read_text())["folds"]
    splits = list(protocol.splits())
    assert [(s.fold.number, s.fraction, s.draw) for s in splits] == [
        *((0, 0.1, draw) for draw in range(4)), (0, 1.0, 0), *((1, 0.1, draw) for draw in range(4)), (1, 1.0, 0),
    ]  # fmt: skip
    for split in splits:
        tested = listed[split.fold.number]["test_actors"]
        assert set(actors[split.fold.test_rows]) == set(tested)
        assert set(actors[split.fold.train_rows]) == set(range(1, 15)) - set(tested)
        if split.fraction < 1:
            np.testing.assert_array_equal(split.labelled_rows, listed[split.fold.number]["draws"]["0.1"][split.draw])
        else:
            np.testing.assert_array_equal(split.labelled_rows, split.fold.train_rows)
    assert len(list(protocol.splits(draws=2))) == 6
    assert len(list(protocol.splits(fractions=[1.0]))) == 2


def test_design_actors_are_never_tested_and_only_they_are_judged_in_design(listing):
    path, actors, emotion, _ = listing
    assert not {13, 14} & set(actors[ravdess(path, actors, emotion, NAMES).test_rows])
    design = ravdess_design(path, actors, emotion, NAMES, draws=3)
    assert set(actors[design.test_rows]) == {13, 14}
    draws = [split.labelled_rows for split in design.splits(fractions=[0.1])]
    assert len({tuple(draw) for draw in draws}) == 3
    for draw in draws:
        np.testing.assert_array_equal(np.bincount(emotion[draw]), [12, 12, 12])


def test_a_file_of_another_data_set_is_refused(listing):
    path, actors, emotion, _ = listing
    with pytest.raises(ValueError, match="is labelled but not a training row"):
        ravdess(path, actors[::-1], emotion, NAMES)
    path.write_text(json.dumps({"folds": []}))
    with pytest.raises(ValueError, match="C_grid, design_actors missing"):
        ravdess(path, actors, emotion, NAMES)


def test_evaluation_is_the_probe_of_each_split(listing):
    path, actors, emotion, features = listing
    protocol = ravdess(path, actors, emotion, NAMES)
    # As many columns as the fold's number says: what is learned differs from fold to fold.
    found = merge([evaluate(protocol.only(f), features[:, : 3 + f.number], draws=2) for f in protocol.folds])
    assert found.predicted[0.1].shape == (2, 420)
    assert found.predicted[1.0].shape == (1, 420)
    split = next(s for s in protocol.splits() if (s.fold.number, s.fraction, s.draw) == (1, 0.1, 1))
    train, labelled, tested = split.fold.train_rows, split.labelled_rows, split.fold.test_rows
    X = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
    all_groups = actors[train]
    probe = fit_classes(
        X[labelled, :4], emotion[labelled], actors[labelled], 3, strengths=(0.01, 1.0), all_groups=all_groups
    )
    # the probe above standardises once more, on the labelled rows: agreement is near, not exact
    assert (found.predicted[0.1][1, tested] == probe.predict(X[tested, :4])).mean() > 0.9
    by_hand = [(found.predicted[0.1][:, f.test_rows] == emotion[f.test_rows]).mean() for f in protocol.folds]
    value = cell(protocol, found, 0.1)
    np.testing.assert_allclose(value.of_folds, by_hand)
    assert value.mean == pytest.approx(np.mean(by_hand))
    assert value.deviation == pytest.approx(np.std(by_hand, ddof=1))
    assert value.interval.estimate == pytest.approx(value.mean)
    assert value.interval.groups == 4
    assert (found.predicted[0.1][:, actors > 4] == -1).all()


def test_paired_intervals_and_tables(listing, tmp_path):
    path, actors, emotion, features = listing
    protocol = ravdess(path, actors, emotion, NAMES)
    good = evaluate(protocol, features, draws=2)
    poor = majority(protocol, draws=2)
    difference = paired(protocol, good, poor, 0.1)
    expected = cell(protocol, good, 0.1).mean - cell(protocol, poor, 0.1).mean
    assert difference.estimate == pytest.approx(expected)
    assert difference.low > 0
    cells = table(protocol, {"raw": good, "majority": poor})
    lines = markdown({**cells, "text only": {1.0: cells["raw"][1.0]}}).splitlines()
    assert lines[0] == "| representation | 10% of labels | 100% of labels |"
    assert lines[2].startswith(f"| raw | {cells['raw'][0.1].mean:.3f} ± ")
    assert lines[4].startswith("| text only | — | ")
    good.save(tmp_path / "good.npz")
    again = Evaluation.load(tmp_path / "good.npz")
    assert cell(protocol, again, 0.1).interval == cell(protocol, good, 0.1).interval
    with pytest.raises(ValueError, match="pairs need the same draws"):
        paired(protocol, good, majority(protocol), 0.1)
    with pytest.raises(ValueError, match="evaluation of protocol 'ravdess', expected 'other'"):
        cell(replace(protocol, name="other"), good, 0.1)
    with pytest.raises(ValueError, match=r"shape \(3, 5\), expected \(420, width\)"):
        evaluate(protocol, features[:3])


def test_mosi_groups_are_videos():
    assert list(videos(["a_b_12", "-x_1"])) == ["a_b", "-x"]
    identifiers = [f"video{i // 10}_{i % 10}" for i in range(400)]
    positive, split = np.arange(400) % 2, np.where(np.arange(400) < 300, "train", "test")
    protocol = mosi(identifiers, positive, split, draws=2)
    assert len(protocol.folds[0].test_rows) == 100
    design = mosi_design(identifiers, positive, split)
    assert design.folds[0].test_rows.max() < 300
    assert len(design.folds[0].test_rows) == 60
    with pytest.raises(ValueError, match="in training and in test"):
        mosi(identifiers, positive, np.where(np.arange(400) < 305, "train", "test"))


@pytest.fixture(scope="module")
def real_ravdess(real_data):
    places = (real_data / "ravdess_protocol.json", real_data.parent / "reference" / "ravdess_protocol.json")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        pytest.skip(f"ravdess_protocol.json found in neither {places[0].parent} nor {places[1].parent}")
    with np.load(real_data / "ravdess_features.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    return ravdess(path, arrays["actor"], arrays["emotion"], arrays["emotion_names"].tolist()), arrays


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("inductive", (0.439, 0.586, 0.707)),
        # What the mode does to features has quick tests of its own.
        pytest.param("speaker_normalised", (0.542, 0.713, 0.858), marks=pytest.mark.slow),
    ],
)
def test_raw_features_of_ravdess_reach_the_known_accuracies(real_ravdess, mode, expected):
    """Known to three digits from an independent run with scikit-learn, three draws.

    Few labels leave equally good strengths, and another solver's last digits break such ties otherwise: hence 0.01 (60
    clips of an actor; one strength chosen otherwise moves a cell by 0.003), and 0.001 where all labels are used.
    """
    protocol, arrays = real_ravdess
    names = ("visual_au35", "audio_egemaps88", "audio_mfcc259")
    features = {name: arrays[name] for name in names}

    def raw(fold):
        return np.hstack(list(normalise(features, mode, fold.train_rows, protocol.groups).values()))

    parts = [evaluate(protocol.only(fold), raw(fold), draws=3, standardized=True) for fold in protocol.folds]
    found = merge(parts)
    accuracies = [cell(protocol, found, fraction).mean for fraction in (0.03, 0.1, 1.0)]
    np.testing.assert_allclose(accuracies[:2], expected[:2], atol=0.01)
    assert accuracies[2] == pytest.approx(expected[2], abs=0.001)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("text_minilm384",), (0.652, 0.747, 0.787)),
        (("text_minilm384", "audio_opensmile73", "visual_cnn100"), (0.666, 0.698, 0.723)),
    ],
)
def test_raw_features_of_mosi_reach_about_the_known_accuracies(real_data, columns, expected):
    """The known values' own label draws and grid are not published, so draws differ: one draw of 3 % moves by 0.035."""
    with np.load(real_data / "mosi_features.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    protocol = mosi(arrays["ids"], arrays["positive"], arrays["split"], draws=5)
    found = evaluate(protocol, np.hstack([arrays[name] for name in columns]))
    accuracies = [cell(protocol, found, fraction).mean for fraction in (0.03, 0.1, 1.0)]
    np.testing.assert_allclose(accuracies, expected, atol=0.03)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("inductive", (0.532, 0.613, 0.703)),
        pytest.param("speaker_normalised", (0.683, 0.772, 0.866), marks=pytest.mark.slow),
    ],
)
def test_balanced_raw_features_of_ravdess_reach_the_known_accuracies(real_ravdess, mode, expected):
    """From an independent run with scikit-learn on blocks divided by the root of their width, five draws."""
    protocol, arrays = real_ravdess
    audio = np.concatenate([arrays["audio_egemaps88"], arrays["audio_mfcc259"]], axis=1)
    features = {"video": arrays["visual_au35"], "audio": audio}
    fractions = (0.03, 0.1, 1.0) if mode != "inductive" else (0.03, 1.0)
    parts = []
    for fold in protocol.folds:
        single = replace(protocol.only(fold), probe=replace(protocol.probe, scaling="none"))
        raw = Blocks.balanced(normalise(features, mode, fold.train_rows, protocol.groups))
        parts.append(list(judge.evaluate(single, {"raw balanced": raw}, fractions=fractions)))
    known = dict(zip((0.03, 0.1, 1.0), expected, strict=True))
    for of_folds in zip(*parts, strict=True):
        found = judge.merge_folds(protocol, of_folds)
        mean = judge.fold_accuracy(protocol, found.values).mean
        assert mean == pytest.approx(known[found.fraction], abs=0.003), found.fraction
