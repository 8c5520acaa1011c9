"""Which parameters decay, and at which rate each group moves: closed forms of AdamW's first step."""

import pytest
import torch
from torch import nn

from conclugen.schedule import OptimizerConfig
from conclugen.training import optimizer


@pytest.mark.parametrize(("decay", "bias"), [("all", 2 * 0.975), ("matrices", 2.0)])
def test_what_is_configured_decays_and_learned_task_weights_never_do(decay: str, bias: float) -> None:
    """Without gradient AdamW multiplies by 1 - rate x decay = 1 - 0.05 x 0.5; with one, it moves by the rate."""
    model = {"w": nn.Parameter(torch.full((2, 2), 2.0)), "b": nn.Parameter(torch.full((3,), 2.0))}
    weighting = {"s": nn.Parameter(torch.tensor(2.0)), "t": nn.Parameter(torch.tensor(2.0))}
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, decay=decay)
    made = optimizer.make(config, model, weighting, weight_lr=0.02)
    for parameter in (*model.values(), *weighting.values()):
        parameter.grad = torch.zeros_like(parameter)
    weighting["t"].grad = torch.tensor(3.0)
    optimizer.set_rate(made, 0.5)
    made.step()
    assert model["w"].tolist() == [[pytest.approx(2 * 0.975)] * 2] * 2
    assert model["b"].tolist() == [pytest.approx(bias)] * 3
    assert weighting["s"].item() == 2.0 and weighting["t"].item() == pytest.approx(2 - 0.01)
