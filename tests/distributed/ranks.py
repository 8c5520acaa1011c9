"""What the ranks run: plain data in, numpy out. The same functions run without a process group as the reference."""

import contextlib
import dataclasses
import math
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from conclugen import Batch, PretrainConfig, Pretrainer, distributed
from conclugen.corpora import by_corpus
from conclugen.latents import Presence
from conclugen.layers import batch_norm
from conclugen.random import uniform
from conclugen.training import grad_cache as accumulation
from conclugen.training import gradients, model, summed_gradients
from conclugen.training.checkpoint import Checkpoint, restore_everywhere
from conclugen.training.step_cost import Collective

_BYTES_RECEIVED = 128  # where tcpi_bytes_received stands in Linux's struct tcp_info
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
        "corpus": np.arange(rows) // 3 % 2,  # of a mixture of two
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
        corpus=batch["corpus"][part] if config.corpora.names else None,
    )


def train(config: dict[str, Any], batches: list[dict[str, Any]], steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """Metrics and gradients of each step; weights, buffers and moments at the end."""
    cfg = PretrainConfig.from_dict(config)
    pretrainer = Pretrainer(cfg, WIDTHS, steps_per_epoch, _moments(cfg))
    metrics: list[dict[str, float]] = []
    found: list[dict[str, NDArray[Any]]] = []
    for i in range(steps):
        values = pretrainer.step(own_rows(batches[i % len(batches)], cfg))
        metrics.append({name: float(x) for name, x in values.items()})
        found.append({n: p.grad.numpy().copy() for n, p in pretrainer.parameters.items() if p.grad is not None})
    tensors, _ = pretrainer.state()
    return {"metrics": metrics, "gradients": found, "tensors": {n: x.numpy().copy() for n, x in tensors.items()}}


def _moments(config: PretrainConfig) -> dict[str, tuple[NDArray[Any], NDArray[Any]]] | None:
    if not config.model.standardize:
        return None
    moments = {m: (np.full(d, 0.1), np.full(d, 1.5)) for m, d in WIDTHS.items()}
    for i, corpus in enumerate(config.corpora.names):
        moments |= {by_corpus(m, corpus): (np.full(d, 0.2 * i), np.full(d, 1.0 + i)) for m, d in WIDTHS.items()}
    return moments


def train_with(fault: str, *arguments: Any) -> dict[str, Any]:
    """Training with one of the classical faults of distributed losses put in: a name of FAULTS."""
    with FAULTS[fault]():
        return train(*arguments)


def gather_without_gradient() -> Any:
    """Other ranks' rows arrive as constants: the right loss, a wrong gradient."""

    def severed(x: Tensor) -> Tensor:
        with torch.no_grad():
            gathered = real(x)
        local, start = len(x), distributed.rank() * len(x)
        return torch.cat([gathered[:start], x, gathered[start + local :]])

    real = distributed.gather
    return mock.patch.object(distributed, "gather", severed)


def local_batch_norm() -> Any:
    """Each rank normalises by its own rows."""

    def local(x_MBC: Tensor, present_MB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with mock.patch.object(distributed, "world_size", lambda: 1):
            return real(x_MBC, present_MB)

    real = batch_norm.global_moments
    return mock.patch.object(batch_norm, "global_moments", local)


def local_count() -> Any:
    """A sum over rows is divided by W times this rank's count of them: the mean over ranks of the ranks' means."""

    class OwnRowsRepeated(Presence):
        @classmethod
        def asked(cls, *arguments: Any, **options: Any) -> Callable[[], Presence]:
            presence = real(*arguments, **options)()
            return lambda: dataclasses.replace(presence, all=presence.local.repeat(1, distributed.world_size()))

    real = Presence.asked
    return mock.patch.object(model, "Presence", OwnRowsRepeated)


def projection_before_the_sum() -> Any:
    """Each rank projects its own part of the tasks' gradients, and the results are added."""

    def compute(self: gradients.GradientComputer, *arguments: Any) -> gradients.Computed:
        with mock.patch.object(gradients, "summed", lambda partial, heads, wire: own(partial, heads)):
            computed = real(self, *arguments)
        for parameter in self.model.parameters():
            parameter.grad = None if parameter.grad is None else distributed.all_sum(parameter.grad)
        return computed

    real, own = gradients.GradientComputer.compute, summed_gradients._Whole
    return mock.patch.object(gradients.GradientComputer, "compute", compute)


def losses_of_micro_batches() -> Any:
    """Accumulation as it is usually done: each micro-batch has a loss of its own, and their gradients are averaged."""

    def naive(
        net: model.Model, batch: Batch, step: int, epoch: int, objectives: Any, size: int, arrived: Any = None
    ) -> Any:
        parts = [slice(start, start + size) for start in range(0, batch.rows, size)]
        results = [accumulation.direct_gradients(net, batch.part(p), step, epoch, objectives) for p in parts]
        shares = {n: torch.stack([s[n] for s, _ in results]).mean(0) for n in results[0][0]}
        columns = zip(*(g for _, g in results), strict=True)
        means = [[None if p[0] is None else sum(p) / len(parts) for p in zip(*c, strict=True)] for c in columns]
        for at, gradient in enumerate(means[0] if arrived else []):
            if gradient is not None:
                arrived(at, gradient)
        return shares, means

    return mock.patch.object(gradients, "cached_gradients", naive)


FAULTS = {
    f.__name__: f
    for f in (
        gather_without_gradient,
        local_batch_norm,
        local_count,
        projection_before_the_sum,
        losses_of_micro_batches,
    )
}


def normalise(x_MNC: NDArray[Any], present_MN: NDArray[Any], weight_MNC: NDArray[Any]) -> dict[str, Any]:
    """Batch norm of this rank's equal part of the rows: output, gradients of sum(weight * output), running values."""
    local = x_MNC.shape[1] // distributed.world_size()
    part = slice(distributed.rank() * local, (distributed.rank() + 1) * local)
    x = torch.tensor(x_MNC[:, part], requires_grad=True)
    norm = batch_norm.ModalityBatchNorm(x.shape[2]).double()
    y = norm(x, torch.tensor(present_MN[:, part]))
    (y * torch.tensor(weight_MNC[:, part] * present_MN[:, part, None])).sum().backward()
    assert x.grad is not None
    sums = {
        f"gradient of {name}": distributed.all_sum(p.grad).numpy()
        for name, p in norm.named_parameters()
        if p.grad is not None
    }
    buffers = {name: b.numpy().copy() for name, b in norm.named_buffers()}
    return {"rows": {"output": y.detach().numpy(), "gradient of x": x.grad.numpy()}, "whole": {**sums, **buffers}}


def gathered_twice(rows: int) -> dict[str, Any]:
    """What `gather` returns, and the gradient of a loss that weighs gathered row i by (this rank + 1) (i + 1)."""
    rank = distributed.rank()
    x = uniform(1, "gather", rank, torch.arange(rows), 2).requires_grad_()
    gathered = distributed.gather(x)
    weight = (rank + 1.0) * torch.arange(1.0, len(gathered) + 1, dtype=torch.float64)
    (gathered.sum(1) * weight).sum().backward()
    assert x.grad is not None
    return {"gathered": gathered.detach().numpy(), "gradient": x.grad.numpy()}


def summed_in_buckets(shapes: list[tuple[int, ...]], bucket: int) -> list[bool]:
    """Is what `ComingSums` with buckets of so many numbers gives what `all_sum` gives for each tensor alone? They come
    last to first, on one rank in their order, and the third does not come."""
    # Whole numbers, whose sum is the same in any order.
    count = [math.prod(shape) for shape in shapes]
    draws = (
        uniform(1, "buckets", distributed.rank(), torch.arange(sum(count)), 1).mul(1000).floor().flatten().split(count)
    )
    tensors = [x.view(shape) for x, shape in zip(draws, shapes, strict=True)]
    come = [at for at in range(len(tensors)) if at != 2]
    with mock.patch.object(distributed, "_BUCKET_ELEMENTS", bucket):
        sums = distributed.ComingSums(count)
    for at in come if distributed.rank() == 1 else reversed(come):
        sums.add(at, tensors[at])
    found = sums.result()
    right = [(x := found[at]) is not None and torch.equal(x, distributed.all_sum(tensors[at])) for at in come]
    return [*right, found[2] is None]


def sums_beside_micro_batches(config: dict[str, Any], batch: dict[str, Any], bucket: int) -> list[str]:
    """In their order: passes of micro-batches through the heads, buckets of gradients that are sent, and `done` when
    all gradients are there. bucket: numbers of one."""
    cfg = PretrainConfig.from_dict(config)
    pretrainer = Pretrainer(cfg, WIDTHS, 1, _moments(cfg))
    events: list[str] = []

    def noted(name: str, function: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
        def with_note(*arguments: Any, **options: Any) -> Any:
            if not after:
                events.append(name)
            found = function(*arguments, **options)
            if after:
                events.append(name)
            return found

        return with_note

    with (
        mock.patch.object(distributed, "_BUCKET_ELEMENTS", bucket),
        mock.patch.object(model.Model, "representations", noted("pass", model.Model.representations)),
        mock.patch.object(distributed.ComingSums, "_begin", noted("sum", distributed.ComingSums._begin)),
        mock.patch.object(gradients, "cached_gradients", noted("done", gradients.cached_gradients, after=True)),
    ):
        pretrainer.step(own_rows(batch, cfg))
    return events


def train_apart(*arguments: Any) -> tuple[dict[str, Any], set[bool]]:
    """Training whose collectives have a process group of their own; and whether each of them used it."""
    distributed.separate()
    own = distributed._group()
    used: set[bool] = set()
    with contextlib.ExitStack() as stack:
        for name in LARGER:
            original = getattr(torch.distributed, name)

            def noted(*tensors: Any, original: Any = original, **rest: Any) -> Any:
                used.add(rest["group"] is own)
                return original(*tensors, **rest)

            stack.enter_context(mock.patch.object(torch.distributed, name, noted))
        return train(*arguments), used


def train_unlike(*arguments: Any) -> dict[str, Any]:
    """Training on ranks whose arithmetic is not known to be the same: rank 0 clusters for all."""
    with mock.patch.object(distributed, "_arithmetic", lambda device: f"machine {distributed.rank()}"):
        return train(*arguments)


def gradient_traffic(config: dict[str, Any], batch: dict[str, Any]) -> tuple[int, list[tuple[list[str], bool, int]]]:
    """Bytes that pass each rank's link for the sum of the tasks' gradients of one step, by the collectives that it
    makes and what `test_a_ranks_sockets_carry_what_is_counted` finds of them; and for each parameter the tasks that
    reach it, whether it is one of the heads', and its numbers."""
    cfg = PretrainConfig.from_dict(config)
    pretrainer = Pretrainer(cfg, WIDTHS, 1, _moments(cfg))
    rows, world = own_rows(batch, cfg), distributed.world_size()
    moved = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def with_counting(x: Tensor, *rest: Any) -> Any:
            nonlocal moved
            with noted() as found:
                result = function(x, *rest)
            moved += sum(round(Collective(*each).moved(world)) for each in found)
            return result

        return with_counting

    theirs = {name: counted(getattr(distributed, name)) for name in ("sum_scattered", "gather_behind")}
    with mock.patch.object(summed_gradients, "distributed", SimpleNamespace(**(vars(distributed) | theirs))):
        pretrainer.step(rows)
    reached = {name: pretrainer.model.trained_by([name]) for name in pretrainer.model.tasks}
    heads = set(pretrainer.model.heads.parameters())
    parameters = [
        ([name for name, those in reached.items() if p in those], p in heads, p.numel())
        for p in pretrainer.model.trainable()
    ]
    return moved, parameters


def own_gradients(config: dict[str, Any], batch: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """This rank's part of the first step's gradient, before any sum over ranks."""
    cfg = PretrainConfig.from_dict(config)
    pretrainer = Pretrainer(cfg, WIDTHS, 1, _moments(cfg))
    pretrainer.model.train()
    factors = pretrainer.weighting.factors(pretrainer.model.active_tasks(0))
    rows = pretrainer._rows(own_rows(batch, cfg))
    _, gradients_T = pretrainer._gradients._own(rows, 0, 0, [{name: factor} for name, factor in factors.items()])
    sizes: dict[str, NDArray[Any]] = {}
    names = [name for name, p in pretrainer.model.named_parameters() if p.requires_grad]
    for name, column in zip(names, zip(*gradients_T, strict=True), strict=True):
        there = [g.abs().numpy() for g in column if g is not None]
        if there:
            sizes[name] = np.sum(there, axis=0)
    return sizes


def restored(config: dict[str, Any], batches: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Metrics of the third step of a run, and of one that went on after two with what rank 0 alone had kept."""
    cfg = PretrainConfig.from_dict(config)
    first, second = (Pretrainer(cfg, WIDTHS, 2, _moments(cfg)) for _ in range(2))
    for batch in batches[:2]:
        first.step(own_rows(batch, cfg))
    tensors, meta = first.state()
    kept = {name: x.clone() for name, x in tensors.items()} if distributed.rank() == 0 else {}
    restore_everywhere(Checkpoint(kept, meta, {}, {}), second)
    assert first.checksum() == second.checksum()
    return [{name: float(x) for name, x in each.step(own_rows(batches[2], cfg)).items()} for each in (first, second)]


LARGER = {
    "all_gather_into_tensor": ("gather", 0),
    "reduce_scatter_tensor": ("scatter", 1),
    "all_to_all_single": ("exchange", 0),
    "all_reduce": ("sum", 0),
    "broadcast": ("broadcast", 0),
    "isend": ("send", 0),
}
"""Collective -> its kind, and which of its tensors is the larger one."""


@contextlib.contextmanager
def noted() -> Iterator[list[tuple[str, int]]]:
    """Kind and bytes of each collective that is asked for within it."""
    found: list[tuple[str, int]] = []
    with contextlib.ExitStack() as stack:
        for name, (kind, which) in LARGER.items():
            original = getattr(torch.distributed, name)

            def counted(
                *tensors: Any, original: Any = original, kind: str = kind, which: int = which, **rest: Any
            ) -> Any:
                found.append((kind, tensors[which].numel() * tensors[which].element_size()))
                return original(*tensors, **rest)

            stack.enter_context(mock.patch.object(torch.distributed, name, counted))
        yield found


def received(numbers: int) -> list[tuple[str, list[tuple[str, int]], int]]:
    """For each collective of `conclugen.distributed` its name, what it asks for, and the bytes that this rank's sockets
    received meanwhile. numbers: of each rank's part."""
    world = distributed.world_size()
    own, parts = torch.ones(numbers), torch.ones(world, numbers)
    calls: dict[str, Callable[[], Any]] = {
        "gather": lambda: distributed.gather(own),
        "gather behind": lambda: distributed.gather_behind(own)(),
        "exchange": lambda: distributed.exchange(parts),
        "sum scattered": lambda: distributed.sum_scattered(parts),
        "gather's gradient": lambda: distributed.gather(own.requires_grad_()).sum().backward(),
        "sum": lambda: distributed.all_sum(parts),
        "broadcast": lambda: distributed.broadcast(parts),
    }
    found = []
    for name, call in calls.items():
        before = _received()
        torch.distributed.barrier()  # nobody sends before all have read
        with noted() as asked:
            call()
        after = _received()
        found.append((name, asked, sum(size - before.get(one, 0) for one, size in after.items())))
        torch.distributed.barrier()  # nobody begins the next before all have read
    return found


def _received() -> dict[int, int]:
    """Bytes that have come in through each of this process's TCP connections, as the kernel counts them."""
    found: dict[int, int] = {}
    for path in Path("/proc/self/fd").iterdir():
        if not path.is_socket():
            continue
        with socket.socket(fileno=os.dup(int(path.name))) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                facts = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                found[path.stat().st_ino] = struct.unpack_from("=Q", facts, _BYTES_RECEIVED)[0]
    return found


def scattered(dtype: str, into: str, by_transport: bool) -> tuple[NDArray[Any], NDArray[Any], int]:
    """What this rank has for all, the sum of what all have for it, and the numbers in the memory of that."""
    generator = torch.Generator().manual_seed(distributed.rank())
    x = torch.randn(distributed.world_size(), 7, 3, generator=generator).to(getattr(torch, dtype))
    with mock.patch.object(distributed, "_is_gloo", lambda device: not by_transport):
        found = distributed.sum_scattered(x, getattr(torch, into))
    assert found.dtype == getattr(torch, into)
    size = found.untyped_storage().nbytes() // found.element_size()
    return x.double().numpy(), found.double().numpy(), size


def collectives_of_a_step(config: dict[str, Any], batch: dict[str, Any]) -> list[tuple[str, int]]:
    """Kind and bytes of each collective of the second step, when everything runs. The gradients' buckets are those of
    DistributedDataParallel, summed through `torch.distributed` as by default in C++, so that they are seen."""
    cfg = PretrainConfig.from_dict(config)
    standardization = {m: (np.zeros(d), np.ones(d)) for m, d in WIDTHS.items()} if cfg.model.standardize else None
    pretrainer = Pretrainer(cfg, WIDTHS, 1, standardization)
    rows = own_rows(batch, cfg)
    replica = pretrainer._gradients._replica
    assert isinstance(replica, DistributedDataParallel)
    replica.register_comm_hook(None, allreduce_hook)
    pretrainer.step(rows)
    with noted() as found:
        pretrainer.step(rows)
    return found


def met(timeout_s: float) -> list[Any]:
    """Notes of unequal lengths, exchanged at a meeting and between two; and when the next one is."""
    from ray_jobs.training.rank_meeting import RankMeeting  # needs Ray, which tests of tasks do without

    meeting = RankMeeting(distributed.rank(), distributed.world_size(), timeout_s)
    own = "x" * (1 + 300 * distributed.rank())
    return [meeting.hold(5, {"note": own}), meeting.exchange(distributed.rank()), meeting.due(5), meeting.due(6)]
