"""Scores and paired differences of a page, recounted."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from benchmarks.reproduce.differences import differences, mean, score, strongest
from benchmarks.reproduce.evaluation import Evaluation
from conclugen.evaluation.protocol import Fold, Protocol, Target
from conclugen.evaluation.statistics import Resampling, holm, sign_flip_p

ROWS, GROUPS, FRACTION = 240, 12, 0.1
FEW = Resampling(resamples=300)


def system(protocol, rate, seeds, g):
    """Right with a rate, else a draw; nothing where no fold tests."""
    y = protocol.target.values
    right = g.random((seeds * 2, ROWS)) < rate
    predicted = np.where(right, y, g.integers(0, 3, (seeds * 2, ROWS))).astype(np.int16)
    predicted[:, protocol.folds[0].train_rows] = -1
    return Evaluation("made", {FRACTION: predicted}, {FRACTION: np.zeros((seeds * 2, 1))}, seeds)


def made(groups=GROUPS):
    g = np.random.default_rng(0)
    y = np.where(g.random(ROWS) < 0.6, 0, g.integers(1, 3, ROWS))
    group = np.arange(ROWS) % (groups + 2)
    train, test = np.flatnonzero(group >= groups), np.flatnonzero(group < groups)
    fold = Fold(0, train, test, labelled={FRACTION: (train[:30], train[5:35])})
    protocol = Protocol("made", Target("e", "class", y, ("a", "b", "c")), group, (fold,))
    systems = {
        "weak": system(protocol, 0.2, 1, g),
        "raw": system(protocol, 0.5, 1, g),
        "learned": system(protocol, 0.8, 3, g),
        "alike": system(protocol, 0.5, 3, g),
    }
    return protocol, systems


def by_hand(protocol, evaluation, of):
    rows = protocol.test_rows
    return np.mean([of(protocol.target.values[rows], draw[rows]) for draw in evaluation.predicted[FRACTION]])


def test_scores_are_means_over_seeds_and_draws_and_the_strongest_is_the_best_of_them():
    protocol, systems = made()
    of = {
        "accuracy": lambda a, b: (a == b).mean(),
        "uar": balanced_accuracy_score,
        "f1_macro": lambda a, b: f1_score(a, b, average="macro"),
    }
    for name, evaluation in systems.items():
        for measure, compute in of.items():
            value = by_hand(protocol, evaluation, compute)
            assert mean(protocol, evaluation, FRACTION, measure) == pytest.approx(value)
            interval = score(protocol, evaluation, FRACTION, measure, FEW)
            assert interval.estimate == pytest.approx(value)
            assert interval.low < value < interval.high, name
    raw = {name: systems[name] for name in ("weak", "raw")}
    assert strongest(protocol, raw, FRACTION, "accuracy") == strongest(protocol, raw, FRACTION, "uar") == "raw"


@pytest.mark.parametrize("measure", ["accuracy", "uar"])
def test_differences_are_a_family_corrected_by_holm(measure):
    protocol, systems = made()
    pairs = [(name, "raw", FRACTION) for name in ("learned", "alike", "weak")]
    found = differences(protocol, systems, pairs, measure, FEW)
    rows = protocol.test_rows
    y, group = protocol.target.values[rows], protocol.groups[rows]
    counts = np.bincount(y)
    weight = 1 / (3 * counts[y]) if measure == "uar" else np.full(len(rows), 1 / len(rows))
    p_values = []
    for name, other, _ in pairs:
        hits = [(systems[n].predicted[FRACTION][:, rows] == y).mean(axis=0) for n in (name, other)]
        each = [((hits[0] - hits[1]) * weight)[group == g].sum() for g in range(GROUPS)]
        p_values.append(sign_flip_p(each))
        value = mean(protocol, systems[name], FRACTION, measure) - mean(protocol, systems[other], FRACTION, measure)
        # What the groups add is the difference of the scores itself.
        assert sum(each) == pytest.approx(value)
    adjusted = list(holm(p_values).values())
    assert [one.comparison.p_value for one in found] == pytest.approx(p_values)
    assert [one.comparison.adjusted for one in found] == pytest.approx(adjusted)
    assert [one.comparison.verdict(units="speakers") for one in found] == ["better", "no difference shown", "worse"]


def test_pretrained_rows_are_paired_at_the_seeds_that_both_have():
    protocol, systems = made()
    g = np.random.default_rng(1)
    systems["learned"] = replace(systems["learned"], seed_names=(1, 2, 3))
    systems["other"] = replace(system(protocol, 0.4, 2, g), seed_names=(4, 3))
    systems["apart"] = replace(system(protocol, 0.4, 1, g), seed_names=(5,))
    pairs = [(name, other, FRACTION) for name, other in (("learned", "other"), ("apart", "other"), ("learned", "raw"))]
    common, hole, whole = differences(protocol, systems, pairs, "accuracy", FEW)
    assert hole is None
    assert (common.seeds, whole.seeds, common.comparison.comparisons, whole.comparison.comparisons) == ((3,), (), 2, 2)
    rows = protocol.test_rows
    hits = [systems[n].predicted[FRACTION][:, rows] == protocol.target.values[rows] for n in ("learned", "other")]
    # Two draws a seed: seed 3 is the last of three there, and of two here.
    assert common.interval.estimate == pytest.approx(hits[0][4:6].mean() - hits[1][2:4].mean())
    assert list(holm({"a": common.comparison.p_value, "b": whole.comparison.p_value}).values()) == pytest.approx([
        common.comparison.adjusted, whole.comparison.adjusted
    ])  # fmt: skip


def test_seeds_are_named_as_many_as_there_are():
    _, systems = made()
    with pytest.raises(ValueError, match=r"seed_names: .* name 2 seeds, expected 3"):
        replace(systems["learned"], seed_names=(1, 2))


def test_of_few_groups_nothing_is_told():
    protocol, systems = made(groups=4)
    (found,) = differences(protocol, systems, [("learned", "weak", FRACTION)], "accuracy", FEW)
    assert found.interval.low > 0
    assert found.comparison.verdict(units="videos") == "cannot be told with 4 videos"


def test_a_row_without_prediction_is_named():
    protocol, systems = made()
    systems["raw"].predicted[FRACTION][0, protocol.test_rows[3]] = -1
    with pytest.raises(ValueError, match="made: some test rows have no prediction"):
        mean(protocol, systems["raw"], FRACTION, "accuracy")
