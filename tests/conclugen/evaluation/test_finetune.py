"""The fine-tuned linear layer: its losses, its selection of an epoch, its seeds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from conclugen.evaluation.config import FineTuneConfig
from conclugen.evaluation.finetune import class_weights, fine_tune
from conclugen.evaluation.judge import class_names
from conclugen.evaluation.protocol import Target
from conclugen.schedule import OptimizerConfig

STEADY = OptimizerConfig(lr=0.05, weight_decay=0, warmup_epochs=0, restart_epochs=400, min_lr=1e-6)
PLAIN = FineTuneConfig(epochs=400, batch=1000, dropout=0, patience=400, optimizer=STEADY)


def data(rows=200, width=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, rows, p=[0.6, 0.3, 0.1])
    return rng.normal(0, 1.2, (rows, width)) + np.eye(classes, width)[y], y


def test_without_dropout_it_finds_the_weighted_regression():
    X, y = data()
    weights = class_weights(Target("e", "class", y, ("a", "b", "c")), np.arange(len(y)), "inverse_frequency")
    assert weights is not None
    weights = np.asarray(weights)
    found = fine_tune(X, y, X, y, "class", PLAIN, classes=3, weights=weights, dtype=torch.float64)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000, class_weight=dict(enumerate(weights)))
    expected = reference.fit(X, y)
    lowest = min(epoch.validation_loss for epoch in found.history)
    chances = expected.predict_proba(X)
    optimum = -(weights[y] * np.log(chances[np.arange(200), y])).sum() / weights[y].sum()
    assert lowest == pytest.approx(optimum, rel=1e-4)
    final = fine_tune(X, y, X, y, "class", PLAIN, classes=3, weights=weights)
    assert (final.predict(X) == expected.predict(X)).mean() > 0.95


def test_names_of_classes_steer_half_of_the_head():
    """Loss and scores of one epoch from the head's own numbers; and names alone are enough to learn from."""
    X, y = data()
    V, v = data(seed=1)
    texts = np.random.default_rng(2).standard_normal((3, 5))
    config = FineTuneConfig(epochs=1, optimizer=STEADY, text_share=0.3, text_temperature=0.2)
    found = fine_tune(X, y, V, v, "class", config, classes=3, weights=(1.0, 2.0, 3.0), texts=texts, dtype=torch.float64)
    assert found.text is not None
    mapped = V @ found.text.weight + found.text.bias
    names = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    scores = mapped / np.linalg.norm(mapped, axis=1, keepdims=True) @ names.T / 0.2
    logs = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (V @ found.weight + found.bias, scores)]
    weights = np.array([1.0, 2.0, 3.0])[v]
    losses = [-(weights * log[np.arange(len(v)), v]).sum() / weights.sum() for log in logs]
    assert found.history[0].validation_loss == pytest.approx(0.7 * losses[0] + 0.3 * losses[1])
    np.testing.assert_allclose(found.raw(V), 0.7 * logs[0] + 0.3 * logs[1], atol=1e-9)

    steered = replace(PLAIN, text_share=1.0)
    plain = fine_tune(X, y, V, v, "class", PLAIN, classes=3)
    named = fine_tune(X, y, V, v, "class", steered, classes=3, texts=texts)
    assert (named.predict(V) == v).mean() > (plain.predict(V) == v).mean() - 0.05
    for wrong, words in ((texts[:2], "2 names for 3 outputs"), (0 * texts, "encoded as zero")):
        with pytest.raises(ValueError, match=words):
            fine_tune(X, y, V, v, "class", steered, classes=3, texts=wrong)
    with pytest.raises(ValueError, match="kind 'continuous'"):
        fine_tune(X, X[:, 0], V, V[:, 0], "continuous", steered, texts=texts[:1])


def test_names_that_say_nothing_are_refused_in_one_line():
    y = np.arange(6) % 2
    assert class_names(Target("mood", "class", y, ("sad", "happy"))) == ("sad", "happy")
    with pytest.raises(ValueError, match=r"label 'mood': class '0' has no name.*pack the label with names"):
        class_names(Target("mood", "class", y, ("0", "1")))
    with pytest.raises(ValueError, match=r"label 'mood' is continuous.*leave it out"):
        class_names(Target("mood", "continuous", y.astype(float)))
    for field, value in (("text_share", 0.0), ("text_temperature", 2.0), ("text_prompt", "someone")):
        with pytest.raises(ValueError, match=field):
            FineTuneConfig(**{field: value})


