"""Scores against scikit-learn, SciPy and closed forms."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from conclugen.evaluation.metrics import confusion_matrix, continuous, multi_label, sentiment, single_label


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_single_label_agrees_with_scikit_learn(rng):
    target, predicted = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    scores = single_label(target, predicted, 5)
    assert scores["accuracy"] == pytest.approx(reference.accuracy_score(target, predicted))
    assert scores["uar"] == pytest.approx(reference.balanced_accuracy_score(target, predicted))
    np.testing.assert_array_equal(confusion_matrix(target, predicted, 5), reference.confusion_matrix(target, predicted))
    for average in ("weighted", "macro"):
        expected = reference.precision_recall_fscore_support(target, predicted, average=average)[:3]
        found = [scores[f"{name}_{average}"] for name in ("precision", "recall", "f1")]
        np.testing.assert_allclose(found, expected)
    expected = reference.precision_recall_fscore_support(target, predicted)[:3]
    for name, wanted in zip(("precision", "recall", "f1"), expected, strict=True):
        np.testing.assert_allclose([scores[f"{name}/{k}"] for k in range(5)], wanted)


def test_weighted_recall_is_plain_accuracy(rng):
    scores = single_label(rng.integers(0, 4, 99), rng.integers(0, 4, 99), 4)
    assert scores["recall_weighted"] == pytest.approx(scores["accuracy"])


def test_absent_and_unpredicted_classes_are_told_apart():
    # class 1 has rows but is never predicted; 2 is predicted without rows; 3 neither
    scores = single_label([0, 0, 1, 1], [0, 0, 0, 2], 4, names=("a", "b", "c", "d"))
    found = [[scores.get(f"{name}/{k}", np.nan) for k in "abcd"] for name in ("precision", "recall", "f1")]
    np.testing.assert_allclose(found, [[2 / 3, 0, 0, np.nan], [1, 0, np.nan, np.nan], [0.8, 0, np.nan, np.nan]])
    assert scores["uar"] == 0.5
    assert scores["f1_macro"] == pytest.approx(0.4)
    assert np.isfinite(list(scores.values())).all()


@pytest.mark.parametrize(
    ("target", "predicted", "message"),
    [
        ([0, -1], [0, 1], "-1 marks a missing label"),
        ([0, 2], [0, 1], r"outside 0\.\.1, the first at row 1 \(2\)"),
        ([0, 1], [0], "predicted: 1 rows, expected 2"),
        ([0.5, 1], [0, 1], "whole numbers"),
        (np.zeros(0, int), np.zeros(0, int), "no rows"),
    ],
)
def test_single_label_refuses(target, predicted, message):
    with pytest.raises(ValueError, match=message):
        single_label(target, predicted, 2)


def test_multi_label_agrees_with_scikit_learn_label_by_label(rng):
    target, probability = rng.integers(0, 2, (200, 4)), rng.random((200, 4))
    scores = multi_label(target, probability, threshold=0.6)
    guess = probability > 0.6
    accuracy = [reference.accuracy_score(target[:, i], guess[:, i]) for i in range(4)]
    np.testing.assert_allclose([scores[f"accuracy/{i}"] for i in range(4)], accuracy)
    assert scores["accuracy_weighted"] == pytest.approx(np.average(accuracy, weights=target.sum(axis=0)))
    expected = reference.precision_recall_fscore_support(target, guess, average="weighted")[:3]
    found = [scores[f"{name}_weighted"] for name in ("precision", "recall", "f1")]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose([scores[f"f1/{i}"] for i in range(4)], reference.f1_score(target, guess, average=None))


def test_multi_label_weighted_accuracy_by_hand():
    # label 0: 3 positives, right in 2 of 4 rows; label 1: 1 positive, right in 4 of 4; threshold is not included
    target = [[1, 0], [1, 0], [1, 0], [0, 1]]
    probability = [[0.9, 0.1], [0.5, 0.2], [0.9, 0.3], [0.6, 0.9]]
    assert multi_label(target, probability)["accuracy_weighted"] == pytest.approx((3 * 0.5 + 1 * 1.0) / 4)


def test_multi_label_without_any_positive_is_undefined_not_zero():
    assert np.isnan(multi_label([[0], [0]], [[0.1], [0.9]])["accuracy_weighted"])


def test_multi_label_refuses_intensities():
    with pytest.raises(ValueError, match=r"must be 0 or 1, found 0\.33"):
        multi_label([[0.33]], [[0.5]])


def test_continuous_agrees_with_scipy_and_the_definition(rng):
    target = rng.normal(1, 2, 150)
    predicted = 0.6 * target + rng.normal(0, 1, 150) - 0.4
    scores = continuous(target, predicted)
    assert scores["mae"] == pytest.approx(reference.mean_absolute_error(target, predicted))
    pearson = stats.pearsonr(target, predicted).statistic
    assert scores["pearson"] == pytest.approx(pearson)
    spread = target.std() * predicted.std()
    concordance = 2 * pearson * spread / (target.var() + predicted.var() + (target.mean() - predicted.mean()) ** 2)
    assert scores["concordance"] == pytest.approx(concordance)


def test_concordance_punishes_an_offset_where_pearson_does_not():
    scores = continuous([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    assert scores["pearson"] == pytest.approx(1)
    assert scores["concordance"] == pytest.approx(2 * (2 / 3) / (4 / 3 + 1))


def test_constant_prediction_has_no_correlation():
    scores = continuous([0.0, 1.0], [0.5, 0.5])
    assert np.isnan(scores["pearson"])
    assert scores["concordance"] == 0


def test_sentiment_scores_by_hand():
    target = [-3.0, -0.4, 0.0, 0.0, 1.6, 2.4]
    predicted = [-3.9, 0.2, -0.1, 0.3, 2.2, -0.5]
    scores = sentiment(target, predicted)
    # rounded: -3/-3 hit, 0/0 hit, 0/0 hit, 0/0 hit, 2/2 hit, 2/0 miss
    assert scores["accuracy7"] == pytest.approx(5 / 6)
    # non-negative: N/N, N/P, P/N, P/P, P/P, P/N
    assert scores["accuracy2_nonnegative"] == pytest.approx(3 / 6)
    assert scores["f1_nonnegative"] == pytest.approx(
        reference.f1_score([0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], average="weighted")
    )
    # without the true zeros: N/N, N/P, P/P, P/N
    assert scores["accuracy2_positive"] == pytest.approx(2 / 4)
    assert scores["f1_positive"] == pytest.approx(reference.f1_score([0, 0, 1, 1], [0, 1, 1, 0], average="weighted"))


def test_sentiment_of_a_predicted_zero_is_not_positive():
    assert sentiment([1.0, -1.0], [0.0, -1.0])["accuracy2_positive"] == 0.5
    assert sentiment([1.0, -1.0], [0.0, -1.0])["accuracy2_nonnegative"] == 1.0
