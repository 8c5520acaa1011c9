"""Distances from what a model knows, by hand; clips of the same kind are called far in one case of a hundred."""

from __future__ import annotations

import numpy as np
import pytest

from conclugen import reach


def test_distances_are_root_mean_squares_of_standardised_features() -> None:
    x = np.array([[3.0, 4.0], [1.0, 2.0], [np.nan, 0.0]])
    found = reach.distances({"video": x, "text": x}, {"video": ([1.0, 2.0], [2.0, 1.0])})
    assert list(found) == ["video"]
    np.testing.assert_allclose(found["video"], [np.sqrt((1 + 4) / 2), 0, np.nan])
    constant = reach.distances({"video": x}, {"video": ([1.0, 4.0], [2.0, 0.0])})  # divided by 1, as the model does
    np.testing.assert_allclose(constant["video"], [np.sqrt((1 + 0) / 2), np.sqrt((0 + 4) / 2), np.nan])


def test_of_the_same_kind_one_in_a_hundred_is_far_and_of_another_kind_all_are() -> None:
    rng = np.random.default_rng(0)
    moments = {"video": (np.zeros(20), np.ones(20))}
    known = reach.fit(reach.distances({"video": rng.normal(size=(4000, 20))}, moments))
    same = reach.distances({"video": rng.normal(size=(4000, 20))}, moments)["video"]
    far = [reach.nearer(distance, known["video"]) > reach.FAR for distance in same]
    assert 0.005 < np.mean(far) < 0.02
    other = reach.distances({"video": rng.normal(size=(50, 20)) * 3}, moments)["video"]
    assert all(reach.nearer(distance, known["video"]) == 1 for distance in other)
    assert reach.fit({"video": np.array([1.0, np.nan])}) == {}
    assert reach.nearer(1.5, [1.0, 2.0]) == pytest.approx(0.5)
