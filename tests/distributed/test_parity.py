"""World size changes nothing: losses, gradients and weights on W gloo ranks against one process (float64)."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed import parity, ranks
from tests.distributed.parity import BATCHES, CASES, STEPS, STEPS_PER_EPOCH, assert_parity
from tests.distributed.pool import Pool

WORLDS = (1, 2, 3, 4)


def check_steps(workers: Pool, case: dict[str, Any], worlds: tuple[int, ...], steps: int) -> None:
    """Metrics and gradients of every step, weights, buffers and moments after the last one."""
    arguments = (list(BATCHES.values()), steps, STEPS_PER_EPOCH)
    expected = parity.reference(case, *arguments)
    assert any(np.abs(g).max() > 1e-4 for g in expected["gradients"][-1].values()), "what stands still is always equal"
    for world in worlds:
        first, *others = workers.run(world, ranks.train, case, *arguments)
        assert_parity(first, expected)
        for other in others:
            for name, value in first["tensors"].items():
                np.testing.assert_array_equal(other["tensors"][name], value, err_msg=f"{name} differs between ranks")


# By default each task's arithmetic by itself, all tasks together, and their micro-batches, for two epochs; on any
# number of ranks, with every option of every task, and for twenty steps, in the slow run.
ONCE = [
    case for case in CASES if case.endswith(", paper") or case.startswith(("total, ", "micro-batches, ", "corpora, w"))
]


@pytest.mark.parametrize(("case", "world"), zip(ONCE, itertools.cycle((2, 3, 2, 4)), strict=False))
def test_two_epochs(workers: Pool, case: str, world: int) -> None:
    check_steps(workers, CASES[case], (world,), 2 * STEPS_PER_EPOCH)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_on_any_number_of_ranks(workers: Pool, case: str) -> None:
    check_steps(workers, CASES[case], WORLDS, STEPS)


@pytest.mark.parametrize("case", [pytest.param("total, paper", marks=pytest.mark.slow), "total, improved, clipped"])
def test_in_single_precision_the_loss_stays_within_a_band(workers: Pool, case: str) -> None:
    """Weights drift apart there, for AdamW divides rounding noise by its own size; the curve of the loss does not."""
    single = {**CASES[case], "precision": "float32"}
    arguments = (list(BATCHES.values()), STEPS, STEPS_PER_EPOCH)
    expected = [step["loss"] for step in parity.reference(single, *arguments)["metrics"]]
    for world in (2, 3):
        found = [step["loss"] for step in workers.run(world, ranks.train, single, *arguments)[0]["metrics"]]
        np.testing.assert_allclose(found, expected, rtol=parity.FLOAT32_BAND)


def test_another_number_of_threads_changes_rounding_only() -> None:
    """Large enough that products and sums are shared among threads."""
    rows = 512
    case = {**CASES["total, improved, clipped"], "global_batch": rows}
    case["model"] = {**case["model"], "representation_dim": 128}
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(ranks.train(case, [ranks.make_batch(rows, 7)], 2, STEPS_PER_EPOCH))
    finally:
        torch.set_num_threads(threads)
    assert 0 < max(parity.difference(*results).values()) <= 1e-8, "sums in another order, and nothing else"


def test_a_batch_smaller_than_the_ranks_that_share_it(workers: Pool) -> None:
    """Four rows on three ranks: the last one holds padding only."""
    small = {**CASES["total, improved, clipped"], "global_batch": 4}
    arguments = ([ranks.make_batch(4, 6, 0.0)], 3, STEPS_PER_EPOCH)
    expected = parity.reference(small, *arguments)
    for found in workers.run(3, ranks.train, small, *arguments):
        assert_parity(found, expected)


@pytest.mark.parametrize("world", [2, 3])
def test_gather_is_the_same_everywhere_and_sums_gradients(workers: Pool, world: int) -> None:
    results = workers.run(world, ranks.gathered_twice, 3)
    weight = sum(r + 1.0 for r in range(world))
    for rank, result in enumerate(results):
        np.testing.assert_array_equal(result["gathered"], results[0]["gathered"])
        position = np.arange(1.0, 3 * world + 1)[3 * rank : 3 * rank + 3]
        np.testing.assert_allclose(result["gradient"], np.repeat(position[:, None] * weight, 2, axis=1))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_batch_norm_by_itself(workers: Pool, world: int) -> None:
    """One modality is on the last rank only, one nowhere, one in a single row."""
    assert parity.batch_norm_difference(workers, world) <= parity.TOLERANCE


def test_sums_of_many_tensors_are_each_ones_sum(workers: Pool) -> None:
    """Of sizes that share a bucket, fill one, and exceed one."""
    for result in workers.run(3, ranks.summed_in_buckets, [(2, 3), (), (4,), (5,), (1,)], 7):
        assert result == [True] * 5


FAULTY = [
    ("gather_without_gradient", "contrastive, one pair"),
    ("gather_without_gradient", "simclr, paper"),
    ("gather_without_gradient", "clustering, paper"),
    ("gather_without_gradient", "total, pcgrad"),
    ("local_count", "contrastive, one pair"),
    ("local_count", "clustering, individual"),
    ("local_count", "reconstruction, paper"),
    ("local_count", "simclr, stored second view"),
    ("local_batch_norm", "contrastive, one pair"),
    ("local_batch_norm", "clustering, warm, rolling queue"),
    ("projection_before_the_sum", "total, pcgrad"),
    ("losses_of_micro_batches", "micro-batches, paper"),
    ("losses_of_micro_batches", "simclr, micro-batches"),
]


@pytest.mark.parametrize(("fault", "case"), FAULTY)
def test_this_check_sees(workers: Pool, fault: str, case: str) -> None:
    """The very assertion of the tests above fails once a fault is put into the ranks."""
    arguments: tuple[Any, ...] = ([BATCHES["randomly missing"]], 1, STEPS_PER_EPOCH)
    expected = parity.reference(CASES[case], *arguments)
    faulty = workers.run(2, ranks.train_with, fault, CASES[case], *arguments)[0]
    with pytest.raises(AssertionError):
        assert_parity(faulty, expected)
    if fault == "gather_without_gradient":
        differences = parity.difference(faulty, expected)
        assert differences["gradient"] > 1e-6, "only gradients tell"
        assert abs(faulty["metrics"][0]["loss"] - expected["metrics"][0]["loss"]) <= parity.TOLERANCE
