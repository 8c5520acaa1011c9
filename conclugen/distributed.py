"""Collectives with the right gradients. Without a process group each is the identity of a world of one.

Convention of this package: on each rank a loss returns its *share*, the sum over the rank's own rows divided by the
global count, so that the sum over ranks is the loss of the global batch. Whatever is gathered takes part in the shares
of all ranks; its gradient is therefore the sum over ranks, and so is that of every parameter.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Small tensors travel together, up to so many numbers; a larger one travels alone.
_BUCKET_ELEMENTS = 1 << 22


@dataclass
class _World:
    """What is known of one default process group. own: the group of this module's collectives, where it has one;
    alike: whether ranks compute alike, by kind of device."""

    default: Any
    own: Any
    alike: dict[str, bool]


_known: _World | None = None
_comm: Any = dist


@contextmanager
def through(transport: Any) -> Iterator[None]:
    """Within it the collectives are those of `transport`, which has the functions of `torch.distributed` used here: to
    count what a step sends without sending it."""
    global _comm, _known
    before, _comm, _known = (_comm, _known), transport, None
    try:
        yield
    finally:
        _comm, _known = before


def active() -> bool:
    return _comm.is_available() and _comm.is_initialized()


def world_size() -> int:
    return _comm.get_world_size() if active() else 1


def rank() -> int:
    return _comm.get_rank() if active() else 0


def separate(timeout: timedelta | None = None) -> None:
    """Give the collectives of this module a process group of their own; every rank must call it, before the first step.

    On one communicator collectives run in the order in which they are asked for. The gradients of the decoders are
    there first, and 70 MB of them would be summed before the few bytes that the losses' own backward pass waits for.
    """
    if world_size() > 1:
        _world().own = _comm.new_group(timeout=timeout)


def alike(device: torch.device) -> bool:
    """Whether the same arithmetic on `device` gives the same bits on every rank: equal processors, libraries and
    numbers of threads. Asked once for each kind of device; every rank must ask."""
    if world_size() == 1:
        return True
    found = _world().alike
    if torch._guards.detect_fake_mode() is not None:
        return True
    if device.type not in found:
        digest = hashlib.blake2b(_arithmetic(device).encode(), digest_size=7).digest()
        mine = torch.tensor([int.from_bytes(digest, "little")], device=device)
        found[device.type] = bool((gather(mine) == mine).all())
    return found[device.type]


def gather(x: Tensor) -> Tensor:
    """Concatenate `x` (B, ...) of all ranks along rows, in rank order: (W B, ...), bitwise the same on every rank.

    Differentiable: backward sums over ranks the gradients that arrive for this rank's rows. B must be equal on all
    ranks.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def gather_behind(x: Tensor) -> Callable[[], Tensor]:
    """`gather` without gradient, begun now and waited for where its result is asked for."""
    if world_size() == 1:
        return x.detach
    sent = x.detach().contiguous()
    gathered = sent.new_empty((world_size() * sent.shape[0], *sent.shape[1:]))
    if _is_gloo(sent.device):
        arrived = _swapped(gathered.unflatten(0, (world_size(), sent.shape[0])), [sent] * world_size())
    else:
        arrived = _comm.all_gather_into_tensor(gathered, sent, group=_group(), async_op=True).wait

    def result() -> Tensor:
        arrived()
        return gathered

    return result


def exchange(x: Tensor) -> Tensor:
    """Part r of `x` (W B, ...) goes to rank r; returns what all ranks have for this one, in rank order: (W B, ...).

    Differentiable: gradients travel back the same way.
    """
    if world_size() == 1:
        return x
    exchanged: Tensor = _Exchange.apply(x)
    return exchanged


