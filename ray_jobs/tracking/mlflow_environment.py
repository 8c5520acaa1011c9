"""How this project talks to MLflow: explicit URIs, requests that end, a local store that many processes may create."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conclugen.common import paths, uris
from conclugen.common.extras import require
from conclugen.common.locks import Lock

_SQLITE = "sqlite:///"

# MLflow's own defaults retry a dead server for minutes inside one call; retrying is the sender's job, which also knows
# when to stop. A value that the user has set is left alone.
_CALL_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
REGISTERED_NAME_LENGTH = 256
EXPERIMENT_LENGTH = 256  # of MLflow's SQL stores
_NOISY_LOGGERS = ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry", "mlflow.tracking")

_settings_lock = threading.Lock()
_settings_users = 0
_settings_made: list[str] = []


@contextmanager
def bounded_calls() -> Iterator[None]:
    """Set MLflow's request limits and silence for the calls inside, and take them back when the last user leaves.

    MLflow reads them from the environment at each request, so there is no other place; threads may nest and overlap.
    """
    global _settings_users
    with _settings_lock:
        _settings_users += 1
        if _settings_users == 1:
            _settings_made.extend(name for name in _CALL_SETTINGS if name not in os.environ)
            os.environ.update({name: _CALL_SETTINGS[name] for name in _settings_made})
    try:
        yield
    finally:
        with _settings_lock:
            _settings_users -= 1
            if _settings_users == 0:
                for name in _settings_made:
                    os.environ.pop(name, None)
                _settings_made.clear()


def default_tracking_uri(output_folder: str | Path) -> str:
    """The local store of an output folder: a SQLite file, by absolute path because workers change their directory."""
    return f"{_SQLITE}{paths.absolute(output_folder, 'output').resolve() / 'mlflow.db'}"


def check_tracking_uri(uri: str, field: str = "tracking_uri") -> str:
    """Return the URI if it can be used from any directory and may be stored. Raises ValueError for a relative path, and
    for one that holds a user, a password or a key."""
    uris.check(field, uri)
    path = uri.removeprefix(_SQLITE) if uri.startswith(_SQLITE) else None
    if path is not None and not path.startswith("/"):
        raise ValueError(
            f"tracking URI {uri!r} is relative, and workers run in other directories; use {default_tracking_uri('.')!r}"
        )
    if "://" not in uri and uri != "databricks":
        shown = uri.rpartition("@")[2]  # USER:PASSWORD@HOST was meant
        raise ValueError(
            f"tracking URI {shown!r} has no scheme; use http(s)://HOST:PORT or a file, {default_tracking_uri('.')!r}"
        )
    return uri


def ui_command(uri: str) -> str:
    """What to type to look at a local store; a server has its own page."""
    if not uri.startswith(_SQLITE):
        return uri
    return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri}"


def store_folder(uri: str) -> Path | None:
    """The folder of a local SQLite store; None of a server."""
    return Path(uri.removeprefix(_SQLITE)).parent.resolve() if uri.startswith(_SQLITE) else None


def artifact_location(uri: str) -> str | None:
    """Where a new experiment's artifacts go: beside a local SQLite file; None: the server decides."""
    folder = store_folder(uri)
    return None if folder is None else (folder / "mlflow-artifacts").as_uri()


def check_registered_name(field: str, name: str) -> None:
    """Raise ValueError unless MLflow's registry takes the name of a model, and its searches find it."""
    bad = sorted({c for c in name if c in "/:'\"%`" or not c.isprintable()})
    if bad or not name.strip() or len(name) > REGISTERED_NAME_LENGTH:
        raise ValueError(
            f"{field}: must be 1 to {REGISTERED_NAME_LENGTH} printable characters without / : ' \" % or `, "
            f"got {name!r:.80}; the model registry refuses it"
        )


def check_experiment(field: str, name: str) -> None:
    """Raise ValueError unless MLflow's stores take the name of an experiment."""
    if not name.strip() or len(name) > EXPERIMENT_LENGTH or not name.isprintable():
        raise ValueError(
            f"{field}: must be 1 to {EXPERIMENT_LENGTH} printable characters, got {name!r:.80}; MLflow takes no other"
        )


def prepare_import() -> None:
    """Call before MLflow is imported: it reports usage to its makers from then on, which nobody here has asked for."""
    require("tracking", "mlflow")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def connect(uri: str) -> Any:
    """An `MlflowClient` for a tracking URI, with its model registry at the same place.

    A local SQLite store is created here, under a file lock: MLflow migrates an empty file without one, and several
    processes that start together would corrupt each other's tables.
    """
    prepare_import()
    from mlflow import MlflowClient  # seconds to import: only the sender needs it

    check_tracking_uri(uri)
    if not uri.startswith(_SQLITE):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    database = Path(uri.removeprefix(_SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with Lock(database.with_name(f"{database.name}.lock")).held(math.inf):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client
