"""MLflow's SQLite stores for tests: the first of a process is made by MLflow's 40-odd migrations, in two seconds of CPU
time; each later one is a copy of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest


def copied(template: Path) -> Iterator[None]:
    """Until it is resumed, empty SQLite stores are filled from `template`, which the first of them becomes."""
    utils = pytest.importorskip("mlflow.store.db.utils")
    migrate = utils._initialize_tables

    def initialize(engine: Any) -> None:
        file = engine.url.database
        if engine.dialect.name != "sqlite" or not file:
            return migrate(engine)
        if not template.exists():
            migrate(engine)
            with closing(sqlite3.connect(file)) as made, closing(sqlite3.connect(template)) as kept:
                made.backup(kept)
            return None
        engine.dispose()
        with closing(sqlite3.connect(template)) as kept, closing(sqlite3.connect(file)) as made:
            kept.backup(made)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", initialize)
        yield
