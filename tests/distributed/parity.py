"""What must not depend on the number of ranks, and how a difference is measured."""

from typing import Any

import numpy as np

from conclugen import presets
from tests.distributed import ranks
from tests.distributed.pool import Pool

TOLERANCE = 1e-9  # of a number's size, or of 1 where it is smaller
FLOAT32_BAND = 1e-4  # of the loss at any of the steps, in single precision
STEPS, STEPS_PER_EPOCH = 20, 5
G = 11  # shared by neither 2, 3 nor 4 ranks: the last rank's rows are padded
SIZES = {"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 12}
CLUSTER = {"clusters": 4, "queue_batches": 2, "start_epoch": 0}
# The rate is the middle of the published search range. AdamW divides a gradient by its own size down to 1e-8: where the
# true gradient is zero (a bias before batch norm, its unit on in every row) a step is lr x rounding noise / 1e-8.
QUICK = {"lr": 1e-4, "warmup_epochs": 1.0, "restart_epochs": 2.0, "min_lr": 1e-5}


def config(
    preset: str, recipe: str, tasks: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **others: Any
) -> dict[str, Any]:
    """A small configuration in float64, as plain data."""
    tasks = dict(tasks or {})
    if "clustering" in presets.PRESETS[preset][1]:
        tasks["clustering"] = {**CLUSTER, **tasks.get("clustering", {})}
    fixed: dict[str, Any] = {"global_batch": G, "precision": "float64", "optimizer": QUICK, "clip_norm": None}
    return presets.build(
        preset, recipe, **{**fixed, "model": {**SIZES, **(model or {})}, "tasks": tasks, **others}
    ).to_dict()


def clustering_alone(recipe: str, **clustering: Any) -> dict[str, Any]:
    """No preset runs it by itself."""
    data = config("contrast_cluster", recipe, {"clustering": clustering})
    return {**data, "tasks": {**data["tasks"], "contrastive": None}}


UNEQUAL = {"contrastive": {"weight": 0.5}, "clustering": {"weight": 2.0}, "reconstruction": {"weight": 0.1}}
CASES: dict[str, dict[str, Any]] = {
    "contrastive, paper": config("contrast_only", "paper"),
    "contrastive, one pair": config("contrast_only_video_audio", "paper"),
    "contrastive, same group, learned temperature": config(
        "contrast_only", "improved", {"contrastive": {"negatives": "same_group", "learn_temperature": True}}
    ),
    "contrastive, blocks of two rows": config("contrast_only", "improved", {"contrastive": {"block_rows": 2}}),
    "clustering, joint, queue of the epoch": clustering_alone("paper"),
    "clustering, individual": clustering_alone("paper", mode="individual"),
    "clustering, warm, rolling queue": clustering_alone("improved"),
    "clustering, not active before the third epoch": clustering_alone("improved", start_epoch=2),
    "reconstruction": config("generative_only", "paper"),
    "reconstruction, cross-modal, masked": config(
        "generative_only", "improved", {"reconstruction": {"cross_modal": True}}, {"feature_mask": 0.3}
    ),
    "simclr, masked views": config("simclr", "paper"),
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
    "micro-batches, paper": config("conclugen", "paper", micro_batch=2),
    "micro-batches, improved": config("conclugen", "improved", micro_batch=3),
    "micro-batches, pcgrad": config("conclugen", "improved", {"gradients": "pcgrad"}, micro_batch=2),
    "micro-batches, simclr": config("simclr", "paper", micro_batch=2),
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
