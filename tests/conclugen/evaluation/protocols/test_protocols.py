"""Every protocol against something independent: closed forms, slow obvious loops, scikit-learn, the judge itself."""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Mapping

import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import log_loss, recall_score

from conclugen.evaluation import judge
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.features import Scaling, normalise, standardize_by_group
from conclugen.evaluation.protocol import Fold, Protocol, Target
from conclugen.evaluation.protocols import gaps, registry
from conclugen.evaluation.protocols.base import Corpus, Material, Outcome, System
from conclugen.evaluation.protocols.calibration import Calibration, CalibrationConfig, bins_of, log_probabilities
from conclugen.evaluation.protocols.centring import (
    INDUCTIVE,
    NORMALISED,
    Centring,
    CentringConfig,
    _Drawn,
    _merged,
    centred,
    drawn_clips,
    own_speakers,
)
from conclugen.evaluation.protocols.cost import Cost, CostConfig, measured
from conclugen.evaluation.protocols.gaps import Cells, Gaps, GapsConfig
from conclugen.evaluation.protocols.labels_to_target import (
    LabelsToTarget,
    LabelsToTargetConfig,
    answer,
    isotonic,
    labels_to_reach,
)
from conclugen.evaluation.protocols.missing_modalities import MissingModalities, MissingModalitiesConfig, dropped
from conclugen.evaluation.protocols.transfer import Transfer, TransferConfig, common_classes
from tests.conclugen.evaluation.protocols.made import CLASSES, WIDTHS, learned, material, people, raw, rotated


def rows(outcome: Outcome, name: str) -> list[dict[str, object]]:
    (table,) = (table for table in outcome.tables if table.name == name)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


# ---- labels to target


def test_labels_to_reach_inverts_a_logistic_curve() -> None:
    """On a fine grid the answer is the closed form n = exp(m + s logit(t / top)); beyond the grid it is censored."""
    labels = np.geomspace(10, 1000, 400)
    middle, slope, top = math.log(100), 0.8, 0.9
    curve = top / (1 + np.exp(-(np.log(labels) - middle) / slope))
    goals = np.array([0.2, 0.45, 0.7, 0.89, 0.04])
    found, least = labels_to_reach(labels, np.tile(curve, (5, 1)), goals)
    exact = np.exp(middle + slope * np.log(goals[:3] / top / (1 - goals[:3] / top)))
    np.testing.assert_allclose(found[:3], exact, rtol=1e-4)
    assert np.isinf(found[3]) and curve[-1] < 0.89  # not reached: no extrapolation
    assert found[4] == 10 and least.tolist() == [False, False, False, False, True]


def test_isotonic_is_the_least_squares_fit() -> None:
    g = np.random.default_rng(0)
    noisy = np.linspace(0.3, 0.7, 8) + g.normal(0, 0.1, (50, 8))
    np.testing.assert_allclose(isotonic(noisy), [isotonic_regression(row) for row in noisy], atol=1e-12)


def test_intervals_of_labels_keep_what_is_censored() -> None:
    labels = np.array([10.0, 20.0, 40.0])
    curves = np.array([[0.2, 0.4, 0.6]] * 41)
    goals = np.array([0.5] + [0.1] * 10 + [0.4] * 20 + [0.9] * 10)  # a quarter at most 10, a quarter never
    found = answer(labels, curves, goals, 0.5)
    assert found.labels == pytest.approx(math.sqrt(20 * 40)) and found.reached == 0.75
    assert (found.low, found.high) == (10.0, pytest.approx(20.0))
    assert answer(labels, curves, goals, 0.9).high == math.inf


