"""Baselines beside plain scikit-learn: balanced blocks in closed form, choices by inner folds, classifiers."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import SVC

from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import CHEAP_BASELINES, ComparisonConfig, ProbeConfig
from conclugen.evaluation.judge import compare, evaluate, merge_folds, raw_baselines, score, strongest_raw
from conclugen.evaluation.protocol import Fold, Protocol, Target, group_folds

CLASSES = ("a", "b", "c")
ROWS, SPEAKERS = 240, 12
PENALTIES = (1e-2, 1.0)


@pytest.fixture(scope="module")
def made():
    """A narrow modality that carries the label, a wide one that hardly does; and a third of the labels."""
    g = np.random.default_rng(5)
    y = g.integers(0, 3, ROWS)
    speaker = np.arange(ROWS) % SPEAKERS
    raw = {
        "video": np.eye(3, 4)[y] * 1.5 + g.normal(size=(ROWS, 4)),
        "audio": 0.3 * np.eye(3, 40)[y] + g.normal(size=(ROWS, 40)) * g.uniform(0.5, 3, 40) + 7,
    }
    train, test = np.flatnonzero(speaker < 8), np.flatnonzero(speaker >= 8)
    labelled = np.sort(np.concatenate([g.permutation(train[y[train] == c])[:18] for c in range(3)]))
    fold = Fold(0, train, test, labelled={0.3: (labelled,)})
    protocol = Protocol("made", Target("e", "class", y, CLASSES), speaker, (fold,), ProbeConfig(PENALTIES))
    return protocol, raw, labelled


def scaled(raw, rows):
    return {m: StandardScaler().fit(x[rows]).transform(x) for m, x in raw.items()}


def inner(protocol, labelled):
    """Position of a row's speaker among the training speakers, modulo three."""
    listed = sorted(set(protocol.groups[protocol.folds[0].train_rows]))
    return np.array([listed.index(speaker) % 3 for speaker in protocol.groups[labelled]])


def by_sklearn(X, protocol, labelled, penalties=PENALTIES):
    """Score on inner folds, and predictions, of a logistic regression whose C they choose."""
    y, fold, best = protocol.target.values, inner(protocol, labelled), (-1.0, None)
    for C in penalties:
        held = []
        for number in range(3):
            fit, judge = labelled[fold != number], labelled[fold == number]
            model = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(X[fit], y[fit])
            held.append((model.predict(X[judge]) == y[judge]).mean())
        if np.mean(held) > best[0]:
            best = (np.mean(held), C)
    model = LogisticRegression(C=best[1], tol=1e-8, max_iter=5000).fit(X[labelled], y[labelled])
    return best[0], model.predict(X[protocol.folds[0].test_rows]), model, best[1]


def judged(protocol, system, method="probe"):
    (found,) = evaluate(protocol, {"s": system}, (method,))
    return found, found.values[0, protocol.folds[0].test_rows]


def test_scales_in_closed_form():
    raw = {"video": np.ones((2, 2)), "audio": np.ones((2, 6)), "text": np.ones((2, 1))}
    columns, factors = Blocks.plain(raw).columns("plain")
    assert columns.tolist() == list(range(9)) and (factors == 1).all()  # to the last bit
    _, factors = Blocks.balanced(raw).columns("balanced")
    np.testing.assert_allclose(factors, np.repeat([np.sqrt(3 / 2), np.sqrt(3 / 6), np.sqrt(3)], [2, 6, 1]))
    assert (factors**2).sum() == pytest.approx(9)  # the total variance stays
    columns, factors = Blocks.single(raw).columns("audio")
    assert columns.tolist() == list(range(2, 8)) and (factors == 1).all()
    weighted = Blocks.weighted(raw)
    assert list(weighted.choices) == [
        *("plain", "balanced", "video leading", "audio leading", "text leading"),
        *("video alone", "audio alone", "text alone"),
    ]
    alike = Blocks.weighted({"video": np.ones((2, 3)), "audio": np.ones((2, 3))})
    assert "balanced" not in alike.choices  # equally wide blocks are balanced as they are
    _, factors = weighted.columns("text leading")
    np.testing.assert_allclose([(factors[s] ** 2).sum() / 9 for s in np.s_[:2, 2:8, 8:]], [0.1, 0.1, 0.8])
    columns, factors = Blocks.with_raw(np.ones((2, 5)), raw).columns("halves")
    shares = [(factors[s] ** 2).sum() / 14 for s in np.s_[:5, 5:7, 7:13, 13:]]
    np.testing.assert_allclose(shares, [1 / 2, 1 / 6, 1 / 6, 1 / 6])


