"""The learning rate against torch's own schedulers in sequence."""

from fractions import Fraction

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LinearLR, SequentialLR

from conclugen.schedule import OptimizerConfig, learning_rate


@pytest.mark.parametrize(
    ("warmup", "restart", "factor", "per_epoch"), [(5.0, 20.0, 2, 3), (2.0, 4.0, 1, 5), (1.0, 3.0, 3, 1)]
)
def test_warmup_and_restarts_are_torchs(warmup: float, restart: float, factor: int, per_epoch: int) -> None:
    config = OptimizerConfig(lr=0.01, warmup_epochs=warmup, restart_epochs=restart, restart_factor=factor, min_lr=1e-6)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    begin = int(warmup * per_epoch)
    linear = LinearLR(optimizer, start_factor=0.1, end_factor=1.0, total_iters=begin)
    cosine = CosineAnnealingWarmRestarts(optimizer, T_0=int(restart * per_epoch), T_mult=factor, eta_min=1e-6)
    reference = SequentialLR(optimizer, [linear, cosine], milestones=[begin])
    for step in range(400):
        assert learning_rate(config, step, per_epoch, 99) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), (
            step
        )
        optimizer.step()
        reference.step()


def test_a_single_cosine_is_torchs_and_ends_with_the_run() -> None:
    config = OptimizerConfig(lr=0.01, schedule="cosine", warmup_epochs=50, min_lr=1e-6)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    linear = LinearLR(optimizer, start_factor=0.1, end_factor=1.0, total_iters=12)  # a tenth of 40 epochs of 3 steps
    reference = SequentialLR(optimizer, [linear, CosineAnnealingLR(optimizer, T_max=108, eta_min=1e-6)], [12])
    for step in range(120):
        assert learning_rate(config, step, 3, 40) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        reference.step()
    assert learning_rate(config, 500, 3, 40) == pytest.approx(1e-6)


@pytest.mark.parametrize("rows", [149, 151])
def test_epochs_that_end_within_a_batch_reach_the_trough_at_the_very_end(rows: int) -> None:
    """100 epochs in batches of 100 whose remainder is carried over are `rows` steps."""
    config = OptimizerConfig(lr=0.01, schedule="cosine", warmup_epochs=0, min_lr=0.0)
    rates = [learning_rate(config, step, Fraction(rows, 100), 100) for step in range(rows + 1)]
    assert rates[rows] == 0
    assert rates == pytest.approx([learning_rate(config, step, rows, 1) for step in range(rows + 1)])


def test_peak_shrinks_at_each_restart() -> None:
    config = OptimizerConfig(lr=0.1, warmup_epochs=0, restart_epochs=2, restart_factor=2, min_lr=0.01, peak_decay=0.75)
    peaks = [learning_rate(config, step, 10, 99) for step in (0, 20, 60, 140)]
    assert peaks == pytest.approx([0.1, 0.075, 0.05625, 0.0421875])
    many = learning_rate(config, 20 * (2**9 - 1), 10, 99)
    assert many == pytest.approx(0.01)  # never below the trough


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("lr", float("nan")), ("min_lr", 1.0), ("beta1", 1.0), ("decay", "alll"), ("peak_decay", 0.0)],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"optimizer.{field}"):
        OptimizerConfig(**{field: value})  # type: ignore[arg-type]