@pytest.mark.slow
def test_labels_to_target_on_the_judge_s_own_numbers() -> None:
    given = material(draws=3)
    config = LabelsToTargetConfig(targets=(0.1, 1.0), fractions=(0.1, 0.3, 1.0))
    outcome = LabelsToTarget.run(given, config)
    curve = {(row["system"], row["share"]): row for row in rows(outcome, "curves")}
    drawn = given.drawn((0.1, 0.3, 1.0))
    balanced = {"raw balanced": Blocks.balanced(given.features), "raw": Blocks.plain(given.features)}
    for one in judge.evaluate(drawn, balanced):
        assert curve[one.system, one.fraction]["accuracy"] == pytest.approx(judge.scores(one)["accuracy"], abs=1e-12)
        sizes = [len(split.labelled_rows) for split in drawn.splits(None, (one.fraction,))]
        assert curve[one.system, one.fraction]["labels"] == pytest.approx(np.mean(sizes))
        assert curve[one.system, one.fraction]["draws"] == len(one.values) == (1 if one.fraction == 1 else 3)
    assert {(row["target share"], row["target draws"]) for row in rows(outcome, "labels")} == {(0.1, 3), (1.0, 1)}
    told = "Draws of labels that taught every system something: 3 at 10%, 3 at 30%, 1 at 100%. At 100% there is one"
    assert any(rule.startswith(told) for rule in outcome.rules)
    for row in rows(outcome, "labels"):
        best = max(("raw", "raw balanced"), key=lambda name: curve[name, row["target share"]]["accuracy"])
        assert row["raw row"] == best
        assert row["target score"] == pytest.approx(curve[best, row["target share"]]["non-decreasing fit"])
        if row["system"] == best:  # what is asked of the raw row itself is known: its own number, or fewer on a plateau
            assert row["labels"] <= row["target labels"] + 1e-9


def test_resamples_cross_groups_and_draws() -> None:
    """Against a plain loop over resamples, with the same generator."""
    from conclugen.evaluation.protocols.labels_to_target import _resampled

    given = material(draws=2, resamples=20)
    g = np.random.default_rng(3)
    own = [g.integers(0, 5, (6, draws, 3, 3)).astype(float) for draws in (2, 1)]
    found = _resampled(given, {"a": own})["a"]
    assert found.shape == (21, 2)
    generator = np.random.Generator(np.random.PCG64([given.comparison.seed, 1]))
    counts = generator.multinomial(6, np.full(6, 1 / 6), size=20)
    weights = [generator.multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), size=20) for sums in own]
    for b in range(20):
        for f, sums in enumerate(own):
            people_again = np.repeat(np.arange(6), counts[b])
            draws_again = np.repeat(np.arange(sums.shape[1]), weights[f][b])
            each = [sum(sums[p, d] for p in people_again) for d in draws_again]
            assert found[b + 1, f] == pytest.approx(np.mean([np.trace(m) / m.sum() for m in each]))


def test_protocols_read_classes_by_the_score_that_probes_are_chosen_by() -> None:
    given = material()
    assert given.score == "accuracy"
    by_recall = dataclasses.replace(given, comparison=dataclasses.replace(given.comparison, select_by="uar"))
    assert by_recall.score == "uar"
    named = dataclasses.replace(by_recall.options, score="f1_macro")
    assert dataclasses.replace(by_recall, options=named).score == "f1_macro"


# ---- missing modalities


def test_a_missing_modality_is_its_training_mean() -> None:
    """Against a probe by hand on the same blocks, the missing one overwritten by the training rows' mean."""
    given = material(folds=1)
    outcome = MissingModalities.run(given, MissingModalitiesConfig(rates=(0.5,), patterns=1))
    found = {(row["system"], row["modalities that stay"]): row["accuracy"] for row in rows(outcome, "subsets")}
    fold, y = given.protocol.folds[0], given.target.values
    arrays = {"pretrained": rotated(given.features), "raw": given.features}
    drawn = given.drawn((1.0,))
    split = next(iter(drawn.splits()))
    for system, blocks in arrays.items():
        whole = Blocks.plain(blocks)
        probe = judge.fit_probe(drawn, whole, split).probe
        for stay in ("video + audio", "video", "audio"):
            filled = {
                m: x if m in stay.split(" + ") else np.tile(x[fold.train_rows].mean(axis=0), (len(x), 1))
                for m, x in blocks.items()
            }
            guess = probe.predict(Blocks.plain(filled).matrix[fold.test_rows])
            assert found[system, stay] == pytest.approx((guess == y[fold.test_rows]).mean())
    zeroed = dataclasses.replace(given, options=dataclasses.replace(given.options, fill="zero"))
    outcome = MissingModalities.run(zeroed, MissingModalitiesConfig(rates=(0.5,), patterns=1))
    found = {(row["system"], row["modalities that stay"]): row["accuracy"] for row in rows(outcome, "subsets")}
    filled = {m: x if m == "video" else np.zeros_like(x) for m, x in arrays["pretrained"].items()}
    probe = judge.fit_probe(drawn, Blocks.plain(arrays["pretrained"]), split).probe
    guess = probe.predict(Blocks.plain(filled).matrix[fold.test_rows])
    assert found["pretrained", "video"] == pytest.approx((guess == y[fold.test_rows]).mean())


