"""The folder of a run: what lies where, which run it is, and the newest checkpoint that is whole.

<output>/<name>/
    run.json               identity of the run, written once
    config.json            resolved configuration of the last start
    journal.jsonl          everything tracked, append-only
    quarantine/            damaged samples that training met, a file for each rank
    standardization.safetensors
    train/until-*/         what Ray Train stores: checkpoints, its own state
    model/                 exported model
    plots/  evaluation/    what people look at
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from conclugen import checkpoint
from conclugen.checkpoint import Checkpoint, CheckpointError
from shards import Damage

CHECKPOINT_PREFIX = "step-"
_MOMENTS = ("mean", "deviation")

Standardization = Mapping[str, tuple[np.ndarray, np.ndarray]]


class RunFolder:
    """Paths and records of one run.

    Args:
        path: `<output>/<name>`; made if it is not there.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.journal = self.path / "journal.jsonl"
        self.standardization = self.path / "standardization.safetensors"
        self.config = self.path / "config.json"
        self.train = self.path / "train"
        self.model = self.path / "model"
        self.plots = self.path / "plots"
        self.evaluation = self.path / "evaluation"
        self._record = self.path / "run.json"

    @property
    def name(self) -> str:
        return self.path.name

    def belongs(self, identity: Mapping[str, Any]) -> bool:
        """Whether the folder already is this run's; False where there is no run yet. Writes nothing.

        Args:
            identity: Field -> value of everything that must agree for a run to be the same run.

        Raises:
            ValueError: the folder belongs to a run of another identity; names every differing field with both values.
                Or it holds files of something else.
        """
        if not self._record.is_file():
            if self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise ValueError(f"{self.path}: holds files but no run.json, so it is no run; choose another run.name")
            return False
        found, wanted = json.loads(self._record.read_text()), _plain(identity)
        differing = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
        if differing:
            lines = "\n".join(f"  {name}: {found.get(name)!r} then, {wanted.get(name)!r} now" for name in differing)
            raise ValueError(
                f"{self.path}: a run of this name exists, and what makes a run the same run differs:\n{lines}\n"
                "Choose another run.name, or give the values of then to resume it."
            )
        return True

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder this run's, unless it already is. Raises ValueError as `belongs` does."""
        if not self.belongs(identity):
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self._record, _plain(identity))

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, newest step first (those of one step: newest writing first)."""
        found = self.train.glob(f"*/{CHECKPOINT_PREFIX}*")
        return sorted(found, key=lambda path: (checkpoint_step(path), path.stat().st_mtime), reverse=True)

    def quarantine(self, rank: int) -> Callable[[Damage], None]:
        """Where a rank notes damaged samples: a function that appends one to the rank's own file."""
        path = self.path / "quarantine" / f"rank-{rank}.jsonl"

        def note(sample: Damage) -> None:
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(asdict(sample)) + "\n")

        return note

    def quarantined(self) -> list[dict[str, Any]]:
        """Damaged samples that any rank has met in any start, each once, in order of rows."""
        lines = [line for path in self.path.glob("quarantine/*.jsonl") for line in path.read_text().splitlines()]
        by_row = {sample["row"]: sample for sample in map(json.loads, lines)}
        return [by_row[row] for row in sorted(by_row)]

    def save_standardization(self, moments: Standardization) -> None:
        """Keep the fitted standardisation: every start of the run uses the same."""
        flat = {
            f"{name}/{kind}": np.asarray(x)
            for name, pair in moments.items()
            for kind, x in zip(_MOMENTS, pair, strict=True)
        }
        temporary = self.standardization.with_suffix(".partial")
        save_file(flat, temporary)
        temporary.replace(self.standardization)

    def load_standardization(self) -> Standardization | None:
        """Modality -> (mean, deviation), or None for a model that does not standardise."""
        if not self.standardization.is_file():
            return None
        flat = load_file(self.standardization)
        names = sorted({name.partition("/")[0] for name in flat})
        return {name: (flat[f"{name}/mean"], flat[f"{name}/deviation"]) for name in names}

    def newest_checkpoint(self) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint that reads back whole; of damaged or half-written ones a line each is printed."""
        for path in self.checkpoints():
            try:
                return path, checkpoint.load(path)
            except CheckpointError as error:
                print(f"passed over: {error}", flush=True)
        return None


def checkpoint_name(step: int) -> str:
    return f"{CHECKPOINT_PREFIX}{step:010d}"


def checkpoint_step(path: Path) -> int:
    digits = path.name.removeprefix(CHECKPOINT_PREFIX)
    return int(digits) if digits.isdigit() else -1


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As it reads back from JSON: tuples as lists."""
    return json.loads(json.dumps(identity))


def write_json(path: Path, content: Any) -> None:
    """Write atomically: a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(content, file, indent=2, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
