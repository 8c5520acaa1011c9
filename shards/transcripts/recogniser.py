"""What is said in a clip, recognised where the data set does not tell."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from conclugen.common.names import did_you_mean

# Name -> (module with `create(model, grammar, device) -> Recogniser`, one line).
BACKENDS: Mapping[str, tuple[str, str]] = {
    "pocketsphinx": (
        "shards.transcripts.sphinx",
        "works with no download; free speech comes out badly, a grammar (--grammar) helps",
    ),
    "whisper": (
        "shards.transcripts.hugging_face",
        "Whisper, or any speech-to-text model of Hugging Face (--speech-model NAME or FOLDER)",
    ),
}


@dataclass(frozen=True)
class Transcript:
    """text: the words, None where none were heard; source: "own" or the recogniser's name; confidence: in [0, 1] or
    None; low_confidence: not to be used unless somebody asks for it."""

    text: str | None
    source: str
    confidence: float | None = None
    low_confidence: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, "confidence": self.confidence, "low_confidence": self.low_confidence}


class Recogniser(Protocol):
    """A speech recogniser. `name` says backend and model; the result depends on the samples only, not on what was
    recognised before."""

    name: str

    def __call__(self, samples: np.ndarray) -> Transcript:
        """(N,) float32 at 16 kHz to words."""


def create_recogniser(
    backend: str, model: str | None = None, grammar: str | None = None, device: str = "cpu"
) -> Recogniser:
    """The recogniser of that name. Raises ValueError for an unknown name, a missing package or model: which, and where
    to get it."""
    if backend not in BACKENDS:
        raise ValueError(f"speech recogniser {backend!r} is unknown, {did_you_mean(backend, BACKENDS)}")
    return importlib.import_module(BACKENDS[backend][0]).create(model, grammar, device)
