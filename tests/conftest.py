"""Fixtures shared by the whole suite."""

import os
import time
from pathlib import Path

import pytest

from tests.clock import Clock

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stands in for `time.sleep`, `perf_counter` and `monotonic`, for code that runs in one thread."""
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, clock.read)
    return clock


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `ravdess_features.npz`, `mosi_features.npz` and `clips/`; skips where it is missing."""
    folder = Path(os.environ.get("CONCLUGEN_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not (folder / "ravdess_features.npz").is_file():
        pytest.skip(f"real feature sets not found in {folder}; set CONCLUGEN_DATA to the folder that holds them")
    return folder