@pytest.mark.parametrize(
    ("arrays", "choices", "message"),
    [
        ({}, {"a": {}}, "must be one or more, of equally many rows"),
        ({"v": np.ones((2, 1)), "a": np.ones((3, 1))}, {"x": {"v": 1.0}}, r"equally many rows, got \{'v': 2, 'a': 3\}"),
        ({"v": np.ones((2, 1))}, {}, "at least one choice"),
        ({"v": np.ones((2, 1))}, {"x": {"w": 1.0}}, "choice 'x': weights must be above 0 and of v; got 1.0 of 'w'"),
        ({"v": np.ones((2, 1))}, {"x": {"v": 0.0}}, "got 0.0 of 'v'"),
    ],
)
def test_blocks_refuse(arrays, choices, message):
    with pytest.raises(ValueError, match=message):
        Blocks(arrays, choices)


def test_balanced_blocks_are_what_dividing_by_the_root_of_the_width_gives(made):
    protocol, raw, labelled = made
    X = scaled(raw, protocol.folds[0].train_rows)
    divided = np.concatenate([x / np.sqrt(x.shape[1]) for x in X.values()], axis=1) * np.sqrt(44 / 2)
    _, expected, _, strength = by_sklearn(divided, protocol, labelled)
    found, predicted = judged(protocol, Blocks.balanced(raw))
    assert (predicted == expected).all() and found.strengths[0, 0] == strength
    plain = np.concatenate(list(X.values()), axis=1)
    found, predicted = judged(protocol, Blocks.plain(raw))
    assert (predicted == by_sklearn(plain, protocol, labelled)[1]).all()
    assert (predicted != expected).any()  # the scale matters here
    (same,) = evaluate(protocol, {"s": np.concatenate(list(raw.values()), axis=1)})
    np.testing.assert_array_equal(same.values, found.values)
    # Where nothing is standardised the scale is all there is.
    taken = replace(protocol, probe=ProbeConfig(PENALTIES, scaling="none"))
    np.testing.assert_array_equal(judged(taken, Blocks.balanced(X))[1], expected)


@pytest.mark.parametrize("penalties", [PENALTIES, (0.1,)])
def test_the_best_modality_and_weights_are_chosen_on_held_out_training_groups(made, penalties):
    protocol, raw, labelled = made
    protocol = replace(protocol, probe=ProbeConfig(penalties))
    X = scaled(raw, protocol.folds[0].train_rows)
    each = {m: by_sklearn(x, protocol, labelled, penalties) for m, x in X.items()}
    best = max(each, key=lambda m: each[m][0])
    found, predicted = judged(protocol, Blocks.single(raw))
    assert found.choices == (best,) and (predicted == each[best][1]).all()
    assert best == "video" and score(found).choices == {"video": 1}

    v, a = X["video"] / 2, X["audio"] / np.sqrt(40)
    grid = {"plain": np.hstack([2 * v, np.sqrt(40) * a]) / np.sqrt(44)}
    grid["balanced"] = np.hstack([v, a]) / np.sqrt(2)
    grid |= {
        f"{m} leading": np.hstack([np.sqrt(s) * v, np.sqrt(1 - s) * a]) for m, s in (("video", 0.8), ("audio", 0.2))
    }
    each = {name: by_sklearn(x * np.sqrt(44), protocol, labelled, penalties) for name, x in grid.items()}
    each |= {f"{m} alone": by_sklearn(x, protocol, labelled, penalties) for m, x in X.items()}
    best = max(each, key=lambda name: each[name][0])
    found, predicted = judged(protocol, Blocks.weighted(raw))
    assert found.choices == (best,) and (predicted == each[best][1]).all()
    both = merge_folds(replace(protocol, folds=protocol.folds), [found])
    assert both.choices == (best,)


