"""What `python -m benchmarks.readers` measures inside Ray Train workers, where training would use the batches."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Iterator

from benchmarks.readers.methods import OwnMethods
from benchmarks.readers.peers import PeerMethods
from benchmarks.readers.report import Measured, measure
from benchmarks.readers.train_workers import TrainWorkers
from shards.format.manifest import Manifest

# Processes of read tasks start in this time, unless those of a measurement before are there.
_SETTLING_S = 2.0
# What has been read ahead by then fills the store's share, and no read task runs any more. To stop an execution, Ray
# Data kills the processes of tasks that run: the next measurement would begin with new ones.
_RESTS_S = 1.0


def measure_in(
    workers: TrainWorkers, manifest: Manifest, batch: int, method: str, seconds: float, most: int | None
) -> Measured:
    """One measurement of a method of `OwnMethods` or `PeerMethods` by all workers side by side: samples/s of all, and
    seconds until each had its first batch; counting starts in all of them then."""
    each = workers.run(functools.partial(_measure, manifest, batch, method, seconds, most))
    return Measured(sum(one.samples for one in each), max(one.start for one in each))


def _measure(
    manifest: Manifest, batch: int, method: str, seconds: float, most: int | None, rank: int, world: int
) -> Measured:
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    gc.collect()
    own = OwnMethods(manifest, batch)
    if method == "read_webdataset":
        batches = PeerMethods(own.paths, batch, loader_workers=0).read_webdataset()
    elif method == "ray_put_get":
        batches = own.ray_put_get()
    else:
        batches = getattr(own, method)(rank, world)
    rests = _RESTS_S if method.startswith("own") else 0.0
    return measure(_together(batches, world, rests), seconds, most, own_cpu=False, settling=_SETTLING_S)


def _together(batches: Iterator[int], world: int, rests: float = 0.0) -> Iterator[int]:
    """The same, but nobody has the first one before all have; it rests before it is closed."""
    import torch

    try:
        first = next(batches)
        if world > 1:
            torch.distributed.barrier()
        yield first
        yield from batches
    finally:
        time.sleep(rests)
        close = getattr(batches, "close", None)
        if close is not None:
            close()
