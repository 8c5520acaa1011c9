"""What `python -m shards bench` measures inside Ray Train workers, where training would use the batches."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator

from shards.bench.methods import OwnMethods
from shards.bench.peers import PeerMethods
from shards.bench.report import Measured, measure
from shards.bench.train_workers import TrainWorkers
from shards.manifest import Manifest


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
    return measure(_from_the_first_of_all(batches, world), seconds, most, own_cpu=False)


def _from_the_first_of_all(batches: Iterator[int], world: int) -> Iterator[int]:
    """The same, but nobody has the first one before all have."""
    import torch

    try:
        first = next(batches)
        if world > 1:
            torch.distributed.barrier()
        yield first
        yield from batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
