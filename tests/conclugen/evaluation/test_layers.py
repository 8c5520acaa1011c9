"""Learned weighted sums of layers: beside scikit-learn on a grid of fixed weights; from training rows alone."""

import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import LAYERS_WEIGHED, ComparisonConfig, ProbeConfig
from conclugen.evaluation.judge import compare, fit_probe
from conclugen.evaluation.probe import fit_classes, fit_labels, fit_values
from conclugen.evaluation.protocol import Fold, Protocol, Target
from conclugen.evaluation.solvers import LayerBlock, Rotation, WeighedLayers, layered_path, logistic_path, ridge_path

ROWS, WIDTH = 150, 5
C = 0.5


@pytest.fixture(scope="module")
def made():
    """(N, 2 + 2 x 5 + 1) columns: two layers that say something together, between columns of no layer; and targets."""
    g = np.random.default_rng(4)
    y = g.integers(0, 3, ROWS)
    signal = np.eye(3, WIDTH)[y]
    noise = g.normal(size=(ROWS, WIDTH))
    layers = [signal + noise + 0.3 * g.normal(size=noise.shape), -0.4 * noise + 0.3 * g.normal(size=noise.shape)]
    X = np.hstack([g.normal(size=(ROWS, 2)), *layers, g.normal(size=(ROWS, 1))])
    labels = np.stack([y == 1, (y == 2) ^ (g.random(ROWS) < 0.2)], axis=1).astype(float)
    values = signal @ g.normal(size=(WIDTH, 2)) + g.normal(size=(ROWS, 2)) * 0.2
    return X, {"softmax": np.eye(3)[y], "sigmoid": labels, "identity": values}


BLOCK = LayerBlock("audio_x", 2, 2, WIDTH)


def mixed(X, share):
    """The columns with the sum of both layers in their place."""
    first, second = X[:, 2 : 2 + WIDTH], X[:, 2 + WIDTH : 2 + 2 * WIDTH]
    return np.hstack([X[:, :2], (1 - share) * first + share * second, X[:, 2 + 2 * WIDTH :]])


def lowest(Z, target, link):
    """The least of sum(loss) + |W|^2 / (2 C) on fixed features, by scikit-learn."""
    if link == "identity":
        model = Ridge(alpha=1 / C).fit(Z, target)
        return 0.5 * ((model.predict(Z) - target) ** 2).sum() + (model.coef_**2).sum() / (2 * C)
    columns = [target.argmax(1)] if link == "softmax" else list(target.T)
    total = 0.0
    for y in columns:
        model = LogisticRegression(C=C, tol=1e-10, max_iter=20_000).fit(Z, y)
        total += log_loss(y, model.predict_proba(Z), normalize=False) + (model.coef_**2).sum() / (2 * C)
    return total


@pytest.mark.parametrize("link", ["softmax", "sigmoid", "identity"])
def test_no_fixed_weights_do_better(made, link):
    X, targets = made
    grid = np.linspace(0, 1, 21)
    found = [lowest(mixed(X, share), targets[link], link) for share in grid]
    best = int(np.argmin(found))
    assert 0 < best < 20  # both layers are needed
    (model,) = layered_path(X, [BLOCK], targets[link], [C], link)
    share = model.mixtures["audio_x"][1]
    assert abs(share - grid[best]) <= 0.05 and model.mixtures["audio_x"].sum() == pytest.approx(1)
    after = layered_path(X, [BLOCK], targets[link], [1e-6, 1e3, C], link)[-1]
    np.testing.assert_array_equal(after.weight, model.weight)  # whatever other strengths found
    own = lowest(mixed(X, share), targets[link], link)
    assert own <= min(found) and own < found[10] - 0.1  # equal weights are where it began
    # And the linear part is the minimiser at these weights; as one of all columns it is the same model.
    if link == "identity":
        by_hand = Ridge(alpha=1 / C).fit(mixed(X, share), targets[link]).predict(mixed(X, share))
        np.testing.assert_allclose(model(X), by_hand, atol=1e-4)
    if link == "softmax":
        y = targets[link].argmax(1)
        by_hand = LogisticRegression(C=C, tol=1e-10, max_iter=20_000).fit(mixed(X, share), y)
        logits = by_hand.decision_function(mixed(X, share))
        own_logits = model(X)
        centred = [z - z.mean(axis=1, keepdims=True) for z in (own_logits, logits)]
        np.testing.assert_allclose(*centred, atol=1e-3)


