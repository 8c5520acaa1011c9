"""World size changes nothing: losses, gradients and weights on W gloo ranks against one process (float64)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from conclugen import presets
from tests.distributed import ranks
from tests.distributed.pool import Pool, pool

G = 11  # shared by neither 2 nor 3 ranks: the last rank's rows are padded
SIZES = {"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 12}
CLUSTER = {"clusters": 4, "queue_batches": 2, "start_epoch": 0}
QUICK = {"lr": 1e-3, "warmup_epochs": 1.0, "restart_epochs": 2.0, "min_lr": 1e-5}


def config(preset: str, recipe: str, model: dict[str, Any] | None = None, **tasks: dict[str, Any]) -> dict[str, Any]:
    _, names = presets.PRESETS[preset]
    if "clustering" in names:
        tasks["clustering"] = {**CLUSTER, **tasks.get("clustering", {})}
    built = presets.build(
        preset,
        recipe,
        global_batch=G,
        precision="float64",
        model={**SIZES, **(model or {})},
        tasks=tasks,
        optimizer=QUICK,
        clip_norm=None,
    )
    return built.to_dict()


CASES = {
    "paper conclugen": config("conclugen", "paper"),
    "paper contrastive": config("contrast_only", "paper"),
    "paper one pair": config("contrast_only_video_audio", "paper"),
    "paper clustering": config("contrast_cluster", "paper", contrastive={"weight": 1e-9}),
    "paper clustering individual": config("contrast_cluster", "paper", clustering={"mode": "individual"}),
    "paper reconstruction": config("generative_only", "paper"),
    "paper simclr": config("simclr", "paper"),
    "simclr second view": config("simclr", "paper", simclr={"second_view": "video_3d_again"}),
    "improved conclugen": config("conclugen", "improved"),
    "same group": config("contrast_only", "improved", contrastive={"negatives": "same_group"}),
    "masked and cross-modal": config(
        "conclugen", "improved", {"feature_mask": 0.3}, reconstruction={"cross_modal": True}
    ),
}
BATCHES = {
    "randomly missing": ranks.make_batch(G, 1),
    "a rank without text": ranks.make_batch(G, 2, absent=("text", 4, 8)),
    "text nowhere": ranks.make_batch(G, 3, absent=("text", 0, G)),
    "text in one row": ranks.make_batch(G, 4, 0.0, absent=("text", 0, G - 1)),
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Pool]:
    with pool(3) as started:
        yield started


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(workers: Pool, case: str, world: int) -> None:
    for batch in BATCHES.values():
        arguments = (CASES[case], [batch], 1, 5)
        expected = ranks.train(*arguments)
        assert all(np.isfinite(v) for v in expected["metrics"][0].values())
        for found in workers.run(world, ranks.train, *arguments):
            assert_same(found["metrics"][0], expected["metrics"][0], 1e-9)
            assert_same(found["gradients"], expected["gradients"], 1e-9)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", ["paper conclugen", "improved conclugen", "masked and cross-modal"])
def test_weights_after_twenty_steps(workers: Pool, case: str, world: int) -> None:
    arguments = (CASES[case], list(BATCHES.values()), 20, 5)
    expected = ranks.train(*arguments)
    first, *others = workers.run(world, ranks.train, *arguments)
    for found, reference in zip(first["metrics"], expected["metrics"], strict=True):
        assert_same(found, reference, 1e-8)
    assert_same(first["tensors"], expected["tensors"], 1e-8)
    for other in others:
        for name, value in first["tensors"].items():
            np.testing.assert_array_equal(other["tensors"][name], value, err_msg=f"{name} differs between ranks")


def test_a_batch_smaller_than_the_ranks_that_share_it(workers: Pool) -> None:
    """Four rows on three ranks: the last one holds padding only."""
    small = {**CASES["improved conclugen"], "global_batch": 4}
    arguments = (small, [ranks.make_batch(4, 6, 0.0)], 3, 5)
    expected = ranks.train(*arguments)
    for found in workers.run(3, ranks.train, *arguments):
        assert_same(found["gradients"], expected["gradients"], 1e-9)


@pytest.mark.parametrize("world", [2, 3])
def test_gather_is_the_same_everywhere_and_sums_gradients(workers: Pool, world: int) -> None:
    results = workers.run(world, ranks.gathered_twice, 3)
    weight = sum(r + 1.0 for r in range(world))
    for rank, result in enumerate(results):
        np.testing.assert_array_equal(result["gathered"], results[0]["gathered"])
        position = np.arange(1.0, 3 * world + 1)[3 * rank : 3 * rank + 3]
        np.testing.assert_allclose(result["gradient"], np.repeat(position[:, None] * weight, 2, axis=1))


def test_this_check_sees_a_gather_without_gradient(workers: Pool) -> None:
    """Right loss, wrong gradient: only the comparison of gradients can tell."""
    arguments = (CASES["paper one pair"], [BATCHES["randomly missing"]], 1, 5)
    expected = ranks.train(*arguments)
    found = workers.run(2, ranks.train_with_gather_without_gradient, *arguments)[0]
    assert found["metrics"][0]["loss"] == pytest.approx(expected["metrics"][0]["loss"], abs=1e-9)
    with pytest.raises(AssertionError):
        assert_same(found["gradients"], expected["gradients"], 1e-9)


def test_this_check_sees_batch_norm_of_each_rank_apart(workers: Pool) -> None:
    arguments = (CASES["paper one pair"], [BATCHES["randomly missing"]], 1, 5)
    expected = ranks.train(*arguments)
    found = workers.run(2, ranks.train_with_local_batch_norm, *arguments)[0]
    assert abs(found["metrics"][0]["loss"] - expected["metrics"][0]["loss"]) > 1e-6
