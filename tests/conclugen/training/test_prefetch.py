"""Batches one ahead: order, reused buffers, errors. What passes behind the computation shows on a GPU alone."""

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conclugen import Pretrainer
from conclugen.batch import Batch
from conclugen.training import prefetch as module
from conclugen.training.prefetch import UnderWay, ahead, prefetch, sent
from tests.conclugen.runs import WIDTHS, rows, small_config


def test_the_source_may_use_its_buffer_again() -> None:
    buffer = np.zeros(1000)

    def source() -> Iterator[np.ndarray]:
        for i in range(20):
            buffer[:] = i
            yield buffer

    assert [set(x) for x in ahead(source(), lambda x: x.tolist())] == [{float(i)} for i in range(20)]


def test_the_next_batch_is_staged_while_one_is_used() -> None:
    staged = threading.Event()

    def stage(x: int) -> int:
        if x == 1:
            staged.set()
        return x

    for x in ahead([0, 1], stage):
        if x == 0:
            assert staged.wait(10), "batch 1 was not staged during the use of batch 0"


def test_errors_of_source_and_staging_reach_the_caller_in_their_place() -> None:
    seen = []
    with pytest.raises(ZeroDivisionError):
        for x in ahead([1, 2, 0, 4], lambda x: 1 / x):
            seen.append(x)
    assert seen == [1.0, 0.5]


def test_without_a_gpu_batches_are_handed_through() -> None:
    batches = [SimpleNamespace(), SimpleNamespace()]
    assert all(a is b for a, b in zip(prefetch(batches, "cpu"), batches, strict=True))


def test_what_lies_in_pinned_memory_is_sent_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one array is copied on the host; what is pinned with gaps, or not at all, is copied once."""
    batch = rows(0)
    wide = np.full((len(batch.row), 100), 7.0, np.float32)
    batch = SimpleNamespace(
        features={**batch.features, "gaps": wide[:, 10:30]}, present=batch.present, row=batch.row, group=batch.row + 1
    )
    elsewhere = {batch.row.ctypes.data}
    copied: list[int] = []

    def empty(shape: tuple[int, ...], dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        assert pin_memory
        copied.append(int(np.prod(shape)))
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda x: x.data_ptr() not in elsewhere)
    monkeypatch.setattr(module, "torch", SimpleNamespace(empty=empty, as_tensor=torch.as_tensor))
    seen: list[int] = []

    def send(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.data_ptr())
        assert x.is_contiguous()
        return x.clone()

    found = sent(batch, send)
    assert sorted(copied) == sorted([len(batch.row), wide[:, 10:30].size])
    straight = [*(x for m, x in batch.features.items() if m != "gaps"), *batch.present.values(), batch.group]
    assert {x.ctypes.data for x in straight} <= set(seen)
    assert found.labels == {} and found.corpus is None
    expected = Batch.of(batch)
    again = Batch.of(found)  # as the step does on the device
    for name, x in expected.features.items():
        assert torch.equal(again.features[name], x)
    assert again.group is not None and expected.group is not None
    assert torch.equal(again.row, expected.row) and torch.equal(again.group, expected.group)


def test_what_is_on_its_way_is_held_until_it_has_arrived() -> None:
    """A copy that continues while the host does other things reads memory that must not be written meanwhile."""
    arrived = [False, False, False]
    events = [SimpleNamespace(query=lambda i=i: arrived[i]) for i in range(3)]
    under_way, sources = UnderWay(), [np.zeros(3) for _ in range(3)]
    before = [sys.getrefcount(x) for x in sources]
    for source, event in zip(sources, events, strict=True):
        under_way.let_go()
        under_way.hold(source, event)
    assert len(under_way) == 3
    arrived[0] = arrived[2] = True  # events of one stream are reached in order; the third is not looked at before
    under_way.let_go()
    assert len(under_way) == 2
    arrived[1] = True
    under_way.let_go()
    del source
    assert len(under_way) == 0 and [sys.getrefcount(x) for x in sources] == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to copy to")
def test_training_from_prefetched_batches_is_the_same() -> None:
    results = []
    for through in (lambda b: b, lambda b: prefetch(b, "cuda")):
        pretrainer = Pretrainer(small_config("conclugen", "paper"), WIDTHS, 3, device="cuda")
        results.append([float(pretrainer.step(b)["loss"]) for b in through([rows(s) for s in range(6)])])
    assert results[0] == results[1]
