"""Frozen encoders of video, audio and text behind one small protocol; libraries and weights are loaded where used.

An encoder of this folder is a file and a line in `registry.ENCODERS`; how other packages and a user's own modules add
theirs is listed there too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from conclugen.encoders.registry import ENCODERS, SETS, create, resolve

if TYPE_CHECKING:
    from conclugen.encoders.encoder import Encoder, EncoderError, EncoderInfo, InputError, Takes
    from conclugen.encoders.weights import WeightsError

__all__ = [
    "ENCODERS",
    "SETS",
    "Encoder",
    "EncoderError",
    "EncoderInfo",
    "InputError",
    "Takes",
    "WeightsError",
    "create",
    "resolve",
]


def __getattr__(name: str) -> Any:  # torch, which the names of the encoders need not wait for
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "weights" if name == "WeightsError" else "encoder"
    value = getattr(importlib.import_module(f"conclugen.encoders.{module}"), name)
    globals()[name] = value
    return value
