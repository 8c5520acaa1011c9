"""The run's folder as a worker has it: its own where its node sees it, else by way of the job that started the run.

What a worker needs of the folder is little, and what it writes there are lines. Where no folder is shared, an actor
beside the job reads and writes them. Checkpoints go to `run.storage`, which every node must reach then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.run_config import RunConfig
from ray_jobs.run_folder import Quarantine, RunFolder, Standardization, UnseenFolderError
from ray_jobs.tracking.journal import Journal
from shards import CorruptSample

# A folder that is shared may take seconds to show what another node has written.
_APPEARS_WITHIN_S = 10.0


class _Home:
    """Beside the job: does to its folder what workers elsewhere ask for."""

    def __init__(self, path: str):
        self._folder = RunFolder(path)
        self._journal: Journal | None = None

    def append(self, name: str, text: str) -> None:
        self._folder.append(self._folder.path / name, text)

    def quarantined(self) -> list[CorruptSample]:
        return self._folder.quarantined()

    def load_standardization(self) -> Standardization | None:
        return self._folder.load_standardization()

    def check_attempt(self, attempt: str) -> None:
        self._folder.check_attempt(attempt)

    def metrics(self, step: int, values: dict[str, float], series: str) -> bool:
        if self._journal is None:
            self._journal = self._folder.open_journal()
        return self._journal.metrics(step, values, series)

    def sync_journal(self) -> None:
        self._folder.sync_journal()


class FarFolder(RunFolder):
    """A run's folder that this node does not see. What it does not offer here is not there."""

    def __init__(self, path: Path | str, home: Any):
        super().__init__(path)
        self._home = home

    def append(self, path: Path, text: str) -> None:
        ray.get(self._home.append.remote(str(path.relative_to(self.path)), text))

    def quarantined(self) -> list[CorruptSample]:
        return list(ray.get(self._home.quarantined.remote()))

    def quarantine(self, rank: int) -> Quarantine:
        path = super().quarantine(rank).path
        return Quarantine(path, self.append)

    def load_standardization(self) -> Standardization | None:
        found: Standardization | None = ray.get(self._home.load_standardization.remote())
        return found

    def check_attempt(self, attempt: str) -> None:
        ray.get(self._home.check_attempt.remote(attempt))

    def open_journal(self) -> FarJournal:  # type: ignore[override]  # the part of it that a worker uses
        return FarJournal(self._home)

    def sync_journal(self) -> None:
        ray.get(self._home.sync_journal.remote())


class FarJournal:
    """The part of a `Journal` that a worker uses."""

    def __init__(self, home: Any):
        self._home = home

    def metrics(self, step: int, values: Mapping[str, SupportsFloat], series: str = "train") -> bool:
        """As `Journal.metrics`."""
        numbers = {name: float(value) for name, value in values.items()}
        return bool(ray.get(self._home.metrics.remote(step, numbers, series)))


@contextlib.contextmanager
def home(folder: RunFolder, run: RunConfig) -> Iterator[Any]:
    """What workers without the folder turn to, for as long as the block lasts; None where all of them have it, or would
    have no place for checkpoints without it."""
    if run.storage is None or not several_nodes():
        yield None
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Home).remote(str(folder.path))
    try:
        yield actor
    finally:
        ray.kill(actor)


def several_nodes() -> bool:
    return sum(bool(node["Alive"]) for node in ray.nodes()) > 1


def reach(path: str, attempt: str, home: Any, who: str) -> RunFolder:
    """The run's folder for a worker of this attempt. who: which one it is, and where.

    Raises UnseenFolderError where its node does not see the folder and there is no other way.
    """
    folder = RunFolder(path)
    try:
        folder.check_seen(who, attempt, _APPEARS_WITHIN_S)
    except UnseenFolderError:
        if home is None:
            raise
        return FarFolder(path, home)
    return folder
