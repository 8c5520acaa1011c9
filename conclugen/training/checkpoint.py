"""Checkpoints: a folder of safetensors and JSON that knows no world size and executes nothing when it is read."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from conclugen import distributed, storage
from conclugen.training.pretrainer import Pretrainer

SCHEMA, VERSION = "conclugen-checkpoint", 2
TENSORS, DOCUMENT = "state.safetensors", "checkpoint.json"


class CheckpointError(ValueError):
    """A folder that is not a complete checkpoint, is damaged, or was written in an unknown version."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint that another version of conclugen wrote."""


@dataclass(frozen=True)
class Checkpoint:
    """tensors and meta: see `Pretrainer.state`; cursor: where the data continues; extra: whatever the job added."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    cursor: dict[str, Any]
    extra: dict[str, Any]

    def restore(self, pretrainer: Pretrainer) -> None:
        """Put the pretrainer where the saved one was; raises ValueError where the two do not fit."""
        pretrainer.load_state(self.tensors, self.meta)


def _there() -> float:
    return 0.0


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, yet to be written.

    copies: the tensors, some of which may still be on their way from a GPU; read `tensors`. document: the text beside
    them, without its digest. arrived: waits for the copies; returns the seconds that they took beside training, 0 where
    they were there at once.
    """

    copies: dict[str, Tensor]
    document: dict[str, Any]
    arrived: Callable[[], float] = _there

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state, whole: waits for what is on its way."""
        self.arrived()
        return self.copies


class _Copies:
    """Copies from one GPU into pinned memory, on a stream beside the one that computes.

    They begin when the stream that computes has come to where it is now. The state is not copied on the device first,
    which would take gigabytes beside a training step, on a GPU whose memory kept rows may fill. So nothing may be
    overwritten while it is read, and the stream that computes waits where it would, as late as that is: at once for
    what a forward pass writes (`early`; it is little, and goes first), before its next update for the parameters and
    moments, which the update alone writes (`before_update`). One stream waits for the other; the host goes on.

    Args:
        side: The stream of the copies.
        early, late: (pinned tensor, tensor on the GPU) each.
    """

    def __init__(
        self,
        device: torch.device,
        side: Any,
        early: Collection[tuple[Tensor, Tensor]],
        late: Collection[tuple[Tensor, Tensor]],
    ) -> None:
        self._device = device
        self._sources: list[Any] = [early, late]  # their memory must not become another tensor's before they are read
        computed, early_read = torch.cuda.Event(), torch.cuda.Event()
        self._began, self._done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        computing = torch.cuda.current_stream(device)
        computed.record(computing)
        with torch.cuda.stream(side):
            side.wait_event(computed)
            self._began.record(side)
            for pairs, read in ((early, early_read), (late, self._done)):
                for kept, x in pairs:
                    kept.copy_(x, non_blocking=True)
                read.record(side)
        computing.wait_event(early_read)

    def before_update(self) -> None:
        """Have the stream that computes wait until all is read."""
        torch.cuda.current_stream(self._device).wait_event(self._done)

    def arrived(self) -> float:
        """Wait on the host until all is there; returns the seconds from the first copy to the last."""
        self._done.synchronize()
        self._sources.clear()
        return float(self._began.elapsed_time(self._done)) / 1e3


class HostMemory:
    """Memory that snapshots are copied into, kept from one to the next: fresh pages cost several times the copy itself,
    and a GPU copies at full speed, and beside what it computes, into pinned ones only."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._sides: dict[torch.device, Any] = {}

    def copied(self, tensors: Mapping[str, Tensor], late: Collection[str]) -> tuple[dict[str, Tensor], list[_Copies]]:
        """The tensors on the host, until the next call, and what is on its way there from GPUs.

        late: names of those that nothing overwrites before the next update.
        """
        found, under_way = {name: self._place(name, x) for name, x in tensors.items()}, []
        for name, x in tensors.items():
            if not x.is_cuda:
                found[name].copy_(x)
        for device in {x.device for x in tensors.values() if x.is_cuda}:
            pairs: dict[bool, list[tuple[Tensor, Tensor]]] = {False: [], True: []}
            for name, x in tensors.items():
                if x.is_cuda and x.device == device:
                    pairs[name in late].append((found[name], x))
            if device not in self._sides:
                self._sides[device] = torch.cuda.Stream(device)
            under_way.append(_Copies(device, self._sides[device], pairs[False], pairs[True]))
        return found, under_way

    def _place(self, name: str, x: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or kept.shape != x.shape or kept.dtype != x.dtype:
            kept = self._kept[name] = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        return kept


def snapshot(
    pretrainer: Pretrainer,
    cursor: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    copy: bool = True,
    memory: HostMemory | None = None,
) -> Snapshot:
    """The state of now, copied to the host's memory so that training may continue while it is written.

    From a GPU it is copied while training goes on: `Snapshot.tensors` waits for it. cursor and extra must be JSON-able.
    copy: False where nothing changes the state before it is written. memory: what to copy into; the snapshot taken into
    it before must be written by then. Raises NonFiniteLossError rather than take a state that a bad step has touched.
    """
    tensors, meta = pretrainer.state()
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "identity": pretrainer.config.identity_digest(),
        "meta": meta,
        "cursor": dict(cursor),
        "extra": dict(extra or {}),
    }
    if not copy:
        return Snapshot(tensors, document)
    late = [name for name in tensors if pretrainer.written_by_updates_alone(name)]
    copies, under_way = (memory or HostMemory()).copied(tensors, frozenset(late))
    for each in under_way:
        pretrainer.before_update(each.before_update)
    return Snapshot(
        copies, json.loads(json.dumps(document)), lambda: max((each.arrived() for each in under_way), default=0.0)
    )


