"""Batches on their way to a GPU while it computes: copied to pinned memory and from there, one batch ahead."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from conclugen.batch import Batch


def prefetch(batches: Iterable[Any], device: str | torch.device) -> Iterator[Any]:
    """The same batches in the same order; for a GPU as `Batch`es whose features are there, dtype as they came.

    While the caller uses one batch the next is staged in a thread: copied into pinned memory (which a copy that does
    not wait needs) and sent on a stream of its own, so that both copies pass behind the computation. The source is only
    asked for a batch when the last one is staged, so it may use its buffers again. For other devices the source is
    handed through.
    """
    device = torch.device(device)
    if device.type != "cuda":
        yield from batches
        return
    stager = _Stager(device)
    for batch in ahead(batches, stager.stage):
        yield stager.ready(batch)


def ahead(batches: Iterable[Any], stage: Any) -> Iterator[Any]:
    """`stage(batch)` of each batch in order, made in a thread while the caller uses the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        pending: Future[Any] | None = None
        for batch in batches:
            coming = pool.submit(stage, batch)
            if pending is not None:
                yield pending.result()
            coming.exception()  # wait: the source may overwrite what is still being read
            pending = coming
        if pending is not None:
            yield pending.result()


class _Stager:
    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def stage(self, rows: Any) -> tuple[Batch, torch.cuda.Event]:
        """Start the copies of a batch; the event is reached when they are done."""
        batch = Batch.of(rows, "cpu", dtype=None)
        with torch.cuda.stream(self._stream):
            sent = replace(
                batch,
                features={m: self._send(x) for m, x in batch.features.items()},
                present={m: self._send(x) for m, x in batch.present.items()},
                row=self._send(batch.row),
                labels={},
                group=None if batch.group is None else self._send(batch.group),
                corpus=None if batch.corpus is None else self._send(batch.corpus),
            )
            done = torch.cuda.Event()
            done.record(self._stream)
        return sent, done

    def ready(self, staged: tuple[Batch, torch.cuda.Event]) -> Batch:
        """The batch for the current stream, which waits for the copies on the device; the host does not."""
        batch, done = staged
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        roles = [numbers for numbers in (batch.group, batch.corpus) if numbers is not None]
        for x in (*batch.features.values(), *batch.present.values(), batch.row, *roles):
            x.record_stream(current)  # its memory was taken on the other stream and must outlive its use on this one
        return batch

    def _send(self, x: Tensor) -> Tensor:
        # Without gaps, which features may have that are views on whole samples: the copy of a strided tensor would go
        # through pageable memory, and wait. The allocator of pinned memory keeps a block until its copy is done.
        pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        return pinned.copy_(x).to(self._device, non_blocking=True)
