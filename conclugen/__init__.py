"""ConCluGen: self-supervised representations of human communication from video, audio and text of the same clip.

Importing this package imports nothing else: each public name is loaded when it is first used (PEP 562), so that
configuration, command lines and the data plane need neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conclugen import presets
    from conclugen.batch import Batch
    from conclugen.config import PretrainConfig
    from conclugen.export import Embedder, load
    from conclugen.layers import standardize
    from conclugen.training.pretrainer import NonFiniteLossError, Pretrainer

__all__ = ["Batch", "Embedder", "NonFiniteLossError", "PretrainConfig", "Pretrainer", "load", "presets", "standardize"]

_MODULE_OF = {
    "Batch": "batch",
    "Embedder": "export",
    "NonFiniteLossError": "training.pretrainer",
    "PretrainConfig": "config",
    "Pretrainer": "training.pretrainer",
    "load": "export",
}
# Modules that are used as `conclugen.presets`, without an import of their own.
_MODULES = {
    "checkpoint": "training.checkpoint",
    "export": "export",
    "presets": "presets",
    "standardize": "layers.standardize",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"conclugen.{_MODULES[name]}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"conclugen.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
