"""What the ranks run: plain data in, numpy out. The same functions run without a process group as the reference."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from conclugen import PretrainConfig, Pretrainer, batch_norm, distributed
from conclugen.random import uniform

WIDTHS = {"video": 9, "audio": 7, "text": 5, "video_3d": 6, "video_3d_again": 6}


def make_batch(
    rows: int, seed: int, missing: float = 0.3, absent: tuple[str, int, int] | None = None
) -> dict[str, Any]:
    """A global batch with randomly missing modalities; `absent`: (modality, start, stop) of rows without it."""
    g = np.random.default_rng(seed)
    present = {m: g.random(rows) >= missing for m in WIDTHS}
    if absent is not None:
        present[absent[0]][absent[1] : absent[2]] = False
    features = {m: g.standard_normal((rows, d)) * present[m][:, None] for m, d in WIDTHS.items()}
    return {
        "features": features,
        "present": present,
        "row": np.arange(rows) + 1000 * seed,
        "group": g.integers(0, 2, rows),
    }


def own_rows(batch: dict[str, Any], config: PretrainConfig) -> SimpleNamespace:
    """This rank's part of a global batch: rows r * local to (r + 1) * local, fewer or none at the tail."""
    local = config.local_batch(distributed.world_size())
    part = slice(distributed.rank() * local, (distributed.rank() + 1) * local)
    return SimpleNamespace(
        features={m: x[part] for m, x in batch["features"].items()},
        present={m: x[part] for m, x in batch["present"].items()},
        row=batch["row"][part],
        group=batch["group"][part],
    )


def train(config: dict[str, Any], batches: list[dict[str, Any]], steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """Metrics of each step, gradients of the last one, weights and buffers at the end."""
    cfg = PretrainConfig.from_dict(config)
    standardization = (
        {m: (np.full(d, 0.1), np.full(d, 1.5)) for m, d in WIDTHS.items()} if cfg.model.standardize else None
    )
    pretrainer = Pretrainer(cfg, WIDTHS, steps_per_epoch, standardization)
    metrics = [pretrainer.step(own_rows(batches[i % len(batches)], cfg)) for i in range(steps)]
    tensors, _ = pretrainer.state()
    return {
        "metrics": [{name: float(x) for name, x in m.items()} for m in metrics],
        "gradients": {n: p.grad.numpy().copy() for n, p in pretrainer.parameters.items() if p.grad is not None},
        "tensors": {name: x.numpy().copy() for name, x in tensors.items()},
    }


def train_with_gather_without_gradient(*arguments: Any) -> dict[str, Any]:
    """The classical fault: other ranks' rows arrive as constants."""

    def severed(x: Tensor) -> Tensor:
        with torch.no_grad():
            gathered = real(x)
        local, start = len(x), distributed.rank() * len(x)
        return torch.cat([gathered[:start], x, gathered[start + local :]])

    real = distributed.gather
    with mock.patch.object(distributed, "gather", severed):
        return train(*arguments)


def train_with_local_batch_norm(*arguments: Any) -> dict[str, Any]:
    """Another classical fault: each rank normalises by its own rows."""

    def local(x_MBC: Tensor, present_MB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with mock.patch.object(distributed, "world_size", lambda: 1):
            return real(x_MBC, present_MB)

    real = batch_norm.global_moments
    with mock.patch.object(batch_norm, "global_moments", local):
        return train(*arguments)


def gathered_twice(rows: int) -> dict[str, Any]:
    """What `gather` returns, and the gradient of a loss that weighs gathered row i by (this rank + 1) (i + 1)."""
    rank = distributed.rank()
    x = uniform(1, "gather", rank, torch.arange(rows), 2).requires_grad_()
    gathered = distributed.gather(x)
    weight = (rank + 1.0) * torch.arange(1.0, len(gathered) + 1, dtype=torch.float64)
    (gathered.sum(1) * weight).sum().backward()
    assert x.grad is not None
    return {"gathered": gathered.detach().numpy(), "gradient": x.grad.numpy()}
