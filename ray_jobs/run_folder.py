"""The folder of a run: what lies where, which run it is, and which of its starts may write.

<output>/<name>/
    run.json               identity of the run
    config.json            resolved configuration of the last attempt
    journal.jsonl          everything tracked, append-only
    quarantine/            corrupt samples that training met, a file for each rank
    standardization.safetensors
    checkpoints/step-*/    checkpoints, unless run.storage puts them elsewhere
    failures.jsonl         failed attempts
    .lock  .attempt        who trains the run now, and in which start
    model/                 exported model
    plots/  evaluation/    plots and tables
    profile/               traces of steps, where run.profile asks for them
    tensorboard/           the journal as event files, where run.tensorboard asks for them
    nccl-rank-*            on GPUs: the last operations of a rank whose collective did not end
    data/  run.yaml        of a run that made its own shards (`conclugen run`): these, and what it chose
"""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from conclugen import PretrainConfig
from conclugen.common.atomic import append_text, atomic_path, sync_file, write_json
from conclugen.common.names import did_you_mean
from conclugen.common.options import to_plain
from conclugen.common.reading import parse_json, read_lines, read_mapping
from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.run_config import PretrainJob, RunConfig
from ray_jobs.tracking.journal import Journal
from shards import CorruptSample

_MOMENTS = ("mean", "deviation")
DATA, CHOSEN = "data", "run.yaml"
"""What the folder may hold before the run begins, where the same command makes its shards."""

Standardization = Mapping[str, tuple[np.ndarray, np.ndarray]]


class SupersededError(RuntimeError):
    """A newer attempt of this run has started; this process is stale."""


