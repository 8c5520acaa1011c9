"""A step that is counted on tensors without memory is the step that runs; seconds follow from rates by hand."""

from collections import Counter
from typing import Any

import pytest
import torch

from benchmarks.flops import similarity_flops, step_flops
from conclugen import Batch, Pretrainer, kmeans, presets
from conclugen.config import PretrainConfig
from conclugen.training import step_cost
from conclugen.training.step_cost import MACHINES, Collective, Kernel, Machine, StepCost

WIDTHS = {"video": 24, "audio": 16, "text": 12, "video_3d": 16}
SIZES = {"representation_dim": 32, "projection_dim": 8, "reconstruction_hidden_dim": 16}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "improved": ("conclugen", "improved", {}),
    "bfloat16": ("conclugen", "improved", {"precision": "bfloat16"}),
    "paper": ("contrast_generative", "paper", {"clip_norm": 0.1}),
    "simclr": ("simclr", "paper", {}),
    "pcgrad": ("contrast_generative", "improved", {"tasks": {"gradients": "pcgrad"}}),
    "micro-batches": ("contrast_generative", "improved", {"micro_batch": 3}),
    "corpora": ("contrast_only", "improved", {"corpora": {"names": ("a", "b"), "negatives": "within"}}),
}


def config_of(case: str) -> PretrainConfig:
    preset, recipe, more = CASES[case]
    return presets.build(preset, recipe, **{"global_batch": 8, "model": SIZES, **more})


def without_norms(kernels: Counter[Kernel]) -> Counter[Kernel]:
    """torch takes the norms of all gradients in one kernel, but of fake ones in one each."""
    return Counter({k: n for k, n in kernels.items() if k.name not in ("_foreach_norm", "linalg_vector_norm")})


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_counted_are_those_that_run(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their bytes and operations. On a GPU all iterations of k-means run, and so here."""
    monkeypatch.setattr(kmeans, "_READABLE", frozenset())
    config = config_of(case)
    counted = without_norms(step_cost.count(config, WIDTHS, memory=None).kernels)
    fitted = {m: (torch.zeros(w).numpy(), torch.ones(w).numpy()) for m, w in WIDTHS.items() if m in config.modalities}
    pretrainer = Pretrainer(config, WIDTHS, 1, fitted if config.model.standardize else None)
    pretrainer.step_number = 1 + max(pretrainer.model.task(n).begins(t) for n, t in config.tasks.active.items())
    monkeypatch.setattr(pretrainer, "check_finite", lambda: None)
    g = torch.Generator().manual_seed(0)
    batch = Batch(
        {m: torch.randn(8, WIDTHS[m], generator=g) for m in pretrainer.widths},
        {m: torch.ones(8, dtype=torch.bool) for m in pretrainer.widths},
        torch.arange(8),
        group=torch.arange(8) % 2,
        corpus=torch.arange(8) % 2 if config.corpora.names else None,
    )
    counter = step_cost._Counter(1)
    with counter:
        pretrainer.step(batch)
    assert without_norms(counter.kernels()) == counted


def test_products_are_those_that_the_sizes_ask_for() -> None:
    """Each similarity is multiplied out four times, every other map three times, but for those at the bottom."""
    config = presets.build("contrast_only", "paper", global_batch=8, model=SIZES)
    flops = step_flops(config, WIDTHS)
    needed = sum(flops.values()) - similarity_flops(flops) * 3 // 4 + similarity_flops(flops)
    assert step_cost.count(config, WIDTHS).flops == needed


def test_seconds_follow_from_the_rates() -> None:
    machine = Machine(
        "test", {"bfloat16": 1e12, "tf32": 1e11, "float32": 1e10}, memory=1e9, holds=10**9, inside=1e8,
        between=1e7, node=2, product_share=0.5, memory_share=0.5, launch=1e-6, latency=1e-3, latency_between=1e-2,
    )  # fmt: skip
    small, moves, multiplies = Kernel("a", 10), Kernel("b", 10**6), Kernel("mm", 10**6, 10**10, "bfloat16", late=True)
    kernels = Counter({small: 4, moves: 2, multiplies: 1})
    collectives = (Collective("gather", 10**5), Collective("sum", 10**5))
    compute = 4 * 1e-6 + 2 * 2e-3 + 10**10 / 0.5e12
    for world, latency, link in ((2, 1e-3, 1e8), (4, 1e-2, 1e7)):
        cost = StepCost(world, 8, kernels, collectives, 10**6, 0)
        found = step_cost.estimate(cost, machine)
        share = (world - 1) / world
        gradients = 2 * 10**6 * share / link
        assert found.compute == pytest.approx(compute)
        assert found.blocking == pytest.approx(2 * latency + 3 * 10**5 * share / link)
        assert found.gradients == pytest.approx(gradients)
        assert found.exposed == pytest.approx(max(0, gradients - 10**10 / 0.5e12))
        assert found.step == pytest.approx(found.compute + found.blocking + found.exposed)
    alone = step_cost.estimate(StepCost(1, 8, kernels, (), 10**6, 0), machine)
    assert (alone.blocking, alone.gradients, alone.step) == (0, 0, pytest.approx(compute))


def test_at_published_sizes_a_slow_network_is_what_a_step_waits_for() -> None:
    """145 million parameters: 583 MB of gradients, half of that in bfloat16."""
    widths = {"video": 4096, "audio": 1024, "text": 768}
    config = presets.build("conclugen", "improved", global_batch=4096, precision="bfloat16")
    plain, halved = (
        step_cost.count(config.changed({"gradient_compression": how}), widths, 16) for how in ("none", "bfloat16")
    )
    assert plain.gradients == 2 * halved.gradients and plain.kernels == halved.kernels
    h100 = MACHINES["H100"]
    fast, slow = (step_cost.estimate(plain, Machine(**{**vars(h100), "between": rate})) for rate in (50e9, 1.25e9))
    assert fast.compute == slow.compute and slow.exposed > 0.9 * slow.gradients > 10 * fast.compute
    assert plain.launches < 3000, "not a kernel for each block of draws"


def test_results_take_fresh_memory_unless_they_are_in_place() -> None:
    x, y = torch.ones(100), torch.ones(100)
    with step_cost.counting() as counter:
        y = x + y
        x.mul_(2)
        y = x.view(10, 10).T
    found = [(k.name, k.bytes, k.fresh) for k in counter.kernels()]
    assert found == [("add", 1200, 400), ("mul_", 800, 0)]


def test_a_gpu_moves_less_where_blocks_follow_its_memory() -> None:
    """Of 65,536 rows on 64 ranks: the gradients of all keys are read and written once, and not for each 256 rows."""
    sizes = {"representation_dim": 32, "projection_dim": 64, "reconstruction_hidden_dim": 16}
    config = presets.build("contrast_only_video_text", "improved", global_batch=65_536, model=sizes)
    small, large = (step_cost.count(config, WIDTHS, 64, memory) for memory in (None, MACHINES["H100"].holds))
    assert small.flops == large.flops
    moved, as_much = (sum(each.moved(64) for each in cost.collectives) for cost in (small, large))
    assert moved == pytest.approx(as_much)
    keys = 65_536 * 64 * 4
    assert small.bytes - large.bytes > 3 * 3 * keys, "three blocks less, each of which reads, adds and writes them"
    assert large.launches < small.launches


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="float64 can't be counted; expected float32 or bfloat16"):
        step_cost.count(config_of("paper").changed({"precision": "float64"}), WIDTHS)
