"""AdamW over the parameters of a model and of its learned task weights, and what is done to gradients before it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from conclugen.schedule import OptimizerConfig


def make(
    config: OptimizerConfig, model: Mapping[str, nn.Parameter], weighting: Mapping[str, nn.Parameter], weight_lr: float
) -> torch.optim.AdamW:
    """AdamW whose groups have a `peak_lr` each: `set_rate` moves them together.

    model: the heads' and tasks' parameters, decayed as configured. weighting: the parameters of learned task weights,
    never decayed, with the peak rate `weight_lr`: they are few, and steer rather than represent.
    """
    spared = [p for p in model.values() if config.decay == "matrices" and p.dim() < 2]
    spared_ids = {id(p) for p in spared}
    decayed = [p for p in model.values() if id(p) not in spared_ids]
    groups = [
        {"params": decayed, "peak_lr": config.lr, "weight_decay": config.weight_decay},
        {"params": spared, "peak_lr": config.lr, "weight_decay": 0.0},
        {"params": list(weighting.values()), "peak_lr": weight_lr, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    # Made now rather than at each parameter's first step, so that every checkpoint has the same tensors.
    for parameter in (*model.values(), *weighting.values()):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every group this share of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def clip(parameters: Iterable[nn.Parameter], largest: float | None) -> Tensor:
    """Norm of all their gradients together, 0-d; they are scaled down to `largest` where it is given and exceeded."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if largest is not None and gradients:
        torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm
