"""The judge: what carries the label scores high, noise scores at chance, and leaks are refused."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mean_absolute_error, precision_score

from conclugen.evaluation.config import BASELINES, ComparisonConfig, FineTuneConfig, ProbeConfig
from conclugen.evaluation.judge import compare, evaluate, merge_folds, score, scores
from conclugen.evaluation.probe import fit_classes
from conclugen.evaluation.protocol import Fold, Protocol, Target, group_cross_folds, label_draw

ROWS, GROUPS = 360, 12
LABELLED = ProbeConfig(scaling="labelled", inner_groups="labelled")
QUICK = ComparisonConfig(fractions=(0.2, 1.0), draws=2, fine_tune=FineTuneConfig(epochs=60, batch=64, dropout=0.0))


def make_task(kind: str, sentiment: bool = False) -> tuple[Protocol, dict[str, np.ndarray]]:
    """A label that one system's matrix determines up to noise, and another's has nothing to do with."""
    g = np.random.default_rng(3)
    latent = g.normal(size=(ROWS, 3))
    group = np.arange(ROWS) % GROUPS
    classes, values = {
        "class": (("a", "b", "c"), latent.argmax(axis=1)),
        "multilabel": (("a", "b", "c"), (latent > 0).astype(np.float64)),
        "continuous": ((), latent[:, 0]),
    }[kind]
    rows = {
        part: np.flatnonzero(np.isin(group, groups))
        for part, groups in (("t", range(8)), ("v", (8,)), ("e", (9, 10, 11)))
    }
    target = Target("valence" if kind == "continuous" else "emotion", kind, values, classes, sentiment)  # type: ignore[arg-type]
    task = Protocol("made", target, group, (Fold(0, rows["t"], rows["e"], rows["v"]),), LABELLED)
    telling = np.concatenate([latent + 0.1 * g.normal(size=latent.shape), g.normal(size=(ROWS, 5))], axis=1)
    return task, {"telling": telling, "noise": g.normal(size=(ROWS, 8))}


@pytest.mark.parametrize(
    ("kind", "main", "high", "chance"),
    [
        ("class", "accuracy", 0.8, 0.5),
        pytest.param("multilabel", "accuracy_weighted", 0.8, 0.65, marks=pytest.mark.slow),
        ("continuous", "concordance", 0.9, 0.35),
    ],
)
def test_what_carries_the_label_is_told_from_noise(kind: str, main: str, high: float, chance: float) -> None:
    task, systems = make_task(kind)
    scores = {(s.system, s.method, s.fraction): s for s in compare(task, systems, QUICK)}
    methods = {"probe", "fine_tune"} | ({"neighbours"} if kind == "class" else set())
    assert {method for system, method, _ in scores if system == "telling"} == methods
    for method in methods - {"neighbours"}:
        assert scores["telling", method, 1.0].scores[main] > high, method
        assert scores["noise", method, 1.0].scores[main] < chance, method
    assert len(scores["telling", "probe", 0.2].draws) == 2
    mean = np.mean(scores["telling", "probe", 0.2].draws)
    assert scores["telling", "probe", 0.2].scores[main] == pytest.approx(mean)


def test_constants_that_know_the_training_labels_stand_beside_every_kind_of_label() -> None:
    """Against scikit-learn's dummies, which do not look at the features."""
    quick = replace(QUICK, methods=("probe",), fractions=(1.0,))
    expected = {
        "class": {"majority": DummyClassifier(strategy="most_frequent")},
        "multilabel": {"frequency": DummyClassifier(strategy="most_frequent")},
        "continuous": {"mean": DummyRegressor(strategy="mean"), "median": DummyRegressor(strategy="median")},
    }
    for kind, dummies in expected.items():
        task, systems = make_task(kind, sentiment=True)
        (fold,) = task.folds
        found = {s.system: s for s in compare(task, systems, quick) if s.system in BASELINES}
        assert list(found) == list(dummies)
        x, values = systems["noise"], task.target.values
        true = values[fold.test_rows]
        for name, dummy in dummies.items():
            guess = dummy.fit(x[fold.train_rows], values[fold.train_rows]).predict(x[fold.test_rows])
            scores, intervals = found[name].scores, found[name].intervals
            if kind == "continuous":
                assert scores["mae"] == pytest.approx(mean_absolute_error(true, guess))
                assert scores["accuracy2_nonnegative"] == pytest.approx(((true >= 0) == (guess >= 0)).mean())
                assert scores["concordance"] == 0 and np.isnan(scores["pearson"])
                assert set(intervals) == set(scores) - {"pearson"}
                continue
            of_columns = (true == guess).mean(axis=0)
            assert scores[{"class": "accuracy", "multilabel": "accuracy_macro"}[kind]] == pytest.approx(
                of_columns.mean()
            )
            assert task.target.main_score in intervals