def test_positive_weights_act_on_the_validation_loss():
    X, _ = data()
    Y = (X[:, :2] > 0.8).astype(float)
    config = FineTuneConfig(epochs=1, optimizer=STEADY)
    found = fine_tune(X, Y, X, Y, "multilabel", config, weights=(3.0, 1.0), dtype=torch.float64)
    p = found.probabilities(X)
    expected = -(np.array([3.0, 1.0]) * Y * np.log(p) + (1 - Y) * np.log(1 - p)).mean()
    assert found.history[0].validation_loss == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_continuous_labels(loss):
    X, _ = data()
    y = X @ np.arange(1.0, 7.0) + 3
    config = FineTuneConfig(epochs=400, batch=50, dropout=0, patience=50, optimizer=STEADY, continuous_loss=loss)
    found = fine_tune(X, y, X, y, "continuous", config)
    assert np.abs(found.predict(X)[:, 0] - y).mean() < 0.05
    with pytest.raises(ValueError, match="have values, no probabilities"):
        found.probabilities(X)


def test_the_best_epoch_by_validation_accuracy_is_kept():
    X, y = data(60, 40)
    V, v = data(80, 40, seed=1)
    config = FineTuneConfig(epochs=60, patience=60, optimizer=STEADY)
    found = fine_tune(X, y, V, v, "class", config, classes=3)
    scores = [epoch.validation_score for epoch in found.history]
    assert found.best_epoch == int(np.argmax(scores))
    assert (found.predict(V) == v).mean() == pytest.approx(scores[found.best_epoch])
    assert scores[-1] < max(scores)  # otherwise the last epoch would do as well


def test_patience_counts_from_the_lowest_validation_loss():
    X, y = data(40, 40)
    V, v = data(80, 40, seed=1)
    config = FineTuneConfig(epochs=300, patience=4, optimizer=STEADY)
    found = fine_tune(X, y, V, v, "class", config, classes=3)
    losses = [epoch.validation_loss for epoch in found.history]
    assert len(losses) < 300
    assert len(losses) - 1 - int(np.argmin(losses)) == 4


def test_the_same_seed_is_the_same_run_whatever_the_ambient_generators():
    X, y = data()
    config = FineTuneConfig(epochs=5, batch=32, optimizer=STEADY)
    first = fine_tune(X, y, X, y, "class", config, classes=3)
    torch.rand(7), np.random.default_rng().random(3)
    before = torch.get_rng_state()
    second = fine_tune(X, y, X, y, "class", config, classes=3)
    np.testing.assert_array_equal(first.weight, second.weight)
    assert torch.equal(torch.get_rng_state(), before)
    other = fine_tune(X, y, X, y, "class", FineTuneConfig(epochs=5, batch=32, optimizer=STEADY, seed=1), classes=3)
    assert np.abs(other.weight - first.weight).max() > 0.01


def test_a_batch_of_everything_does_not_depend_on_the_order_of_rows_without_dropout():
    X, y = data()
    one = fine_tune(X, y, X, y, "class", PLAIN, classes=3, dtype=torch.float64)
    other = fine_tune(X[::-1], y[::-1], X, y, "class", PLAIN, classes=3, dtype=torch.float64)
    np.testing.assert_allclose(one.weight, other.weight, atol=1e-9)


def test_dropout_hides_half_of_the_inputs():
    # one step from known weights: the gradient of a dropped input is zero, so AdamW leaves its weights as they were
    X = np.ones((1, 400))
    step = OptimizerConfig(lr=0.1, weight_decay=0, warmup_epochs=0)
    config = FineTuneConfig(epochs=1, optimizer=step)
    start = torch.empty(1, 400)
    torch.nn.init.kaiming_normal_(start, generator=torch.Generator().manual_seed(config.seed))
    found = fine_tune(X, [9999.0], X, [9999.0], "continuous", config)
    moved = np.abs(found.weight[:, 0] - start[0].numpy()) > 1e-6
    assert 0.4 < moved.mean() < 0.6
    assert start.std().item() == pytest.approx(np.sqrt(2 / 400), rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 4}, r"no row of class 3"),
        ({"classes": None}, "classes: needed"),
        ({"weights": (1, 2)}, "weights: 2 given for 3 outputs"),
        (
            {"config": FineTuneConfig(optimizer=OptimizerConfig(lr=1e37, warmup_epochs=0, weight_decay=0))},
            "lower optim",
        ),
    ],
)
def test_refusals(change, message):
    X, y = data()
    with pytest.raises(ValueError, match=message):
        fine_tune(X, y, X, y, "class", **({"classes": 3} | change))


def test_refusals_of_arrays():
    X, y = data()
    with pytest.raises(ValueError, match="validation_features: width 5, expected 6"):
        fine_tune(X, y, X[:, :5], y, "class", classes=3)
    with pytest.raises(ValueError, match="features: 1 of 200 rows hold NaN"):
        fine_tune(np.where(np.arange(200)[:, None] == 3, np.nan, X), y, X, y, "class", classes=3)
    with pytest.raises(ValueError, match="validation_target: no label is set"):
        fine_tune(X, X > 0, X, X > 100, "multilabel")
    with pytest.raises(ValueError, match=r"dropout: found 1\.0, expected a share"):
        FineTuneConfig(dropout=1.0)
