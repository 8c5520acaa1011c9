"""New clips, in this process: prepared, decoded, encoded and embedded, whole and window by window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.encoders import Encoder, InputError
from conclugen.encoders.encoder import FRAMES, pool
from ray_jobs.embedding.model import RunModel
from ray_jobs.extraction.clip_features import Decoded, encode_within_breaks, unique
from shards.clips.reader import StoredClip
from shards.media.isolated import IsolatedPreparer
from shards.media.limits import Limits, MediaError
from shards.media.prepare import Request

_BATCH = 16  # windows encoded at once
# Somebody wants this very file, whose pictures may stand still (slides); a build refuses such clips at first.
_LIMITS = Limits(picture_gap_seconds=Limits().max_seconds)


@dataclass(frozen=True)
class Windows:
    """length, stride: seconds of the windows that a longer clip is cut into. A clip of up to one window has none."""

    length: float = 2.0
    stride: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.length:
            raise ValueError(f"stride: must be above 0 and within the window ({self.length:g} s), got {self.stride:g}")

    def over(self, seconds: float) -> list[tuple[float, float]]:
        """[start, end) of every window that lies in the clip as a whole."""
        count = int((seconds - self.length) / self.stride + 1e-9) + 1
        return [(i * self.stride, i * self.stride + self.length) for i in range(count)] if count > 1 else []


@dataclass(frozen=True)
class Embedded:
    """Rows of one clip: the whole first, then its windows. embeddings (n, R'), probabilities (n, K) or None, present:
    modality -> (n,) bool; nearer: modality -> (n,) share of held-out clips that lie nearer to what the model knows."""

    path: str
    stretches: tuple[tuple[float, float], ...]
    embeddings: np.ndarray
    probabilities: np.ndarray | None
    present: Mapping[str, np.ndarray]
    nearer: Mapping[str, np.ndarray] = field(default_factory=dict)


def embed_files(
    model: RunModel,
    encoders: Sequence[Encoder],
    paths: Sequence[str],
    fusion: str,
    windows: Windows | None,
    texts: Sequence[str | None],
) -> Iterator[Embedded | tuple[str, MediaError]]:
    """Each file's rows, or its name and why it can't be used. windows: none for the clips as a whole alone; texts: what
    is said in each clip as a whole."""
    with IsolatedPreparer() as preparer:
        for path, text in zip(paths, texts, strict=True):
            try:
                yield embed_file(model, encoders, preparer, path, fusion, windows, text)
            except MediaError as error:
                yield path, error


def embed_file(
    model: RunModel,
    encoders: Sequence[Encoder],
    preparer: IsolatedPreparer,
    path: str,
    fusion: str,
    windows: Windows | None,
    text: str | None,
    limits: Limits = _LIMITS,
) -> Embedded:
    """One file's rows. Raises MediaError for one that can't be used."""
    assert model.recipe is not None
    decoding = model.recipe.decoding
    request = Request(str(Path(path).absolute()), faces=decoding.crop != "none", limits=limits)
    prepared = preparer.prepare(request)
    info = {"video": prepared.details["video"], "face": prepared.details["face"], "transcript": None}
    clip = StoredClip(Path(path).stem, 0, prepared.video, prepared.sound, text, info)
    decoded = Decoded.of(clip, unique([encoder.info.takes for encoder in encoders]), decoding)
    seconds = float(prepared.details["video"]["seconds"])
    parts: list[tuple[float, float] | None] = [None, *(windows.over(seconds) if windows is not None else ())]
    columns: dict[str, list[np.ndarray | None]] = {encoder.info.column: [] for encoder in encoders}
    for start in range(0, len(parts), _BATCH):
        batch = parts[start : start + _BATCH]
        inputs = [decoded.inputs(part) for part in batch]
        for encoder in encoders:
            take = encoder.info.takes
            items = [item.get(take.key) for item in inputs]
            lengths = [
                decoded.lengths(take, part) if take.kind == FRAMES and item is not None else None
                for item, part in zip(items, batch, strict=True)
            ]
            columns[encoder.info.column] += _vectors(encoder, items, lengths)
    features = model.features(columns, len(parts))
    embeddings, probabilities = model.represent(features, fusion)
    present = {name: ~np.isnan(x).any(axis=1) for name, x in features.items()}
    stretches = tuple((0.0, seconds) if part is None else part for part in parts)
    return Embedded(path, stretches, embeddings, probabilities, present, model.nearer(features))


def _vectors(
    encoder: Encoder, inputs: Sequence[Any], lengths: Sequence[Sequence[int] | None]
) -> list[np.ndarray | None]:
    there = [i for i, item in enumerate(inputs) if item is not None]
    vectors: list[np.ndarray | None] = [None] * len(inputs)
    try:
        found = encode_within_breaks(encoder, [inputs[i] for i in there], [lengths[i] for i in there])
        for i, sequence in zip(there, found, strict=True):
            vectors[i] = pool(sequence, encoder.info.pooling)
    except InputError as error:
        raise MediaError("damaged", f"{encoder.info.name}: {error}") from None
    return vectors
