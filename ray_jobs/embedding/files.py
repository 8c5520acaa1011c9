"""Video files to vectors in one call: what `conclugen.load(folder).encode(files)` does with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import conclugen
from conclugen.common import uris
from conclugen.common.screen import ClipProgress
from conclugen.encoders import Encoder, WeightsError
from ray_jobs.embedding.clips import Embedded, embed_files
from ray_jobs.embedding.model import RunModel, told_by
from ray_jobs.extraction.extract import choices_of
from ray_jobs.options.extract import EncoderOptions

# What a message of the jobs advises -> what a caller writes.
_ARGUMENTS = (
    (re.compile(r"--weights (\S+)=([\w./-]*\w)"), r'weights={"\1": "\2"}'),
    (re.compile(r"--mirror (FOLDER)"), r'mirror="\1"'),
    (re.compile(r"--plugin ([\w.]*\w)"), r'plugin=["\1"]'),
)


def encode(
    embedder: conclugen.Embedder,
    paths: Sequence[str],
    fusion: str = "concat",
    *,
    texts: Sequence[str | None] | None = None,
    weights: Mapping[str, str] | None = None,
    mirror: str | None = None,
    plugin: Sequence[str] = (),
    progress: bool = True,
) -> np.ndarray:
    """(n, width) float32: each file's representation, in the order given, by the model's own decoding and encoders.

    Args:
        embedder: What `conclugen.load` gives.
        paths: Video files, read in this process; each is decoded in another, which may fail by itself.
        fusion: As `Embedder.embed` has it.
        texts: What is said in each file; None: nothing is known.
        weights: Encoder -> local copy of its weights.
        mirror: Folder that holds published weight files.
        plugin: Modules that list encoders of your own.
        progress: Whether to print lines of progress.

    Raises ValueError for a file that can't be used, or holds nothing that the model takes, naming it; for encoders that
    cannot be loaded (WeightsError) or differ from those of the model's features; and for a model that names none.
    """
    if texts is not None and len(texts) != len(paths):
        raise ValueError(f"texts: found {len(texts)}, expected one for each of the {len(paths)} files")
    folder = embedder.folder or Path()
    model = RunModel(folder.parent.name, folder.parent, embedder, *told_by(embedder), None)
    options = EncoderOptions(plugin=tuple(plugin), weights=dict(weights or {}), mirror=mirror)
    encoders = _encoders(model, options)
    vectors = np.empty((len(paths), embedder.width(fusion)), np.float32)
    shown = ClipProgress(len(paths), quiet=not progress)
    known = texts if texts is not None else [None] * len(paths)
    for row, result in enumerate(embed_files(model, encoders, paths, fusion, None, known)):
        if not isinstance(result, Embedded):
            path, error = result
            raise ValueError(f"{path}: {error.reason}: {uris.scrub(error)}; leave it out")
        if not any(there[0] for there in result.present.values()):
            raise ValueError(f"{result.path}: holds nothing that the model takes ({', '.join(result.present)})")
        vectors[row] = result.embeddings[0]
        shown.show(row + 1)
    shown.show(len(paths), last=True)
    return vectors


def _encoders(model: RunModel, options: EncoderOptions) -> list[Encoder]:
    try:
        choices = choices_of(model.encoder_names, options, model.provided)
        encoders = [choice.create("cpu") for choice in choices]
        model.check([encoder.info for encoder in encoders])
    except ValueError as error:
        kind = WeightsError if isinstance(error, WeightsError) else ValueError
        raise kind(_in_python(str(error))) from error
    return encoders


def _in_python(message: str) -> str:
    for option, argument in _ARGUMENTS:
        message = option.sub(argument, message)
    return message
