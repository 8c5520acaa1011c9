"""The paired test against enumeration, SciPy and closed forms; Holm's correction against the procedure itself."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from conclugen.evaluation.statistics import (
    Resampling,
    confusion_sums,
    paired_tests,
    sign_flip_p,
    statistic_difference,
    unweighted_average_recall,
)


def _enumerated(differences):
    """Every sign of every group, one after the other."""
    observed = abs(sum(differences))
    totals = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(total >= observed - 1e-12 for total in totals) / len(totals)


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 8, 11])
def test_p_value_is_that_of_enumeration(groups):
    rng = np.random.default_rng(groups)
    for _ in range(5):
        differences = rng.normal(0.3, 1, groups)
        assert sign_flip_p(differences) == pytest.approx(_enumerated(differences), abs=1e-12)
        # Whole numbers of hits: many totals are equal, and equal ones count.
        ties = rng.integers(-3, 4, groups).astype(float)
        assert sign_flip_p(ties) == pytest.approx(_enumerated(ties), abs=1e-12)


def test_p_value_is_that_of_scipy():
    rng = np.random.default_rng(4)
    differences = rng.normal(0.4, 1, 12)
    theirs = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_p(differences) == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("groups", [2, 20, 31, 40])
def test_all_groups_alike_is_the_smallest_p_value_there_is(groups):
    assert sign_flip_p(np.full(groups, 0.7)) == pytest.approx(2.0 / 2**groups, rel=1e-12)


@pytest.mark.parametrize(("groups", "up"), [(31, 22), (40, 26), (60, 38)])
def test_equal_steps_are_the_sign_test(groups, up):
    """Differences of +-1: the number of positive ones is binomial. Above 40 groups signs are drawn."""
    differences = np.where(np.arange(groups) < up, 1.0, -1.0)
    exact = 2 * stats.binom.sf(up - 1, groups, 0.5)
    tolerance = 1e-9 if groups <= 40 else 4 * (exact / 100_000) ** 0.5
    assert sign_flip_p(differences) == pytest.approx(exact, abs=tolerance)


def test_nothing_to_tell_apart():
    assert sign_flip_p(np.zeros(7)) == 1.0
    assert sign_flip_p([1.0, -1.0]) == 1.0
    assert sign_flip_p([0.0, 0.0, 2.0]) == 1.0
    with pytest.raises(ValueError, match="finite"):
        sign_flip_p([1.0, np.nan])


def test_under_no_difference_p_values_are_uniform():
    rng = np.random.default_rng(0)
    found = np.asarray([sign_flip_p(rng.normal(size=15)) for _ in range(400)])
    assert stats.kstest(found, "uniform").pvalue > 0.01


def _rejected_by_holm(p_values, level):
    """The step-down procedure as it is written: smallest first, at level / remaining; stop at the first that stands."""
    rejected = set()
    left = dict(p_values)
    while left:
        name = min(left, key=left.__getitem__)
        if left[name] > level / len(left):
            break
        rejected.add(name)
        del left[name]
    return rejected


def test_paired_tests_give_differences_of_rows_and_holm_within_the_family():
    rng = np.random.default_rng(2)
    rows = {str(group): float(rng.integers(5, 60)) for group in range(12)}
    scores = {
        system: {group: float(np.clip(rng.normal(0.5 + 0.03 * number, 0.05), 0, 1)) for group in rows}
        for number, system in enumerate(["a", "b", "c", "d"])
    }
    found = paired_tests({("d", other): (scores["d"], scores[other]) for other in ("a", "b", "c")}, rows)
    assert [(c.first, c.second) for c in found] == [("d", "a"), ("d", "b"), ("d", "c")]
    total = sum(rows.values())
    for c in found:
        differences = [rows[g] * (scores[c.first][g] - scores[c.second][g]) for g in rows]
        assert c.difference == pytest.approx(sum(differences) / total)
        assert c.interval.low <= c.difference <= c.interval.high
        assert c.p_value == pytest.approx(_enumerated(differences), abs=1e-12)
    raw = {c.second: c.p_value for c in found}
    for level in np.linspace(0.0005, 0.9995, 300):
        assert {c.second for c in found if c.adjusted <= level + 1e-12} == _rejected_by_holm(raw, level + 1e-12)


def test_verdicts_and_refusal():
    rows = {str(group): 10.0 for group in range(10)}
    high, low = dict.fromkeys(rows, 0.8), dict.fromkeys(rows, 0.6)
    pairs = {("high", "low"): (high, low), ("low", "high"): (low, high), ("high", "same"): (high, dict(high))}
    assert [c.verdict() for c in paired_tests(pairs, rows)] == ["better", "worse", "no difference shown"]
    with pytest.raises(ValueError, match=r"first system has no score of group '3'"):
        paired_tests({("short", "low"): ({"1": 0.5}, low)}, {"1": 1.0, "3": 1.0})


def test_a_difference_that_one_draw_of_labels_turns_round_is_not_shown():
    """Every unit agrees, so that p is the smallest there is; the two draws of labels do not."""
    rows = {str(group): 10.0 for group in range(10)}
    first = [[dict.fromkeys(rows, 1.0), dict.fromkeys(rows, 0.5)]]
    second = [[dict.fromkeys(rows, 0.5), dict.fromkeys(rows, 0.6)]]
    (found,) = paired_tests({("first", "second"): (first, second)}, rows)
    assert found.difference == pytest.approx(0.2) and found.adjusted == pytest.approx(2.0**-9)
    assert (found.interval.low, found.interval.high) == pytest.approx((-0.1, 0.5))
    assert found.verdict() == "no difference shown"


@pytest.mark.parametrize(
    ("groups", "comparisons", "told"), [(5, 1, False), (6, 1, True), (6, 2, False), (10, 25, True)]
)
def test_too_few_speakers_cannot_tell(groups: int, comparisons: int, told: bool) -> None:
    """The most extreme data there are: one system right everywhere, the others wrong everywhere."""
    rows = {str(group): 10.0 for group in range(groups)}
    right, wrong = dict.fromkeys(rows, 1.0), dict.fromkeys(rows, 0.0)
    found = paired_tests({("right", f"wrong {i}"): (right, wrong) for i in range(comparisons)}, rows)
    assert min(c.p_value for c in found) == pytest.approx(2.0 ** (1 - groups))
    assert (min(c.adjusted for c in found) <= 0.05) is told
    assert {c.verdict() for c in found} == {"better" if told else f"cannot be told with {groups} speakers"}


def test_recalls_by_class_are_compared_in_unweighted_average_recall():
    """Difference by scikit-learn; interval by resamples of the groups' confusion matrices; p by every sign."""
    rng = np.random.default_rng(5)
    y, groups = rng.choice(3, 200, p=(0.7, 0.2, 0.1)), np.arange(200) % 9
    y[groups == 4] = 0  # a group without two of the classes
    guesses = {name: np.where(rng.random(200) < share, y, 0) for name, share in (("a", 0.6), ("b", 0.3))}
    rows = {str(g): tuple(np.bincount(y[groups == g], minlength=3).tolist()) for g in range(9)}
    recalls = {
        name: {
            str(g): tuple(
                float((guess == y)[(groups == g) & (y == k)].mean()) if rows[str(g)][k] else float("nan")
                for k in range(3)
            )
            for g in range(9)
        }
        for name, guess in guesses.items()
    }
    (found,) = paired_tests({("a", "b"): (recalls["a"], recalls["b"])}, rows)
    uar = [balanced_accuracy_score(y, guess) for guess in guesses.values()]
    assert found.difference == pytest.approx(uar[0] - uar[1])
    assert found.difference != pytest.approx(
        accuracy_score(y, guesses["a"]) - accuracy_score(y, guesses["b"]), abs=0.05
    )
    sums = [confusion_sums(y, guess, 3, groups) for guess in guesses.values()]
    peer = statistic_difference(*sums, unweighted_average_recall)
    np.testing.assert_allclose((found.interval.low, found.interval.high), (peer.low, peer.high), rtol=1e-12)
    hit = ((guesses["a"] == y).astype(float) - (guesses["b"] == y)) / np.bincount(y)[y]
    assert found.p_value == pytest.approx(_enumerated([hit[groups == g].sum() for g in range(9)]), abs=1e-12)


