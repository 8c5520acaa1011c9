"""How a rank gets its rows: read as they are needed, or all of them at the start, on its device or in memory that
the ranks of a node share.

Kept rows are those of the whole view, never a fixed part of it: the plan deals them again in every epoch, and a batch
is one index by it. Batches, and so losses, are the same bit for bit, whichever payload brings them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import torch

from conclugen import distributed
from conclugen.batch import Batch
from conclugen.training.device_rows import DeviceRows
from conclugen.training.prefetch import pinned, prefetch
from ray_jobs.mixture import AnySource
from ray_jobs.training.rank_meeting import RankMeeting
from shards import Cursor
from shards.reading import resident
from shards.reading.resident import HALF, Place, Resident
from shards.reading.rows import Memory, Rows
from shards.reading.stream import ReadAhead
from shards.reading.stream_counters import StreamCounters

DEVICE, HOST, STORE, AUTO = "device", "host", "object_store", "auto"
KEPT = (DEVICE, HOST)
_SHARED = Path("/dev/shm")  # noqa: S108 - memory that processes of a machine share
_NAME = "conclugen-rows-"
# What is taken without being asked for: of a device beside the step, and of the node's shared memory.
_OF_DEVICE, _OF_HOST = 0.8, 0.5
_SPARE = 20  # the part of a device's memory that is left alone


@dataclass(frozen=True)
class Room:
    """Bytes that a rank can give to rows: of its `device`, beside the training step, and of the memory that ranks of
    its node share; `where`: of which device and node this is."""

    device: int
    host: int
    where: str


def room(device: torch.device, step_bytes: int, ranks_of_node: int, node: str) -> Room:
    """step_bytes: what a training step takes of the device, the model included."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        named = f"{torch.cuda.get_device_name(device)} ({total / 1e9:.1f} GB) on node {node}"
    else:
        free, named = psutil.virtual_memory().available // ranks_of_node, f"the memory of node {node}"
    usable = free - free // _SPARE  # libraries take some of their own
    return Room(max(0, usable - step_bytes), shutil.disk_usage(_shared_folder()).free, named)


def choose(payload: str, needed: int, rows: int, rooms: Sequence[Room], half: int | None) -> str:
    """The payload that all ranks take, "auto" on GPUs, given every rank's room.

    needed: bytes of all rows; half: the same in float16, None where they are that already.

    Raises ValueError where a payload was asked for that does not fit, with figures and what would.
    """
    device, host = min(rooms, key=lambda r: r.device), min(rooms, key=lambda r: r.host)
    if payload == AUTO:
        if needed <= _OF_DEVICE * device.device:
            return DEVICE
        return HOST if needed <= _OF_HOST * host.host else STORE
    free, least = {DEVICE: (device.device, device), HOST: (host.host, host)}.get(payload, (needed, device))
    if needed <= free:
        return payload
    what = f"{rows:,} rows are {needed / 1e9:.2f} GB"
    if payload == DEVICE:
        found = f"{what}, and {least.where} has {free / 1e9:.2f} GB for them beside the training step"
    else:
        found = f"{what}, and {_shared_folder()} has {free / 1e9:.2f} GB free ({least.where})"
    remedies = []
    if half is not None and half <= free:
        remedies.append(f"data.rows_in=float16 ({half / 1e9:.2f} GB)")
    if payload == DEVICE and needed <= host.host:
        remedies.append("data.payload=host")
    if payload == HOST:
        remedies.append("more shared memory (a container: --shm-size)")
    remedies.append("data.payload=object_store")
    raise ValueError(f"data.payload={payload}: {found}; give {', or '.join(remedies)}")


def line(payload: str, needed: int, rows: int, asked: str) -> str | None:
    """What a run says of rows that are kept."""
    where = {DEVICE: "on each device", HOST: "once in the memory of each node"}.get(payload)
    if where is None:
        return None
    why = "chosen because they fit; data.payload=object_store reads them as they are wanted" if asked == AUTO else ""
    return f"{rows:,} rows ({needed / 1e9:.2f} GB) are kept {where} (data.payload={payload}{'; ' + why if why else ''})"


@dataclass(frozen=True)
class Node:
    """A rank's place: its number among the ranks of its node, and how many those are."""

    rank: int
    ranks: int