def test_a_class_without_test_rows_loses_no_score_whichever_draws_predict_it() -> None:
    """Of four classes the test rows lack one, which some draws predict and others do not."""
    g = np.random.default_rng(1)
    group = np.repeat(np.arange(12), 20)
    train, test = np.flatnonzero(group < 8), np.flatnonzero(group >= 8)
    target = g.integers(0, 4, len(group))
    target[test] %= 3
    target[train] = np.where((target[train] == 3) & (g.random(len(train)) < 0.75), 0, target[train])
    task = Protocol("made", Target("e", "class", target, tuple("abcd")), group, (Fold(0, train, test),), LABELLED)
    systems = {"noise": g.normal(size=(len(group), 6))}
    few = ComparisonConfig(methods=("probe",), fractions=(0.1,), draws=5)
    (score,) = (s for s in compare(task, systems, few) if s.system == "noise")
    assert score.scores["precision/d"] == 0  # nothing that was called d is d
    assert "recall/d" not in score.scores

    each = {0: [], 1: [], 2: []}
    for draw in range(5):
        rows = label_draw(train, 0.1, few.seed, draw, target[train])
        x, probe_target = systems["noise"], target[rows]
        guess = fit_classes(x[rows], probe_target, group[rows], 4, names=tuple("abcd")).predict(x[test])
        by_sklearn = precision_score(target[test], guess, labels=[0, 1, 2], average=None, zero_division=0)
        for k in each:
            each[k].append(by_sklearn[k])
    for k, name in enumerate("abc"):
        assert score.scores[f"precision/{name}"] == pytest.approx(np.mean(each[k])), name


@pytest.mark.parametrize(("kind", "share"), [("multilabel", 0.1), ("continuous", 0.05)])
def test_a_draw_of_too_few_labels_is_a_hole_with_its_reason_and_the_others_are_scored(kind: str, share: float) -> None:
    """What the probe needs of a draw is counted by hand: every label both set and not, and speakers for 3 folds."""
    g = np.random.default_rng(0)
    group = np.repeat(np.arange(9), 10)
    train, test = np.flatnonzero(group < 6), np.flatnonzero(group >= 6)
    values = g.normal(size=90) if kind == "continuous" else (g.random((90, 2)) < [0.5, 0.15]).astype(np.float64)
    target = Target("e", kind, values, () if kind == "continuous" else ("often", "rarely"))  # type: ignore[arg-type]
    task = Protocol("made", target, group, (Fold(0, train, test),), LABELLED)
    systems = {"noise": g.normal(size=(90, 6))}
    config = ComparisonConfig(methods=("probe",), fractions=(share, 1.0), draws=8)

    learnable = set()
    for draw in range(8):
        rows = label_draw(train, share, config.seed, draw)
        folds = {sorted(set(group[rows])).index(speaker) % 3 for speaker in group[rows]}
        if len(folds) == 3 and (kind == "continuous" or not np.isin(values[rows].sum(axis=0), (0, len(rows))).any()):
            learnable.add(draw)
    few, every = (s for s in compare(task, systems, config) if s.system == "noise")
    assert {failure.draw for failure in few.failures} == set(range(8)) - learnable
    assert 0 < len(learnable) == len(few.draws) < 8
    assert few.scores[target.main_score] == pytest.approx(np.mean(few.draws))
    assert all("inner folds empty" in f.reason or "label 'rarely' (1) is never" in f.reason for f in few.failures)
    assert every.failures == () and len(every.draws) == 1

    (nothing,) = (s for s in compare(task, systems, replace(config, fractions=(0.01,), draws=2)) if s.system == "noise")
    assert (nothing.scores, nothing.draws, len(nothing.failures)) == ({}, (), 2)


