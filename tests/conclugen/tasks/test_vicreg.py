"""The three terms against NumPy over present rows only, their gradient against autograd of that form, and on ranks."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from conclugen import presets
from conclugen.latents import Latents, Presence
from conclugen.tasks.vicreg import Vicreg, VicregConfig
from tests.distributed.parity import assert_rank_parity

M, B, P = 3, 11, 4
RING = [(0, 1), (1, 2), (2, 0)]
CONFIGS = [VicregConfig(), VicregConfig(invariance=2.0, variance=5.0, covariance=3.0)]


def presence(pattern: str) -> Presence:
    g = torch.Generator().manual_seed(2)
    masks = {
        "full": torch.ones(M, B, dtype=torch.bool),
        "random": torch.rand(M, B, generator=g) > 0.4,
        "one row": torch.zeros(M, B, dtype=torch.bool).index_fill(1, torch.tensor([4]), True),
        "none": torch.zeros(M, B, dtype=torch.bool),
    }
    return Presence(masks[pattern], masks[pattern], torch.arange(B), None, 0)


def projections() -> Tensor:
    z = torch.randn(M, B, P, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return (z * torch.tensor([0.3, 1.0, 2.0, 0.01], dtype=torch.float64)).requires_grad_()  # wide, narrow, collapsed


def loss_of(config: VicregConfig, z: Tensor, there: Presence) -> Tensor:
    return Vicreg(config).double()(Latents(("video", "audio", "text")[: len(z)], {}, {}, z, there, 0, 0))


def slow(config: VicregConfig, z: np.ndarray, there: np.ndarray, pairs: list[tuple[int, int]]) -> float:
    """Number by number, in NumPy."""
    total = 0.0
    for a, b in pairs:
        rows = [i for i in range(B) if there[a, i] and there[b, i]]
        distances = [float(np.mean((z[a, i] - z[b, i]) ** 2)) for i in rows]
        total += config.invariance * float(np.mean(distances)) if rows else 0.0
    for m in range(len(z)):
        own = z[m][there[m]]
        if len(own) < 2:
            continue
        covariance = np.cov(own, rowvar=False)
        deviation = np.sqrt(np.diag(covariance) + 1e-4)
        total += config.variance * sum(max(0.0, 1.0 - float(d)) for d in deviation) / P
        total += config.covariance * sum(float(covariance[j, k]) ** 2 for j in range(P) for k in range(P) if j != k) / P
    return total


def dense(config: VicregConfig, z: Tensor, there: Tensor) -> Tensor:
    """Of the rows that are there, cut out, for the gradient."""
    total = z.sum() * 0
    for a, b in RING:
        rows = (there[a] & there[b]).nonzero().squeeze(1)
        if len(rows):
            total = total + config.invariance * torch.nn.functional.mse_loss(z[a, rows], z[b, rows])
    for m in range(M):
        own = z[m][there[m]]
        if len(own) >= 2:
            covariance = torch.cov(own.T)
            total = total + config.variance * (1 - (own.var(0) + 1e-4).sqrt()).clamp(min=0).mean()
            crossed = covariance[~torch.eye(P, dtype=torch.bool)]
            total = total + config.covariance * crossed.square().sum() / P
    return total


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("pattern", ["full", "random", "one row", "none"])
def test_value_and_gradient(pattern: str, config: VicregConfig) -> None:
    there, z, same = presence(pattern), projections(), projections()
    loss = loss_of(config, z, there)
    assert float(loss.detach()) == pytest.approx(slow(config, z.detach().numpy(), there.local.numpy(), RING), abs=1e-11)
    loss.backward()
    dense(config, same, there.local).backward()
    assert z.grad is not None and same.grad is not None
    torch.testing.assert_close(z.grad, same.grad, atol=1e-11, rtol=1e-11)
    assert bool((z.grad[~there.local] == 0).all())
    if pattern in ("full", "random"):
        assert float(z.grad.abs().max()) > 1e-3


def test_two_modalities_are_the_published_form() -> None:
    z = projections().detach()[:2]
    everywhere = torch.ones(2, B, dtype=torch.bool)
    found = loss_of(VicregConfig(), z, Presence(everywhere, everywhere, torch.arange(B), None, 0))
    expected = slow(VicregConfig(), z.numpy(), everywhere.numpy(), [(0, 1)])
    assert float(found) == pytest.approx(expected, abs=1e-11)


def test_one_point_is_the_worst_variance() -> None:
    """All rows alike: no distance, no covariance, and every deviation lacks all of 1 but the root of 1e-4."""
    z, everywhere = torch.ones(M, B, P, dtype=torch.float64), torch.ones(M, B, dtype=torch.bool)
    found = loss_of(VicregConfig(), z, Presence(everywhere, everywhere, torch.arange(B), None, 0))
    assert float(found) == pytest.approx(M * 25 * 0.99)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": -1.0}, "tasks.vicreg.weight"),
        ({"covariance": -0.1}, "tasks.vicreg.covariance.*0 or more"),
        ({"variance": 0.0}, "tasks.vicreg.variance.*invariance alone collapses"),
    ],
)
def test_refusals(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        presets.build("contrast_only", tasks={"vicreg": settings})


@pytest.mark.slow
def test_ranks() -> None:
    assert_rank_parity("vicreg")


def test_its_flops_are_those_that_torch_counts() -> None:
    """Of the covariance's products, forwards and backwards; what is linear in the batch is left out."""
    z, config = projections(), presets.build("conclugen", global_batch=B, model={"projection_dim": P})
    with FlopCounterMode(display=False) as counter:
        loss_of(VicregConfig(), z, presence("full")).backward()  # type: ignore[no-untyped-call]
    assert Vicreg.flops(VicregConfig(), config, {}) == counter.get_total_flops()
