"""Linear probes against scikit-learn, and what they refuse."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_info, threadpool_limits

from conclugen.evaluation.config import ProbeConfig
from conclugen.evaluation.features import Scaling
from conclugen.evaluation.judge import evaluate
from conclugen.evaluation.probe import fit_classes, fit_labels, fit_values
from conclugen.evaluation.protocol import Fold, Protocol, Target, group_folds


def clusters(rows=120, width=10, classes=3, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    X = rng.normal(0, spread, (rows, width)) + np.eye(classes, width)[y] * 2 + 5
    return X, y, rng.integers(0, 12, rows)


@pytest.mark.parametrize(("rows", "width"), [(120, 10), (60, 300)])
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_one_strength_is_scikit_learn_on_standardised_features(rows, width, strength):
    X, y, groups = clusters(rows, width)
    fitted = fit_classes(X, y, groups, 3, strengths=[strength])
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    expected = LogisticRegression(C=strength, tol=1e-9, max_iter=10_000).fit(scaled, y)
    np.testing.assert_allclose(fitted.probabilities(X), expected.predict_proba(scaled), atol=1e-4)
    np.testing.assert_allclose(fitted.model.weight, expected.coef_.T, atol=1e-4)


def test_class_weights_are_scikit_learns():
    X, y, groups = clusters()
    fitted = fit_classes(X, y, groups, 3, strengths=[0.1], class_weights=(4, 1, 0.5), scaling=Scaling.none(10))
    expected = LogisticRegression(C=0.1, tol=1e-9, max_iter=10_000, class_weight={0: 4, 1: 1, 2: 0.5}).fit(X, y)
    np.testing.assert_allclose(fitted.probabilities(X), expected.predict_proba(X), atol=1e-4)


def test_strength_is_chosen_on_held_out_groups_and_refitted_on_all():
    X, y, groups = clusters(width=80, spread=3)
    strengths = (1e-4, 1e-2, 1.0)
    fitted = fit_classes(X, y, groups, 3, strengths=strengths)
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    fold = np.searchsorted(np.unique(groups), groups) % 3
    for strength in strengths:
        hits = []
        for held_out in range(3):
            kept, judged = fold != held_out, fold == held_out
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(scaled[kept], y[kept])
            hits.append(model.score(scaled[judged], y[judged]))
        assert fitted.scores[strength] == pytest.approx(np.mean(hits))
    assert fitted.strength == max(strengths, key=lambda c: (fitted.scores[c], -c))
    final = LogisticRegression(C=fitted.strength, tol=1e-9, max_iter=10_000).fit(scaled, y)
    np.testing.assert_allclose(fitted.probabilities(X), final.predict_proba(scaled), atol=1e-3)


def test_an_inner_fold_may_lack_a_class():
    # class 2 lives in one group only: the fold that holds it out trains on two classes
    X = np.random.default_rng(0).normal(size=(30, 4))
    groups = np.repeat(np.arange(6), 5)
    y = np.where(groups == 0, 2, np.arange(30) % 2)
    assert fit_classes(X, y, groups, 3).probabilities(X).shape == (30, 3)


def test_absent_class_is_never_predicted_when_allowed():
    X, y, groups = clusters()
    fitted = fit_classes(X, y, groups, 5, allow_absent_classes=True)
    assert fitted.probabilities(X)[:, 3:].max() == 0
    np.testing.assert_allclose(fitted.probabilities(X).sum(axis=1), 1)


@pytest.mark.parametrize("strength", [1e-2, 1.0])
def test_labels_are_one_weighted_regression_each(strength):
    X, _, groups = clusters()
    rng = np.random.default_rng(5)
    Y = (X[:, :3] + rng.normal(0, 1, (120, 3)) > (5, 6, 7)).astype(int)
    weights = (1.0, 2.5, 6.0)
    fitted = fit_labels(X, Y, groups, positive_weights=weights, strengths=[strength], scaling=Scaling.none(10))
    for label in range(3):
        reference = LogisticRegression(C=strength, tol=1e-9, max_iter=10_000, class_weight={0: 1.0, 1: weights[label]})
        expected = reference.fit(X, Y[:, label]).predict_proba(X)[:, 1]
        np.testing.assert_allclose(fitted.probabilities(X)[:, label], expected, atol=1e-4)
    np.testing.assert_array_equal(fitted.predict(X), fitted.probabilities(X) > 0.5)


def test_labels_choose_the_strength_with_the_lowest_held_out_loss():
    X, _, groups = clusters(width=60)
    Y = (X[:, :2] > 5).astype(int)
    fitted = fit_labels(X, Y, groups)
    assert fitted.strength == max(fitted.scores, key=lambda c: fitted.scores[c])
    assert len(set(fitted.scores.values())) > 1


@pytest.mark.parametrize(("rows", "width"), [(120, 10), (60, 200)])
def test_values_are_ridge_regression(rows, width):
    X, _, groups = clusters(rows, width)
    y = X[:, 0] * 2 + np.random.default_rng(1).normal(size=rows)
    fitted = fit_values(X, y, groups, strengths=[0.02], scaling=Scaling.none(width))
    expected = Ridge(alpha=1 / 0.02, solver="cholesky").fit(X, y)
    np.testing.assert_allclose(fitted.predict(X)[:, 0], expected.predict(X), rtol=1e-7)
    chosen = fit_values(X, y, groups)
    assert chosen.strength == max(chosen.scores, key=lambda c: chosen.scores[c])


def test_standardisation_sees_training_rows_only():
    X, y, groups = clusters()
    far = np.concatenate([X, X[:5] * 1000])
    labels, speakers = np.append(y, y[:5]), np.append(groups, np.full(5, 99))
    alone = fit_classes(X, y, groups, 3)
    for scaling in ("labelled", "training"):
        fold = Fold(0, np.arange(120), np.arange(120, 125), labelled={1.0: (np.arange(120),)})
        target = Target("e", "class", labels, ("a", "b", "c"))
        protocol = Protocol("far", target, speakers, (fold,), ProbeConfig(scaling=scaling))
        (found,) = evaluate(protocol, {"far": far})
        np.testing.assert_array_equal(found.values[0, 120:], alone.predict(X[:5] * 1000))
        assert found.strengths == [[alone.strength]]


def test_constant_columns_do_no_harm():
    X, y, groups = clusters()
    plain = fit_classes(X, y, groups, 3, strengths=[0.1])
    padded = fit_classes(np.column_stack([X, np.full(120, 0.1)]), y, groups, 3, strengths=[0.1])
    np.testing.assert_allclose(padded.model.weight[:10], plain.model.weight, atol=1e-6)
    assert np.abs(padded.model.weight[10]).max() < 1e-9


def test_inner_fold_is_the_position_in_the_sorted_list_of_all_groups():
    np.testing.assert_array_equal(group_folds([7, 3, 9, 3], 3), [1, 0, 2, 0])
    np.testing.assert_array_equal(group_folds([7, 3, 9, 3], 2, all_groups=[1, 3, 7, 9]), [0, 1, 1, 1])


def test_what_is_judged_follows_the_kind_of_label():
    X, y, groups = clusters()
    classes, labels = fit_classes(X, y, groups, 3), fit_labels(X, np.eye(3)[y], groups, positive_weights=(2, 2, 2))
    values = fit_values(X, X[:, 0], groups)
    np.testing.assert_array_equal(classes.judged(X), classes.probabilities(X).argmax(axis=1))
    np.testing.assert_array_equal(labels.judged(X), labels.probabilities(X))
    np.testing.assert_array_equal(values.judged(X), values.predict(X)[:, 0])
    assert np.corrcoef(values.judged(X), X[:, 0])[0, 1] > 0.99


def refuse(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_refusals_name_what_is_wrong():
    X, y, groups = clusters()
    holed = X.copy()
    holed[17, 3] = np.nan
    names = ("neutral", "happy", "sad", "angry")
    refuse(
        r"1 of 120 rows hold NaN or infinity, the first at row 17, column 3", lambda: fit_classes(holed, y, groups, 3)
    )
    refuse(r"no row of class 'angry' \(3\)", lambda: fit_classes(X, y, groups, 4, names=names))
    refuse(
        r"all 40 rows are of class 'happy' \(1\)",
        lambda: fit_classes(X[y == 1], y[y == 1], groups[y == 1], 4, names=names),
    )
    refuse("leave 1 of 3 inner folds empty", lambda: fit_classes(X, y, groups % 2, 3))
    refuse("2 rows, expected 120", lambda: fit_classes(X, y, groups[:2], 3))
    refuse("-1 marks a missing label", lambda: fit_classes(X, np.where(y == 0, -1, y), groups, 3))
    refuse("class_weights: 2 given for 3 classes", lambda: fit_classes(X, y, groups, 3, class_weights=(1, 2)))
    refuse("strengths: expected positive", lambda: fit_classes(X, y, groups, 3, strengths=[0]))
    never = np.column_stack([y == 0, np.zeros(120)])
    refuse(r"label 'b' \(1\) is never set", lambda: fit_labels(X, never, groups, names=("a", "b")))
    refuse("must be 0 or 1", lambda: fit_labels(X, X, groups))
    refuse("width 9, the probe was fitted on width 10", lambda: fit_classes(X, y, groups, 3).predict(X[:, :9]))
    refuse("not among the 2 training groups", lambda: fit_classes(X, y, groups, 3, all_groups=[1, 2]))


def test_a_wide_path_over_strengths_asks_for_the_loss_seldom(monkeypatch):
    """16 fits, each from the one before and on no more columns than rows."""
    import scipy.optimize

    asked = []

    def spy(*arguments, **named):
        result = minimize(*arguments, **named)
        asked.append((result.nfev, result.x.size))
        return result

    minimize = scipy.optimize.minimize
    monkeypatch.setattr(scipy.optimize, "minimize", spy)
    X, y, groups = clusters(600, 1500, 8)
    fit_classes(X, y, groups, 8)
    assert len(asked) == 16 and sum(times for times, _ in asked) < 400
    assert max(unknowns for _, unknowns in asked) <= 600 * 8


def test_small_problems_are_solved_by_one_thread(monkeypatch):
    """Two that wait for each other take several times as long on a busy machine."""
    import scipy.optimize

    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    def spy(function, seen):
        def call(*arguments, **named):
            seen.append(threads())
            return function(*arguments, **named)

        return call

    met = {"minimize": [], "eigh": []}
    monkeypatch.setattr(scipy.optimize, "minimize", spy(scipy.optimize.minimize, met["minimize"]))
    monkeypatch.setattr(np.linalg, "eigh", spy(np.linalg.eigh, met["eigh"]))
    X, y, groups = clusters()
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        fit_classes(X, y, groups, 3, strengths=[0.1])
        assert met == {"minimize": [{1}], "eigh": [{1}]} and threads() == before == {2}
