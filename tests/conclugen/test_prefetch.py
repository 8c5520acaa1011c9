"""Batches one ahead: order, reused buffers, errors. What passes behind the computation shows on a GPU alone."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conclugen import Pretrainer
from conclugen.prefetch import ahead, prefetch
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to copy to")
def test_training_from_prefetched_batches_is_the_same() -> None:
    results = []
    for through in (lambda b: b, lambda b: prefetch(b, "cuda")):
        pretrainer = Pretrainer(small_config("conclugen", "paper"), WIDTHS, 3, device="cuda")
        results.append([float(pretrainer.step(b)["loss"]) for b in through([rows(s) for s in range(6)])])
    assert results[0] == results[1]