def test_seeds_and_draws_that_are_given_apart_are_crossed_with_groups():
    """Beside a loop over resamples, drawn by the same generator; the second system has no seed."""
    rng = np.random.default_rng(6)
    rows = {str(group): float(rng.integers(5, 40)) for group in range(7)}
    first = [[{g: float(rng.uniform(0.3, 0.9)) for g in rows} for _ in range(3)] for _ in range(2)]
    second = [[{g: float(rng.uniform(0.3, 0.7)) for g in rows} for _ in range(3)]]
    (found,) = paired_tests({("a", "b"): (first, second)}, rows, Resampling(60))
    generator = np.random.Generator(np.random.PCG64(127))
    counts = [generator.multinomial(n, np.full(n, 1 / n), size=60) for n in (2, 3, 7)]

    def value(seeds, draws, groups):
        """Mean over drawn seeds and draws of the accuracy over drawn groups, first minus second."""
        total = sum(n * size for n, size in zip(groups, rows.values(), strict=True))

        def accuracy(scores):
            return sum(n * rows[g] * scores[g] for n, g in zip(groups, rows, strict=True)) / total

        one = sum(s * d * accuracy(first[i][j]) for i, s in enumerate(seeds) for j, d in enumerate(draws)) / 6
        return one - sum(d * accuracy(second[0][j]) for j, d in enumerate(draws)) / 3

    values = [value(*drawn) for drawn in zip(*counts, strict=True)]
    np.testing.assert_allclose(
        (found.difference, found.interval.low, found.interval.high),
        (value([1, 1], [1, 1, 1], [1] * 7), *np.quantile(values, [0.025, 0.975])),
    )
    means = {g: np.mean([d[g] for s in first for d in s]) - np.mean([d[g] for d in second[0]]) for g in rows}
    assert found.p_value == pytest.approx(_enumerated([means[g] * rows[g] for g in rows]), abs=1e-12)