def write(folder: str | Path, state: Snapshot) -> None:
    """Write a snapshot as `folder`, whole or not at all. Raises OSError where there is no room, or no access."""
    tensors = state.tensors
    document = state.document | {"digest": storage.tensors_digest(tensors)}
    try:
        storage.write_folder(folder, tensors, {DOCUMENT: storage.document_text(document)}, TENSORS)
    except SafetensorError as cause:  # what safetensors makes of a full disk
        raise OSError(f"{folder}: can't be written: {cause}") from cause


def save(
    folder: str | Path, pretrainer: Pretrainer, cursor: Mapping[str, Any], extra: Mapping[str, Any] | None = None
) -> None:
    """`write` the `snapshot` of now. All ranks hold the same state: one of them writes."""
    write(folder, snapshot(pretrainer, cursor, extra, copy=False))


def restore_everywhere(state: Checkpoint, pretrainer: Pretrainer) -> None:
    """`Checkpoint.restore` on every rank, where rank 0 alone has the tensors: the others get them from it."""
    if distributed.rank() == 0:
        state.restore(pretrainer)
    own, _ = pretrainer.state()
    for name in sorted(own):
        distributed.broadcast(own[name])
    if distributed.rank() > 0:
        pretrainer.load_state(own, state.meta)


def read_extra(document: str) -> dict[str, Any]:
    """What the job added to a checkpoint, from the text of its document; {} where the text is damaged."""
    try:
        extra = json.loads(document)["extra"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return extra if isinstance(extra, dict) else {}


def load(folder: str | Path) -> Checkpoint:
    """Read and verify a checkpoint; raises CheckpointError naming file, found and expected."""
    path = Path(folder)
    required = ("digest", "meta", "cursor", "extra")
    errors = CheckpointError, CheckpointVersionError
    document = storage.read_document(path / DOCUMENT, SCHEMA, VERSION, required, *errors)
    for name in ("meta", "cursor", "extra"):
        if not isinstance(document[name], dict):
            raise CheckpointError(f"{path / DOCUMENT}: {name} is {document[name]!r}, expected a mapping")
    step = document["meta"].get("step_number")
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{path / DOCUMENT}: meta.step_number is {step!r}, expected an integer of at least 0")
    tensors = storage.read_tensors(path / TENSORS, document["digest"], CheckpointError)
    return Checkpoint(tensors, document["meta"], document["cursor"], document["extra"])
