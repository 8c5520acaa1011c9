"""Systems side by side: what carries the label scores high, noise scores at chance, and leaks are refused."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import mean_absolute_error, precision_score

from conclugen.downstream import FineTuneConfig, fit_classes, label_draw
from ray_jobs.comparison import BASELINES, ComparisonConfig, Task, compare, main_score
from shards import Label

ROWS, GROUPS = 360, 12
QUICK = ComparisonConfig(fractions=(0.2, 1.0), draws=2, fine_tune=FineTuneConfig(epochs=60, batch=64, dropout=0.0))


def make_task(kind: str) -> tuple[Task, dict[str, np.ndarray]]:
    """A label that one system's matrix determines up to noise, and another's has nothing to do with."""
    g = np.random.default_rng(3)
    latent = g.normal(size=(ROWS, 3))
    group = np.arange(ROWS) % GROUPS
    label, target = {
        "class": (Label("emotion", "class", ("a", "b", "c")), latent.argmax(axis=1)),
        "multilabel": (Label("emotion", "multilabel", ("a", "b", "c")), (latent > 0).astype(np.float64)),
        "continuous": (Label("valence", "continuous"), latent[:, 0]),
    }[kind]
    rows = {
        part: np.flatnonzero(np.isin(group, groups))
        for part, groups in (("t", range(8)), ("v", (8,)), ("e", (9, 10, 11)))
    }
    task = Task(label, target, group, rows["t"], rows["v"], rows["e"])
    telling = np.concatenate([latent + 0.1 * g.normal(size=latent.shape), g.normal(size=(ROWS, 5))], axis=1)
    return task, {"telling": telling, "noise": g.normal(size=(ROWS, 8))}


@pytest.mark.parametrize(
    ("kind", "main", "high", "chance"),
    [
        ("class", "accuracy", 0.8, 0.5),
        ("multilabel", "accuracy_weighted", 0.8, 0.65),
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
    quick = replace(QUICK, methods=("probe",), fractions=(1.0,), sentiment=True)
    expected = {
        "class": {"majority": DummyClassifier(strategy="most_frequent")},
        "multilabel": {"frequency": DummyClassifier(strategy="most_frequent")},
        "continuous": {"mean": DummyRegressor(strategy="mean"), "median": DummyRegressor(strategy="median")},
    }
    for kind, dummies in expected.items():
        task, systems = make_task(kind)
        found = {s.system: s for s in compare(task, systems, quick) if s.system in BASELINES}
        assert list(found) == list(dummies)
        x, true = systems["noise"], task.target[task.test]
        for name, dummy in dummies.items():
            guess = dummy.fit(x[task.train], task.target[task.train]).predict(x[task.test])
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
            assert main_score(task.label) in intervals


def test_a_class_without_test_rows_loses_no_score_whichever_draws_predict_it() -> None:
    """Of four classes the test rows lack one, which some draws predict and others do not."""
    g = np.random.default_rng(1)
    group = np.repeat(np.arange(12), 20)
    train, test = np.flatnonzero(group < 8), np.flatnonzero(group >= 8)
    target = g.integers(0, 4, len(group))
    target[test] %= 3
    target[train] = np.where((target[train] == 3) & (g.random(len(train)) < 0.75), 0, target[train])
    task = Task(Label("e", "class", tuple("abcd")), target, group, train, train, test)
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
    label = Label("e", kind, () if kind == "continuous" else ("often", "rarely"))
    task, systems = Task(label, values, group, train, train, test), {"noise": g.normal(size=(90, 6))}
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
    assert few.scores[main_score(label)] == pytest.approx(np.mean(few.draws))
    assert all("inner folds empty" in f.reason or "label 'rarely' (1) is never" in f.reason for f in few.failures)
    assert every.failures == () and len(every.draws) == 1

    (nothing,) = (s for s in compare(task, systems, replace(config, fractions=(0.01,), draws=2)) if s.system == "noise")
    assert (nothing.scores, nothing.draws, len(nothing.failures)) == ({}, (), 2)


def test_a_speaker_on_both_sides_is_refused() -> None:
    task, systems = make_task("class")
    with pytest.raises(ValueError, match=r"1 group\(s\) are in the training and in the test view"):
        list(compare(replace(task, train=np.append(task.train, task.test[task.group[task.test] == 9])), systems, QUICK))


def test_a_label_of_two_numbers_is_refused_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    task, systems = make_task("continuous")
    two = replace(task, label=Label("va", "continuous", width=2), target=np.stack([task.target, -task.target], axis=1))
    monkeypatch.setattr("conclugen.downstream.fit_values", lambda *_: pytest.fail("fitted"))
    with pytest.raises(ValueError, match=r"label 'va': 2 numbers in each row.*a continuous label of its own"):
        list(compare(two, systems, QUICK))


def test_a_view_without_the_label_and_a_published_list_of_another_size_are_refused() -> None:
    task, systems = make_task("class")
    with pytest.raises(ValueError, match="no test row has it"):
        list(compare(replace(task, test=task.test[:0]), systems, QUICK))
    with pytest.raises(ValueError, match=r"no validation row has it.*data\.validation_view"):
        list(compare(replace(task, validation=task.validation[:0]), systems, QUICK))
    with pytest.raises(ValueError, match="'meld' has 7 weights"):
        list(compare(task, systems, replace(QUICK, class_weights="meld", methods=("fine_tune",))))


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