def test_patterns_have_their_rate_are_nested_and_leave_one() -> None:
    present = {"v": np.ones(4000, bool), "a": np.ones(4000, bool), "t": np.arange(4000) % 2 == 0}
    before = None
    for rate in (0.1, 0.5, 0.7):
        left = np.stack(list(dropped(present, dict.fromkeys(present, rate), 1, 0).values()), axis=1)
        here = np.stack(list(present.values()), axis=1)
        assert not (left & ~here).any() and left.any(axis=1).all()
        kept = {
            2: 2 * (1 - rate) + rate**2,
            3: 3 * (1 - rate) + rate**3,
        }  # of those it has; one stays where all would go
        for had in (2, 3):
            of = here.sum(axis=1) == had
            assert left[of].sum(axis=1).mean() == pytest.approx(kept[had], abs=0.06)
        assert before is None or not (left & ~before).any()
        before = left
    alone = dropped(present, {"v": 0.5, "a": 0.0, "t": 0.0}, 1, 0)
    assert alone["a"].all() and alone["v"].mean() == pytest.approx(0.5, abs=0.03)
    again = dropped(present, {"v": 0.5, "a": 0.0, "t": 0.0}, 1, 0)
    assert np.array_equal(alone["v"], again["v"])


def test_rates_say_what_is_really_missing_and_the_difference_to_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    given, whole, compared = material(), Material.strongest_raw, {}

    def strongest_raw(self: Material, values: Mapping[str, float]) -> str:
        compared.update(values)
        return whole(self, values)

    monkeypatch.setattr(Material, "strongest_raw", strongest_raw)
    outcome = MissingModalities.run(given, MissingModalitiesConfig(rates=(0.3, 0.7), patterns=2))
    assert compared == {name: outcome.headline[f"{name}/full"] for name in compared}, "the strongest on whole rows"
    assert len(set(compared.values())) > 1
    found = {(row["system"], row["missing"], row["rate"]): row for row in rows(outcome, "rates")}
    assert found["raw", "all", 0.7]["share missing"] == pytest.approx(0.7 - 0.49 / 2, abs=0.06)
    for what in ("all", "video", "audio"):
        best = (
            "raw balanced" if ("raw", what, 0.3) in found and "minus raw balanced" in found["raw", what, 0.3] else "raw"
        )
        one, other = found["pretrained", what, 0.3], found[best, what, 0.3]
        assert one[f"minus {best}"] == pytest.approx(one["accuracy"] - other["accuracy"])
        assert other[f"minus {best}"] is None
    assert [chart.name for chart in outcome.charts] == ["rates-all", "rates-video", "rates-audio"]


def test_a_mean_over_modalities_is_over_those_that_are_left() -> None:
    given = material(folds=1)
    g = np.random.default_rng(2)
    maps = {m: g.normal(size=(w, 5)) for m, w in WIDTHS.items()}
    system = dataclasses.replace(
        learned(), represent=lambda arrays: {m: x @ maps[m] for m, x in arrays.items()}, arrange=None
    )
    given = dataclasses.replace(given, systems=(system, raw()))
    found = {
        (row["system"], row["modalities that stay"]): row["accuracy"]
        for row in rows(MissingModalities.run(given, MissingModalitiesConfig(rates=(0.5,), patterns=1)), "subsets")
    }
    both = {m: x @ maps[m] for m, x in given.features.items()}
    drawn, test = given.drawn((1.0,)), given.protocol.folds[0].test_rows
    mean = Blocks.plain({"mean": (both["video"] + both["audio"]) / 2})
    probe = judge.fit_probe(drawn, mean, next(iter(drawn.splits()))).probe
    for stay, matrix in (("video + audio", mean.matrix), ("video", both["video"]), ("audio", both["audio"])):
        hits = probe.predict(matrix[test]) == given.target.values[test]
        assert found["pretrained", stay] == pytest.approx(hits.mean())


