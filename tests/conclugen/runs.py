"""Small runs that several tests share."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np

from conclugen import PretrainConfig, Pretrainer, presets
from conclugen.layers import standardize

WIDTHS = {"video": 6, "audio": 5, "text": 4}
G = 12


def small_config(name: str = "conclugen", recipe: str = "improved", **overrides: Any) -> PretrainConfig:
    tasks = dict(overrides.pop("tasks", {}))
    if "clustering" in presets.PRESETS[name][1]:
        tasks["clustering"] = {"clusters": 3, "queue_batches": 2, "start_epoch": 1, **tasks.get("clustering", {})}
    sizes = {
        "representation_dim": 16,
        "projection_dim": 8,
        "reconstruction_hidden_dim": 8,
        **overrides.pop("model", {}),
    }
    rate = {"lr": 1e-3, "warmup_epochs": 1.0, "restart_epochs": 2.0, **overrides.pop("optimizer", {})}
    return presets.build(
        name, recipe, **{"global_batch": G, "model": sizes, "tasks": tasks, "optimizer": rate, **overrides}
    )


def rows(seed: int = 0, count: int = G, missing: float = 0.2, widths: dict[str, int] = WIDTHS) -> SimpleNamespace:
    """A batch as data loading yields it: numpy arrays and plain attributes. Modalities share a signal, so there is
    something to learn."""
    g = np.random.default_rng(seed)
    shared = g.standard_normal((count, 3))
    present = {m: g.random(count) >= missing for m in widths}
    mix = np.random.default_rng(99)
    features = {
        m: ((shared @ mix.standard_normal((3, d)) + 0.3 * g.standard_normal((count, d))) * present[m][:, None]).astype(
            "f4"
        )
        for m, d in widths.items()
    }
    group = g.integers(0, 3, count)
    return SimpleNamespace(
        features=features, present=present, row=np.arange(count) + 100 * seed, labels={}, group=group
    )


def fresh(config: PretrainConfig, steps_per_epoch: int | Fraction = 3) -> Pretrainer:
    batch = rows(1000, 200, 0.0)
    fitted = standardize.fit(batch.features) if config.model.standardize else None
    return Pretrainer(config, WIDTHS, steps_per_epoch, fitted)
