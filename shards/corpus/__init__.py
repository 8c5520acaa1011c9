"""A corpus of talking faces, rendered: raw video with sound, labels and transcripts, with no download.

A few speakers (face and voice drawn once for each) act six emotions in short sentences. The emotion swells up in face
and voice and dies down again, stronger in some clips than in others; most sentences fit it. Light, background, camera,
noise and loudness change from clip to clip, so that no clip tells its emotion by one number.

Neither trivial nor random: a linear probe on all features of the offline encoders reaches 0.71 [0.55, 0.89] with all
labels on speakers not met before, where chance is 0.17 (seed 0, 95 % interval over speakers), and 0.46 to 0.54 on small
corpora of three seeds (8 speakers, 2 takes): figures and commands are in docs/lab/performance.md.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.corpus.emotions import EMOTIONS
    from shards.corpus.writing import ClipPlan, ClipRow, CorpusConfig, RenderedClip, render, write_clip, write_corpus

MARK = ".conclugen-corpus"
"""Stands in the folder of a rendered corpus."""

__all__ = [
    "EMOTIONS",
    "MARK",
    "ClipPlan",
    "ClipRow",
    "CorpusConfig",
    "RenderedClip",
    "is_rendered",
    "render",
    "write_clip",
    "write_corpus",
]


def is_rendered(folder: Path) -> bool:
    """Whether the clips of a folder are of a rendered corpus: it is one, or the folder of clips within."""
    return any((place / MARK).is_file() for place in (folder, folder.absolute().parent))


def __getattr__(name: str) -> Any:  # drawing takes OpenCV and PyAV, which `--help` need not wait for
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "emotions" if name == "EMOTIONS" else "writing"
    value = getattr(importlib.import_module(f"shards.corpus.{module}"), name)
    globals()[name] = value
    return value