def test_systems_of_unlike_draws_of_labels_are_not_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw of labels is lost to the representation, another one to raw features: equally many, of other labels."""
    whole = Material.fits

    def some(self: Material, system: System, arrays: Mapping, fraction: float) -> tuple[list, dict[int, str]]:
        lost = 0 if system.name == "pretrained" else 1
        return [fit for fit in whole(self, system, arrays, fraction)[0] if fit.split.draw != lost], {lost: "lost"}

    monkeypatch.setattr(Material, "fits", some)
    outcome = MissingModalities.run(material(fraction=0.5, folds=1), MissingModalitiesConfig(rates=(0.5,), patterns=1))
    columns = next(table.columns for table in outcome.tables if table.name == "rates")
    best = next(name.removeprefix("minus ") for name in columns if name.startswith("minus raw"))
    for row in rows(outcome, "rates") + rows(outcome, "subsets"):
        if row["system"] == "pretrained":
            assert row["accuracy"] is not None and row[f"minus {best}"] is None is row["difference low"]
        elif row["system"] != best:
            assert row[f"minus {best}"] is not None
    assert f"pretrained minus {best}: other draws of labels taught them something" in outcome.holes


# ---- centring


def test_folds_are_joined_by_the_number_of_the_draw() -> None:
    given = material(folds=2)
    first, second = given.protocol.folds
    made = {draw: np.full(given.protocol.rows, draw) for draw in range(3)}
    parts = [
        _Drawn((1, 2), [np.stack([made[1], made[2]]), np.stack([made[1], made[2]]) + 10]),
        _Drawn((0, 2), [np.stack([made[0], made[2]]) + 20, np.stack([made[0], made[2]]) + 30]),
    ]
    found = _merged(given, parts)
    assert found is not None and found.shape == (2, given.protocol.rows)  # draw 2 alone, twice drawn clips
    np.testing.assert_array_equal(np.unique(found[:, first.test_rows], axis=1)[:, 0], [2, 12])
    np.testing.assert_array_equal(np.unique(found[:, second.test_rows], axis=1)[:, 0], [22, 32])
    assert _merged(given, [parts[0], _Drawn((0,), [found[:1], found[:1]])]) is None


def test_rows_without_a_speaker_are_nobody_s_clips() -> None:
    given = material(folds=1)
    test = given.protocol.folds[0].test_rows
    names = given.protocol.groups.astype(str)
    unknown = np.zeros(len(names), bool)
    unknown[test[::5]] = unknown[given.protocol.folds[0].train_rows[::7]] = True
    names = np.where(unknown, "", names)
    speakers = own_speakers(names)
    assert len(np.unique(speakers[unknown])) == unknown.sum()
    assert not np.isin(speakers[unknown], speakers[~unknown]).any()
    np.testing.assert_array_equal(
        speakers[~unknown][:, None] == speakers[~unknown], names[~unknown][:, None] == names[~unknown]
    )
    outcome = Centring.run(dataclasses.replace(given, column=lambda _: names), CentringConfig(clips=(2,), clip_draws=1))
    assert f"{unknown[test].sum()} test rows have no speaker: each is centred by itself alone" in outcome.holes
    with pytest.raises(ValueError, match="every tested speaker has one row"):
        Centring.run(dataclasses.replace(given, column=lambda _: np.full(len(names), "")), CentringConfig())


def test_none_and_all_clips_are_the_two_normalisations_to_the_digit() -> None:
    given = material(offset=2.0)
    outcome = Centring.run(given, CentringConfig(clips=(1, 3), clip_draws=2))
    found = {(row["system"], row["clips of a new speaker"]): row["accuracy"] for row in rows(outcome, "clips")}
    drawn = given.drawn((1.0,))
    for mode, step in (("inductive", INDUCTIVE), ("speaker_normalised", NORMALISED)):
        for name, arrange in (("raw", Blocks.plain), ("raw balanced", Blocks.balanced)):
            parts = []
            for fold in drawn.folds:
                own = normalise(given.features, mode, fold.train_rows, drawn.groups)  # type: ignore[arg-type]
                parts += judge.evaluate(drawn.only(fold), {name: arrange(own)})
            whole = judge.merge_folds(drawn, parts)
            assert found[name, step] == judge.scores(whole)["accuracy"]
    assert found["raw", NORMALISED] > found["raw", INDUCTIVE] + 0.05
    assert found["raw", "all, mean alone"] > found["raw", "1"]


def test_centring_against_a_loop_over_speakers() -> None:
    features, _, person = people(offset=2.0)
    fold = Fold(0, np.flatnonzero(person >= 4), np.flatnonzero(person < 4))
    clips = drawn_clips(person, fold.test_rows, 3, 127, 1)
    assert sorted(clips) == [0, 1, 2, 3] and all(len(own) == 3 for own in clips.values())
    more = drawn_clips(person, fold.test_rows, 10, 127, 1)
    assert all(set(clips[s]) <= set(more[s]) and (person[more[s]] == s).all() for s in clips)
    found = centred(features, person, fold, 3, 127, 1)["video"]
    x = features["video"]
    expected = np.empty_like(x)
    for speaker in range(12):
        own = np.flatnonzero(person == speaker)
        expected[own] = x[own] - x[clips[speaker] if speaker < 4 else own].mean(axis=0)
    expected /= np.sqrt((expected[fold.train_rows] ** 2).mean(axis=0))
    scale = Scaling.fit(x[fold.train_rows])
    np.testing.assert_allclose(scale.apply(found), expected, rtol=1e-9, atol=1e-9)


def test_a_speaker_on_both_sides_gives_nothing_to_the_other_side() -> None:
    features, _, person = people()
    tested = (np.arange(len(person)) % 15) < 5
    fold = Fold(0, np.flatnonzero(~tested), np.flatnonzero(tested))
    before = centred(features, person, fold, None, 1, 0)["audio"]
    changed = {m: np.where(tested[:, None], x + 100.0, x) for m, x in features.items()}
    after = centred(changed, person, fold, None, 1, 0)["audio"]
    np.testing.assert_allclose(before, after, atol=1e-9)  # tested rows lose their own shift, training rows saw none


# ---- gaps


def test_a_gap_is_the_best_minus_the_worst_recall() -> None:
    given = material(folds=2)
    sex = np.where(given.protocol.groups % 8 < 4, "f", "m")
    given = dataclasses.replace(given, column=lambda name: sex if name == "sex" else given.protocol.groups.astype(str))
    outcome = Gaps.run(given, GapsConfig(("sex", "group")))
    system = given.systems[1]
    fits, _ = given.fits(system, given.features, 1.0)
    predicted = given.predicted(fits, given.features)[0]
    test, y = given.protocol.test_rows, given.target.values
    each = {v: (predicted == y)[test][sex[test] == v].mean() for v in "fm"}
    found = {(row["column"], row["of"]): row for row in rows(outcome, "gaps") if row["system"] == "raw"}
    assert found["sex", "accuracy"]["gap"] == pytest.approx(abs(each["f"] - each["m"]))
    recalls = {
        v: recall_score(y[test][sex[test] == v], predicted[test][sex[test] == v], average=None, labels=[0, 1, 2])
        for v in "fm"
    }
    for index, name in enumerate(CLASSES):
        row = found["sex", f"recall/{name}"]
        assert row["gap"] == pytest.approx(abs(recalls["f"][index] - recalls["m"][index]))
        assert row["best"] == max("fm", key=lambda v, i=index: recalls[v][i]) or row["gap"] == 0
    per_person = [
        (predicted == y)[test][given.protocol.groups[test] == p].mean() for p in np.unique(given.protocol.groups[test])
    ]
    assert found["group", "accuracy"]["gap"] == pytest.approx(max(per_person) - min(per_person))
    for row in found.values():
        assert row["low"] <= row["high"] and 0 < row["p of chance"] <= 1
    assert any("recall of calm, happy, sad: fewer than two values have 10" in hole for hole in outcome.holes)


def test_chance_alone_makes_a_gap_of_the_size_that_is_told() -> None:
    """Hits drawn with one probability for all: the gap is what chance gives, and p is spread over 0 to 1."""
    g = np.random.default_rng(0)
    person = np.repeat(np.arange(20), 30)
    y = np.zeros(600, np.int64)
    y[::2] = 1
    fold = Fold(0, np.empty(0, np.int64), np.arange(600))
    protocol = Protocol("made", Target("emotion", "class", y, ("a", "b")), person, (fold,))
    given = Material(protocol, {}, (), options=dataclasses.replace(material().options, resamples=300))
    values = person.astype(str)
    found = []
    for _ in range(20):
        guess = np.where(g.random(600) < 0.7, y, 1 - y)
        found.append(Cells.of(given, values, guess[None]).gaps(["accuracy"])["accuracy"])
    assert np.mean([gap.estimate for gap in found]) == pytest.approx(np.mean([gap.chance for gap in found]), abs=0.03)
    assert 0.25 < np.mean([gap.p_value for gap in found]) < 0.75
    for least, kept in ((15, True), (16, False)):  # everybody has 15 rows of each class
        asked = dataclasses.replace(given, options=dataclasses.replace(given.options, least_rows=least))
        assert ("recall/a" in Cells.of(asked, values, guess[None]).gaps(["recall/a"])) is kept
    skilled = np.where(person < 10, y, 1 - y)
    gap = Cells.of(given, values, skilled[None]).gaps(["accuracy"])["accuracy"]
    assert gap.estimate == 1 and gap.p_value < 0.01


def test_resamples_take_bounded_memory_and_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    given = material(folds=2, resamples=60)
    fits, _ = given.fits(given.systems[1], given.features, 1.0)
    predicted = given.predicted(fits, given.features)
    for values in (np.where(given.protocol.groups % 8 < 4, "f", "m"), given.protocol.groups.astype(str)):
        cells = Cells.of(given, values, predicted)
        before = cells.gaps(["accuracy", "uar"])
        monkeypatch.setattr(gaps, "_MOST_SUMS", 3 * cells.sums.size + 1)
        assert {len(totals) for totals in cells._dealt()} == {3, 1}  # 25 and 10 resamples, three at a time
        assert {len(totals) for totals, _ in cells._resampled()} == {3, 1}
        assert cells.gaps(["accuracy", "uar"]) == before
        monkeypatch.undo()


# ---- calibration


def test_calibration_against_a_loop_over_bins() -> None:
    given = material(folds=2)
    outcome = Calibration.run(given, CalibrationConfig(bins=7))
    found = {(row["system"], row["score"]): row["value"] for row in rows(outcome, "scores")}
    test, y = given.protocol.test_rows, given.target.values
    for system in given.systems:
        log_p, _ = log_probabilities(given, system)
        assert log_p is not None
        p, truth = np.exp(log_p[0]), y[test]
        confidence, right = p.max(axis=1), p.argmax(axis=1) == truth
        ece = 0.0
        for b in range(7):
            inside = (confidence > b / 7) & (confidence <= (b + 1) / 7)
            if inside.any():
                ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert found[system.name, "ece"] == pytest.approx(ece)
        assert found[system.name, "nll"] == pytest.approx(log_loss(truth, p))
        brier = np.mean([sum((p[i, k] - (truth[i] == k)) ** 2 for k in range(3)) for i in range(len(test))])
        assert found[system.name, "brier"] == pytest.approx(brier)
        assert found[system.name, "accuracy"] == pytest.approx(right.mean())
    for row in rows(outcome, "reliability"):
        assert (row["bin"] - 1) / 7 <= row["confidence"] <= row["bin"] / 7


def test_bins_of_equal_mass_hold_equally_many_rows() -> None:
    confidence = np.random.default_rng(0).beta(5, 2, 105)
    place = bins_of(confidence, CalibrationConfig(10, "mass"))
    assert set(np.bincount(place)) <= {10, 11}
    assert all(confidence[place == b].max() <= confidence[place == b + 1].min() for b in range(9))


# ---- transfer


def other(seed: int = 0, classes: tuple[str, ...] = CLASSES, unlike: dict[str, str] | None = None) -> Corpus:
    features, y, person = people(seed)
    kept = {m: x for m, x in features.items() if m not in (unlike or {})}
    return Corpus("other", Target("emotion", "class", y, classes), person, kept, unlike or {}, "by name")


def test_transfer_is_a_probe_of_one_corpus_on_the_other() -> None:
    given = dataclasses.replace(material(folds=1), corpus=lambda *_: other())
    outcome = Transfer.run(given, TransferConfig("there"))
    found = {(row["system"], row["score"]): row["value"] for row in rows(outcome, "scores")}
    train, y = given.protocol.folds[0].train_rows, given.target.values
    drawn = given.drawn((1.0,))
    for name, arrange in (("raw", Blocks.plain), ("raw balanced", Blocks.balanced)):
        blocks = arrange(given.features)
        fitted = judge.fit_probe(drawn, blocks, next(iter(drawn.splits())))
        guess = fitted.probe.predict(fitted.on(blocks))  # `other` has the same rows as this corpus
        assert found[name, "accuracy"] == pytest.approx((guess == y).mean())
        assert found[name, "uar"] == pytest.approx(recall_score(y, guess, average="macro"))
    assert found["majority of the training corpus", "uar"] == pytest.approx(1 / 3)
    assert len(train) == 135
    assert (outcome.judged, outcome.unit, outcome.units) == ("emotion of other, view everything", "speaker", 12)


def test_classes_are_mapped_and_others_left_out() -> None:
    there = other(classes=("neutral", "joy", "anger"))
    given = dataclasses.replace(material(folds=1), corpus=lambda *_: there)
    config = TransferConfig("there", train_classes={"calm": "neutral"}, judge_classes={"joy": "happy"})
    outcome = Transfer.run(given, config)
    assert {row["class"]: row["rows"] for row in rows(outcome, "recall")} == {"neutral": 60, "happy": 60}
    assert any("Common classes: neutral, happy (calm as neutral; joy as happy)" in rule for rule in outcome.rules)
    assert any("45 and 60 rows of other classes are left out" in rule for rule in outcome.rules)
    assert common_classes(("a", "b"), {"a": "b"}, "f") == ["b", "b"]  # several may become one


@pytest.mark.parametrize(
    ("config", "corpus", "message"),
    [
        (TransferConfig(), other(), "transfer.folder: must be the labelled shards"),
        (
            TransferConfig("x"),
            other(classes=("p", "q", "r")),
            "share no class, and two are needed: calm, happy, sad here",
        ),
        (TransferConfig("x"), other(classes=("calm", "q", "r")), "share 'calm', and two are needed"),
        (TransferConfig("x", train_classes={"clam": "x"}), other(), "train_classes: no class 'clam'.*mean 'calm'"),
        (TransferConfig("x", judge_classes={"glad": "x"}), other(), "judge_classes: no class 'glad', allowed: calm"),
        (
            TransferConfig("x"),
            other(unlike=dict.fromkeys(WIDTHS, "7 wide there")),
            "no modality has one meaning.*7 wide",
        ),
    ],
)
def test_what_cannot_be_transferred_is_told_in_a_line(config: TransferConfig, corpus: Corpus, message: str) -> None:
    given = dataclasses.replace(material(folds=1), corpus=lambda *_: corpus)
    with pytest.raises(ValueError, match=message) as told:
        Transfer.run(given, config)
    assert "\n" not in str(told.value)


def test_a_modality_of_another_meaning_is_a_marked_hole() -> None:
    given = dataclasses.replace(material(folds=1), corpus=lambda *_: other(unlike={"audio": "made by another encoder"}))
    outcome = Transfer.run(given, TransferConfig("there"))
    assert "modality 'audio' is left out: made by another encoder" in outcome.holes
    found = {(row["system"], row["score"]): row["value"] for row in rows(outcome, "scores")}
    blocks, drawn = Blocks.plain({"video": given.features["video"]}), given.drawn((1.0,))
    fitted = judge.fit_probe(drawn, blocks, next(iter(drawn.splits())))
    guess = fitted.probe.predict(fitted.on(blocks))
    assert found["raw", "accuracy"] == pytest.approx((guess == given.target.values).mean())


def test_corpus_scaling_takes_a_shift_of_the_other_corpus_away() -> None:
    shifted = dataclasses.replace(other(), features={m: 3 * x + 50 for m, x in other().features.items()})
    given = dataclasses.replace(material(folds=1), corpus=lambda *_: shifted)
    plain = Transfer.run(given, TransferConfig("there")).headline["raw/accuracy"]
    own = Transfer.run(given, TransferConfig("there", scaling="corpus")).headline["raw/accuracy"]
    unshifted = dataclasses.replace(given, corpus=lambda *_: other())
    assert own == Transfer.run(unshifted, TransferConfig("there", scaling="corpus")).headline["raw/accuracy"] > plain


# ---- cost


def test_cost_counts_parameters() -> None:
    outcome = Cost.run(material(), CostConfig(repeats=1))
    found = {row["system"]: row for row in rows(outcome, "cost")}
    assert found["pretrained"]["parameters"] == 50 and found["raw"]["parameters"] == 0
    assert found["pretrained"]["probe parameters"] == 3 * (5 + 5) + 3 and found["raw"]["probe parameters"] == 3 * 10 + 3
    assert found["pretrained"]["representation rows/s"] > 0 and found["raw"]["representation rows/s"] is None


def test_memory_that_was_given_back_was_seen() -> None:
    def work() -> None:  # pages of the system: `malloc` may have 64 MB of its own at hand
        with mmap.mmap(-1, 64 << 20) as pages:
            for start in range(0, len(pages), 4096):
                pages[start] = 1

    _, spent = measured(work)
    assert spent.seconds > 0 and (spent.peak is None or 60 << 20 <= spent.peak <= 80 << 20)


# ---- all of them


def test_one_protocol_s_failure_does_not_lose_the_others() -> None:
    given = material(draws=1)
    values = np.random.default_rng(0).normal(size=given.protocol.rows)
    rating = Target("rating", "continuous", values)
    given = dataclasses.replace(given, protocol=dataclasses.replace(given.protocol, target=rating))
    done = {one.name: one for one in registry.run(("calibration", "gaps", "cost"), given, registry.ProtocolsConfig())}
    assert done["cost"].outcome is not None
    for name in ("calibration", "gaps"):
        assert done[name].outcome is None
        assert (
            done[name].reason
            == f"label 'rating' is continuous, and {name} reads class labels only; choose another label"
        )


def test_continuous_labels_are_served_where_it_makes_sense() -> None:
    given = material(draws=1)
    rating = Target("rating", "continuous", given.target.values + 0.5 * given.features["video"][:, 0])
    given = dataclasses.replace(given, protocol=dataclasses.replace(given.protocol, target=rating))
    missing = MissingModalities.run(given, MissingModalitiesConfig(rates=(0.5,), patterns=1))
    assert all(-1 <= row["concordance"] <= 1 for row in rows(missing, "rates"))
    assert len(rows(Centring.run(given, CentringConfig(clips=(2,), clip_draws=1)), "clips")) == 3 * 4


def test_standardising_by_speaker_is_the_judge_s_own() -> None:
    """`centring`'s last step on rows without missing modalities is `features.standardize_by_group`."""
    from conclugen.evaluation.protocols.centring import normalised

    features, _, person = people()
    train = np.flatnonzero(person > 3)
    scale = Scaling.fit(features["audio"][train])
    found = scale.apply(normalised(features, person, train)["audio"])
    np.testing.assert_allclose(found, standardize_by_group(features["audio"], person), atol=1e-12)


