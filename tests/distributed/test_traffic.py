"""What travels between ranks, how much of it, and in which type: bytes by closed forms, values by the whole batch."""

import math
import re
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from conclugen.latents import pack_bits, unpack_bits
from conclugen.training.step_cost import Collective
from tests.distributed import parity, ranks
from tests.distributed.parity import BATCHES, CASES
from tests.distributed.pool import Pool

UNIT = 2.0**-9  # of rounding to bfloat16, which keeps eight bits
BATCH = BATCHES["randomly missing"]
COMPRESSED = ["total, improved, clipped", "total, gradnorm", "micro-batches, improved"]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", COMPRESSED)
def test_compressed_gradients_are_right_within_the_rounding_of_bfloat16(workers: Pool, case: str, world: int) -> None:
    """A sum over W ranks is rounded once for each rank, sum, division and way back, each time by half a last bit."""
    plain = {**CASES[case], "clip_norm": None}
    expected = parity.reference(plain, [BATCH], 1, 1)["gradients"][0]
    parts = workers.run(world, ranks.own_gradients, plain, BATCH)
    first, *others = workers.run(world, ranks.train, {**plain, "gradient_compression": "bfloat16"}, [BATCH], 1, 1)
    found = first["gradients"][0]
    assert found.keys() == expected.keys()
    worst = 0.0
    for name in parts[0]:
        size = np.sum([part[name] for part in parts], axis=0)
        error = np.abs(found[name] - expected[name])
        assert (error <= ((1 + UNIT) ** (world + 3) - 1) * size + 1e-12).all(), name
        worst = max(worst, float(error.max()))
    assert worst > 1e-6, "nothing was rounded: nothing was compressed"
    for other in others:
        for name, x in other["tensors"].items():
            np.testing.assert_array_equal(x, first["tensors"][name], err_msg=f"{name} differs between ranks")