class UnseenFolderError(ValueError):
    """A node that trains does not see the run's folder."""


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
        self.failures = self.path / "failures.jsonl"
        self.model = self.path / "model"
        self.plots = self.path / "plots"
        self.profile = self.path / "profile"
        self.tensorboard = self.path / "tensorboard"
        self.evaluation = self.path / "evaluation"
        self._record = self.path / "run.json"
        self._attempt = self.path / ".attempt"

    @classmethod
    def finished(cls, output: Path, name: str) -> RunFolder:
        """A run with an exported model. ValueError: there is no such run in the output, or it is not finished."""
        folder = cls(output / name)
        if not folder.path.is_dir():
            runs = sorted({path.parent.name for kind in ("run.json", "model") for path in output.glob(f"*/{kind}")})
            raise ValueError(f"--run: no run {name!r} in {output}, {did_you_mean(name, runs)}")
        if not folder.model.is_dir():
            raise ValueError(f"run {name!r}: no exported model in {folder.model}; finish it with conclugen pretrain")
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    def belongs(self, identity: Mapping[str, Any], changing: Collection[str] = ()) -> bool:
        """Whether the folder already is this run's; False where there is no run yet. Writes nothing.

        Args:
            identity: Field -> value of everything that must agree for a run to be the same run.
            changing: Fields of it that need not agree.

        Raises:
            ValueError: the folder belongs to a run of another identity; names every differing field with both values.
                Or it holds files of something else, or a `run.json` that can't be read.
        """
        if not self._record.is_file():
            before = (DATA, CHOSEN)
            others = (path.name for path in self.path.iterdir()) if self.path.is_dir() else ()
            if any(not name.startswith(".") and name not in before for name in others):
                raise ValueError(
                    f"{self.path}: has files but no run.json, so it is not a run folder; choose another run.name"
                )
            return False
        found, wanted = self.identity(), _plain(identity)
        names = {*found, *wanted}.difference(changing)
        differing = [name for name in sorted(names) if found.get(name) != wanted.get(name)]
        if differing:
            lines = "\n".join(f"  {name}: {found.get(name)!r} then, {wanted.get(name)!r} now" for name in differing)
            raise ValueError(
                f"{self.path}: a run with this name exists with a different configuration:\n{lines}\n"
                "Choose another run.name, or use the original values to resume it."
            )
        return True

    def identity(self) -> dict[str, Any]:
        """What the run was claimed as. Raises ValueError where that can't be read."""
        try:
            found = read_mapping(self._record)
        except (OSError, ValueError) as cause:
            raise ValueError(
                f"{self._record}: has no run identity ({cause}); restore it from a backup, or choose another run.name"
            ) from cause
        return found

    def acquire(self, identity: Mapping[str, Any], changing: Collection[str] = ()) -> bool:
        """Make the folder this run's; returns whether it already was. What has changed of the fields `changing` is
        taken over. Raises ValueError as `belongs` does."""
        resumed = self.belongs(identity, changing)
        if not resumed or self.identity() != _plain(identity):
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self._record, _plain(identity))
        return resumed

    def check_seen(self, who: str, attempt: str, patience_s: float = 10.0) -> None:
        """Raise UnseenFolderError where this machine does not see the folder in which this attempt began.

        A shared folder may take seconds to show it; a folder of another machine shows another attempt, or none. who:
        whose machine it is."""
        deadline = time.monotonic() + patience_s
        while self.last_attempt() != attempt:
            if time.monotonic() >= deadline:
                raise UnseenFolderError(
                    f"{who} does not see {self.path}: run.output must be a folder that every node reaches under this "
                    "path; mount it there, or give run.storage, a location that every node reaches: then no folder "
                    "need be shared"
                )
            time.sleep(min(0.5, patience_s))

    def save_config(self, job: PretrainJob) -> None:
        """Keep the resolved configuration of this attempt, as `--config` reads it."""
        write_json(self.config, to_plain(job))

    def load_config(self) -> dict[str, Any]:
        """The whole configuration of the last attempt as plain data. Raises ValueError naming a file that is missing or
        unreadable."""
        try:
            return read_mapping(self.config)
        except (OSError, ValueError) as cause:
            raise self._no_config(cause) from cause

    def load_pretraining(self) -> PretrainConfig:
        """The method's part of it. Raises ValueError as `load_config`, and where that part is none."""
        content = self.load_config()
        try:
            return PretrainConfig.from_dict(content.get("pretrain"))  # type: ignore[arg-type]  # it tells what it is not
        except (TypeError, ValueError) as cause:
            raise self._no_config(cause) from cause

    def _no_config(self, cause: Exception) -> ValueError:
        return ValueError(
            f"{self.config}: is not the configuration of a run ({cause}); start conclugen pretrain again with the "
            "same --run, which writes it again"
        )

    def store(self, run: RunConfig) -> CheckpointStore:
        """Where the run's checkpoints lie, and which of them are kept."""
        location = f"{run.storage.rstrip('/')}/{self.name}" if run.storage else str(self.path / "checkpoints")
        return CheckpointStore(location, run.keep_checkpoints, run.keep_by, run.keep_order)

    def begin_attempt(self) -> str:
        """Begin an attempt: from now on its workers may write, and those of earlier attempts may not."""
        attempt = uuid.uuid4().hex
        write_json(self._attempt, {"attempt": attempt})
        return attempt

    def last_attempt(self) -> str | None:
        """The newest start of training, None before the first."""
        try:
            return str(read_mapping(self._attempt).get("attempt"))
        except FileNotFoundError:
            return None

    def check_attempt(self, attempt: str) -> None:
        """Raises SupersededError where a later attempt has begun: its workers write, and this process must not.

        A job that dies leaves workers behind for the seconds that Ray needs to notice.
        """
        if self.last_attempt() != attempt:
            raise SupersededError(f"{self.path}: the run was started again; this process belongs to an earlier attempt")

    def append(self, path: Path, text: str) -> None:
        """Add whole lines to a file of the folder. Raises OSError."""
        path.parent.mkdir(exist_ok=True)
        append_text(path, text)

    def open_journal(self) -> Journal:
        """The journal, which is there already."""
        return Journal(self.journal)

    def sync_journal(self) -> None:
        """Put what is journalled on the disk. Raises OSError."""
        sync_file(self.journal)

    def quarantine(self, rank: int) -> Quarantine:
        """Where a rank notes the corrupt samples that it meets."""
        return Quarantine(self.path / "quarantine" / f"rank-{rank}.jsonl", self.append)

    def quarantined(self) -> list[CorruptSample]:
        """Corrupt samples that any rank has met in any attempt, each once, in order of rows."""
        files = self.path.glob("quarantine/*.jsonl")
        by_row = {}
        for line in (line for path in files for line, _ in read_lines(path) if line is not None):
            try:
                sample = CorruptSample(**parse_json(line))
            except (ValueError, TypeError):
                continue  # torn by a crash; the sample is met again
            if isinstance(sample.row, int):
                by_row[sample.row] = sample
        return [by_row[row] for row in sorted(by_row)]

    def save_standardization(self, moments: Standardization) -> None:
        """Keep the fitted standardisation: every attempt of the run uses the same."""
        flat = {
            f"{name}/{kind}": np.asarray(x)
            for name, pair in moments.items()
            for kind, x in zip(_MOMENTS, pair, strict=True)
        }
        with atomic_path(self.standardization) as temporary:
            save_file(flat, temporary)

    def load_standardization(self) -> Standardization | None:
        """Modality -> (mean, deviation), or None for a model that does not standardise.

        Raises ValueError naming a file that can't be read.
        """
        if not self.standardization.is_file():
            return None
        try:
            flat = load_file(self.standardization)
            names = sorted({name.partition("/")[0] for name in flat})
            return {name: (flat[f"{name}/mean"], flat[f"{name}/deviation"]) for name in names}
        except (OSError, ValueError, SafetensorError, KeyError) as cause:
            raise ValueError(
                f"{self.standardization}: is not a standardisation ({cause}); restore it from a backup, or remove it "
                "and start the run again, which fits it to the same rows"
            ) from cause


class Quarantine:
    """Corrupt samples that one rank meets: written to its own file, and waiting for the next meeting of the ranks.

    append: adds lines to the file.
    """

    def __init__(self, path: Path, append: Callable[[Path, str], None]):
        self.path, self._append = path, append
        self._new: deque[CorruptSample] = deque()

    def note(self, sample: CorruptSample) -> None:
        """Take a sample in; called by the thread that reads."""
        self._new.append(sample)
        self._append(self.path, json.dumps(asdict(sample)) + "\n")

    def take(self) -> list[CorruptSample]:
        """Samples noted since the last call."""
        return [self._new.popleft() for _ in range(len(self._new))]


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As it reads back from JSON: tuples as lists."""
    return json.loads(json.dumps(identity))
