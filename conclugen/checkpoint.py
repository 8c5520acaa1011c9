"""Checkpoints: a folder of safetensors and JSON that knows no world size and executes nothing when it is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from conclugen import storage
from conclugen.pretrainer import Pretrainer

SCHEMA, VERSION = "conclugen-checkpoint", 1
TENSORS, DOCUMENT = "state.safetensors", "checkpoint.json"


class CheckpointError(ValueError):
    """A folder that is no complete checkpoint, is damaged, or was written in an unknown version."""


@dataclass(frozen=True)
class Checkpoint:
    """tensors and meta: see `Pretrainer.state`; cursor: where the data goes on; extra: whatever the job added."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    cursor: dict[str, Any]
    extra: dict[str, Any]

    def restore(self, pretrainer: Pretrainer) -> None:
        """Put the pretrainer where the saved one was; raises ValueError where the two do not fit."""
        pretrainer.load_state(self.tensors, self.meta)


def save(
    folder: str | Path, pretrainer: Pretrainer, cursor: Mapping[str, Any], extra: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint as `folder`, whole or not at all. All ranks hold the same state: one of them writes.

    cursor and extra must be JSON-able. Raises NonFiniteLossError rather than save a state that a bad step has touched.
    """
    tensors, meta = pretrainer.state()
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "digest": storage.tensors_digest(tensors),
        "identity": pretrainer.config.identity_digest(),
        "meta": meta,
        "cursor": dict(cursor),
        "extra": dict(extra or {}),
    }
    storage.write_folder(folder, tensors, {DOCUMENT: json.dumps(document, indent=1, allow_nan=False)}, TENSORS)


def load(folder: str | Path) -> Checkpoint:
    """Read and verify a checkpoint; raises CheckpointError naming file, found and expected."""
    path = Path(folder)
    required = ("digest", "meta", "cursor", "extra")
    document = storage.read_document(path / DOCUMENT, SCHEMA, VERSION, required, CheckpointError)
    tensors = storage.read_tensors(path / TENSORS, document["digest"], CheckpointError)
    return Checkpoint(tensors, document["meta"], document["cursor"], document["extra"])
