"""The ways to read that `python -m benchmarks.readers` compares: the project's own, and limits of disk and store."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import numpy as np

from shards.format.manifest import TAR_SUFFIX, Manifest
from shards.format.schema import Column, Sample, Schema
from shards.format.writer import ShardWriter
from shards.planning.plan import Cursor, EpochPlan
from shards.reading import resident
from shards.reading.reader import Reader
from shards.reading.resident import Resident
from shards.reading.rows import Rows
from shards.reading.stream import ReadAhead, stream

WIDTHS = {"video": 4096, "audio": 1024, "text": 768}
ENDLESS = 1 << 40  # steps; the measuring stops the stream
_SHARD_BYTES = 64 * 1024**2
_READ_BYTES = 8 * 1024**2
_PIECE_BYTES = 1792 * 1024  # about 64 samples in float32, as long as a chunk


def write_shards(folder: str | os.PathLike[str], rows: int, dtype: str) -> Manifest:
    """Shards of random features, as wide as the published ones."""
    schema = Schema(tuple(Column(name, width, dtype) for name, width in WIDTHS.items()))
    values = np.random.default_rng(0).standard_normal((257, sum(WIDTHS.values()))).astype(dtype)
    edges = np.cumsum([0, *WIDTHS.values()])
    with ShardWriter(folder, schema, max_shard_bytes=_SHARD_BYTES) as writer:
        for i in range(rows):
            row = values[i % len(values)]
            columns = {name: row[edges[j] : edges[j + 1]] for j, name in enumerate(WIDTHS)}
            writer.append(Sample(f"clip{i:09d}", columns, text="what was said in it"))
    assert writer.manifest is not None
    return writer.manifest


def forget_pages(paths: list[str]) -> None:
    """Drop files from the page cache (Linux drops clean pages only, hence the fsync)."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


class OwnMethods:
    """Each method yields the sizes of batches that are torch tensors by then, without an end."""

    def __init__(self, manifest: Manifest, batch: int) -> None:
        self.manifest, self.batch = manifest, batch
        self.paths = [manifest.path(name + TAR_SUFFIX) for name in manifest.shards["name"].to_pylist()]
        self.plan = EpochPlan(manifest.counts, seed=0, global_batch=batch, remainder="carry")

    def readinto(self) -> Iterator[int]:
        """The limit: every shard's bytes into one buffer that is used again and again. Makes no tensors."""
        buffer = bytearray(_READ_BYTES)
        while True:
            for path, count in zip(self.paths, self.manifest.counts.tolist(), strict=True):
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the plain call is what is measured
                    while file.readinto(buffer):
                        pass
                yield count

    def readinto_batch(self) -> Iterator[int]:
        """The same into a buffer as large as a batch, which may be more than caches hold: what reading into batches
        cannot beat with one thread."""
        stride = int(self.manifest.shards["stride"].to_numpy().max())
        buffer = memoryview(bytearray(max(_PIECE_BYTES, self.batch * stride)))
        at = 0
        while True:
            for path, count in zip(self.paths, self.manifest.counts.tolist(), strict=True):
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the plain call is what is measured
                    while got := file.readinto(buffer[at : at + _PIECE_BYTES]):
                        at = at + got if at + got + _PIECE_BYTES <= len(buffer) else 0
                yield count

    def own_process(self) -> Iterator[int]:
        """This package's stream in one process, all checksums on."""
        return tensors_of(stream(Reader(self.manifest), self.plan, 0, 1, Cursor(), ENDLESS, prefetch=0))

    def own_process_one_thread(self) -> Iterator[int]:
        """The same where one thread reads and hashes."""
        return tensors_of(stream(Reader(self.manifest, threads=1), self.plan, 0, 1, Cursor(), ENDLESS, prefetch=0))

    def own_process_ahead(self) -> Iterator[int]:
        """`own_process` with the thread that reads ahead, as training uses it."""
        return tensors_of(stream(Reader(self.manifest), self.plan, 0, 1, Cursor(), ENDLESS, prefetch=2))

    def own_process_copied(self) -> Iterator[int]:
        """The same into contiguous columns, copied out of the samples."""
        reader = Reader(self.manifest)
        out = reader.allocate(self.batch)
        step = 0
        while True:
            reader.read_ranges(self.plan.rows(*_place(self.plan, step)), out=out)
            step += 1
            yield from tensors_of(iter([out]))

    def own_kept_host(self) -> Iterator[int]:
        """All rows in memory, as ranks of a node share it; a thread copies batches ahead."""
        return tensors_of(resident.stream(self._resident, self.plan, 0, 1, Cursor(), ENDLESS))

    def own_kept_device(self) -> Iterator[int]:
        """All rows on a device, here this machine's own: a batch is one index."""
        from conclugen.training.device_rows import DeviceRows

        rows = self._resident.rows
        dtypes = {name: x.dtype for name, x in rows.features.items()}
        kept = DeviceRows(len(rows), self._resident.reader.widths, dtypes, "cpu")
        kept.write(0, rows)
        with ReadAhead(resident.places(self.plan, 0, 1, Cursor(), ENDLESS), 2) as positions:
            for place in positions:
                batch = kept.batch(place.position)
                size = batch.rows
                del batch  # or its memory could not be used again
                yield size

    @functools.cached_property
    def _resident(self) -> Resident:
        kept = Resident(Reader(self.manifest))
        for _ in kept.read():
            pass
        return kept

    def own_ray_object_store(self, rank: int = 0, world: int = 1) -> Iterator[int]:
        """The same executed by Ray Data; tasks read, rows travel through the object store."""
        yield from tensors_of(self.ray_stream("object_store", rank, world))

    def own_ray_worker_read(self, rank: int = 0, world: int = 1) -> Iterator[int]:
        """The same executed by Ray Data; this process reads what the plan names."""
        yield from tensors_of(self.ray_stream("worker", rank, world))

    def ray_stream(self, payload: str, rank: int, world: int) -> Iterator[Rows]:
        """One rank's stream. Ranks share a global batch that grows with them: their own batches are equally large."""
        from shards.reading import ray_source

        plan = EpochPlan(self.manifest.counts, seed=0, global_batch=self.batch * world, remainder="carry")
        return ray_source.stream(Reader(self.manifest), plan, rank, world, Cursor(), 1 << 30, payload)

    def ray_put_get(self) -> Iterator[int]:
        """A batch's bytes put into Ray's object store, got again and copied out: what the store itself costs."""
        import ray

        batch = np.ones((self.batch, sum(WIDTHS.values())), dtype=self.manifest.columns[0].dtype)
        out = np.empty_like(batch)
        for _ in repeat(None):
            np.copyto(out, ray.get(ray.put(batch)))
            yield self.batch


def _place(plan: EpochPlan, step: int) -> tuple[int, int]:
    cursor = plan.cursor_at(step)
    return cursor.epoch, cursor.step


def tensors_of(batches: Iterator[Any]) -> Iterator[int]:
    """Sizes of the batches once torch has them; closes the stream at the end."""
    import torch

    try:
        for rows in batches:
            tensors = [torch.from_numpy(array) for array in rows.features.values()]
            size = len(tensors[0])
            del rows, tensors  # or memory would not be used again before the next batch is read
            yield size
    finally:
        close: Callable[[], None] | None = getattr(batches, "close", None)
        if close is not None:
            close()
