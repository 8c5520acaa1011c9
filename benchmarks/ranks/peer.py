"""The `improved` recipe of `conclugen` as one writes it by hand with torch alone: the same heads and losses, torch's
own dropout, DistributedDataParallel, k-means on every rank, nothing masked, recorded or made to be resumed.

The contrastive loss is open_clip's way: each rank has its rows of all similarities in memory, once for each direction.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather, all_reduce
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from conclugen import kmeans
from conclugen.config import PretrainConfig


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(x: Tensor) -> Tensor:
    return torch.cat(all_gather(x.contiguous())) if world() > 1 else x


class Gated(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.input, self.gate, self.output = nn.Linear(width, out), nn.Linear(out, out), nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.input(x).relu()
        y: Tensor = self.output(functional.glu(torch.cat([h, self.gate(h)], dim=1), dim=1))
        return y


class SyncedNorm(nn.Module):
    """Batch norm over the global batch of each modality (M, B, C); torch's own knows no CPU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        sums = torch.stack([x.sum(1), x.square().sum(1)])
        mean, square = (all_reduce(sums) if world() > 1 else sums) / (world() * x.shape[1])
        scale = self.weight * torch.rsqrt(square - mean.square() + 1e-5)
        return (x - mean.unsqueeze(1)) * scale.unsqueeze(1) + self.bias


class Peer(nn.Module):
    """Preset `conclugen`, recipe `improved`; the forward pass is the loss of this rank's rows."""

    queue: Tensor
    centroids: Tensor

    def __init__(self, config: PretrainConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        model, tasks = config.model, config.tasks
        assert tasks.contrastive is not None and tasks.clustering is not None and tasks.reconstruction is not None
        self.contrastive, self.clustering, self.reconstruction = (
            tasks.contrastive,
            tasks.clustering,
            tasks.reconstruction,
        )
        self.modalities, self.seed = config.modalities, config.seed
        self.clip, self.mask, self.divisor = model.input_clip, model.feature_mask, len(tasks.active)
        R, P, H = model.representation_dim, model.projection_dim, model.reconstruction_hidden_dim
        K, rows = self.clustering.clusters, self.clustering.queue_batches * config.global_batch
        self.heads = nn.ModuleDict({m: Gated(widths[m], R) for m in self.modalities})
        hidden = R // model.projection_shrink
        self.hidden, self.norm = nn.Linear(R, hidden, bias=False), SyncedNorm(hidden)
        self.output = nn.Linear(hidden, P)
        self.cluster = nn.Linear(P, K, bias=False)
        self.decoders = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(R, H), nn.ReLU(), nn.Linear(H, widths[m])) for m in self.modalities}
        )
        for m in self.modalities:
            self.register_buffer(f"mean_{m}", torch.zeros(widths[m]))
            self.register_buffer(f"deviation_{m}", torch.ones(widths[m]))
        self.register_buffer("queue", torch.zeros(rows, K))
        self.register_buffer("centroids", torch.zeros(K, K))
        self.filled, self.step_number = 0, 0

    def forward(self, features: Mapping[str, Tensor], group: Tensor) -> Tensor:
        inputs, seen = {}, {}
        for m in self.modalities:
            x = (features[m] - getattr(self, f"mean_{m}")) / getattr(self, f"deviation_{m}")
            inputs[m] = x.clamp(-self.clip, self.clip)
            seen[m] = self.heads[m](functional.dropout(inputs[m], self.mask, self.training))
        stacked = torch.stack(list(seen.values()))
        z = self.output(self.norm(self.hidden(stacked)).relu())
        everyone = [torch.empty_like(group) for _ in range(world())]
        if world() > 1:
            dist.all_gather(everyone, group)
        else:
            everyone = [group]
        total = self.contrastive.weight * self._contrastive(z, group, torch.cat(everyone))
        total = total + self.clustering.weight * self._clustering(z)
        errors = [functional.mse_loss(self.decoders[m](seen[m]), inputs[m]) for m in self.modalities]
        total = total + self.reconstruction.weight * torch.stack(errors).sum()
        self.step_number += 1
        return total / self.divisor

    def _contrastive(self, z: Tensor, group: Tensor, group_all: Tensor) -> Tensor:
        z = functional.normalize(z, dim=2)
        z_all = gathered(z.transpose(0, 1)).transpose(0, 1)
        rank = dist.get_rank() if world() > 1 else 0
        same = group.unsqueeze(1) == group_all
        apart = ~same & (same.sum(1, keepdim=True) > 4)  # compared with all where fewer than four others are its own
        target = torch.arange(len(group)) + rank * len(group)
        losses = []
        count = len(self.modalities)
        for a, b in [(0, 1)] if count == 2 else [(m, (m + 1) % count) for m in range(count)]:
            for x, y in ((z[a], z_all[b]), (z[b], z_all[a])):
                logits = (x @ y.T / self.contrastive.temperature).masked_fill(apart, -torch.inf)
                losses.append(functional.cross_entropy(logits, target))
        return torch.stack(losses).sum()

    def _clustering(self, z: Tensor) -> Tensor:
        settings, scored = self.clustering, self.cluster(z).mean(0)
        with torch.no_grad():
            batch = torch.cat([scored])
            if world() > 1:
                parts = [torch.empty_like(scored) for _ in range(world())]
                dist.all_gather(parts, scored)
                batch = torch.cat(parts)
            pool = torch.cat([self.queue[: self.filled], batch])
            valid = torch.ones(len(pool), dtype=torch.bool)
            drawn = kmeans.draw_rows(pool, valid, settings.clusters, self.seed, self.step_number)
            start = self.centroids.clone() if self.step_number else drawn
            found = kmeans.cosine_kmeans(pool, valid, start, reseed_KC=drawn, max_iterations=settings.max_iterations)
            self.centroids.copy_(found.centroids)
            self.queue.copy_(torch.cat([batch, self.queue[: max(0, len(self.queue) - len(batch))]]))
            self.filled = min(self.filled + len(batch), len(self.queue))
            rank = dist.get_rank() if world() > 1 else 0
            label = found.labels[-len(batch) :][rank * len(scored) : (rank + 1) * len(scored)]
        scores = functional.normalize(scored, dim=1) @ functional.normalize(self.centroids, dim=1).T
        return functional.cross_entropy(scores / settings.temperature, label)


class Loop:
    """The peer with its optimiser."""

    def __init__(self, config: PretrainConfig, widths: Mapping[str, int]) -> None:
        peer, settings = Peer(config, widths), config.optimizer
        self.model: nn.Module = peer
        if world() > 1:
            self.model = DistributedDataParallel(peer, broadcast_buffers=False)
        self.clip_norm = config.clip_norm
        matrices = [p for p in peer.parameters() if p.dim() > 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": [p for p in peer.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 1000)

    def step(self, batch: Any) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.model(batch.features, batch.group)
        loss.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()