def all_sum(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, without gradient; `x` itself is left as it was."""
    x = x.detach()
    if world_size() == 1:
        return x
    x = x.clone()
    _comm.all_reduce(x, group=_group())
    return x


def total(x: Tensor) -> Tensor:
    """Sum of `x` over ranks. Differentiable: backward sums over ranks the gradients that arrive for it."""
    if world_size() == 1:
        return x
    summed: Tensor = _Total.apply(x)
    return summed


class ComingSums:
    """Sums over ranks of tensors that come one after the other, without gradient, in few collectives. A bucket of them
    is on its way as soon as it and those before it are complete; `result` waits for all.

    sizes: numbers of each, in the order in which they are expected. The same must come on every rank, in any order;
    what does not come at all is left out. wire: the type in which they travel and are added; None: their own.
    """

    def __init__(self, sizes: Sequence[int], wire: torch.dtype | None = None) -> None:
        self._wire = wire
        self._tensors: list[Tensor | None] = [None] * len(sizes)
        self._buckets = [*_buckets(sizes)] if world_size() > 1 else []
        self._begun: list[tuple[Tensor, list[int], Any]] = []
        self._next = 0

    def add(self, at: int, x: Tensor) -> None:
        """The tensor expected at that place; it is left as it was."""
        self._tensors[at] = x.detach()
        while self._next < len(self._buckets) and all(
            self._tensors[each] is not None for each in self._buckets[self._next]
        ):
            self._begin()

    def result(self) -> list[Tensor | None]:
        """The sums, by place; None for what has not come."""
        while self._next < len(self._buckets):
            self._begin()
        for flat, places, work in self._begun:
            work.wait()
            own = [x for at in places if (x := self._tensors[at]) is not None]
            pieces = flat.to(own[0].dtype).split([x.numel() for x in own])
            for at, piece, x in zip(places, pieces, own, strict=True):
                self._tensors[at] = piece.view(x.shape)
        return self._tensors

    def _begin(self) -> None:
        """Send the next bucket, what has come of it."""
        places = [at for at in self._buckets[self._next] if self._tensors[at] is not None]
        self._next += 1
        if places:
            flat = torch.cat([x.flatten() for at in places if (x := self._tensors[at]) is not None]).to(self._wire)
            self._begun.append((flat, places, _comm.all_reduce(flat, group=_group(), async_op=True)))


def sum_scattered(x: Tensor, into: torch.dtype | None = None) -> Tensor:
    """Part r of the sum of `x` (W, A, ...) over ranks, on rank r: (A, ...); without gradient.

    gloo's reduce-scatter sends others the whole of `x`. There each rank gets its own part of every rank's instead,
    (W - 1) / W of it, and adds them up in the ranks' order.

    into: the result's type, in which parts are added that a rank adds itself; None: that of `x`.
    """
    x, into = x.detach().contiguous(), into or x.dtype
    if not _is_gloo(x.device):
        own = x.new_empty(x.shape[1:])
        _comm.reduce_scatter_tensor(own, x.flatten(0, 1), group=_group())
        return own.to(into)
    parts = torch.empty_like(x)
    _swapped(parts, x.unbind())()
    own = parts[0].to(into, copy=True)  # not a view, which would keep all parts
    for part in parts[1:]:
        own += part
    return own


def broadcast(x: Tensor) -> Tensor:
    """Overwrite `x` with rank 0's values, in place."""
    if world_size() > 1:
        # gloo knows no bool
        _comm.broadcast(x.view(torch.uint8) if x.dtype == torch.bool else x, src=0, group=_group())
    return x


def agreed(compute: Callable[[], tuple[Tensor, ...]], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What `compute` gives, the same bits on every rank: each computes it where all compute alike, else rank 0 does and
    sends it. It must depend on nothing but what is the same on all ranks. like: tensors of the results' shapes, types
    and device."""
    if alike(like[0].device):
        return compute()
    found = compute() if rank() == 0 else tuple(torch.zeros_like(x) for x in like)
    return tuple(broadcast(x.contiguous()) for x in found)


def _buckets(sizes: Sequence[int]) -> Iterator[range]:
    """Places of tensors that travel together."""
    start = 0
    while start < len(sizes):
        stop, held = start + 1, sizes[start]
        while stop < len(sizes) and held + sizes[stop] <= _BUCKET_ELEMENTS:
            held += sizes[stop]
            stop += 1
        yield range(start, stop)
        start = stop


def _world() -> _World:
    global _known
    if _known is None or _known.default is not _comm.group.WORLD:  # another one was initialised since
        _known = _World(_comm.group.WORLD, None, {})
    return _known


def _group() -> Any:
    return _world().own


def _is_gloo(device: torch.device) -> bool:
    """Whether it is gloo that carries tensors of this device; NCCL has a better way of its own for all that is here."""
    backends = dict(each.split(":") for each in _comm.get_backend_config(_group()).split(","))
    return backends.get(device.type) == "gloo"


def _swapped(into: Tensor, parts: Sequence[Tensor]) -> Callable[[], None]:
    """Begin to send part r to rank r, and to receive what each rank has for this one, in rank order, `into` (W, ...);
    what is returned waits for all.

    All receives are asked for before the first send. gloo tells the sender over the same connection that its message is
    wanted: asked for later, as its own gather and all-to-all do, that word stands behind megabytes that go the other
    way, and a link carries one direction after the other.
    """
    here, group = rank(), _group()
    others = [each for each in range(world_size()) if each != here]
    under_way = [_comm.irecv(into[each], each, group=group) for each in others]
    under_way += [_comm.isend(parts[each], each, group=group) for each in others]
    into[here].copy_(parts[here])

    def wait() -> None:
        for each in under_way:
            each.wait()

    return wait


def _arithmetic(device: torch.device) -> str:
    """What decides how sums are rounded."""
    if device.type == "cuda":
        return f"{torch.__version__} {torch.version.cuda} {torch.cuda.get_device_name(device)}"
    model = ""
    with suppress(OSError):
        named = re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        model = named[1].strip() if named else ""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{torch.__version__} {device.type} {capability} {model} {torch.get_num_threads()}"


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_behind(x)()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_scattered(gradients[0].unflatten(0, (world_size(), -1)))


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_sum(gradients[0].contiguous())


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        exchanged = torch.empty_like(x)
        if _is_gloo(x.device):
            parts = (world_size(), -1)
            _swapped(exchanged.unflatten(0, parts), x.unflatten(0, parts).unbind())()
        else:
            _comm.all_to_all_single(exchanged, x, group=_group())
        return exchanged

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Exchange.forward(None, gradients[0])
