"""Intervals of every kind of score against scoring each resample's rows again."""

import numpy as np
import pytest

from conclugen.evaluation.metrics import continuous, multi_label, sentiment, single_label
from conclugen.evaluation.statistics import (
    Resampling,
    class_intervals,
    continuous_intervals,
    multilabel_intervals,
    sentiment_intervals,
)

FEW = Resampling(resamples=50)
ROWS = 300


@pytest.fixture
def groups():
    return np.random.default_rng(0).integers(0, 9, ROWS)


def resamples(groups, draws):
    """(row numbers, times of each draw of labels) of each resample, drawn as the bootstrap draws them."""
    listed = np.unique(groups)
    generator = np.random.Generator(np.random.PCG64(FEW.seed))
    _, of_draws, of_groups = (  # of seeds there is one
        generator.multinomial(count, np.full(count, 1 / count), size=FEW.resamples) for count in (1, draws, len(listed))
    )
    for times, drawn in zip(of_draws, of_groups, strict=True):
        parts = [np.tile(np.flatnonzero(groups == g), n) for g, n in zip(listed, drawn, strict=True)]
        yield np.concatenate(parts), times


def check(found, groups, draws, score):
    """score: (rows, draw) -> {name: score of these rows}."""

    def mean(rows, times):
        each = [score(rows, draw) for draw in draws]
        return {name: np.average([one[name] for one in each], weights=times) for name in each[0]}

    each = [mean(rows, times) for rows, times in resamples(groups, len(draws))]
    whole = mean(np.arange(ROWS), np.ones(len(draws)))
    for name, interval in found.items():
        assert interval.estimate == pytest.approx(whole[name], abs=1e-12), name
        expected = np.quantile([one[name] for one in each], [0.025, 0.975])
        np.testing.assert_allclose((interval.low, interval.high), expected, atol=1e-9, err_msg=name)
        assert interval.low < interval.estimate < interval.high


def test_of_classes(groups):
    g = np.random.default_rng(1)
    target = g.integers(0, 4, ROWS)
    draws = [np.where(g.random(ROWS) < 0.6, target, g.integers(0, 4, ROWS)) for _ in range(3)]
    found = class_intervals(target, draws, 4, groups, FEW)
    assert set(found) == {"accuracy", "uar", "f1_macro"}
    check(found, groups, draws, lambda rows, draw: single_label(target[rows], draw[rows], 4))


def test_of_several_labels(groups):
    g = np.random.default_rng(2)
    target = (g.random((ROWS, 3)) < [0.2, 0.5, 0.8]).astype(float)
    draws = [np.clip(target + g.normal(0, 0.5, target.shape), 0, 1) for _ in range(2)]
    found = multilabel_intervals(target, draws, groups, resampling=FEW)
    assert set(found) == {"accuracy_weighted", "accuracy_macro"}
    check(found, groups, draws, lambda rows, draw: multi_label(target[rows], draw[rows]))


def test_of_numbers_far_from_zero(groups):
    g = np.random.default_rng(3)
    target = 1e4 + g.normal(0, 1, ROWS)
    draws = [target + g.normal(0.2, 0.7, ROWS) for _ in range(2)]
    found = continuous_intervals(target, draws, groups, FEW)
    assert set(found) == {"mae", "pearson", "concordance"}
    check(found, groups, draws, lambda rows, draw: continuous(target[rows], draw[rows]))


def test_of_sentiments(groups):
    """Whole numbers, of which a seventh is zero: the rows that one of the two accuracies leaves out."""
    g = np.random.default_rng(4)
    target = g.integers(-3, 4, ROWS).astype(float)
    draws = [target + g.normal(0.1, 1.5, ROWS) for _ in range(2)]
    found = sentiment_intervals(target, draws, groups, FEW)
    assert set(found) == set(sentiment(target, draws[0]))
    check(found, groups, draws, lambda rows, draw: sentiment(target[rows], draw[rows]))


def test_draws_that_differ_widen_an_interval():
    """Of draws that are all alike only the groups are drawn again: the interval of one of them."""
    g = np.random.default_rng(6)
    groups = np.repeat(np.arange(30), ROWS // 30)
    target = g.integers(0, 2, ROWS)
    right = [np.where(g.random(ROWS) < share, target, 1 - target) for share in (0.5, 0.6, 0.7, 0.8)]
    many = Resampling(resamples=2000)

    def width(draws):
        interval = class_intervals(target, draws, 2, groups, many)["accuracy"]
        return interval.high - interval.low

    assert width([right[1]] * 4) == pytest.approx(width([right[1]]), rel=0.1)
    # Draws are as far apart as groups spread: the deviation of their mean, 0.11 / sqrt(4), beside 0.5 / sqrt(300) / 2.
    assert width(right) > 2 * width([right[1]] * 4)


def test_a_draw_without_a_score_leaves_it_to_the_others(groups):
    """A constant has no correlation; a resample that holds nothing else has none."""
    g = np.random.default_rng(5)
    target = g.normal(0, 1, ROWS)
    telling = target + g.normal(0, 0.7, ROWS)
    alone, beside = (continuous_intervals(target, draws, groups, FEW) for draws in ([telling], [telling, 0 * target]))
    assert beside["pearson"].estimate == pytest.approx(alone["pearson"].estimate)
    found = [np.corrcoef(target[rows], telling[rows])[0, 1] for rows, times in resamples(groups, 2) if times[0]]
    assert 30 < len(found) < FEW.resamples
    expected = np.quantile(found, [0.025, 0.975])
    np.testing.assert_allclose((beside["pearson"].low, beside["pearson"].high), expected, atol=1e-9)
    assert beside["concordance"].estimate == pytest.approx(alone["concordance"].estimate / 2)
