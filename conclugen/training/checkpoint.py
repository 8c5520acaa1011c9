"""Checkpoints: a folder of safetensors and JSON that knows no world size and executes nothing when it is read."""

import json
from collections.abc import Mapping
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


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, yet to be written: `tensors` and the text of the document beside them."""

    tensors: dict[str, Tensor]
    document: dict[str, Any]


class HostMemory:
    """Memory that snapshots are copied into, kept from one to the next: fresh pages cost several times the copy itself,
    and a GPU copies at full speed into pinned ones only."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors on the host, until the next call: all copies are on their way before the first is waited for."""
        found = {}
        for name, x in tensors.items():
            kept = self._kept.get(name)
            if kept is None or kept.shape != x.shape or kept.dtype != x.dtype:
                kept = self._kept[name] = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
            found[name] = kept.copy_(x, non_blocking=True)
        for device in {x.device for x in tensors.values() if x.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return found


def snapshot(
    pretrainer: Pretrainer,
    cursor: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    copy: bool = True,
    memory: HostMemory | None = None,
) -> Snapshot:
    """The state of now, copied to the host's memory so that training may continue while it is written.

    cursor and extra must be JSON-able. copy: False where nothing changes the state before it is written. memory: what
    to copy into; the snapshot taken into it before must be written by then. Raises NonFiniteLossError rather than take
    a state that a bad step has touched.
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
    if copy:  # of a tensor on the host `to` alone would be the tensor itself
        tensors = (memory or HostMemory()).copied(tensors)
        document = json.loads(json.dumps(document))
    return Snapshot(tensors, document)


def write(folder: str | Path, state: Snapshot) -> None:
    """Write a snapshot as `folder`, whole or not at all. Raises OSError where there is no room, or no access."""
    document = state.document | {"digest": storage.tensors_digest(state.tensors)}
    try:
        storage.write_folder(folder, state.tensors, {DOCUMENT: storage.document_text(document)}, TENSORS)
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
