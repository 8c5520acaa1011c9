"""Swapped prediction: the assignment against plain iterations in NumPy, the loss number by number, what is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor

from conclugen.latents import Latents, Presence
from conclugen.tasks.swapped import Swapped, SwappedConfig, sinkhorn

M, B, P, K = 3, 12, 5, 4


def presence(share: float) -> Presence:
    mask = torch.rand(M, B, generator=torch.Generator().manual_seed(2)) < share
    return Presence(mask, mask, torch.arange(B), None, 0)


def projections(seed: int = 5) -> Tensor:
    return torch.randn(M, B, P, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def task(config: SwappedConfig) -> Swapped:
    made = Swapped(config, P).double()
    with torch.no_grad():
        made.prototypes.weight.copy_(torch.randn(config.prototypes, P, generator=torch.Generator().manual_seed(1)))
    return made


def slow_sinkhorn(scores: np.ndarray, iterations: int = 3000) -> np.ndarray:
    """Alternating divisions of the plain matrix, as in algorithm 1 of the paper."""
    q = np.exp(scores - scores.max())
    for _ in range(iterations):
        q /= q.sum(0, keepdims=True) * q.shape[1] / len(q)
        q /= q.sum(1, keepdims=True)
    return q


def test_the_assignment_is_the_balanced_one() -> None:
    scores = torch.randn(40, K, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 4
    valid = torch.arange(40) % 5 != 0
    found, off = sinkhorn(scores, valid, 3000, 1e-12)
    expected = slow_sinkhorn(scores[valid].numpy())
    np.testing.assert_allclose(found[valid].numpy(), expected, atol=1e-10)
    assert (found[~valid] == 0).all() and float(off) < 1e-12
    np.testing.assert_allclose(found.sum(0).numpy(), 32 / K, atol=1e-9)


def test_the_loss_number_by_number() -> None:
    config = SwappedConfig(prototypes=K, temperature=0.2, epsilon=0.3, iterations=2000, tolerance=1e-10)
    z, there, made = projections(), presence(0.7), task(config)
    loss = made(Latents(("video", "audio", "text"), {}, {}, z, there, 0, 0))
    unit = z.detach().numpy() / np.linalg.norm(z.detach().numpy(), axis=2, keepdims=True)
    c = made.prototypes.weight.detach().numpy()
    scores = unit @ (c / np.linalg.norm(c, axis=1, keepdims=True)).T
    mask = there.local.numpy()
    q = np.zeros_like(scores)
    for m in range(M):
        q[m, mask[m]] = slow_sinkhorn(scores[m, mask[m]] / 0.3)
    expected = 0.0
    for a, b in ((0, 1), (1, 2), (2, 0)):
        rows = [i for i in range(B) if mask[a, i] and mask[b, i]]
        for i in rows:
            for x, y in ((a, b), (b, a)):
                p = np.exp(scores[y, i] / 0.2) / np.exp(scores[y, i] / 0.2).sum()
                expected -= float(q[x, i] @ np.log(p)) / len(rows)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-7)
    loss.backward()
    assert z.grad is not None and z.grad.abs().max() > 1e-4
    assert (z.grad[~there.local] == 0).all(), "what is missing gets no gradient"
    assert made.prototypes.weight.grad is not None and made.prototypes.weight.grad.abs().max() > 1e-4
    assert float(made.metrics()["swapped/unbalanced"]) <= 1e-10


@pytest.mark.parametrize("share", [0.0, 0.15])
def test_too_few_rows_give_zero_with_a_gradient_path(share: float) -> None:
    z, made = projections(), task(SwappedConfig(prototypes=K))
    mask = presence(share).local[:2]
    there = Presence(mask, mask, torch.arange(B), None, 0)
    loss = made(Latents(("video", "audio"), {}, {}, z[:2], there, 0, 0))
    loss.backward()
    assert float(loss.detach()) == 0 and z.grad is not None and (z.grad == 0).all()


def test_an_assignment_that_does_not_converge_ends_the_run_in_one_line() -> None:
    config = SwappedConfig(prototypes=K, epsilon=0.01, iterations=1, tolerance=0.001)
    words = r"tasks.swapped: after 1 iterations Sinkhorn's .*tolerance=0.001; raise epsilon \(0.01\) or iterations"
    with pytest.raises(ValueError, match=words) as refused:
        task(config)(Latents(("video", "audio", "text"), {}, {}, projections(), presence(1.0), 0, 0))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("prototypes", 1), ("temperature", 0.0), ("epsilon", 1.1), ("epsilon", float("nan")), ("iterations", 0)],
)
def test_settings_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"tasks.swapped.{field}: found"):
        SwappedConfig(**{field: value})  # type: ignore[arg-type]