def test_late_fusion_is_the_mean_of_log_probabilities(made):
    protocol, raw, labelled = made
    X, test = scaled(raw, protocol.folds[0].train_rows), protocol.folds[0].test_rows
    models = {m: by_sklearn(x, protocol, labelled)[2] for m, x in X.items()}
    mean = np.mean([log_softmax(models[m].decision_function(x[test]), axis=1) for m, x in X.items()], axis=0)
    assert (judged(protocol, Blocks.balanced(raw), "late_fusion")[1] == mean.argmax(axis=1)).all()


def test_classifiers_are_those_of_scikit_learn(made):
    protocol, raw, labelled = made
    fold, y = protocol.folds[0], protocol.target.values
    X = scaled(raw, fold.train_rows)
    B = np.concatenate([x / np.sqrt(x.shape[1]) for x in X.values()], axis=1) * np.sqrt(22)
    fit, test = (B[labelled], y[labelled]), B[fold.test_rows]
    np.testing.assert_array_equal(inner(protocol, labelled), group_folds(y * 0 + protocol.groups, 3)[labelled])
    folds = PredefinedSplit(inner(protocol, labelled))

    def searched(make, grid):
        means = [
            np.mean([make(c).fit(fit[0][a], fit[1][a]).score(fit[0][b], fit[1][b]) for a, b in folds.split()])
            for c in grid
        ]
        return make(grid[int(np.argmax(means))]).fit(*fit).predict(test)

    C = by_sklearn(B, protocol, labelled)[3]
    rest = np.setdiff1d(fold.train_rows, labelled)
    known = np.concatenate([y[labelled], np.full(len(rest), -1)])
    taught = SelfTrainingClassifier(LogisticRegression(C=C, max_iter=2000), threshold=0.75)
    expected = {
        "shrinkage_lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(*fit).predict(test),
        "rbf_machine": searched(lambda c: SVC(C=c), (0.1, 1.0, 10.0, 100.0)),
        "boosted_trees": HistGradientBoostingClassifier(random_state=127).fit(*fit).predict(test),
        "self_training": taught.fit(np.concatenate([fit[0], B[rest]]), known).predict(test),
    }
    for name, predicted in expected.items():
        assert (judged(protocol, Blocks.balanced(raw), name)[1] == predicted).all(), name
    whole = replace(fold, labelled={1.0: (fold.train_rows,)})
    found = judged(replace(protocol, folds=(whole,)), Blocks.balanced(raw), "self_training")
    probe = judged(replace(protocol, folds=(whole,)), Blocks.balanced(raw))
    assert (found[1] == probe[1]).mean() > 0.98 and found[0].strengths == probe[0].strengths


