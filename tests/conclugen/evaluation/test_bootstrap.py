"""Group bootstrap against a loop over resamples, against theory, and Holm against its definition."""

import numpy as np
import pytest
from scipy import stats

from conclugen.evaluation.metrics import single_label
from conclugen.evaluation.statistics import (
    Resampling,
    bootstrap_interval,
    confusion_sums,
    group_sums,
    holm,
    macro_f1,
    mean_difference,
    mean_interval,
    statistic_difference,
    unweighted_average_recall,
)


@pytest.fixture
def data():
    rng = np.random.default_rng(4)
    groups = rng.integers(0, 12, 400)
    target = rng.integers(0, 3, 400)
    skill = rng.uniform(0.3, 0.9, 12)[groups]
    predicted = np.where(rng.random(400) < skill, target, rng.integers(0, 3, 400))
    return target, predicted, groups


def slow_resamples(groups, statistic, resampling):
    """Concatenate the rows of each drawn group and score them anew."""
    listed = np.unique(groups)
    generator = np.random.Generator(np.random.PCG64(resampling.seed))
    drawn = generator.multinomial(len(listed), np.full(len(listed), 1 / len(listed)), size=resampling.resamples)
    rows = [np.flatnonzero(groups == group) for group in listed]
    return [
        statistic(np.concatenate([np.tile(own, times) for own, times in zip(rows, draw, strict=True)]).astype(int))
        for draw in drawn
    ]


def test_statistics_are_those_of_rescored_resamples(data):
    target, predicted, groups = data
    few = Resampling(resamples=60)

    def scores(rows):
        return single_label(target[rows], predicted[rows], 3)

    accuracy = slow_resamples(groups, lambda rows: scores(rows)["accuracy"], few)
    found = mean_interval(predicted == target, groups, few)
    np.testing.assert_allclose((found.low, found.high), np.quantile(accuracy, [0.025, 0.975]))
    assert found.estimate == pytest.approx(np.mean(predicted == target))
    assert found.groups == 12

    recall = slow_resamples(groups, lambda rows: scores(rows)["uar"], few)
    sums = confusion_sums(target, predicted, 3, groups)
    found = bootstrap_interval(sums, unweighted_average_recall, few)
    np.testing.assert_allclose((found.low, found.high), np.quantile(recall, [0.025, 0.975]))
    f1 = slow_resamples(groups, lambda rows: scores(rows)["f1_macro"], few)
    found = bootstrap_interval(sums, macro_f1, few)
    np.testing.assert_allclose((found.low, found.high), np.quantile(f1, [0.025, 0.975]))


def test_paired_difference_is_that_of_rescored_pairs(data):
    target, first, groups = data
    second = np.where(np.random.default_rng(0).random(400) < 0.1, 0, first)
    few = Resampling(resamples=50, level=0.8)

    def difference(rows):
        one, other = (single_label(target[rows], guess[rows], 3) for guess in (first, second))
        return one["uar"] - other["uar"]

    expected = slow_resamples(groups, difference, few)
    one, other = (confusion_sums(target, guess, 3, groups) for guess in (first, second))
    found = statistic_difference(one, other, unweighted_average_recall, few)
    np.testing.assert_allclose((found.low, found.high), np.quantile(expected, [0.1, 0.9]))
    assert found.level == 0.8
    found = mean_difference(first == target, second == target, groups, few)
    gained = (first == target).astype(float) - (second == target)
    expected = slow_resamples(groups, lambda rows: gained[rows].mean(), few)
    np.testing.assert_allclose((found.low, found.high), np.quantile(expected, [0.1, 0.9]))


def test_interval_of_a_mean_over_many_equal_groups_is_the_normal_one():
    values = np.random.default_rng(1).normal(0.3, 1.0, 900)
    found = mean_interval(values, np.arange(900))
    error = values.std() / np.sqrt(900)
    expected = values.mean() + error * stats.norm.ppf([0.025, 0.975])
    np.testing.assert_allclose((found.low, found.high), expected, atol=0.003)


def test_speakers_that_differ_widen_the_interval():
    groups = np.repeat(np.arange(20), 50)
    hits = np.repeat(np.random.default_rng(0).random(20) < 0.5, 50).astype(float)
    by_speaker, by_row = mean_interval(hits, groups), mean_interval(hits, np.arange(1000))
    assert by_speaker.high - by_speaker.low > 5 * (by_row.high - by_row.low)


def test_pairing_removes_what_systems_share():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 60)
    level = rng.normal(0.6, 0.15, 20)[groups]
    better = level + 0.03 + rng.normal(0, 0.02, 1200)
    found = mean_difference(better, level, groups)
    assert found.excludes_zero
    assert found.p_value is not None and found.p_value < 0.001
    assert mean_interval(level, groups).low < level.mean() + 0.03 < mean_interval(level, groups).high


def test_no_difference_has_a_large_p_value():
    values = np.random.default_rng(0).random(100)
    found = mean_difference(values, values, np.arange(100) // 10)
    assert (found.estimate, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert not found.excludes_zero


def test_seeded():
    values, groups = np.random.default_rng(0).random(60), np.arange(60) // 6
    assert mean_interval(values, groups) == mean_interval(values, groups)
    assert mean_interval(values, groups) != mean_interval(values, groups, Resampling(seed=1))


def test_group_sums_are_in_sorted_order():
    np.testing.assert_array_equal(group_sums([[1, 2], [3, 4], [5, 6]], ["b", "a", "b"]), [[3, 4], [6, 8]])


def test_refusals():
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_interval(np.ones((1, 2)), lambda sums: sums[:, 0])
    with pytest.raises(ValueError, match=r"level: .* got 95"):
        Resampling(level=95)
    with pytest.raises(ValueError, match="second: 2 rows, expected 3"):
        mean_difference([1, 2, 3], [1, 2], [1, 2, 3])


def test_holm_by_hand():
    # sorted 0.01 x 4, 0.02 x 3, 0.03 x 2 (kept monotone), 0.5 x 1
    adjusted = holm({"c": 0.03, "a": 0.01, "d": 0.5, "b": 0.02})
    assert list(adjusted) == ["c", "a", "d", "b"]
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.5})
    assert holm([0.9, 0.8]) == {"0": 1.0, "1": 1.0}
    with pytest.raises(ValueError, match=r"p-value of 'x': 1\.2"):
        holm({"x": 1.2})
