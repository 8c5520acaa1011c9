"""What must not depend on the number of ranks, and how a difference is measured.

A task, built-in or of another package, gets its parity tests in one line:

    def test_ranks() -> None:
        assert_rank_parity("margin")
"""

import contextlib
from typing import Any

import numpy as np

from conclugen import presets
from conclugen.config import RECIPES
from conclugen.tasks import registry
from tests.distributed import ranks
from tests.distributed.pool import Pool, pool

TOLERANCE = 1e-9  # of a number's size, or of 1 where it is smaller
FLOAT32_BAND = 1e-4  # of the loss at any of the steps, in single precision
STEPS, STEPS_PER_EPOCH = 20, 5
G = 11  # shared by neither 2, 3 nor 4 ranks: the last rank's rows are padded
SIZES = {"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 12}
# The rate is the middle of the published search range. AdamW divides a gradient by its own size down to 1e-8: where the
# true gradient is zero (a bias before batch norm, its unit on in every row) a step is lr x rounding noise / 1e-8.
QUICK = {"lr": 1e-4, "warmup_epochs": 1.0, "restart_epochs": 2.0, "min_lr": 1e-5}


def config(
    preset: str, recipe: str, tasks: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **others: Any
) -> dict[str, Any]:
    """A small configuration in float64, as plain data."""
    given = {**{name: {} for name in presets.PRESETS[preset][1]}, **(tasks or {})}
    known = registry.registered()
    tasks = {
        name: {**known[name].tiny, **value} if name in known and value is not None else value
        for name, value in given.items()
    }
    fixed: dict[str, Any] = {"global_batch": G, "precision": "float64", "optimizer": QUICK, "clip_norm": None}
    return presets.build(
        preset, recipe, **{**fixed, "model": {**SIZES, **(model or {})}, "tasks": tasks, **others}
    ).to_dict()


def alone(task: str, recipe: str, settings: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """A task by itself, on all modalities, or on one if it is content with one only."""
    several = ("video", "audio", "text")
    modalities = several if registry.serve([task], several) else ("video_3d",)
    tasks = {**dict.fromkeys(presets.PRESETS["conclugen"][1]), task: dict(settings or {})}
    return config("conclugen", recipe, tasks, modalities=modalities, **others)


def cases_of(task: str) -> dict[str, dict[str, Any]]:
    """A registered task in each recipe and each of its variants, in micro-batches, and beside the method's own."""
    known = registry.get(task)
    variants = {f"{task}, {name}": alone(task, "improved", dict(settings)) for name, settings in known.variants.items()}
    return {
        **{f"{task}, {recipe}": alone(task, recipe) for recipe in RECIPES},
        **variants,
        f"{task}, micro-batches": alone(task, "paper", micro_batch=2),
        f"{task}, added": config("conclugen", "improved", {**UNEQUAL, task: {"weight": 0.3}}),
    }


def assert_rank_parity(
    task: str, worlds: tuple[int, ...] = (2, 3), steps: int = 6, workers: Pool | None = None
) -> dict[str, float]:
    """Fail unless losses, gradients of every parameter, and the state after `steps` optimiser steps are those of one
    process to within TOLERANCE, in float64, for each of the task's `cases_of` and each number of gloo ranks. Batches
    have missing modalities, ranks that have none of one, and padded rows.

    workers: a pool of ranks that is there already. Returns the largest difference of each kind.
    """
    worst: dict[str, float] = {}
    with pool(max(worlds)) if workers is None else contextlib.nullcontext(workers) as workers:
        for name, case in cases_of(task).items():
            arguments = (list(BATCHES.values()), steps, STEPS_PER_EPOCH)
            expected = reference(case, *arguments)
            moving = max(np.abs(g).max() for step in expected["gradients"] for g in step.values())
            assert moving > 1e-6, f"{name}: what has no gradient is always equal"
            for world in worlds:
                for found in workers.run(world, ranks.train, case, *arguments):
                    differences = difference(found, expected)
                    assert max(differences.values()) <= TOLERANCE, f"{name} on {world} ranks: {differences}"
                    worst = {kind: max(value, worst.get(kind, 0.0)) for kind, value in differences.items()}
    return worst


APART = {"names": ("a", "b"), "standardize": "corpus", "negatives": "within", "clusters": "within"}
UNEQUAL = {"contrastive": {"weight": 0.5}, "clustering": {"weight": 2.0}, "reconstruction": {"weight": 0.1}}
SHARED = {
    "weighting": "share",
    "contrastive": {"weight": 0.5},
    "clustering": {"weight": 0.2, "start_epoch": 1},
    "reconstruction": {"weight": 0.3},
}
OF_TASKS = {name: case for task in registry.registered() for name, case in cases_of(task).items()}
CASES: dict[str, dict[str, Any]] = {
    **OF_TASKS,
    "contrastive, one pair": config("contrast_only_video_audio", "paper"),
    "clustering, not active before the third epoch": alone("clustering", "improved", {"start_epoch": 2}),
    "reconstruction, cross-modal, masked": config(
        "generative_only", "improved", {"reconstruction": {"cross_modal": True}}, {"feature_mask": 0.3}
    ),
    "simclr, stored second view": config("simclr", "paper", {"simclr": {"second_view": "video_3d_again"}}),
    "total, paper": config("conclugen", "paper", UNEQUAL),
    "total, improved, clipped": config("conclugen", "improved", UNEQUAL, clip_norm=0.1),
    "total, uncertainty": config(
        "conclugen", "improved", {"weighting": "uncertainty", "clustering": {"start_epoch": 1}}
    ),
    "total, gradnorm": config("conclugen", "improved", {"weighting": "gradnorm"}),
    "total, pcgrad": config("conclugen", "paper", {"gradients": "pcgrad", **UNEQUAL}),
    "total, gradnorm and pcgrad": config("conclugen", "improved", {"gradients": "pcgrad", "weighting": "gradnorm"}),
    "total, uncertainty and pcgrad": config(
        "conclugen", "improved", {"gradients": "pcgrad", "weighting": "uncertainty"}
    ),
    "total, share": config("conclugen", "improved", SHARED),
    "total, dynamic": config("conclugen", "improved", {"weighting": "dynamic", "share_every": 2}),
    "micro-batches, shares measured": config("conclugen", "improved", {"share_every": 1}, micro_batch=2),
    "micro-batches, dynamic": config("conclugen", "improved", {"weighting": "dynamic"}, micro_batch=3),
    "corpora, across": config("conclugen", "improved", UNEQUAL, corpora={"names": ("a", "b")}),
    "corpora, within": config("conclugen", "improved", UNEQUAL, corpora=APART),
    "corpora, within, micro-batches": config("conclugen", "improved", micro_batch=2, corpora=APART),
    "micro-batches, paper": config("conclugen", "paper", micro_batch=2),
    "micro-batches, improved": config("conclugen", "improved", micro_batch=3),
    "micro-batches, pcgrad": config("conclugen", "improved", {"gradients": "pcgrad"}, micro_batch=2),
}
BATCHES: dict[str, dict[str, Any]] = {
    "randomly missing": ranks.make_batch(G, 1),
    "a rank without text": ranks.make_batch(G, 2, absent=("text", 4, 8)),
    "text nowhere": ranks.make_batch(G, 3, absent=("text", 0, G)),
    "text in one row": ranks.make_batch(G, 4, 0.0, absent=("text", 0, G - 1)),
    "a rank without the view": ranks.make_batch(G, 5, 0.0, absent=("video_3d", 4, 8)),
}


def reference(case: dict[str, Any], batches: list[dict[str, Any]], steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """The same training in this one process, on whole batches in one pass."""
    return ranks.train({**case, "micro_batch": None}, batches, steps, steps_per_epoch)


def difference(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Largest difference of the losses and other metrics, of any parameter's gradient at any step, and of weights,
    buffers and moments at the end: each relative to the number's size, or to 1 where that is smaller. Infinite where
    one side has a name that the other lacks, or a number that is not finite."""
    return {
        "loss": max(_largest(a, b) for a, b in zip(found["metrics"], expected["metrics"], strict=True)),
        "gradient": max(_largest(a, b) for a, b in zip(found["gradients"], expected["gradients"], strict=True)),
        "weights": _largest(found["tensors"], expected["tensors"]),
    }


def assert_parity(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Fail, naming what differs, unless all differences are within TOLERANCE."""
    differences = difference(found, expected)
    assert max(differences.values()) <= TOLERANCE, differences


def _largest(found: dict[str, Any], expected: dict[str, Any]) -> float:
    if found.keys() != expected.keys():
        return np.inf
    worst = 0.0
    for name, value in expected.items():
        a, b = np.asarray(found[name], dtype=np.float64), np.asarray(value, dtype=np.float64)
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return np.inf
        if a.size:
            worst = max(worst, float((np.abs(a - b) / np.maximum(1, np.abs(b))).max()))
    return worst


def batch_norm_difference(workers: Pool, world: int) -> float:
    """Of output, gradients and running statistics of batch norm over 12 rows of four modalities: one anywhere, one in
    the last rows only, one nowhere, one in a single row."""
    g = np.random.default_rng(0)
    x, weight = g.standard_normal((4, 12, 3)), g.standard_normal((4, 12, 3))
    present = g.random((4, 12)) < 0.6
    present[1, :9] = present[2] = present[3] = False
    present[1, 9:] = present[3, 5] = True
    expected = ranks.normalise(x, present, weight)
    found = workers.run(world, ranks.normalise, x, present, weight)
    rows = {name: np.concatenate([f["rows"][name] for f in found], axis=1) for name in expected["rows"]}
    return max(_largest(rows, expected["rows"]), *(_largest(f["whole"], expected["whole"]) for f in found))
