"""The sigmoid loss against term-by-term NumPy, its gradient against autograd of the dense matrix, and on ranks."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from conclugen import presets
from conclugen.latents import Latents, Presence
from conclugen.tasks.siglip import Siglip, SiglipConfig
from tests.distributed.parity import assert_rank_parity

M, B, P = 3, 9, 4


def presence(pattern: str) -> Presence:
    g = torch.Generator().manual_seed(0)
    masks = {
        "full": torch.ones(M, B, dtype=torch.bool),
        "random": torch.rand(M, B, generator=g) > 0.4,
        "one row": torch.zeros(M, B, dtype=torch.bool).index_fill(1, torch.tensor([4]), True),
        "none": torch.zeros(M, B, dtype=torch.bool),
    }
    return Presence(masks[pattern], masks[pattern], torch.arange(B), None, 0)


def latents(z: Tensor, there: Presence) -> Latents:
    return Latents(("video", "audio", "text")[: len(z)], {}, {}, z, there, 0, 0)


def projections(seed: int = 1) -> Tensor:
    return torch.randn(M, B, P, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def slow(z: np.ndarray, there: np.ndarray, pairs: list[tuple[int, int]], scale: float, bias: float) -> float:
    """Row by row, over present rows only."""
    unit = z / np.linalg.norm(z, axis=2, keepdims=True)
    total = 0.0
    for a, b in pairs:
        rows = [i for i in range(B) if there[a, i] and there[b, i]]
        if len(rows) < 2:
            continue
        terms = [
            math.log1p(math.exp((-1 if i == j else 1) * (scale * float(unit[a, i] @ unit[b, j]) + bias)))
            for i in rows
            for j in rows
        ]
        total += sum(terms) / len(rows)
    return total


def dense(z: Tensor, there: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Whole matrices, for their gradient."""
    unit = z / z.norm(dim=2, keepdim=True)
    total = z.sum() * 0
    for a, b in [(0, 1), (1, 2), (2, 0)]:
        rows = (there[a] & there[b]).nonzero().squeeze(1)
        if len(rows) >= 2:
            logits = scale * unit[a, rows] @ unit[b, rows].T + bias
            target = torch.eye(len(rows), dtype=z.dtype)
            ones = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
            total = total + ones / len(rows)
    return total


@pytest.mark.parametrize("block_rows", [None, 1, 4])
@pytest.mark.parametrize("pattern", ["full", "random", "one row", "none"])
def test_value_and_gradient(pattern: str, block_rows: int | None) -> None:
    there, z = presence(pattern), projections()
    task = Siglip(SiglipConfig(inverse_temperature=3.0, bias=-1.5, block_rows=block_rows)).double()
    loss = task(latents(z, there))
    scale = float(task.scale().detach())
    pairs = [(0, 1), (1, 2), (2, 0)]
    assert float(loss.detach()) == pytest.approx(
        slow(z.detach().numpy(), there.local.numpy(), pairs, scale, -1.5), abs=1e-12
    )
    loss.backward()
    same, log_scale, bias = projections(), task.log_scale.detach().clone().requires_grad_(), torch.tensor(-1.5).double()
    bias.requires_grad_()
    dense(same, there.local, log_scale.exp(), bias).backward()
    zero = torch.zeros(())
    torch.testing.assert_close(z.grad, same.grad, atol=1e-12, rtol=0)
    for found, expected in ((task.log_scale.grad, log_scale.grad), (task.bias.grad, bias.grad)):
        expected = zero if expected is None else expected
        torch.testing.assert_close(found, expected.double(), atol=1e-12, rtol=0)
    if pattern in ("full", "random"):
        assert z.grad is not None and float(z.grad.abs().max()) > 1e-3


def test_two_modalities_make_one_pair() -> None:
    z = projections()[:2].detach()
    there = Presence(torch.ones(2, B, dtype=torch.bool), torch.ones(2, B, dtype=torch.bool), torch.arange(B), None, 0)
    task = Siglip(SiglipConfig()).double()
    expected = slow(z.numpy(), there.local.numpy(), [(0, 1)], float(task.scale().detach()), -10.0)
    assert float(task(latents(z, there)).detach()) == pytest.approx(expected, abs=1e-12)


def test_it_starts_as_published_and_stays_within_bounds() -> None:
    task = Siglip(SiglipConfig())
    assert float(task.scale().detach()) == pytest.approx(10.0) and float(task.bias.detach()) == -10.0
    for log_scale, expected in ((-9.0, 1.0), (9.0, 100.0)):
        task.log_scale.data.fill_(log_scale)
        assert float(task.scale().detach()) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": 0.0}, "tasks.siglip.weight"),
        ({"inverse_temperature": 0.5}, "tasks.siglip.inverse_temperature.*0.5"),
        ({"bias": float("nan")}, "tasks.siglip.bias"),
        ({"block_rows": 0}, "tasks.siglip.block_rows"),
    ],
)
def test_refusals(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        presets.build("contrast_only", tasks={"siglip": settings})


@pytest.mark.slow
def test_ranks() -> None:
    assert_rank_parity("siglip")