def test_a_speaker_on_both_sides_is_refused() -> None:
    task, _ = make_task("class")
    (fold,) = task.folds
    leaky = np.append(fold.train_rows, fold.test_rows[task.groups[fold.test_rows] == 9])
    with pytest.raises(ValueError, match=r"made: 1 group\(s\) are in training and in test \(9\).*--by group"):
        replace(task, folds=(replace(fold, train_rows=leaky),))


def test_a_label_of_two_numbers_is_refused_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    task, systems = make_task("continuous")
    values = task.target.values
    two = replace(task, target=Target("va", "continuous", np.stack([values, -values], axis=1)))
    monkeypatch.setattr("conclugen.evaluation.judge.fit_values", lambda *_: pytest.fail("fitted"))
    with pytest.raises(ValueError, match=r"label 'va': 2 numbers in each row.*a continuous label of its own"):
        list(compare(two, systems, QUICK))


def test_a_view_without_the_label_and_a_published_list_of_another_size_are_refused() -> None:
    task, systems = make_task("class")
    (fold,) = task.folds
    with pytest.raises(ValueError, match="no test row has it"):
        list(compare(replace(task, folds=(replace(fold, test_rows=fold.test_rows[:0]),)), systems, QUICK))
    with pytest.raises(ValueError, match=r"no validation row has it.*data\.validation_view"):
        list(compare(replace(task, folds=(replace(fold, validation_rows=fold.test_rows[:0]),)), systems, QUICK))
    with pytest.raises(ValueError, match="'meld' has 7 weights"):
        list(compare(task, systems, replace(QUICK, class_weights="meld", methods=("fine_tune",))))


def test_shares_of_one_class_are_refused_by_name() -> None:
    task, systems = make_task("class")
    (fold,) = task.folds
    values = task.target.values
    only = fold.test_rows[values[fold.test_rows] == 1]
    with pytest.raises(ValueError, match=rf"all {len(only)} test rows are 'b'"):
        list(compare(replace(task, folds=(replace(fold, test_rows=only),)), systems, QUICK))
    without = fold.train_rows[values[fold.train_rows] != 2]
    with pytest.raises(ValueError, match=r"no row of class 'c' \(2\)"):
        list(compare(replace(task, folds=(replace(fold, train_rows=without),)), systems, QUICK))


