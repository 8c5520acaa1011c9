"""Heads against their formulae in numpy, batch norm against torch's own, standardisation against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from conclugen.layers import standardize
from conclugen.layers.batch_norm import ModalityBatchNorm
from conclugen.layers.heads import GatedUnit, Linear, ModelConfig, RepresentationHead
from conclugen.random import uniform


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module) -> nn.Module:
    module = module.double()
    for i, parameter in enumerate(module.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=100 + i))
    return module


def numpy_unit(unit: nn.Module, x: np.ndarray, activation: str) -> np.ndarray:
    W1, b1, W2, b2, W3, b3 = (p.detach().numpy() for p in unit.parameters())
    h = np.maximum(x @ W1.T + b1, 0)
    g = h / (1 + np.exp(-(h @ W2.T + b2)))
    out = g @ W3.T + b3
    return np.maximum(out, 0) if activation == "relu" else out


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_gated_unit(activation: str) -> None:
    unit = filled(GatedUnit(5, 4, activation))
    x = randn(6, 5)
    np.testing.assert_allclose(unit(x).detach().numpy(), numpy_unit(unit, x.numpy(), activation), atol=1e-12)
    assert torch.autograd.gradcheck(unit, (x.requires_grad_(),))


def test_head_at_its_own_width_ends_in_a_linear_map() -> None:
    head = filled(RepresentationHead(5, 7, "relu", own_width=True))
    x = randn(6, 5)
    inner = numpy_unit(head.unit, x.numpy(), "relu")  # type: ignore[arg-type]
    assert inner.shape == (6, 5)
    weight, bias = (p.detach().numpy() for p in list(head.parameters())[-2:])
    expected = inner @ weight.T + bias
    np.testing.assert_allclose(head(x).detach().numpy(), expected, atol=1e-12)
    assert expected.min() < 0


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    def weights(seed: int, name: str) -> torch.Tensor:
        layer = Linear(50, 40)
        layer.initialise(seed, name)
        return torch.cat([layer.weight.detach().flatten(), layer.bias.detach()])

    first = weights(1, "a")
    torch.randn(7)  # an ambient draw in between
    assert torch.equal(first, weights(1, "a"))
    assert not torch.equal(first, weights(2, "a")) and not torch.equal(first, weights(1, "b"))
    bound = 50**-0.5
    assert first.abs().max() <= bound
    assert float(first.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_batch_norm_without_missing_rows_is_torchs_own() -> None:
    """One modality after the other through BatchNorm1d: outputs, gradients, running statistics."""
    ours, theirs = filled(ModalityBatchNorm(4)), nn.BatchNorm1d(4).double()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x, y = randn(3, 8, 4).requires_grad_(), randn(3, 8, 4).requires_grad_()
    for step in range(3):
        mine = ours(x + step, torch.ones(3, 8, dtype=torch.bool))
        other = torch.stack([theirs(row + step) for row in x])
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)
    weight = randn(3, 8, 4, seed=5)
    mine_grad = torch.autograd.grad((mine * weight).sum(), [x, *ours.parameters()])
    other_grad = torch.autograd.grad((other * weight).sum(), [x, *theirs.parameters()])
    for a, b in zip(mine_grad, other_grad, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(y, torch.ones(3, 8, dtype=torch.bool))[1], theirs(y[1]))


def test_batch_norm_counts_present_rows_only() -> None:
    norm, reference = filled(ModalityBatchNorm(4)), nn.BatchNorm1d(4).double()
    reference.load_state_dict(norm.state_dict(), strict=False)
    x = randn(2, 8, 4)
    present = torch.zeros(2, 8, dtype=torch.bool)
    present[0, [1, 4, 5]] = True
    present[1, 2] = True  # a single row: no update of the running statistics
    out = norm(x, present)
    torch.testing.assert_close(out[0, present[0]], reference(x[0, present[0]]), atol=1e-12, rtol=0)
    torch.testing.assert_close(out[1, 2], norm.bias.data)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)
    assert bool(torch.isfinite(norm(x, torch.zeros(2, 8, dtype=torch.bool))).all())


def test_gradient_of_batch_norm_with_missing_rows() -> None:
    present = torch.rand(2, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    norm = filled(ModalityBatchNorm(3))
    assert torch.autograd.gradcheck(lambda x: norm(x, present), (randn(2, 6, 3).requires_grad_(),))


def test_batch_norm_stays_in_float32_under_autocast() -> None:
    norm = ModalityBatchNorm(4)
    x = (1000 + randn(1, 64, 4)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x, torch.ones(1, 64, dtype=torch.bool))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.std(1, correction=0), torch.ones(1, 4), atol=1e-3, rtol=0)


def test_standardisation_is_numpys_over_the_rows_that_are_there() -> None:
    g = np.random.default_rng(0)
    x = g.standard_normal((100, 3)) * [1.0, 50.0, 0.0] + [1e3, -2.0, 7.0]
    present = g.random(100) > 0.3
    x[5] = np.nan
    keep = present & ~np.isnan(x).any(1)
    mean, deviation = standardize.fit({"video": x}, {"video": present})["video"]
    np.testing.assert_allclose(mean, x[keep].mean(0))
    np.testing.assert_allclose(deviation, [*x[keep].std(0)[:2], 1.0])  # the last is constant


def test_a_constant_feature_standardises_to_nothing_whoever_fitted_it() -> None:
    module = standardize.Standardize(3, 8.0)
    module.set("audio", [5.0, 1e4, 0.0], [0.0, 1e-6, 2.0])  # constant; constant up to rounding; not
    assert module(torch.tensor([[5.0, 1e4, 4.0]])).tolist() == [[0.0, 0.0, 2.0]]
    assert module.deviation.tolist() == [1.0, 1.0, 2.0]


def test_standardisation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="audio: every row is missing"):
        standardize.fit({"audio": np.full((4, 2), np.nan)})
    with pytest.raises(ValueError, match=r"audio: found shape \(4,\)"):
        standardize.fit({"audio": np.zeros(4)})
    module = standardize.Standardize(2, 8.0)
    for deviation in ([1.0, -1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match=r"'audio'.*deviation.*0 or more"):
            module.set("audio", [0.0, 0.0], deviation)
    with pytest.raises(ValueError, match=r"'audio'.*mean.*\(3,\).*\(2,\)"):
        module.set("audio", [0.0, 0.0, 0.0], [1.0, 1.0])


def test_standardised_features_are_cut() -> None:
    module = standardize.Standardize(2, 8.0)
    module.set("audio", [1.0, 0.0], [2.0, 1.0])
    assert module(torch.tensor([[3.0, 100.0]])).tolist() == [[1.0, 8.0]]


@pytest.mark.parametrize("field", ["representation_dim", "projection_dim", "projection_shrink"])
def test_sizes_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"model.{field}: found 0"):
        ModelConfig(**{field: 0})  # type: ignore[arg-type]


class TestRandom:
    ROWS = torch.tensor([0, 1, -1, 2**62, 12345])

    def test_against_python_integers(self) -> None:
        """SplitMix64 in arbitrary-precision arithmetic, written apart."""
        import hashlib

        top = 2**64

        def mix(x: int) -> int:
            x = (x + 0x9E3779B97F4A7C15) % top
            x = (x ^ (x // 2**30)) * 0xBF58476D1CE4E5B9 % top
            x = (x ^ (x // 2**27)) * 0x94D049BB133111EB % top
            return x ^ (x // 2**31)

        assert mix(0) == 0xE220A8397B1DCDAF  # the generator's published first output for seed 0
        purpose = int.from_bytes(hashlib.blake2b(b"mask", digest_size=8).digest(), "little")
        key = mix(mix(mix(127) ^ purpose) ^ 9)
        found = uniform(127, "mask", 9, self.ROWS, 3)
        for i, row in enumerate(self.ROWS.tolist()):
            for j in range(3):
                bits = mix((mix((row % top) ^ key) + (j + 1) * 0x9E3779B97F4A7C15) % top)
                assert float(found[i, j]) == (bits // 2**11) / 2**53

    def test_uniform_and_independent_of_batch(self) -> None:
        rows = torch.arange(2000)
        x = uniform(1, "mask", 3, rows, 50)
        assert float(x.min()) >= 0 and float(x.max()) < 1
        counts = torch.histc(x, bins=20, min=0, max=1)
        assert float(((counts - 5000) ** 2 / 5000).sum()) < 50  # chi-square, 19 degrees of freedom: p = 1e-4
        centred = x - 0.5
        assert float((centred[:, 1:] * centred[:, :-1]).mean().abs()) < 0.002
        assert float((centred[1:] * centred[:-1]).mean().abs()) < 0.002
        torch.testing.assert_close(uniform(1, "mask", 3, rows[700:800], 50), x[700:800], atol=0, rtol=0)
        for other in (
            uniform(2, "mask", 3, rows, 50),
            uniform(1, "kmeans", 3, rows, 50),
            uniform(1, "mask", 4, rows, 50),
        ):
            assert float(((other - 0.5) * centred).mean().abs()) < 0.002

    def test_float32_is_the_same_draw_rounded_down(self) -> None:
        x = uniform(1, "mask", 3, self.ROWS, 5)
        y = uniform(1, "mask", 3, self.ROWS, 5, dtype=torch.float32)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), torch.floor(x * 2**24) / 2**24, atol=0, rtol=0)

    def test_rows_must_be_integers(self) -> None:
        with pytest.raises(ValueError, match="expected int64"):
            uniform(1, "mask", 3, torch.rand(4), 5)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_orthogonal_maps_keep_distances(shape: tuple[int, int]) -> None:
    map_ = Linear(shape[1], shape[0]).double()
    map_.initialise_orthogonal(3, "a map", gain=2.0)
    w = map_.weight.detach()
    gram = w.T @ w if shape[0] >= shape[1] else w @ w.T
    torch.testing.assert_close(gram, 4.0 * torch.eye(min(shape), dtype=torch.float64), atol=1e-12, rtol=0)
    assert bool((map_.bias == 0).all())
    again = Linear(shape[1], shape[0]).double()
    again.initialise_orthogonal(3, "a map", gain=2.0)
    assert torch.equal(again.weight, map_.weight)
    again.initialise_orthogonal(4, "a map", gain=2.0)
    assert not torch.equal(again.weight, map_.weight)
