"""What a training step costs on a machine that is not there: counted from the code that runs it, on tensors without
memory.

`count` runs a `Pretrainer`'s own step under fake tensors and with collectives that only note their sizes, as rank 0 of
any number of ranks, and returns every kernel (bytes, operations) and every collective. `estimate` makes seconds of
that with a machine's rates: a kernel takes as long as its bytes or its operations do, and never less than its launch.

It is the eager step that is counted. A compiled one has the same products and collectives, and fewer passes over
memory between them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from conclugen import blockwise, distributed
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.training.pretrainer import Pretrainer

_PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1}  # where the first factor stands
_NO_KERNELS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "lift_fresh"}


@dataclass(frozen=True)
class Kernel:
    """bytes: read and written, `fresh` of them into memory that was taken for the result; flops: of a matrix product,
    in `precision`: bfloat16, tf32 or float32. late: in the backward pass behind the losses' last collective, where
    gradients can already travel. drawn: of hashed draws, integers by row and column, which a CPU makes block by block
    in its cache."""

    name: str
    bytes: int
    flops: int = 0
    precision: str = ""
    late: bool = False
    fresh: int = 0
    drawn: bool = False


@dataclass(frozen=True)
class Collective:
    """kind: gather, scatter, exchange, sum, broadcast, or send: to one other rank. bytes: of the larger tensor on one
    rank: what was gathered, is scattered, or for the others what each rank has."""

    kind: str
    bytes: int

    def moved(self, world: int) -> float:
        """Bytes through each rank's link, in one direction."""
        if self.kind == "send":
            return self.bytes
        return (2 if self.kind == "sum" else 1) * self.bytes * (world - 1) / world


@dataclass(frozen=True)
class StepCost:
    """kernels: with how many of each; collectives: of the losses, in order, which nothing overlaps; gradients: bytes
    that are summed over ranks beside the backward pass; peak: bytes at most in use."""

    world: int
    rows: int
    kernels: Counter[Kernel]
    collectives: tuple[Collective, ...]
    gradients: int
    peak: int

    @property
    def launches(self) -> int:
        return sum(self.kernels.values())

    @property
    def flops(self) -> int:
        return sum(kernel.flops * count for kernel, count in self.kernels.items())

    @property
    def bytes(self) -> int:
        return sum(kernel.bytes * count for kernel, count in self.kernels.items())


@dataclass(frozen=True)
class Machine:
    """Rates of a GPU and its links.

    flops: FLOP/s by precision, of which products reach `product_share`; memory: bytes/s, of which kernels reach
    `memory_share`; holds: bytes of that memory; launch: the least seconds of a kernel; inside, between: bytes/s of a
    GPU's link to others of its node and to other nodes, in one direction; latency, latency_between: seconds of a
    collective of no bytes within a node and across; node: GPUs of one.
    """

    name: str
    flops: Mapping[str, float]
    memory: float
    holds: int
    inside: float
    between: float = 50e9
    node: int = 8
    product_share: float = 0.7
    memory_share: float = 0.85
    launch: float = 2.5e-6
    latency: float = 20e-6
    latency_between: float = 50e-6

    def seconds(self, kernel: Kernel) -> float:
        products = kernel.flops / (self.flops[kernel.precision] * self.product_share) if kernel.flops else 0.0
        return max(products, kernel.bytes / (self.memory * self.memory_share), self.launch)


# Dense TFLOP/s in bfloat16, TF32 and float32, GB of memory and its TB/s, GB/s to the others of a node, and how many
# those are: of the makers' data sheets. L4 and L40S have no NVLink and reach their neighbours over PCIe.
_SHEETS = {
    "L4": (121, 60, 30, 24, 0.3, 25, 4),
    "L40S": (362, 183, 91.6, 48, 0.864, 25, 4),
    "A100": (312, 156, 19.5, 80, 2.04, 300, 8),
    "H100": (989, 494.5, 67, 80, 3.35, 450, 8),
    "H200": (989, 494.5, 67, 141, 4.8, 450, 8),
}
MACHINES = {
    name: Machine(
        name,
        {"bfloat16": half * 1e12, "tf32": tf32 * 1e12, "float32": single * 1e12},
        memory=memory * 1e12,
        holds=holds * 10**9,
        inside=inside * 1e9,
        node=node,
    )
    for name, (half, tf32, single, holds, memory, inside, node) in _SHEETS.items()
}


