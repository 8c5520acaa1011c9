"""The judge's numbers on small seeded data, as recorded before there was one judge: a change of any of them is a change
of what published tables mean, and must be meant. Ends of intervals at 20 % cross the three draws since 2026-11-30."""

import json

import numpy as np
import pytest

from benchmarks.reproduce.evaluation import cell, evaluate, majority, paired
from benchmarks.reproduce.protocols import ravdess
from conclugen.evaluation.config import ComparisonConfig, FineTuneConfig, ProbeConfig
from conclugen.evaluation.judge import compare
from conclugen.evaluation.protocol import Fold, Protocol, Target
from conclugen.evaluation.statistics import paired_tests, sign_flip_p

# (kind, method, share of labels) -> main score and the ends of its interval, then: UAR and macro-F1; macro-F1 and macro
# accuracy; mean absolute error and Acc-7.
RECORDED = {
    ("class", "majority", 1.0): (0.3111111111, 0.2666666667, 0.3666666667, 0.3333333333, 0.1581920904),
    ("class", "fine_tune", 0.2): (0.2703703704, 0.1777777778, 0.3555555556, 0.2702380952, 0.2648314715),
    ("class", "fine_tune", 1.0): (0.2777777778, 0.2, 0.3666666667, 0.2776785714, 0.2729578607),
    ("class", "neighbours", 0.2): (0.3740740741, 0.3222222222, 0.4296296296, 0.3731812169, 0.3710577925),
    ("class", "neighbours", 1.0): (0.4, 0.3333333333, 0.4333333333, 0.400297619, 0.3984287318),
    ("class", "probe", 0.2): (0.3185185185, 0.2666666667, 0.3555555556, 0.3234126984, 0.3084352392),
    ("class", "probe", 1.0): (0.3444444444, 0.3, 0.4, 0.3523809524, 0.3286631189),
    ("multilabel", "frequency", 1.0): (0.4878518519, 0.4523809524, 0.5453900709, 0.2411347518, 0.4888888889),
    ("multilabel", "fine_tune", 0.2): (0.5095555556, 0.4820987654, 0.5369614512, 0.5333115428, 0.5074074074),
    ("multilabel", "fine_tune", 1.0): (0.5163703704, 0.5030107527, 0.5414965986, 0.5495254807, 0.5148148148),
    ("multilabel", "probe", 0.2): (0.496, 0.4668789809, 0.528, 0.4241948983, 0.4950617284),
    ("multilabel", "probe", 1.0): (0.4878518519, 0.4523809524, 0.5453900709, 0.2411347518, 0.4888888889),
    ("continuous", "mean", 1.0): (0, 0, 0, 0.7867484477, 0.3666666667),
    ("continuous", "median", 1.0): (0, 0, 0, 0.7906115763, 0.3666666667),
    ("continuous", "fine_tune", 0.2): (-0.0372641816, -0.2678403326, 0.111379542, 1.302320888, 0.2777777778),
    ("continuous", "fine_tune", 1.0): (-0.08083154628, -0.2324615622, 0.09957396011, 0.9515420527, 0.3),
    ("continuous", "probe", 0.2): (-2.458147989e-05, -8.180538627e-05, 4.919777223e-05, 0.7985689458, 0.3666666667),
    ("continuous", "probe", 1.0): (-1.185671123e-05, -0.0001344016711, 5.562542039e-05, 0.7867635552, 0.3666666667),
}
MORE = {"class": ("uar", "f1_macro"), "multilabel": ("f1_macro", "accuracy_macro"), "continuous": ("mae", "accuracy7")}


def noise(kind: str) -> tuple[Protocol, np.ndarray]:
    g = np.random.default_rng(3)
    latent = g.normal(size=(360, 3))
    classes, values = {
        "class": (("a", "b", "c"), latent.argmax(axis=1)),
        "multilabel": (("a", "b", "c"), (latent > 0).astype(np.float64)),
        "continuous": ((), latent[:, 0]),
    }[kind]
    group = np.arange(360) % 12
    train, validation, test = (np.flatnonzero(np.isin(group, part)) for part in (range(8), (8,), (9, 10, 11)))
    g.normal(size=(360, 3)), g.normal(size=(360, 5))  # another system's, when these numbers were recorded
    target = Target("e", kind, values, classes, sentiment=True)  # type: ignore[arg-type]
    probe = ProbeConfig(scaling="labelled", inner_groups="labelled")
    return Protocol("made", target, group, (Fold(0, train, test, validation),), probe), g.normal(size=(360, 8))


