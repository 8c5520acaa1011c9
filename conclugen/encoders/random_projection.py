"""Encoders that know nothing: fixed random projections, for tests of the machinery around encoders. Never for results.

Their names begin with `random-`, and so do the columns that they write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from conclugen import random
from conclugen.encoders.encoder import (
    FRAMES,
    TEXT,
    WAVE,
    Array,
    EncoderInfo,
    FrozenEncoder,
    Takes,
    check_frames,
    check_text,
    check_wave,
)

WIDTH = 16
_CELLS = 8
_SAMPLES = 1600
_TAKES = {
    "image": Takes(FRAMES, 1.0, (64, 64)),
    "video": Takes(FRAMES, 16.0, (180, 180)),
    "audio": Takes(WAVE, 16_000),
    "text": Takes(TEXT),
}
_MODALITY = {"image": "video", "video": "video", "audio": "audio", "text": "text"}


class RandomEncoder(FrozenEncoder):
    """tanh of a projection of each frame's 8 x 8 mean colours or mean colour, 0.1 s of sound, or a word's hash."""

    def __init__(self, kind: str) -> None:
        info = EncoderInfo(
            name=f"random-{kind}",
            modality=_MODALITY[kind],
            column=f"random_{kind}",
            width=WIDTH,
            takes=_TAKES[kind],
            preprocessing="none worth the name",
            source="random numbers",
            licence="Apache-2.0 (this project)",
            digest=hashlib.sha256(f"random-{kind} 2".encode()).hexdigest(),
        )
        super().__init__(info, None, "cpu", 64)
        inputs = {"image": _CELLS * _CELLS * 3, "video": 3, "audio": _SAMPLES, "text": 8}[kind]
        row = torch.arange(inputs, dtype=torch.int64)
        uniform = random.uniform(0, f"random encoder {kind}", 0, row, WIDTH).numpy()
        self._projection = (uniform - 0.5) * np.sqrt(12 / inputs)
        self._steps = {"image": self._cells, "video": self._colours, "audio": self._sounds, "text": self._words}[kind]

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        return [np.tanh(values @ self._projection).astype(np.float32) for values in self._steps(batch)]

    def _cells(self, batch: Sequence[Any]) -> list[Array]:
        return [
            frames.reshape(len(frames), _CELLS, 64 // _CELLS, _CELLS, 64 // _CELLS, 3)
            .mean(axis=(2, 4))
            .reshape(len(frames), -1)
            / 128
            - 1
            for frames in check_frames(batch, self.info.takes)
        ]

    def _colours(self, batch: Sequence[Any]) -> list[Array]:
        return [frames.mean(axis=(1, 2)) / 128 - 1 for frames in check_frames(batch, self.info.takes)]

    def _sounds(self, batch: Sequence[Any]) -> list[Array]:
        return [np.pad(x, (0, -len(x) % _SAMPLES)).reshape(-1, _SAMPLES) * 10 for x in check_wave(batch)]

    def _words(self, batch: Sequence[Any]) -> list[Array]:
        return [
            np.array([list(hashlib.blake2b(word.encode(), digest_size=8).digest()) for word in text.split()]) / 128 - 1
            for text in check_text(batch)
        ]


def _create(kind: str, given: str | None, mirror: str | None, device: str) -> RandomEncoder:
    return RandomEncoder(kind)


create_image, create_video, create_audio, create_text = (partial(_create, kind) for kind in _TAKES)
