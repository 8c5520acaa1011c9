"""The supervised network: data that its heads separate and no linear row does, and what it may not look at."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import FineTuneConfig, ProbeConfig
from conclugen.evaluation.judge import evaluate
from conclugen.evaluation.protocol import Fold, Protocol, Target
from conclugen.evaluation.supervised import Fusion, _Network, fusion_network

ROWS, SPEAKERS = 240, 12
QUICK = Fusion(width=16, epochs=30, patience=8, dropout=0.2)


def accuracy(true, predicted):
    return float((true == predicted).mean())


@pytest.fixture(scope="module")
def crossed():
    """A class that is the product of two signs in one modality: no column says anything of it alone."""
    g = np.random.default_rng(1)
    signs = g.choice([-1.0, 1.0], (ROWS, 2))
    raw = {"video": np.hstack([signs + 0.2 * g.normal(size=(ROWS, 2)), g.normal(size=(ROWS, 2))]) + 5}
    raw["audio"] = g.normal(size=(ROWS, 6)) * 3
    y = (signs.prod(axis=1) > 0).astype(np.int64)
    speaker = np.arange(ROWS) % SPEAKERS
    train, test = np.flatnonzero(speaker < 9), np.flatnonzero(speaker >= 9)
    fold = Fold(0, train, test, labelled={1.0: (train,)})
    target = Target("e", "class", y, ("no", "yes"))
    return Protocol("made", target, speaker, (fold,), ProbeConfig((0.1, 1.0))), raw


def predicted(protocol, raw):
    (found,) = evaluate(protocol, {"s": Blocks.plain(raw)}, ("supervised",), fine_tune=FineTuneConfig(seed=3))
    return found.values[0, protocol.folds[0].test_rows]


@pytest.fixture(scope="module")
def first(crossed):
    return predicted(*crossed)


def test_it_learns_what_no_linear_row_can(crossed, first):
    protocol, raw = crossed
    true = protocol.target.values[protocol.folds[0].test_rows]
    assert accuracy(true, first) > 0.95
    (probe,) = evaluate(protocol, {"s": Blocks.plain(raw)}, ("probe",))
    assert accuracy(true, probe.values[0, protocol.folds[0].test_rows]) < 0.7


def test_labels_of_test_rows_and_order_of_calls_change_nothing(crossed, first):
    protocol, raw = crossed
    test = protocol.folds[0].test_rows
    hidden = protocol.target.values.copy()
    hidden[test] = 1 - hidden[test]
    target = replace(protocol.target, values=hidden)
    np.testing.assert_array_equal(predicted(replace(protocol, target=target), raw), first)
    # Nor does what other test rows hold.
    changed = {m: x.copy() for m, x in raw.items()}
    for x in changed.values():
        x[test[1:]] = 0.0
    assert predicted(protocol, changed)[0] == first[0]


def test_another_seed_is_another_network():
    g = np.random.default_rng(0)
    X, y, fold = g.normal(size=(60, 4)), g.integers(0, 2, 60), np.arange(60) % 3
    one, again, other = (fusion_network(X, y, fold, X, (4,), accuracy, seed=s, config=QUICK)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_its_length_is_chosen_on_held_out_groups(crossed):
    """Every score is of the rows that one inner fold leaves out, and the epoch with the best mean is taken."""
    protocol, raw = crossed
    rows = protocol.folds[0].train_rows
    X = np.hstack(list(raw.values()))
    X = (X - X[rows].mean(0)) / X[rows].std(0)
    y, fold = protocol.target.values[rows], protocol.groups[rows] % 3
    asked = []

    def score(true, guess):
        asked.append((true.copy(), accuracy(true, guess)))
        return asked[-1][1]

    _, epochs = fusion_network(X[rows], y, fold, X[:5], (4, 6), score, config=QUICK)
    assert len(asked) % 3 == 0
    for at, (true, _) in enumerate(asked):
        np.testing.assert_array_equal(true, y[fold == at % 3])
    means = np.reshape([value for _, value in asked], (-1, 3)).mean(axis=1)
    assert means[epochs - 1] == pytest.approx(means.max())
    assert len(means) == QUICK.epochs or len(means) - epochs >= QUICK.patience


def test_class_weights_turn_it_to_the_rare_class():
    g = np.random.default_rng(3)
    y = (g.random(300) < 0.1).astype(np.int64)
    X = 0.8 * y[:, None] + g.normal(size=(300, 4))
    fold = np.arange(200) % 3
    counts = np.bincount(y[:200])
    recalls = []
    for weights in (None, 200 / (2 * counts)):
        found, _ = fusion_network(
            X[:200], y[:200], fold, X[200:], (4,), lambda t, p: 0.0, weights=weights, config=QUICK
        )
        recalls.append((found[y[200:] == 1] == 1).mean())
    assert recalls[1] > recalls[0] + 0.3


def test_a_loss_that_is_not_finite_is_told():
    X = np.full((12, 2), 1e60)  # more than single precision holds
    with pytest.raises(ValueError, match=r"supervised network: held-out loss .* in epoch 0"):
        fusion_network(X, np.arange(12) % 2, np.arange(12) % 3, X, (2,), accuracy)


def test_it_begins_as_the_improved_recipe_does():
    """Distances are kept: half of the units of the first map are off, hence its gain of the root of two."""
    network = _Network((4, 6), 3, Fusion(width=16), seed=3)
    for head in network.heads:
        first, last = head.unit.input.weight.double(), head.unit.output.weight.double()
        torch.testing.assert_close(
            first.T @ first, 2 * torch.eye(first.shape[1], dtype=torch.float64), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(last.T @ last, torch.eye(last.shape[1], dtype=torch.float64), atol=1e-5, rtol=0)
