"""What a fold is chosen by holds nothing of its test rows, and a choice that can't be told keeps today's recipe."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.reproduce.differences import Beside
from benchmarks.reproduce.evaluation import Evaluation
from benchmarks.reproduce.feature_files import DataSet
from benchmarks.reproduce.nested import TODAY, Compared, _compared, _configs, _systems, judged_for, parts, systems
from benchmarks.reproduce.reproduce import Cells, Settings
from conclugen.evaluation.config import ProbeConfig
from conclugen.evaluation.protocol import Fold, Protocol, Target
from conclugen.evaluation.statistics import Comparison, Interval

ROWS, GROUPS = 180, 15  # groups 12, 13 and 14 only train


def made(folds=4, seed=0):
    """Features that hold the label, in folds over groups; or one published fold."""
    g = np.random.default_rng(seed)
    group, y = np.arange(ROWS) % GROUPS, g.integers(0, 2, ROWS)
    tested = [np.isin(group, [k for k in range(12) if k % folds == number]) for number in range(folds)]
    listed = tuple(Fold(k, np.flatnonzero(~t), np.flatnonzero(t)) for k, t in enumerate(tested))
    if folds == 1:
        listed = (Fold(0, np.flatnonzero(group >= 4), np.flatnonzero(group < 4)),)
    protocol = Protocol("made", Target("e", "class", y, ("a", "b")), group, listed, ProbeConfig((0.1,), inner_folds=3))
    features = {m: (y[:, None] * 0.8 + g.standard_normal((ROWS, 6))).astype(np.float32) for m in ("video", "audio")}
    protocol = protocol.drawn((0.3, 1.0), 2, 0)
    return DataSet("Made", protocol, features, group, ("inductive",), "digest", "", "made")


def test_no_row_of_a_fold_has_a_part_in_its_choice():
    data = made()
    blocks, held = parts(data, 5, 2)
    assert [part.blocks for part in held] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for part in held:
        (fold,) = part.data.protocol.folds
        out = np.concatenate([blocks[number] for number in part.blocks])
        assert not np.intersect1d(fold.train_rows, out).size
        np.testing.assert_array_equal(np.sort(np.concatenate([fold.train_rows, out])), np.arange(ROWS))
        assert all(not np.setdiff1d(rows, fold.train_rows).size for draws in fold.labelled.values() for rows in draws)
    # Predictions name the part that they are of.
    found = []
    for number, part in enumerate(held):
        predicted = np.full((2, ROWS), -1, np.int16)
        predicted[:, part.data.protocol.test_rows] = number
        one = Evaluation(part.data.protocol.name, {1.0: predicted}, {1.0: np.zeros((2, 1))}, 2, seed_names=(1, 2))
        found.append((part, {"x": one}))
    for block in range(4):
        protocol, evaluations = judged_for(block, blocks, found)
        assert not np.intersect1d(protocol.test_rows, blocks[block]).size
        values = evaluations["x"].of(protocol, 1.0)
        for other in set(range(4)) - {block}:
            number = [part.blocks for part in held].index((min(block, other), max(block, other)))
            assert (values[:, blocks[other]] == number).all()
        assert (values[:, blocks[block]] == -1).all() and evaluations["x"].seed_names == (1, 2)
        for fold in protocol.folds:
            assert not np.intersect1d(fold.train_rows, np.concatenate([blocks[block], fold.test_rows])).size


def test_a_published_test_part_has_no_part_in_the_choice():
    data = made(folds=1)
    blocks, held = parts(data, 5, 2)
    assert [part.blocks for part in held] == [(0,), (1,), (2,), (3,)]
    published = data.protocol.folds[0].test_rows
    for part in held:
        (fold,) = part.data.protocol.folds
        assert not np.intersect1d(np.concatenate([fold.train_rows, fold.test_rows]), published).size
    np.testing.assert_array_equal(np.sort(np.concatenate(blocks)), data.protocol.folds[0].train_rows)


def beside(system, fraction, low, high, adjusted):
    interval = Interval((low + high) / 2, low, high, 0.95, 10)
    return Beside(system, TODAY, fraction, Comparison(system, TODAY, interval, adjusted, adjusted))


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([("a", 0.1, 0.01, 0.03, 0.01), ("a", 1.0, -0.02, 0.03, 0.9)], "a"),
        ([("a", 0.1, 0.01, 0.03, 0.06)], TODAY),  # not after Holm
        ([("a", 0.1, 0.01, 0.03, 0.01), ("a", 1.0, -0.03, -0.01, 0.01)], TODAY),  # worse with all labels
        ([("a", 0.1, 0.01, 0.03, 0.01), ("b", 0.1, 0.02, 0.05, 0.01)], "b"),
        ([("a", 0.1, -0.02, 0.5, 0.9)], TODAY),
    ],
)
def test_a_choice_that_cannot_be_told_keeps_todays_recipe(rows, chosen):
    found = Compared(0, {"inductive": [beside(*row) for row in rows]})
    assert found.chosen == chosen
    half = np.median([(high - low) / 2 for _, _, low, high, _ in rows])
    assert found.power == pytest.approx(1.43 * half)


def test_two_seeds_stand_side_by_side_and_are_compared_with_the_mean_of_both(tmp_path):
    """From pretraining to the table of a fold, at a size that says nothing."""
    data = made()
    settings = Settings(8, 4, 8, 2, 2, 40, 1, seeds=(3, 4))
    blocks, held = parts(data, 5, 2)
    rows, configs = systems((TODAY,)), _configs((TODAY,), settings, data)
    cells = Cells(tmp_path, 2, settings.seeds)
    judged = []
    for part in held[:3]:
        for row in rows:
            for seed in (3, 4) if row.beside == 1 else (3,):
                cells.make(part.data, "inductive", [row], configs, seed)
        judged.append((part, _systems(cells, part.data, "inductive", rows, configs)))
    assert len(list(tmp_path.glob("heads-*"))) == 3 * 2, "every pretraining is made once"
    assert {name: e.seeds for name, e in judged[0][1].items()} == {
        "improved": 2,
        "improved + raw": 2,
        "improved, two seeds": 1,
        "improved, two seeds + raw": 1,
    }
    found = _compared(0, blocks, {"inductive": judged}, data)
    table = {(b.system, b.fraction): b.interval.estimate for b in found.tables["inductive"]}
    tested, y = np.concatenate(blocks[1:]), data.protocol.target.values
    right = {}
    for name in ("improved", "improved, two seeds"):
        hits = []
        for part, evaluations in judged:
            own = blocks[part.blocks[1]]
            hits.append((evaluations[name].predicted[0.3][:, own] == y[own]).mean(axis=0))
        right[name] = np.concatenate(hits).mean()
    assert len(np.concatenate(hits)) == len(tested)
    assert table["improved, two seeds", 0.3] == pytest.approx(right["improved, two seeds"] - right["improved"])
    assert _compared(0, blocks, {"inductive": [(p, {}) for p, _ in judged]}, data) is None
    assert replace(found, tables={}).chosen == TODAY