def test_a_single_layer_has_nothing_to_weigh(made):
    X, targets = made
    block, strengths = LayerBlock("all", 2, 1, 2 * WIDTH), [0.01, C]
    for link in ("softmax", "sigmoid"):
        weight = np.linspace(0.5, 2, ROWS)[:, None]
        expected = logistic_path(Rotation.of(X), targets[link], strengths, link, weight)
        for own, exact in zip(layered_path(X, [block], targets[link], strengths, link, weight), expected, strict=True):
            np.testing.assert_allclose(own(X) - own(X)[:1], exact(X) - exact(X)[:1], atol=1e-3)
    expected = ridge_path(Rotation.of(X), targets["identity"], strengths)
    for own, exact in zip(layered_path(X, [block], targets["identity"], strengths, "identity"), expected, strict=True):
        np.testing.assert_allclose(own(X), exact(X), atol=1e-4)


def test_every_kind_of_probe_weighs_layers(made):
    X, targets = made
    groups, y = np.arange(ROWS) % 10, targets["softmax"].argmax(1)
    for probe in (
        fit_classes(X, y, groups, 3, layers=[BLOCK]),
        fit_classes(X, y, groups, 4, layers=[BLOCK], allow_absent_classes=True, strengths=[C]),
        fit_labels(X, targets["sigmoid"], groups, layers=[BLOCK]),
        fit_values(X, targets["identity"], groups, layers=[BLOCK]),
    ):
        assert isinstance(probe.model, WeighedLayers)
        weights = probe.model.mixtures["audio_x"]
        assert weights.shape == (2,) and abs(weights[0] - 0.5) > 0.02
        assert np.isfinite(probe.raw(X)).all()


def test_a_comparison_learns_the_weights_from_training_rows(made):
    """Of two modalities, the second with a column before its layers; the row's note has the weights."""
    X, targets = made
    y, speaker = targets["softmax"].argmax(1), np.arange(ROWS) % 10
    train, test = np.flatnonzero(speaker < 7), np.flatnonzero(speaker >= 7)
    fold = Fold(0, train, test, labelled={1.0: (train,)})
    protocol = Protocol("made", Target("e", "class", y, tuple("abc")), speaker, (fold,), ProbeConfig((C,)))
    raw = {"video": X[:, :1], "audio": X[:, 1:]}
    layers = {"audio": [replace(BLOCK, start=1)]}
    config = ComparisonConfig(methods=("probe", "neighbours"), fractions=(1.0,), baselines=("raw",))
    rows = {(s.system, s.method): s for s in compare(protocol, {}, config, raw, layers)}
    assert set(rows) == {("raw", "probe"), ("raw", "neighbours"), (LAYERS_WEIGHED, "probe")}
    assert (LAYERS_WEIGHED, "probe") not in {(s.system, s.method) for s in compare(protocol, {}, config, raw)}
    weighed = rows[LAYERS_WEIGHED, "probe"]
    by_hand = fit_classes(X[train], y[train], speaker[train], 3, strengths=[C], layers=[BLOCK])
    np.testing.assert_array_equal(weighed.predictions, by_hand.predict(X[test]))
    ((text, times),) = weighed.choices.items()
    first, second = by_hand.model.mixtures["audio_x"]
    assert re.fullmatch(r"audio_x \d\.\d\d \d\.\d\d", text) and times == 1
    assert text == f"audio_x {first:.2f} {second:.2f}"
    blocks = Blocks.layered(raw, layers)
    split = next(iter(protocol.splits(1, (1.0,))))
    told = fit_probe(protocol, blocks, split).probe.model
    changed = {m: np.where(np.isin(np.arange(ROWS), test)[:, None], 99.0, x) for m, x in raw.items()}
    same = fit_probe(protocol, Blocks.layered(changed, layers), split).probe.model
    np.testing.assert_array_equal(told.mixtures["audio_x"], same.mixtures["audio_x"])