def test_classifiers_weigh_classes_and_select_by_recall_as_the_probe_does():
    """Five rows in six are of one class; scikit-learn, told so itself, predicts the same."""
    g = np.random.default_rng(1)
    y = np.where(g.random(ROWS) < 0.84, 0, g.integers(1, 3, ROWS))
    raw = {"video": np.eye(3, 4)[y] + g.normal(size=(ROWS, 4)), "audio": np.eye(3, 8)[y] + g.normal(size=(ROWS, 8))}
    speaker = np.arange(ROWS) % SPEAKERS
    train, test = np.flatnonzero(speaker < 8), np.flatnonzero(speaker >= 8)
    labelled = train[train % 5 != 0]
    fold = Fold(0, train, test, labelled={0.5: (labelled,)})
    probe = ProbeConfig(PENALTIES, class_weights="balanced", select_by="uar")
    protocol = Protocol("made", Target("e", "class", y, CLASSES), speaker, (fold,), probe)
    B = np.concatenate([x / np.sqrt(x.shape[1]) for x in scaled(raw, train).values()], axis=1) * np.sqrt(6)
    folds = PredefinedSplit(inner(protocol, labelled))

    def recall(make, grid):
        return [
            np.mean([
                balanced_accuracy_score(
                    y[labelled[b]], make(c).fit(B[labelled[a]], y[labelled[a]]).predict(B[labelled[b]])
                )
                for a, b in folds.split()
            ])
            for c in grid
        ]  # fmt: skip

    grid = (0.1, 1.0, 10.0, 100.0)
    strength = grid[int(np.argmax(recall(lambda c: SVC(C=c, class_weight="balanced"), grid)))]
    C = judged(protocol, Blocks.balanced(raw), "self_training")[0].strengths[0, 0]
    rest = np.setdiff1d(train, labelled)
    taught = SelfTrainingClassifier(
        LogisticRegression(C=C, max_iter=2000, class_weight="balanced"), threshold=0.75
    ).fit(np.concatenate([B[labelled], B[rest]]), np.concatenate([y[labelled], np.full(len(rest), -1)]))
    fitted = {
        "rbf_machine": SVC(C=strength, class_weight="balanced"),
        "shrinkage_lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[1 / 3] * 3),
        "boosted_trees": HistGradientBoostingClassifier(random_state=127, class_weight="balanced"),
    }
    expected = {name: model.fit(B[labelled], y[labelled]).predict(B[test]) for name, model in fitted.items()}
    expected["self_training"] = taught.predict(B[test])
    plain = replace(protocol, probe=ProbeConfig(PENALTIES))
    for name, predicted in expected.items():
        assert (judged(protocol, Blocks.balanced(raw), name)[1] == predicted).all(), name
        assert (judged(plain, Blocks.balanced(raw), name)[1] != predicted).any(), name


def test_a_comparison_names_its_baselines_and_the_strongest_raw_row(made):
    protocol, raw, _ = made
    config = ComparisonConfig(methods=("probe",), fractions=(0.3, 1.0), draws=2)
    found = list(compare(protocol, {"learned": raw["video"]}, config, raw))
    assert list(dict.fromkeys((s.system, s.method) for s in found)) == [
        *(("majority", "majority"), ("learned", "probe"), ("raw", "probe"), ("best single modality", "probe")),
        ("raw balanced", "probe"),
    ]
    best = strongest_raw(found, 0.3, "accuracy")
    raws = [s for s in found if s.fraction == 0.3 and s.system not in ("majority", "learned")]
    assert best is max(raws, key=lambda s: s.scores["accuracy"])
    assert strongest_raw(found[:2], 0.3, "accuracy") is None
    tested = protocol.folds[0].test_rows
    assert sum(best.groups.values()) / 4 == pytest.approx(best.scores["accuracy"]) and len(tested) == 80

    few = replace(config, fractions=(0.3,), draws=1)
    quick = ("late_fusion", "shrinkage_lda", "block_weights")
    rows = [(s.system, s.method) for s in compare(protocol, {}, replace(few, baselines=quick), raw)]
    assert rows == [("raw, block weights chosen", "probe")] + [
        ("raw balanced", m) for m in ("shrinkage_lda", "late_fusion")
    ]
    named = raw_baselines(raw, replace(few, baselines=("supervised",)))
    assert [(list(blocks), methods) for blocks, methods in named] == [(["raw"], ("supervised",))]
    alone = compare(protocol, {}, replace(few, baselines=(*CHEAP_BASELINES, *quick)), {"video": raw["video"]})
    assert [(s.system, s.method) for s in alone] == [
        *(("majority", "majority"), ("raw", "probe"), ("raw", "shrinkage_lda"))
    ]
    assert set(replace(config, baselines=("all",)).wanted) > set(CHEAP_BASELINES)
    with pytest.raises(ValueError, match="lda"):
        ComparisonConfig(baselines=("lda",))


