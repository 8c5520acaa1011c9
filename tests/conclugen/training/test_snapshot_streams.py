"""Snapshots of a GPU are copied beside training, and are of their moment all the same.

What a stream may do late a pretended one does as late as it may: copies are made when somebody waits for them, and by
no sooner moment, so that whatever is overwritten too early shows.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conclugen import Pretrainer
from conclugen.training import checkpoint
from conclugen.training.checkpoint import HostMemory
from tests.conclugen.runs import WIDTHS, fresh, rows, small_config

GPU = torch.device("cuda", 0)


class Stream:
    """Work that is done when it is waited for; of the stream that computes at once, as the host does it here."""

    def __init__(self, gpu: Gpu, lazy: bool = True) -> None:
        self.gpu, self.lazy, self.reached = gpu, lazy, 0
        self.work: list[Callable[[], None]] = []

    def add(self, work: Callable[[], None]) -> None:
        self.work.append(work)
        if not self.lazy:
            self.run(len(self.work))

    def run(self, stop: int) -> None:
        while self.reached < stop:
            self.reached += 1
            self.work[self.reached - 1]()

    def wait_event(self, event: Event) -> None:
        self.add(event.reach)
        self.gpu.log.append(("waits", self is self.gpu.computing, event))


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.where: tuple[Stream, int] | None = None

    def record(self, stream: Stream) -> None:
        self.where = stream, len(stream.work)
        stream.gpu.log.append(("records", stream is stream.gpu.computing, self))

    def reach(self) -> None:
        assert self.where is not None, "an event that nobody records is waited for"
        stream, place = self.where
        stream.run(place)

    def synchronize(self) -> None:
        self.reach()

    def elapsed_time(self, other: Event) -> float:
        return 250.0


class Gpu:
    """The part of `torch.cuda` that snapshots use."""

    Event = Event

    def __init__(self) -> None:
        self.computing = Stream(self, lazy=False)
        self.current, self.sides = self.computing, list[Stream]()
        self.log: list[tuple[str, bool, Any]] = []

    def Stream(self, device: torch.device) -> Stream:
        assert device == GPU
        self.sides.append(Stream(self))
        return self.sides[-1]

    def current_stream(self, device: torch.device) -> Stream:
        assert device == GPU
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A pretended GPU, to whose current stream copies from it belong; a pretrainer's state seems to lie there."""
    found = Gpu()

    class There(torch.Tensor):
        is_cuda, device = True, GPU

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                if func is not torch.Tensor.copy_ or isinstance(args[0], There):
                    return func(*args, **(kwargs or {}))
                kept, x = args
                assert kwargs == {"non_blocking": True} and found.current is not found.computing
                source = x.as_subclass(torch.Tensor)
                found.log.append(("copies", False, kept.data_ptr()))
                found.current.add(lambda: kept.copy_(source))
                return kept

    def empty(shape: tuple[int, ...], dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        assert pin_memory, "a copy into pageable memory makes the host wait"
        return torch.full(shape, 77, dtype=dtype)

    def state(pretrainer: Pretrainer) -> Any:
        tensors, meta = own(pretrainer)
        return {name: x.as_subclass(There) for name, x in tensors.items()}, meta

    own = Pretrainer.state
    monkeypatch.setattr(Pretrainer, "state", state)
    monkeypatch.setattr(checkpoint, "torch", SimpleNamespace(cuda=found, empty=empty))
    return found


def trained(first: int = 0) -> tuple[Pretrainer, dict[str, torch.Tensor]]:
    """A pretrainer of parameters, moments, a queue and running means that every step changes, and its state."""
    pretrainer = fresh(small_config("conclugen", "improved", tasks={"clustering": {"start_epoch": 0}}))
    for step in range(3):
        pretrainer.step(rows(first + step))
    return pretrainer, {name: x.as_subclass(torch.Tensor).clone() for name, x in pretrainer.state()[0].items()}


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> set[str]:
    assert found.keys() == expected.keys()
    return {name for name, x in expected.items() if not torch.equal(found[name], x)}


def test_a_snapshot_is_of_its_moment_whatever_is_computed_meanwhile(gpu: Gpu) -> None:
    memory = HostMemory()
    for first in (0, 20):  # the second into the memory and on the stream of the first
        pretrainer, expected = trained(first)
        state = checkpoint.snapshot(pretrainer, {}, memory=memory)
        (side,) = gpu.sides
        weights = {f"model/heads.{m}.unit.output.weight" for m in WIDTHS}
        assert weights <= differing(state.copies, expected), "the host waited, or the stream that computes did"
        pretrainer.step(rows(3))
        pretrainer.step(rows(4))
        changed = differing({n: x.as_subclass(torch.Tensor) for n, x in pretrainer.state()[0].items()}, expected)
        assert {"model/tasks.clustering.queue", "model/projection.norm.running_mean"} <= changed
        assert state.arrived() == 0.25
        assert differing(state.tensors, expected) == set() and side.reached == len(side.work)


def test_who_reads_a_snapshot_waits_for_it(gpu: Gpu) -> None:
    """In another thread, and with no step after it."""
    pretrainer, expected = trained()
    state = checkpoint.snapshot(pretrainer, {}, memory=HostMemory())
    found: list[set[str]] = [differing(state.copies, expected)]
    reader = threading.Thread(target=lambda: found.append(differing(state.tensors, expected)))
    reader.start()
    reader.join()
    assert found[0] and not found[1]


def test_a_state_that_is_loaded_overwrites_no_snapshot(gpu: Gpu) -> None:
    pretrainer, expected = trained()
    other, _ = trained()
    other.step(rows(9))
    tensors, meta = other.state()
    state = checkpoint.snapshot(pretrainer, {}, memory=HostMemory())
    pretrainer.load_state({name: x.as_subclass(torch.Tensor) for name, x in tensors.items()}, meta)
    assert differing(state.tensors, expected) == set()


@pytest.mark.parametrize(
    ("fault", "lost"),
    [("updates that wait for nothing", "model/heads."), ("no word of what a forward pass writes", "model/tasks.")],
)
def test_a_wait_that_is_missing_would_be_seen(fault: str, lost: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault.startswith("updates"):
        monkeypatch.setattr(Pretrainer, "before_update", lambda self, action: None)
    else:
        monkeypatch.setattr(Pretrainer, "written_by_updates_alone", lambda self, name: True)
    pretrainer, expected = trained()
    state = checkpoint.snapshot(pretrainer, {}, memory=HostMemory())
    pretrainer.step(rows(3))
    assert any(name.startswith(lost) for name in differing(state.tensors, expected))


def test_copies_begin_when_the_state_is_computed_and_what_a_pass_writes_goes_first(gpu: Gpu) -> None:
    pretrainer, _ = trained()
    gpu.log.clear()
    state = checkpoint.snapshot(pretrainer, {}, memory=HostMemory())
    names = {x.data_ptr(): name for name, x in state.copies.items()}
    kinds = [kind for kind, _, _ in gpu.log]
    assert kinds[:3] == ["records", "waits", "records"] and [there for _, there, _ in gpu.log[:2]] == [True, False]
    assert gpu.log[0][2] is gpu.log[1][2], "the side stream waits for what the current one has computed"
    copied = [names[what] for kind, _, what in gpu.log if kind == "copies"]
    early = [name for name in copied if not pretrainer.written_by_updates_alone(name)]
    assert copied[: len(early)] == early and len(copied) == len(names)
    assert {"model/tasks.clustering.queue", "model/projection.norm.running_var"} <= set(early)
    assert not any("optimizer" in name or name.endswith(("weight", "bias")) for name in early)
    place = 3 + len(early)
    assert kinds[place] == "records" and kinds[-2:] == ["records", "waits"]
    assert gpu.log[-1][1] and gpu.log[-1][2] is gpu.log[place][2], "the current one waits for these alone"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to copy from")
def test_steps_that_follow_a_snapshot_on_a_gpu_do_not_change_it() -> None:
    pretrainer = Pretrainer(small_config("conclugen", "paper"), WIDTHS, 3, device="cuda")
    memory = HostMemory()
    for step in range(0, 30, 3):
        pretrainer.step(rows(step))
        expected = {name: x.clone() for name, x in pretrainer.state()[0].items()}
        state = checkpoint.snapshot(pretrainer, {}, memory=memory)
        for after in (1, 2):
            pretrainer.step(rows(step + after))
        assert all(x.is_pinned() for x in state.copies.values())
        assert differing(state.tensors, {name: x.cpu() for name, x in expected.items()}) == set()
