"""Intervals of every kind of score against scoring each resample's rows anew."""

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


def resampled_rows(groups):
    """Row numbers of each resample, drawn as the bootstrap draws them."""
    listed = np.unique(groups)
    generator = np.random.Generator(np.random.PCG64(FEW.seed))
    for draw in generator.multinomial(len(listed), np.full(len(listed), 1 / len(listed)), size=FEW.resamples):
        parts = [np.tile(np.flatnonzero(groups == g), times) for g, times in zip(listed, draw, strict=True)]
        yield np.concatenate(parts)


def check(found, groups, scores):
    """scores(rows) -> {name: mean over draws}."""
    each = [scores(rows) for rows in resampled_rows(groups)]
    whole = scores(np.arange(ROWS))
    for name, interval in found.items():
        assert interval.estimate == pytest.approx(whole[name], abs=1e-12), name
        expected = np.quantile([one[name] for one in each], [0.025, 0.975])
        np.testing.assert_allclose((interval.low, interval.high), expected, atol=1e-9, err_msg=name)
        assert interval.low < interval.estimate < interval.high


def mean_of(draws, score):
    def scores(rows):
        each = [score(rows, draw) for draw in draws]
        return {name: np.mean([one[name] for one in each]) for name in each[0]}

    return scores


def test_of_classes(groups):
    g = np.random.default_rng(1)
    target = g.integers(0, 4, ROWS)
    draws = [np.where(g.random(ROWS) < 0.6, target, g.integers(0, 4, ROWS)) for _ in range(3)]
    found = class_intervals(target, draws, 4, groups, FEW)
    assert set(found) == {"accuracy", "uar", "f1_macro"}
    check(found, groups, mean_of(draws, lambda rows, draw: single_label(target[rows], draw[rows], 4).scalars()))


def test_of_several_labels(groups):
    g = np.random.default_rng(2)
    target = (g.random((ROWS, 3)) < [0.2, 0.5, 0.8]).astype(float)
    draws = [np.clip(target + g.normal(0, 0.5, target.shape), 0, 1) for _ in range(2)]
    found = multilabel_intervals(target, draws, groups, resampling=FEW)
    assert set(found) == {"accuracy_weighted", "accuracy_macro"}
    check(found, groups, mean_of(draws, lambda rows, draw: multi_label(target[rows], draw[rows]).scalars()))


def test_of_numbers_far_from_zero(groups):
    g = np.random.default_rng(3)
    target = 1e4 + g.normal(0, 1, ROWS)
    draws = [target + g.normal(0.2, 0.7, ROWS) for _ in range(2)]
    found = continuous_intervals(target, draws, groups, FEW)
    assert set(found) == {"mae", "pearson", "concordance"}
    check(found, groups, mean_of(draws, lambda rows, draw: continuous(target[rows], draw[rows]).scalars()))


def test_of_sentiments(groups):
    """Whole numbers, of which a seventh is zero: the rows that one of the two accuracies leaves out."""
    g = np.random.default_rng(4)
    target = g.integers(-3, 4, ROWS).astype(float)
    draws = [target + g.normal(0.1, 1.5, ROWS) for _ in range(2)]
    found = sentiment_intervals(target, draws, groups, FEW)
    assert set(found) == set(sentiment(target, draws[0]).scalars())
    check(found, groups, mean_of(draws, lambda rows, draw: sentiment(target[rows], draw[rows]).scalars()))


def test_a_draw_without_a_score_leaves_it_to_the_others(groups):
    """A constant has no correlation."""
    g = np.random.default_rng(5)
    target = g.normal(0, 1, ROWS)
    telling = target + g.normal(0, 0.7, ROWS)
    alone, beside = (continuous_intervals(target, draws, groups, FEW) for draws in ([telling], [telling, 0 * target]))
    assert beside["pearson"].estimate == pytest.approx(alone["pearson"].estimate)
    assert (beside["pearson"].low, beside["pearson"].high) == pytest.approx(
        (alone["pearson"].low, alone["pearson"].high)
    )
    assert beside["concordance"].estimate == pytest.approx(alone["concordance"].estimate / 2)