def test_names_are_chosen_and_unknown_ones_refused() -> None:
    assert "transfer" not in registry.chosen(["all"]) and "transfer" in registry.registered()
    config = registry.ProtocolsConfig(transfer=TransferConfig("there"))
    assert registry.chosen(["all"], config) == tuple(registry.registered())
    assert registry.chosen(["cost", "gaps", "cost"]) == ("cost", "gaps")
    with pytest.raises(ValueError, match=r"no protocol 'gap', allowed: labels-to-target.*mean 'gaps'"):
        registry.chosen(["gap"])


def test_a_protocol_that_is_not_properly_made_is_left_out_by_name() -> None:
    from importlib.metadata import EntryPoint

    builtin = list(registry.registered().values())
    points = [
        EntryPoint("fatigue", "math:sqrt", "g"),
        EntryPoint("gaps", "conclugen.evaluation.protocols.gaps:Gaps", "g"),
    ]
    found = registry.collect(builtin, points)
    assert list(found.entries) == list(registry.registered())
    told = {name.partition(" of ")[0]: line for name, line in found.problems.items()}
    assert "protocol 'fatigue' of math:sqrt (math:sqrt) can't be used: it is <built-in" in told["fatigue"]
    assert "is left out: conclugen has a protocol of this name" in told["gaps"]
