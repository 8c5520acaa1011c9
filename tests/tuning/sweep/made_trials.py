"""A sweep's store over made-up results, and what Ray Tune would hand its callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuning.sweep.folder import SweepFolder, TrialStore
from tuning.sweep.search import Outcome, searcher
from tuning.sweep.space import Space


class Kit:
    """A store over made-up results."""

    def __init__(self, folder: Path, space: Space, search: str = "random", trials: int = 6) -> None:
        self.folder = SweepFolder(folder)
        self.folder.acquire({"space": 1})
        source = searcher(search, space, 3, "max", folder)
        self.store = TrialStore(self.folder, space, source, trials, "probe_accuracy", {"manifest": "m"})

    def end(self, number: int, value: float, state: str = "finished", reason: str = "") -> None:
        self.store.finish(number, Outcome({9: value}, state), {"probe_accuracy": value}, {"seconds": 1.0}, reason)


class TuneTrial:
    """A Tune trial as far as a callback looks at one: its name, its last result, its error."""

    def __init__(self, number: int, result: dict[str, Any] | None = None, error: str | None = None) -> None:
        self.number, self.last_result, self.error = number, result, error

    def __str__(self) -> str:
        return f"{self.number:04d}"

    def get_error(self) -> str | None:
        return self.error