def known_machine(device_name: str) -> Machine | None:
    """The machine whose GPU has that name, as its driver gives it (`NVIDIA A100-SXM4-80GB`); None for others, among
    them those of the same chip with another memory or on a PCIe card, whose rates are lower than the sheets'."""
    words = device_name.replace("-", " ").split()
    sizes = [
        int(word.removesuffix("GB")) for word in words if word.removesuffix("GB").isdigit() and word.endswith("GB")
    ]
    for name, machine in MACHINES.items():
        if name in words and not {"PCIe", "NVL"} & set(words) and sizes in ([], [machine.holds // 10**9]):
            return machine
    return None


@dataclass(frozen=True)
class Estimate:
    """Seconds of one step. compute: kernels; blocking: the losses' collectives; gradients: their sum over ranks, of
    which `exposed` is more than the backward pass covers; step: compute + blocking + exposed."""

    compute: float
    blocking: float
    gradients: float
    exposed: float

    @property
    def step(self) -> float:
        return self.compute + self.blocking + self.exposed


def estimate(cost: StepCost, machine: Machine) -> Estimate:
    """One step of this cost on a machine."""
    link, latency = machine.inside, machine.latency
    if cost.world > machine.node:
        link, latency = machine.between, machine.latency_between
    compute = sum(machine.seconds(kernel) * count for kernel, count in cost.kernels.items())
    late = sum(machine.seconds(kernel) * count for kernel, count in cost.kernels.items() if kernel.late)
    blocking = gradients = 0.0
    if cost.world > 1:
        blocking = sum(latency + each.moved(cost.world) / link for each in cost.collectives)
        gradients = Collective("sum", cost.gradients).moved(cost.world) / link
    return Estimate(compute, blocking, gradients, max(0.0, gradients - late))


def count(
    config: PretrainConfig, widths: Mapping[str, int], world: int = 1, memory: int | None = MACHINES["H100"].holds
) -> StepCost:
    """One step with every task active, as rank 0 of `world` ranks makes it.

    memory: bytes of the GPU, which decide how large blocks of similarities are; None: of a CPU, whose ranks speak gloo.
    """
    if config.precision == "float64":
        raise ValueError("precision: float64 can't be counted; expected float32 or bfloat16")
    config = dataclasses.replace(config, compile=False)
    rows = config.local_batch(world)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if memory is not None:
            stack.enter_context(blockwise.counted_as_on_gpu(memory))
        counter = _Counter(world)
        pretrainer = _Fake(config, widths, steps_per_epoch=1)
        counter.hold([*pretrainer.state_tensors()])
        batch = Batch(
            {m: torch.empty(rows, pretrainer.widths[m]) for m in pretrainer.widths},
            {m: torch.empty(rows, dtype=torch.bool) for m in pretrainer.widths},
            torch.empty(rows, dtype=torch.int64),
            group=torch.empty(rows, dtype=torch.int64),
            corpus=torch.empty(rows, dtype=torch.int64) if config.corpora.names else None,
        )
        # Epochs have a step each here: all tasks are active, and this one opens none.
        pretrainer.step_number = 1 + max(task.begins(own) for task, own in _tasks(pretrainer))
        by_backward = not pretrainer._gradients.by_task and config.micro_batch is None
        if world > 1:
            stack.enter_context(distributed.through(counter.transport("gloo" if memory is None else "nccl")))
        stack.enter_context(counter)
        pretrainer.step(batch)
    trained = [p for p in pretrainer.model.parameters() if p.requires_grad]
    size = 2 if config.gradient_compression == "bfloat16" else trained[0].element_size()
    gradients = size * sum(p.numel() for p in trained) if by_backward else 0
    return StepCost(world, rows, counter.kernels(), tuple(counter.collectives), gradients, counter.peak)


def counting(world: int = 1) -> _Counter:
    """Notes the kernels of what runs within it, on whatever tensors."""
    return _Counter(world)


class _Fake(Pretrainer):
    """A Pretrainer whose tensors hold nothing."""

    def check_finite(self) -> None:
        pass

    def _placed(self, module: Any) -> Any:
        return module  # a fake parameter can't change its type

    def _initialise(self) -> None:
        pass

    def _set_standardization(self, given: Any) -> None:
        pass

    def state_tensors(self) -> list[Tensor]:
        moments = [x for state in self.optimizer.state.values() for x in state.values()]
        return [*self.model.parameters(), *self.model.buffers(), *moments]


def _tasks(pretrainer: Pretrainer) -> list[tuple[Any, Any]]:
    found = []
    for name in pretrainer.model.tasks:
        task = pretrainer.model.task(name)
        found.append((type(task), task.config))
    return found


class _Counter(TorchDispatchMode):
    """Notes what is executed while it is entered."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world = world
        self.collectives: list[Collective] = []
        self._kernels: list[Kernel] = []
        self._last = 0
        self._live: dict[int, int] = {}
        self.now = self.peak = 0

    def kernels(self) -> Counter[Kernel]:
        """What was executed; late is what lies between the last collective of the backward pass and the update."""
        update = next((i for i, k in enumerate(self._kernels) if k.name.startswith("_fused_adamw")), 0)
        return Counter(
            dataclasses.replace(kernel, late=self._last <= i < update) for i, kernel in enumerate(self._kernels)
        )

    def hold(self, tensors: list[Tensor]) -> None:
        for x in tensors:
            self._take(x)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        library, name = function._schema.name.split("::")
        outputs = [x for x in pytree.tree_leaves(found) if isinstance(x, Tensor)]
        for x in outputs:
            self._take(x)
        if library == "aten" and not function.is_view and name not in _NO_KERNELS:
            self._kernels.append(self._kernel(function, name, args, kwargs or {}, outputs))
        return found

    def _kernel(
        self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> Kernel:
        inputs = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        moved = sum(_extent(x) for x in inputs)
        written = {id(x): x for x in outputs}
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written |= {id(x): x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)}
        moved += sum(_extent(x) for x in written.values())
        taken = sum(_extent(x) for x in outputs if not any(x is each for each in inputs))
        flops, precision = 0, ""
        if name in _PRODUCTS:
            first, second = args[_PRODUCTS[name]], args[_PRODUCTS[name] + 1]
            flops = 2 * first.numel() * second.shape[-1]
            precision = str(first.dtype).removeprefix("torch.")
            if precision == "float32" and torch.backends.cuda.matmul.allow_tf32:
                precision = "tf32"
        results = [*written.values()]
        drawn = bool(results) and all(x.dtype == torch.int64 and x.dim() == 2 for x in results)
        return Kernel(name, moved, flops, precision, fresh=taken, drawn=drawn)

    def _take(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        self._live[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._live.pop(key, 0)

    def transport(self, backend: str) -> Any:
        """In the place of `torch.distributed`: rank 0 of ranks that are not there, over gloo or nccl."""

        def noting(kind: str, larger: int) -> Any:
            def collective(*tensors: Any, **_: Any) -> Any:
                self.collectives.append(Collective(kind, tensors[larger].nbytes))
                self._last = len(self._kernels)
                return SimpleNamespace(wait=lambda: None)

            return collective

        return SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_world_size=lambda: self.world,
            get_rank=lambda: 0,
            get_backend_config=lambda _: f"cpu:{backend}",  # the device of fake tensors
            group=SimpleNamespace(WORLD=self),
            all_gather_into_tensor=noting("gather", 0),
            reduce_scatter_tensor=noting("scatter", 1),
            all_to_all_single=noting("exchange", 0),
            all_reduce=noting("sum", 0),
            broadcast=noting("broadcast", 0),
            isend=noting("send", 0),
            irecv=lambda *_, **__: SimpleNamespace(wait=lambda: None),
        )


def _extent(x: Tensor) -> int:
    """Bytes that there are of it: what is only expanded is read once."""
    size = x.element_size()
    for length, stride in zip(x.shape, x.stride(), strict=True):
        size *= length if stride else 1
    return size
