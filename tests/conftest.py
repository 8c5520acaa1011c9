"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `ravdess_features.npz`, `mosi_features.npz` and `clips/`; skips where it is missing."""
    folder = Path(os.environ.get("CONCLUGEN_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not (folder / "ravdess_features.npz").is_file():
        pytest.skip(f"real feature sets not found in {folder}; set CONCLUGEN_DATA to the folder that holds them")
    return folder