def test_balanced_class_weights_and_selection_by_recall_beside_scikit_learn():
    """Seven rows in eight are of one class; each candidate's recall on held-out speakers is computed here."""
    g = np.random.default_rng(0)
    y = np.where(g.random(360) < 0.86, 0, g.integers(1, 3, 360))
    X = np.eye(3, 12)[y] * 1.2 + g.normal(size=(360, 12))
    speaker = np.arange(360) % 12
    train, test = np.flatnonzero(speaker < 9), np.flatnonzero(speaker >= 9)
    fold = Fold(0, train, test, labelled={1.0: (train,)})
    grid = (1e-4, 1e-2, 1.0)
    Z = StandardScaler().fit(X[train]).transform(X)
    inner_fold = np.searchsorted(np.unique(speaker[train]), speaker[train]) % 3
    whole = len(train) / (3 * np.bincount(y[train]))  # the weights of all labelled rows, in every inner fold
    chosen = {}
    for weights, select_by in (("none", "accuracy"), ("none", "uar"), ("balanced", "accuracy"), ("balanced", "uar")):
        weight = dict(enumerate(whole)) if weights == "balanced" else None
        measure = accuracy_score if select_by == "accuracy" else balanced_accuracy_score
        means = []
        for C in grid:
            held = []
            for number in range(3):
                fit, judge = train[inner_fold != number], train[inner_fold == number]
                model = LogisticRegression(C=C, class_weight=weight, tol=1e-9, max_iter=5000).fit(Z[fit], y[fit])
                held.append(measure(y[judge], model.predict(Z[judge])))
            means.append(np.mean(held))
        C = grid[int(np.argmax(means))]
        model = LogisticRegression(C=C, class_weight="balanced" if weight else None, tol=1e-9, max_iter=5000)
        expected = model.fit(Z[train], y[train]).predict(Z[test])
        probe = ProbeConfig(grid, class_weights=weights, select_by=select_by)
        protocol = Protocol("made", Target("e", "class", y, CLASSES), speaker, (fold,), probe)
        found, predicted = judged(protocol, X)
        assert found.strengths[0, 0] == C and (predicted == expected).all(), (weights, select_by)
        chosen[weights, select_by] = (C, balanced_accuracy_score(y[test], predicted))
        config = ComparisonConfig(
            methods=("probe",), fractions=(1.0,), probe_weights=weights, select_by=select_by, baselines=("constant",)
        )
        plain = replace(protocol, probe=ProbeConfig(grid))
        row = next(s for s in compare(plain, {"s": X}, config) if s.system == "s")
        assert (row.predictions == expected).all()
    assert chosen["balanced", "uar"][1] > chosen["none", "accuracy"][1]
    for bad in ({"probe_weights": "inverse"}, {"select_by": "f1"}):
        with pytest.raises(ValueError, match=r"comparison\.(probe_weights|select_by)"):
            ComparisonConfig(**bad)


@pytest.mark.parametrize("kind", ["multilabel", "continuous"])
def test_labels_and_numbers_have_the_linear_baselines_alone(made, kind):
    protocol, raw, _ = made
    onehot = np.eye(3)[protocol.target.values]
    values = onehot if kind == "multilabel" else onehot[:, 0] + 0.1 * raw["audio"][:, 5]
    protocol = replace(protocol, target=Target("e", kind, values, CLASSES if kind == "multilabel" else ()))
    config = ComparisonConfig(methods=("probe",), fractions=(1.0,), baselines=("all",))
    rows = [(s.system, s.method) for s in compare(protocol, {}, config, raw) if s.system not in ("mean", "median")]
    assert [row for row in rows if row[0] != "frequency"] == [
        ("raw", "probe"),
        ("best single modality", "probe"),
        ("raw, block weights chosen", "probe"),
        ("raw balanced", "probe"),
        ("raw balanced", "late_fusion"),
    ]
    X = scaled(raw, protocol.folds[0].train_rows)
    protocol = protocol.drawn((1.0,), 1, 0)
    parts = [judged(protocol, Blocks.plain({m: x}))[1] for m, x in X.items()]
    if kind == "multilabel":
        odds = np.mean([np.log(part / (1 - part)) for part in parts], axis=0)
        expected = 1 / (1 + np.exp(-odds))
    else:
        expected = np.mean(parts, axis=0)
    np.testing.assert_allclose(judged(protocol, Blocks.balanced(raw), "late_fusion")[1], expected, atol=1e-9)
