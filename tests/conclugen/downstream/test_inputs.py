"""Fusion, label fractions, standardisation, baselines and class weights."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from conclugen.downstream import (
    Majority,
    Scaling,
    frequency,
    fuse,
    inverse_frequency,
    label_draw,
    positive_weights,
    published,
    raw_features,
    standardize_by_group,
    untrained_heads,
)


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
    fused, usable = raw_features(features, present, np.array([0, 1, 2]))
    np.testing.assert_allclose(fused, [[-1, 0], [1, -1], [0, 1], [98, 5]])
    assert usable.all()
    with pytest.raises(ValueError, match="audio: no training row"):
        raw_features(features, present, np.array([0]))


def test_untrained_heads_are_fused_like_trained_ones():
    def embed(features, present):
        return {name: np.asarray(values) * 2 for name, values in features.items()}

    features = {"a": np.ones((2, 2)), "b": np.ones((2, 2))}
    present = {"a": np.array([True, False]), "b": np.array([True, True])}
    fused, usable = untrained_heads(embed, features, present, "mean")
    np.testing.assert_array_equal(fused, [[2, 2], [2, 2]])
    assert usable.all()
    np.testing.assert_array_equal(untrained_heads(embed, features, present)[0][1], [0, 0, 2, 2])


def test_majority():
    baseline = Majority.fit([2, 1, 1, 0], 4)
    np.testing.assert_array_equal(baseline.predict(3), [1, 1, 1])
    np.testing.assert_array_equal(baseline.probabilities(1), [[0.25, 0.5, 0.25, 0]])


def test_class_weights():
    target = np.repeat([0, 1, 2], [10, 30, 60])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=target)
    np.testing.assert_allclose(inverse_frequency(target, 3), expected)
    np.testing.assert_allclose(frequency(target, 3), [0.3, 0.9, 1.8])
    np.testing.assert_allclose(positive_weights([[1, 0], [0, 0], [0, 1], [0, 1]]), [3, 1])
    with pytest.raises(ValueError, match="class 3 has no row"):
        inverse_frequency(target, 4)


def test_published_weights():
    # RAVDESS's list is the inverse frequency of its 96 neutral and 192 other clips
    counts = np.repeat(np.arange(8), [96] + [192] * 7)
    np.testing.assert_allclose(published("ravdess"), inverse_frequency(counts, 8))
    assert len(published("meld")) == 7
    assert len(published("mosei")) == 6
    with pytest.raises(ValueError, match="did you mean 'mosei'"):
        published("mosi")