@pytest.mark.parametrize("kind", ["class", "multilabel", "continuous"])
def test_scores_and_intervals_of_a_comparison(kind: str) -> None:
    protocol, matrix = noise(kind)
    fine_tune = FineTuneConfig(epochs=20, batch=64)
    config = ComparisonConfig(fractions=(0.2, 1.0), draws=3, class_weights="inverse_frequency", fine_tune=fine_tune)
    found = {(kind, score.method, score.fraction): score for score in compare(protocol, {"noise": matrix}, config)}
    assert set(found) == {key for key in RECORDED if key[0] == kind}
    for key, score in found.items():
        main = protocol.target.main_score
        interval = score.intervals[main]
        values = [score.scores[main], interval.low, interval.high, *(score.scores[name] for name in MORE[kind])]
        # Heads are trained in single precision, whose last digits differ from machine to machine.
        tolerance = 1e-4 if score.method == "fine_tune" else 1e-9
        np.testing.assert_allclose(values, RECORDED[key], rtol=tolerance, atol=1e-12, err_msg=str(key))


def test_folds_of_a_protocol_file_and_paired_differences(tmp_path) -> None:
    rng = np.random.default_rng(0)
    actor, emotion = np.repeat(np.arange(1, 9), 18), np.tile([0, 1, 2], 48)
    signal = rng.normal(size=(144, 6)) + 1.2 * np.eye(3, 6)[emotion]
    folds = []
    for tested in ([1, 3], [2, 4]):
        train = np.flatnonzero(~np.isin(actor, tested))
        draws = {"0.25": [sorted(rng.choice(train, 30, replace=False).tolist()) for _ in range(3)]}
        folds.append({"test_actors": tested, "draws": draws})
    path = tmp_path / "protocol.json"
    path.write_text(json.dumps({"design_actors": [7, 8], "C_grid": [0.01, 0.1, 1.0], "folds": folds}))
    protocol = ravdess(path, actor, emotion, ("a", "b", "c"))
    found = evaluate(protocol, signal, values=signal[:, 0] + 0.3 * signal[:, 1] ** 2)
    most = majority(protocol)
    recorded = {
        0.25: (0.5787037037037037, 0.045830995076905745, 0.5138888888888888, 0.6388888888888888, 0.24537037037037035),
        1.0: (0.6388888888888888, 0.07856742013183857, 0.5416666666666666, 0.7361111111111112, 0.3055555555555556),
    }
    ends = {0.25: (0.18055555555555555, 0.3055555555555556), 1.0: (0.20833333333333334, 0.4027777777777778)}
    for fraction, expected in recorded.items():
        own, difference = cell(protocol, found, fraction), paired(protocol, found, most, fraction)
        values = (own.mean, own.deviation, own.interval.low, own.interval.high, difference.estimate)
        np.testing.assert_allclose(values, expected, rtol=1e-12)
        np.testing.assert_allclose((difference.low, difference.high), ends[fraction], rtol=1e-12)
        assert difference.p_value == pytest.approx(0.00019998000199980003, rel=1e-12)
    assert (found.strengths[0.25] == 1.0).all() and (found.strengths[1.0] == 0.01).all()
    assert found.values is not None and np.isfinite(found.values).sum() == 72
    assert np.nansum(found.values) == pytest.approx(66.5355216947965, rel=1e-9)


def test_paired_tests_of_systems() -> None:
    g = np.random.default_rng(2)
    rows = {str(i): float(g.integers(5, 60)) for i in range(12)}
    scores = {
        system: {group: float(np.clip(g.normal(0.5 + 0.03 * n, 0.05), 0, 1)) for group in rows}
        for n, system in enumerate("abcd")
    }
    recorded = {
        "a": (0.0917401766603865, 0.05314064843699412, 0.13092519427939917, 0.0009765625, 0.0029296875),
        "b": (0.08143294514960463, 0.03907989682601492, 0.12146197764378669, 0.0009765625, 0.0029296875),
        "c": (0.010593305180012667, -0.020632488124833433, 0.04358891256212171, 0.55810546875, 0.55810546875),
    }
    for found in paired_tests({("d", other): (scores["d"], scores[other]) for other in "abc"}, rows):
        interval = found.interval
        values = (interval.estimate, interval.low, interval.high, found.p_value, found.adjusted)
        np.testing.assert_allclose(values, recorded[found.second], rtol=1e-9)
    p_values = [sign_flip_p(g.normal(0.2, 1, groups)) for groups in (3, 12, 40, 55)]
    np.testing.assert_allclose(p_values, [0.25, 0.705078125, 0.10007212312848424, 0.4788952110478895], rtol=1e-9)