class Payload:
    """What brings a rank its batches; made by `prepare`. memory: what batches lie in on the host: for a GPU such memory
    as it copies from by itself, so that rows are copied there once, when they are read."""

    def __init__(
        self,
        source: AnySource,
        name: str,
        kept: Resident | DeviceRows | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.name, self._source, self._kept, self._memory = name, source, kept, memory

    @property
    def all_read(self) -> bool:
        """Whether all rows, and so every corrupt one, have been met."""
        return self._kept is not None

    def stream(self, rank: int, world: int, cursor: Cursor, steps: int) -> ReadAhead[Rows] | DeviceBatches:
        """This rank's part of the next `steps` global batches; close it before Ray ends."""
        plan, ahead = self._source.plan, self._source.data.prefetch
        if isinstance(self._kept, Resident):
            return resident.stream(self._kept, plan, rank, world, cursor, steps, ahead, self._memory)
        if isinstance(self._kept, DeviceRows):
            positions = ReadAhead(resident.places(plan, rank, world, cursor, steps), ahead)
            return DeviceBatches(self._kept, positions, plan.batch_rows if self._kept.complete else lambda cursor: None)
        from shards.reading import ray_source

        source = self._source
        execution = ray_source.Execution(tasks=source.data.read_tasks, prefetch=ahead)
        return ray_source.stream(source.reader, plan, rank, world, cursor, steps, self.name, execution, self._memory)

    def on_device(self, batches: Any, device: torch.device) -> Iterator[Any]:
        """The batches, on their way to the device or there already."""
        return iter(batches) if isinstance(batches, DeviceBatches) else prefetch(batches, device)


class DeviceBatches:
    """Batches of rows that are on the device; closed as the stream of their positions is. complete: what a batch says
    by that name, given where in the plan it is."""

    def __init__(self, rows: DeviceRows, positions: ReadAhead[Place], complete: Callable[[Cursor], int | None]) -> None:
        self._rows, self._positions, self._complete = rows, positions, complete

    @property
    def counters(self) -> StreamCounters:
        return self._positions.counters

    def __iter__(self) -> Iterator[Batch]:
        for place in self._positions:
            yield self._rows.batch(place.position, self._complete(place.cursor))

    def __enter__(self) -> DeviceBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._positions.close()


def prepare(
    source: AnySource,
    node: Node,
    here: Room,
    device: torch.device,
    attempt: str,
    meeting: RankMeeting,
    tell: Callable[[str], None],
    beat: Callable[[], None],
) -> Payload:
    """The payload of all ranks, with the rows that it keeps read. Every rank calls it.

    here: of this rank. attempt: names what is shared. tell: prints a line, on rank 0 only. beat: called
    while rows are read.

    Raises ValueError where rows don't fit, on every rank, and what the reader raises.
    """
    data, reader = source.data, source.reader
    rows, memory = int(reader.counts.sum()), pinned if device.type == "cuda" else None
    if data.payload not in (*KEPT, AUTO) or (data.payload == AUTO and device.type != "cuda"):
        return Payload(source, STORE if data.payload == AUTO else data.payload, memory=memory)
    needed = resident.nbytes(reader, data.rows_in)
    half = resident.nbytes(reader, HALF)
    rooms = [Room(**found) for found in meeting.exchange(asdict(here))]
    name = choose(data.payload, needed, rows, rooms, half if half < needed else None)
    if name not in KEPT:
        return Payload(source, name, memory=memory)
    said = line(name, needed, rows, data.payload)
    if said is not None:
        tell(said)
    if name == HOST:
        return Payload(source, name, _shared(source, node, attempt, meeting, beat), memory)
    return Payload(source, name, _on_device(source, device, beat))


def _on_device(source: AnySource, device: torch.device, beat: Callable[[], None]) -> DeviceRows:
    """All rows on this rank's device: each rank reads a part of them, and has the others from those that did."""
    reader = source.reader
    world, rank = distributed.world_size(), distributed.rank()
    size = max(1, resident.block_rows(reader) // world)
    rows = resident.allocate(reader, source.data.rows_in, size)
    dtypes = {m: x.dtype for m, x in rows.features.items()}
    total = int(reader.counts.sum())
    mixed = reader.corpus_of(rows.row[:0]) is not None
    kept = DeviceRows(total, reader.widths, dtypes, device, reader.grouped, mixed)
    for start in range(0, total, world * size):
        own = min(start + rank * size, total)
        stop = min(own + size, total)
        resident.read(reader, own, rows.part(0, stop - own))
        rows.part(stop - own, size).clear()
        kept.write(start, rows, reader.corpus_of(rows.row))
        beat()
    return kept


def _shared(source: AnySource, node: Node, attempt: str, meeting: RankMeeting, beat: Callable[[], None]) -> Resident:
    """All rows once in the memory of the node, which its ranks read together. Nothing of it outlives them: its name is
    gone as soon as all of them have it."""
    size = resident.nbytes(source.reader, source.data.rows_in)
    place = _shared_folder() / f"{_NAME}{attempt}"
    with contextlib.ExitStack() as stack:
        problem = None
        if node.rank == 0:
            try:
                stack.enter_context(_made(place, size))
            except OSError as error:
                problem = f"{place.parent}: no {size / 1e9:.2f} GB of shared memory for rows ({error.strerror})"
        _agree(meeting, problem)
        memory = np.memmap(place, np.uint8, "r+", shape=(size,))
        kept = Resident(source.reader, source.data.rows_in, memory)
        for _ in kept.read(node.rank, node.ranks):
            beat()
        _agree(meeting, None)
    # One node may have found a row corrupt that another one has.
    kept.complete = all(meeting.exchange(kept.lacks_nothing))
    return kept


def _agree(meeting: RankMeeting, problem: str | None) -> None:
    """Wait for all ranks; raise ValueError on all of them where one has a problem."""
    problems = [each for each in meeting.exchange(problem) if each is not None]
    if problems:
        raise ValueError(f"data.payload=host: {problems[0]}; give data.payload=object_store")


@contextlib.contextmanager
def _made(place: Path, size: int) -> Iterator[None]:
    """A file of that many bytes, which are there to the last one, until the block ends. Whoever makes one removes those
    that killed processes have left: nobody holds their lock."""
    for other in place.parent.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError), other.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.unlink()
    handle, name = tempfile.mkstemp(prefix=".conclugen-", dir=place.parent)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.posix_fallocate(handle, 0, size)  # or a rank would be killed by the system when it writes what is not there
        Path(name).rename(place)
        name = str(place)
        yield
    finally:
        with contextlib.suppress(OSError):
            if Path(name).stat().st_ino == os.fstat(handle).st_ino:  # and not that of a later attempt
                Path(name).unlink()
        os.close(handle)


def _shared_folder() -> Path:
    return _SHARED if _SHARED.is_dir() else Path(tempfile.gettempdir())