@pytest.mark.parametrize("world", [2, 3])
def test_a_ranks_sockets_carry_what_is_counted(workers: Pool, world: int) -> None:
    """Of all ranks together: of a tensor that is gathered, exchanged, scattered or broadcast (W - 1) / W a rank, of one
    that is summed twice that. gloo's own reduce-scatter moves the whole tensor instead."""
    numbers = 50_000
    whole = 4 * numbers * (world - 1)
    due = {"sum": 2 * whole, "gather's gradient": 2 * whole}
    for calls in zip(*workers.run(world, ranks.received, numbers), strict=True):
        (name,), asked = {name for name, _, _ in calls}, calls[0][1]
        counted = sum(Collective(*each).moved(world) for each in asked)
        assert counted == pytest.approx(due.get(name, whole)), name
        found = sum(came for _, _, came in calls) / world
        assert counted <= found <= 1.02 * counted, (name, asked, found / counted)


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize(("dtype", "into"), [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")])
def test_scattered_sums_are_those_in_the_ranks_order(workers: Pool, world: int, dtype: str, into: str) -> None:
    """To the last digit where ranks add up; by the transport's own reduce-scatter within the rounding of the type."""
    found = workers.run(world, ranks.scattered, dtype, into, False)
    by_transport = workers.run(world, ranks.scattered, dtype, into, True)
    narrow = np.float64 if into == "float64" else np.float32
    unit = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": UNIT}[dtype]
    for rank in range(world):
        parts = [x[rank] for x, _, _ in found]
        expected = parts[0].astype(narrow)
        for part in parts[1:]:
            expected = expected + part.astype(narrow)
        _, own, held = found[rank]
        np.testing.assert_array_equal(own, expected)
        assert held == own.size, "the memory of all parts is kept"
        assert (np.abs(by_transport[rank][1] - own) <= 2 * world * unit * np.abs(parts).sum(0)).all()


@pytest.mark.parametrize("compression", ["none", "bfloat16"])
@pytest.mark.parametrize("world", [2, 3])
def test_gradients_of_tasks_travel_as_often_as_the_closed_form_says(
    workers: Pool, world: int, compression: str
) -> None:
    """k tasks' gradients of n numbers are scattered, and what they are combined to comes back: (k + 1) n numbers, each
    passing W - 1 of W links. An all-reduce moves 2 n."""
    case = {**CASES["total, pcgrad"], "gradient_compression": compression, "precision": "float32"}
    size = 2 if compression == "bfloat16" else 4
    for moved, parameters in workers.run(world, ranks.gradient_traffic, case, BATCH):
        numbers: dict[tuple[int, tuple[str, ...], bool], int] = defaultdict(int)
        for tasks, of_heads, count in parameters:
            numbers[len(tasks), tuple(tasks), of_heads] += count
        assert {reached for reached, _, _ in numbers} == {1, 2, 3}
        whole = [(reached, -(-n // world) * world) for (reached, _, _), n in numbers.items()]  # shared out equally
        assert moved == sum((reached + 1) * n * size * (world - 1) // world for reached, n in whole)
        alone = sum(n for reached, n in whole if reached == 1)
        shared = sum(n for reached, n in whole if reached > 1)
        all_reduced = 2 * size * (world - 1) / world
        assert moved <= all_reduced * (alone + shared * (3 + 1) / 2)


def test_gradients_of_micro_batches_travel_before_the_last_one_is_done(workers: Pool) -> None:
    """Those that the heads' second pass does not reach travel beside it, the others beside its last way back."""
    case = CASES["micro-batches, improved"]
    parts = math.ceil(math.ceil(case["global_batch"] / 2) / case["micro_batch"])
    for events in workers.run(2, ranks.sums_beside_micro_batches, case, BATCH, 40):
        order = "".join(event[0] for event in events)
        assert re.fullmatch(f"p{{{parts}}}s+p{{{parts}}}s+d", order), order


def test_a_projection_of_compressed_gradients_is_near_that_of_whole_ones(workers: Pool) -> None:
    case = CASES["total, gradnorm and pcgrad"]
    expected = parity.reference(case, [BATCH], 1, 1)["gradients"][0]
    found = workers.run(2, ranks.train, {**case, "gradient_compression": "bfloat16"}, [BATCH], 1, 1)[0]["gradients"][0]
    names = [name for name in expected if not name.startswith("weighting.")]
    error, size = (np.sqrt(sum(float((x**2).sum()) for x in each)) for each in (
        [found[name] - expected[name] for name in names], [expected[name] for name in names]
    ))  # fmt: skip
    assert 1e-6 < error / size < 4 * 2 * UNIT


@pytest.mark.parametrize("case", ["total, improved, clipped", "total, pcgrad"])
def test_a_process_group_of_their_own_changes_no_digit(workers: Pool, case: str) -> None:
    arguments: tuple[Any, ...] = (CASES[case], [BATCH], 2, 1)
    expected = workers.run(2, ranks.train, *arguments)[0]
    for found, used in workers.run(2, ranks.train_apart, *arguments):
        assert used == {True}
        assert parity.difference(found, expected) == {"loss": 0, "gradient": 0, "weights": 0}


def test_clusters_are_the_same_whether_each_rank_finds_them_or_one_for_all(workers: Pool) -> None:
    arguments: tuple[Any, ...] = (CASES["clustering, warm, rolling queue"], list(BATCHES.values()), 6, 3)
    expected = workers.run(2, ranks.train, *arguments)[0]
    for found in workers.run(2, ranks.train_unlike, *arguments):
        assert parity.difference(found, expected) == {"loss": 0, "gradient": 0, "weights": 0}


@pytest.mark.parametrize("count", [1, 3, 8, 9, 17])
def test_flags_travel_as_bits(count: int) -> None:
    flags = torch.rand(13, count, generator=torch.Generator().manual_seed(count)) < 0.5
    packed = pack_bits(flags)
    np.testing.assert_array_equal(packed.numpy(), np.packbits(flags.numpy(), axis=1, bitorder="little"))
    torch.testing.assert_close(unpack_bits(packed, count), flags)


def test_what_rank_0_alone_has_read_is_restored_everywhere(workers: Pool) -> None:
    """Parameters, moments, queue and its flags: the next step is the same on every rank, to the last digit."""
    case = CASES["total, improved, clipped"]
    for went_on, restored in workers.run(2, ranks.restored, case, list(BATCHES.values())[:3]):
        assert restored == went_on


def test_ranks_exchange_notes_at_meetings_and_between_them(workers: Pool) -> None:
    notes = [{"note": "x"}, {"note": "x" * 301}, {"note": "x" * 601}]
    assert workers.run(3, ranks.met, 60.0) == [[notes, [0, 1, 2], False, True]] * 3