def test_neighbours_alone_are_refused_for_what_is_no_class() -> None:
    task, systems = make_task("continuous")
    with pytest.raises(
        ValueError, match=r"methods: neighbours vote on classes only, and label 'valence' is continuous"
    ):
        list(compare(task, systems, replace(QUICK, methods=("neighbours",))))


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("methods", ("prob",), "did you mean 'probe'"),
        ("class_weights", "medl", "did you mean 'meld'"),
        ("fractions", (1.5,), "1.5"),
    ],
)
def test_unknown_choices_name_the_nearest(field: str, value: object, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        replace(QUICK, **{field: value})  # type: ignore[arg-type]


# ---- several folds


@pytest.fixture
def crossed() -> tuple[Protocol, np.ndarray]:
    task, systems = make_task("class")
    protocol = replace(task, folds=group_cross_folds(task.groups.astype(str), 3), groups=task.groups.astype(str))
    protocol = replace(protocol, probe=ProbeConfig((0.01, 1.0)))
    return protocol.drawn((0.2, 1.0), draws=2, seed=5), systems["telling"]


def test_groups_that_are_numbers_are_dealt_as_their_names() -> None:
    numbers = np.array([10, 2, 1, 10, 3, 2])
    for found in (group_cross_folds(numbers, 2, ("3",)), group_cross_folds(numbers.astype(str), 2, ("3",))):
        assert [fold.test_rows.tolist() for fold in found] == [[0, 2, 3], [1, 5]], "1 and 10, then 2; 3 is never tested"
        assert [fold.train_rows.tolist() for fold in found] == [[1, 4, 5], [0, 2, 3, 4]]


def test_folds_evaluated_apart_are_those_evaluated_together(crossed: tuple[Protocol, np.ndarray]) -> None:
    protocol, matrix = crossed
    together = list(evaluate(protocol, {"telling": matrix}))
    apart = [list(evaluate(protocol.only(fold), {"telling": matrix})) for fold in protocol.folds]
    for whole, parts in zip(together, zip(*apart, strict=True), strict=True):
        merged = merge_folds(protocol, parts)
        np.testing.assert_array_equal(merged.values, whole.values)
        np.testing.assert_array_equal(merged.strengths, whole.strengths)
        assert whole.values.shape == ({0.2: 2, 1.0: 1}[whole.fraction], ROWS) and whole.values.min() == 0
    # A fold alone says nothing of the rows that it does not test.
    tested = protocol.folds[1].test_rows
    assert (np.delete(apart[1][0].values, tested, axis=1) == -1).all()


def test_more_draws_than_there_are_is_refused_unless_all_labels_are_one_draw(
    crossed: tuple[Protocol, np.ndarray],
) -> None:
    protocol, _ = crossed
    with pytest.raises(ValueError, match=r"^draws: 99; .* has 2 at fraction 0\.2$"):
        list(protocol.splits(99))
    assert [split.fraction for split in protocol.splits(99, (1.0,))] == [1.0] * len(protocol.folds)


def test_scaling_and_inner_folds_are_those_of_the_training_rows(crossed: tuple[Protocol, np.ndarray]) -> None:
    protocol, matrix = crossed
    found = next(iter(evaluate(protocol, {"telling": matrix})))
    split = next(s for s in protocol.splits() if (s.fold.number, s.fraction, s.draw) == (1, 0.2, 1))
    train, rows, test = split.fold.train_rows, split.labelled_rows, split.fold.test_rows
    scaled = (matrix - matrix[train].mean(axis=0)) / matrix[train].std(axis=0)
    target = protocol.target.values
    listed = sorted(set(protocol.groups[train]))
    inner = np.asarray([listed.index(group) % 3 for group in protocol.groups[rows]])
    hits = {}
    for strength in (0.01, 1.0):
        of_folds = []
        for held_out in range(3):
            kept, judged = rows[inner != held_out], rows[inner == held_out]
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(scaled[kept], target[kept])
            of_folds.append(model.score(scaled[judged], target[judged]))
        hits[strength] = np.mean(of_folds)
    chosen = max(hits, key=lambda c: (hits[c], -c))
    assert found.strengths[1, 1] == chosen
    model = LogisticRegression(C=chosen, tol=1e-8, max_iter=5000).fit(scaled[rows], target[rows])
    np.testing.assert_array_equal(found.values[1, test], model.predict(scaled[test]))


def test_scores_are_means_over_draws_of_all_test_rows(crossed: tuple[Protocol, np.ndarray]) -> None:
    protocol, matrix = crossed
    found = next(iter(evaluate(protocol, {"telling": matrix})))
    read, target = scores(found), protocol.target.values
    assert read["accuracy"] == pytest.approx(np.mean([accuracy_score(target, draw) for draw in found.values]))
    assert read["uar"] == pytest.approx(np.mean([balanced_accuracy_score(target, draw) for draw in found.values]))
    whole = score(found)
    assert whole.scores == read and whole.intervals["accuracy"].estimate == pytest.approx(read["accuracy"])
    assert whole.intervals["accuracy"].groups == GROUPS


def test_of_equally_frequent_classes_the_first_is_the_majority() -> None:
    target = Target("e", "class", np.asarray([2, 1, 1, 2, 0, 0]), ("a", "b", "c"))
    fold = Fold(0, np.arange(4), np.arange(4, 6), labelled={1.0: (np.arange(4),)})
    protocol = Protocol("made", target, np.arange(6), (fold,))
    (found,) = evaluate(protocol, {"majority": np.empty((6, 0))}, ("majority",))
    np.testing.assert_array_equal(found.values, [[-1, -1, -1, -1, 1, 1]])


def test_wrong_calls_are_refused(crossed: tuple[Protocol, np.ndarray]) -> None:
    protocol, matrix = crossed
    with pytest.raises(ValueError, match=r"system 'short': shape \(3, 8\), expected \(360, width\)"):
        list(evaluate(protocol, {"short": matrix[:3]}))
    with pytest.raises(ValueError, match="did you mean 'probe'"):
        list(evaluate(protocol, {"telling": matrix}, ("prob",)))
    with pytest.raises(ValueError, match=r"draws: must be at least 1, got 0"):
        list(evaluate(protocol, {"telling": matrix}, draws=0))
    with pytest.raises(ValueError, match=r"draws: 3; made has 2 at fraction 0\.2"):
        list(evaluate(protocol, {"telling": matrix}, draws=3))
    with pytest.raises(ValueError, match=r"fraction: 0\.5; made has \(0\.2, 1\.0\)"):
        list(evaluate(protocol, {"telling": matrix}, fractions=(0.5,)))
    with pytest.raises(ValueError, match="labelled but not a training row"):
        replace(protocol, folds=tuple(replace(f, labelled={1.0: (f.test_rows,)}) for f in protocol.folds))
    with pytest.raises(ValueError, match=r"groups of shape \(3,\)"):
        replace(protocol, groups=protocol.groups[:3])


def test_inner_folds_are_dealt_to_training_groups_whoever_of_them_is_labelled() -> None:
    """Groups 0, 3 and 6 of eight are all in the first of three folds; dealt among themselves they are in one each."""
    task, systems = make_task("class")
    (fold,) = task.folds
    rows = fold.train_rows[np.isin(task.groups[fold.train_rows], [0, 3, 6])]
    few = replace(task, folds=(replace(fold, labelled={1.0: (rows,)}),), probe=ProbeConfig((0.1, 1.0)))
    for method in ("probe", "supervised"):
        with pytest.raises(ValueError, match="leave 2 of 3 inner folds empty"):
            list(evaluate(few, {"s": systems["telling"]}, (method,)))
    (found,) = evaluate(
        replace(few, probe=replace(LABELLED, strengths=(0.1, 1.0))), {"s": systems["telling"]}, ("probe",)
    )
    assert found.strengths[0, 0] in (0.1, 1.0)


def test_a_draw_that_teaches_nothing_is_raised_where_no_holes_are_allowed() -> None:
    task, systems = make_task("class")
    few = task.drawn((0.2,), 1, 0)
    broken = systems["telling"].copy()
    broken[few.folds[0].labelled[0.2][0][0], 0] = np.nan
    with pytest.raises(ValueError, match="rows hold NaN"):
        list(evaluate(few, {"broken": broken}))
    (hole,) = evaluate(few, {"broken": broken}, holes=True)
    assert len(hole.values) == 0 and [failure.draw for failure in hole.failures] == [0]
