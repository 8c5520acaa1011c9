"""The exported model as an MLflow model: built without pickle, stored and registered through the journal."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

import conclugen
from conclugen.common.atomic import atomic_folder, remove_remnants
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.mlflow_environment import bounded_calls, prepare_import

_CODE = Path(__file__).with_name("pyfunc_model.py")
_REQUIREMENTS = ("mlflow", "torch", "numpy", "safetensors")


def build(exported: str | Path, folder: str | Path) -> Path:
    """Wrap an exported model (`conclugen.export.save`) as an MLflow model folder.

    `mlflow.pyfunc.load_model(folder).predict({modality: (B, D) float32}, params={"fusion": "mean"})` then gives the
    representations (B, R'); every modality must be there, missing ones as rows of NaN. The folder carries the
    `conclugen` package, so it loads where the project is not installed, and contains no pickle.

    Args:
        exported: folder with `model.safetensors` and `config.json`.
        folder: made again; an MLflow model of an earlier call is replaced.

    Returns: `folder`, absolute.

    Raises: ValueError when `folder` holds something else, or `exported` is not an exported model.
    """
    prepare_import()
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    exported, folder = Path(exported).resolve(), Path(folder).resolve()
    embedder = conclugen.load(exported)
    row = embedder.embed({name: np.zeros((1, width), np.float32) for name, width in embedder.widths.items()})
    floats = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(floats, (-1, width), name) for name, width in embedder.widths.items()]),
        outputs=Schema([TensorSpec(floats, (-1, row.shape[1]))]),
        params=ParamSchema([ParamSpec("fusion", "string", "concat")]),
    )
    if folder.exists() and not (folder / "MLmodel").is_file():
        raise ValueError(f"{folder}: exists and is no MLflow model; give a new folder for the model to be built in")
    remove_remnants(folder)
    with atomic_folder(folder) as temporary:
        with bounded_calls(), _quiet():
            mlflow.pyfunc.save_model(
                path=str(temporary),
                python_model=str(_CODE),
                artifacts={"exported": str(exported)},
                code_paths=[str(Path(conclugen.__file__).parent)],
                signature=signature,
                pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            )
        for cache in temporary.rglob("__pycache__"):
            shutil.rmtree(cache)
    return folder


def log_model(
    journal: Journal, exported: str | Path, registered_name: str | None = None, target: str = "mlflow-model"
) -> Path:
    """Build the MLflow model beside the journal, and have it stored in the run (and registered, if a name is given).

    Loads again by `mlflow.pyfunc.load_model("runs:/<run>/mlflow-model")`, or `"models:/<registered name>/<version>"`.
    """
    folder = build(exported, journal.path.parent / target)
    journal.model(folder, target, registered_name)
    return folder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow prints, and warns of what is meant so here (local paths, no input example)."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
