"""Fusion, label fractions, standardisation, baselines and class weights."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from conclugen.evaluation.config import MODES, PUBLISHED_WEIGHTS
from conclugen.evaluation.features import Scaling, fuse, normalise, standardise, standardize_by_group
from conclugen.evaluation.finetune import class_weights
from conclugen.evaluation.protocol import Target, label_draw


def test_fusion_of_everything_present():
    video, audio = np.arange(6.0).reshape(3, 2), np.arange(6.0).reshape(3, 2) * 10
    both = {"video": video, "audio": audio}
    np.testing.assert_array_equal(fuse(both)[0], np.hstack([video, audio]))
    np.testing.assert_array_equal(fuse(both, modalities=("audio", "video"))[0], np.hstack([audio, video]))
    np.testing.assert_array_equal(fuse(both, "mean")[0], (video + audio) / 2)
    np.testing.assert_array_equal(fuse(both, "audio")[0], audio)
    assert fuse(both)[1].all()


def test_fusion_of_missing_modalities():
    both = {"video": [[1.0, 2.0], [9.0, 9.0], [np.nan, np.nan]], "audio": [[3.0, 4.0], [5.0, 6.0], [7.0, 7.0]]}
    present = {"video": [True, False, False], "audio": [True, True, False]}
    fused, usable = fuse(both, "concat", present)
    np.testing.assert_array_equal(fused, [[1, 2, 3, 4], [0, 0, 5, 6], [0, 0, 0, 0]])
    np.testing.assert_array_equal(usable, [True, True, False])
    np.testing.assert_array_equal(fuse(both, "mean", present)[0], [[2, 3], [5, 6], [0, 0]])
    fused, usable = fuse(both, "video")  # NaN marks what is missing
    np.testing.assert_array_equal(fused, [[1, 2], [9, 9], [0, 0]])
    np.testing.assert_array_equal(usable, [True, True, False])


def test_fusion_refuses():
    both = {"video": np.zeros((2, 3)), "audio": np.zeros((2, 4))}
    with pytest.raises(ValueError, match="did you mean 'audio'"):
        fuse(both, "adio")
    with pytest.raises(ValueError, match=r"equal widths, found \{'video': 3, 'audio': 4\}"):
        fuse(both, "mean")
    with pytest.raises(ValueError, match="marked present"):
        fuse({"video": [[np.nan]]}, "concat", {"video": [True]})
    with pytest.raises(ValueError, match="differ in their number of rows"):
        fuse({"video": np.zeros((2, 3)), "audio": np.zeros((3, 3))})


def test_plain_draws():
    rows = np.arange(100, 300)
    draw = label_draw(rows, 0.1, seed=1)
    assert len(draw) == len(set(draw)) == 20
    assert set(draw) <= set(rows)
    assert (np.diff(draw) > 0).all()
    np.testing.assert_array_equal(draw, label_draw(rows, 0.1, seed=1))
    assert set(draw) != set(label_draw(rows, 0.1, seed=1, draw=1)) != set(label_draw(rows, 0.1, seed=2))
    np.testing.assert_array_equal(label_draw(rows[::-1], 1.0, seed=9), rows)


def test_plain_draws_are_uniform():
    times = np.bincount(np.concatenate([label_draw(np.arange(20), 0.25, 0, draw) for draw in range(2000)]))
    np.testing.assert_allclose(times / 2000, 0.25, atol=0.04)


def test_draws_by_class_keep_every_class():
    target = np.repeat([0, 1, 2, 3], [500, 100, 10, 2])
    draw = label_draw(np.arange(612), 0.05, seed=3, target=target)
    np.testing.assert_array_equal(np.bincount(target[draw]), [25, 5, 3, 2])


def test_draw_refuses():
    with pytest.raises(ValueError, match="fraction: 3"):
        label_draw(np.arange(5), 3, seed=0)
    with pytest.raises(ValueError, match="4 labels for 5 rows"):
        label_draw(np.arange(5), 0.5, seed=0, target=[1, 2, 3, 4])


def test_standardisation_by_group_and_with_missing_values():
    values = np.array([[1.0, 5], [3, 5], [10, 0], [30, 2], [np.nan, np.nan]])
    found = standardize_by_group(values, np.array(["a", "a", "b", "b", "b"]))
    np.testing.assert_allclose(found[:4], [[-1, 0], [1, 0], [-1, -1], [1, 1]])
    assert np.isnan(found[4]).all()
    with pytest.raises(ValueError, match="1 of 2 columns have no value in the 2 rows"):
        Scaling.fit([[1, np.nan], [2, np.nan]])


def test_raw_baseline_fills_with_the_training_mean():
    features = {"video": np.array([[1.0], [3.0], [0.0], [100.0]]), "audio": np.array([[0.0], [2.0], [4.0], [8.0]])}
    present = {"video": [True, True, False, True], "audio": [False, True, True, True]}
    found = standardise(features, present, np.array([0, 1, 2]))
    np.testing.assert_allclose(np.concatenate(list(found.values()), axis=1), [[-1, 0], [1, -1], [0, 1], [98, 5]])
    with pytest.raises(ValueError, match="audio: no training row"):
        standardise(features, present, np.array([0]))


def labelled(kind, values, classes=3):
    return Target("emotion", kind, np.asarray(values), tuple("abcdefgh"[:classes]))


def test_class_weights():
    target = np.repeat([0, 1, 2, 0], [10, 30, 60, 40])
    rows = np.arange(100)  # of these alone
    expected = compute_class_weight("balanced", classes=np.arange(3), y=target[rows])
    np.testing.assert_array_equal(class_weights(labelled("class", target), rows, "inverse_frequency"), expected)
    np.testing.assert_allclose(class_weights(labelled("class", target), rows, "frequency"), [0.3, 0.9, 1.8])
    many = labelled("multilabel", [[1, 0], [0, 0], [0, 1], [0, 1]], 2)
    np.testing.assert_allclose(class_weights(many, np.arange(4), "inverse_frequency"), [3, 1])
    assert class_weights(labelled("class", target), rows, "none") is None
    assert class_weights(labelled("continuous", target, 0), rows, "frequency") is None
    with pytest.raises(ValueError, match=r"'d' \(3\) has no row"):
        class_weights(labelled("class", target, 4), rows, "inverse_frequency")
    with pytest.raises(ValueError, match=r"'b' \(1\) has no positive row"):
        class_weights(many, np.arange(2), "frequency")


def test_published_weights():
    # RAVDESS's list is the inverse frequency of its 96 neutral and 192 other clips
    counts = labelled("class", np.repeat(np.arange(8), [96] + [192] * 7), 8)
    rows = np.arange(len(counts.values))
    np.testing.assert_allclose(class_weights(counts, rows, "ravdess"), class_weights(counts, rows, "inverse_frequency"))
    assert {name: len(weights) for name, weights in PUBLISHED_WEIGHTS.items()} == {"meld": 7, "ravdess": 8, "mosei": 6}
    with pytest.raises(ValueError, match="'meld' has 7 weights, label 'emotion' has 8 classes"):
        class_weights(counts, rows, "meld")


@pytest.fixture
def speakers():
    """14 speakers of 30 rows that differ in their means."""
    actors = np.repeat(np.arange(1, 15), 30)
    return actors, np.random.default_rng(0).normal(size=(420, 5)) + actors[:, None] * 0.3


def test_inductive_normalisation_uses_training_rows_only(speakers):
    actors, features = speakers
    train = np.flatnonzero(actors > 4)
    found = normalise({"video": features}, "inductive", train, actors)["video"]
    np.testing.assert_allclose(found[train].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found[train].std(axis=0), 1)
    changed = features.copy()
    changed[actors <= 4] += 100
    again = normalise({"video": changed}, "inductive", train, actors)["video"]
    np.testing.assert_array_equal(again[train], found[train])


def test_speaker_normalisation_uses_each_speakers_own_rows(speakers):
    actors, features = speakers
    found = normalise({"video": features}, "speaker_normalised", np.arange(3), actors)["video"]
    for actor in range(1, 15):
        np.testing.assert_allclose(found[actors == actor].mean(axis=0), 0, atol=1e-12)
    assert MODES == ("inductive", "speaker_normalised")
    with pytest.raises(ValueError, match="did you mean 'inductive'"):
        normalise({}, "inductiv", np.arange(3), actors)
