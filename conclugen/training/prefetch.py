"""Batches on their way to a GPU while it computes, one batch ahead: out of pinned memory, or through it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from conclugen.batch import Batch


def prefetch(batches: Iterable[Any], device: str | torch.device) -> Iterator[Any]:
    """The same batches in the same order; for a GPU as `Batch`es whose features are there, dtype as they came.

    While the caller uses one batch the next is staged in a thread: sent on a stream of its own, out of pinned memory
    (which a copy that does not wait needs), so that it passes behind the computation. What does not lie in such memory
    (`pinned`) is copied into some before. The source is only asked for a batch when the last one is staged. It may then
    use its buffers again, pinned ones once nobody refers to their arrays: they are held until they have arrived. For
    other devices the source is handed through.
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


def pinned(size: int) -> np.ndarray:
    """(size,) uint8 of memory that a GPU reads by itself, with any content; for arrays of batches that `prefetch`
    sends."""
    memory: np.ndarray = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory


class Event(Protocol):
    """A point in a stream of copies."""

    def query(self) -> bool:
        """Whether it is reached."""
        ...


class UnderWay:
    """Holds what is being copied until it has arrived, and lets go of it when the next one is sent."""

    def __init__(self) -> None:
        self._held: deque[tuple[Event, Any]] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def let_go(self) -> None:
        while self._held and self._held[0][0].query():
            self._held.popleft()

    def hold(self, source: Any, done: Event) -> None:
        self._held.append((done, source))


class _Stager:
    def __init__(self, device: torch.device) -> None:
        self._device, self._stream, self._under_way = device, torch.cuda.Stream(device), UnderWay()

    def stage(self, rows: Any) -> tuple[Batch, torch.cuda.Event]:
        """Start the copies of a batch; the event is reached when they are done."""
        self._under_way.let_go()
        with torch.cuda.stream(self._stream):
            batch = sent(rows, lambda x: x.to(self._device, non_blocking=True))
            done = torch.cuda.Event()
            done.record(self._stream)
        self._under_way.hold(rows, done)
        return batch, done

    def ready(self, staged: tuple[Batch, torch.cuda.Event]) -> Batch:
        """The batch for the current stream, which waits for the copies on the device; the host does not."""
        batch, done = staged
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        roles = [numbers for numbers in (batch.group, batch.corpus) if numbers is not None]
        for x in (*batch.features.values(), *batch.present.values(), batch.row, *roles):
            x.record_stream(current)  # its memory was taken on the other stream and must outlive its use on this one
        return batch


def sent(rows: Any, send: Callable[[Tensor], Tensor]) -> Batch:
    """The batch made of `send` of each array, which is given pinned tensors without gaps; labels stay behind. Features
    keep their dtype, and hold what they held where nothing is present: `Batch.of` clears that on the device."""

    def there(x: Any) -> Tensor | None:
        return None if x is None else send(_pinned(torch.as_tensor(x)))

    row = there(rows.row)
    assert row is not None
    return Batch(
        {m: send(_pinned(torch.as_tensor(x))) for m, x in rows.features.items()},
        {m: send(_pinned(torch.as_tensor(x))) for m, x in rows.present.items()},
        row,
        group=there(getattr(rows, "group", None)),
        corpus=there(getattr(rows, "corpus", None)),
        complete=getattr(rows, "complete", None),
    )


def _pinned(x: Tensor) -> Tensor:
    """`x`, or a copy of it where it is not pinned, or has gaps as features that are views on whole samples: the copy of
    a strided tensor would go through pageable memory, and wait. The allocator of pinned memory keeps a block that it
    gave for a tensor until its copy is done."""
    if x.is_contiguous() and x.is_pinned():
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)
