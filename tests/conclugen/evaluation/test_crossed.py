"""The interval that crosses groups, draws of labels and seeds, beside one that rescores every resample's rows."""

import numpy as np
import pytest

from conclugen.evaluation.metrics import single_label
from conclugen.evaluation.statistics import (
    Resampling,
    accuracy,
    bootstrap_interval,
    confusion_sums,
    crossed_interval,
    macro_f1,
    unweighted_average_recall,
)

SEEDS, DRAWS, GROUPS = 3, 4, 6
FEW = Resampling(resamples=20, seed=5)
STATISTICS = {
    "accuracy": (accuracy, lambda s: s["accuracy"]),
    "uar": (unweighted_average_recall, lambda s: s["uar"]),
    "f1": (macro_f1, lambda s: s["f1_macro"]),
}


@pytest.fixture(scope="module")
def made():
    g = np.random.default_rng(2)
    groups = g.integers(0, GROUPS, 150)
    true = g.integers(0, 3, 150)
    skill = g.uniform(0.2, 0.9, (SEEDS, DRAWS, 1)) * g.uniform(0.5, 1, GROUPS)[groups]
    first = np.where(g.random((SEEDS, DRAWS, 150)) < skill, true, g.integers(0, 3, (SEEDS, DRAWS, 150)))
    second = np.where(g.random((1, DRAWS, 150)) < 0.5, true, g.integers(0, 3, (1, DRAWS, 150)))
    return groups, true, first, second


def sums(made, predicted):
    groups, true, *_ = made
    return np.stack([[confusion_sums(true, guess, 3, groups) for guess in draws] for draws in predicted])


def resampled(made, predicted, score, seeds, draws, groups):
    """Write out the rows of every drawn group, score each drawn (seed, draw) anew, and take the plain mean."""
    owner, true, *_ = made
    rows = np.concatenate([np.flatnonzero(owner == group) for group in groups])
    values = [
        score(single_label(true[rows], predicted[seed if len(predicted) > 1 else 0, draw][rows], 3))
        for seed in seeds
        for draw in draws
    ]
    return np.mean(values)


def expected(made, systems, score):
    generator = np.random.Generator(np.random.PCG64(FEW.seed))
    times = [
        generator.multinomial(count, np.full(count, 1 / count), size=FEW.resamples) for count in (SEEDS, DRAWS, GROUPS)
    ]
    values = []
    for at in range(FEW.resamples):
        drawn = [np.repeat(np.arange(len(counts[at])), counts[at]) for counts in times]
        each = [resampled(made, system, score, *drawn) for system in systems]
        values.append(each[0] - (each[1] if len(each) > 1 else 0.0))
    return np.quantile(values, [0.025, 0.975])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "accuracy" else pytest.mark.slow) for name in STATISTICS]
)
def test_it_is_that_of_resamples_written_out(made, name):
    statistic, score = STATISTICS[name]
    _, _, first, second = made
    found = crossed_interval(sums(made, first), statistic, FEW)
    np.testing.assert_allclose((found.low, found.high), expected(made, [first], score), atol=1e-12)
    beside = crossed_interval(sums(made, first), statistic, FEW, sums(made, second))
    np.testing.assert_allclose((beside.low, beside.high), expected(made, [first, second], score), atol=1e-12)
    turned = crossed_interval(sums(made, second), statistic, FEW, sums(made, first))
    np.testing.assert_allclose((-turned.high, -turned.low), (beside.low, beside.high), atol=1e-12)

    everything = (range(SEEDS), range(DRAWS), range(GROUPS))
    means = [resampled(made, system, score, *everything) for system in (first, second)]
    assert found.estimate == pytest.approx(means[0])
    assert beside.estimate == pytest.approx(means[0] - means[1])
    assert found.groups == GROUPS


def test_one_seed_and_one_draw_leave_the_bootstrap_over_groups(made):
    """Of one seed and draw both are drawn always: what is left is another stream of the same groups."""
    one = sums(made, made[2])[:1, :1]
    many = Resampling(resamples=20_000)
    crossed = crossed_interval(one, accuracy, many)
    plain = bootstrap_interval(one[0, 0], accuracy, many)
    assert crossed.estimate == plain.estimate
    np.testing.assert_allclose((crossed.low, crossed.high), (plain.low, plain.high), atol=0.005)
    wide = crossed_interval(sums(made, made[2]), accuracy, many)
    means = sums(made, made[2]).mean(axis=(0, 1))
    narrow = bootstrap_interval(means, accuracy, many)
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)


def test_the_variance_is_that_of_theory():
    """One row in each group, effects of seed, draw and group added: each factor spreads by its own variance over n."""
    g = np.random.default_rng(0)
    parts = [g.normal(size=(n,)) * scale for n, scale in ((5, 1.0), (8, 0.7), (40, 2.0))]
    values = parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None]
    found = crossed_interval(
        np.stack([values, np.ones_like(values)], axis=3),
        lambda s: s[:, 0] / s[:, 1],
        Resampling(50_000, level=0.68268949),
    )
    variance = sum(part.var() / len(part) for part in parts)
    assert (found.high - found.low) / 2 == pytest.approx(np.sqrt(variance), rel=0.03)


def test_what_cannot_be_paired_is_refused(made):
    first, second = sums(made, made[2]), sums(made, made[3])
    for other in (first[:2], first[:, :3], first[:, :, :5]):
        with pytest.raises(ValueError, match="cannot be paired"):
            crossed_interval(first, accuracy, FEW, other)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        crossed_interval(second[:, :, :1], accuracy, FEW)


def test_a_statistic_that_no_resample_defines_has_an_estimate_alone():
    def undefined_when_resampled(sums):
        return np.full(len(sums), 0.25 if len(sums) == 1 else np.nan)

    found = crossed_interval(np.ones((2, 3, 5, 2)), undefined_when_resampled, Resampling(resamples=20))
    assert found.estimate == pytest.approx(0.25) and np.isnan([found.low, found.high]).all() and found.groups == 5
