"""An encoder of another package: how loud a clip's sound is, low and high, in every tenth of a second."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from conclugen.encoders.encoder import MEAN_STD, WAVE, Array, EncoderInfo, FrozenEncoder, Takes, check_wave

RATE = 8000  # not that of any encoder of the project


class ToneEncoder(FrozenEncoder):
    """(N,) at 8 kHz -> (ceil(N / 800), 2): root mean square of the sound and of its change."""

    def __init__(self, weights: str | None, mirror: str | None, device: str) -> None:
        info = EncoderInfo(
            name="tone",
            modality="audio",
            column="audio_tone",
            width=4,
            takes=Takes(WAVE, RATE),
            preprocessing="tenths of a second",
            source="computed, no weights",
            licence="Apache-2.0",
            digest=sha256(b"tone 1").hexdigest(),
            pooling=MEAN_STD,
        )
        super().__init__(info, None, "cpu", 1)

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        return [steps(samples) for samples in check_wave(batch)]


def steps(samples: Array) -> Array:
    """(T, 2) float32."""
    parts = np.array_split(samples, np.arange(RATE // 10, len(samples), RATE // 10))
    changes = [np.diff(part, prepend=part[:1]) for part in parts]
    loud = [[np.sqrt(np.mean(x**2)) for x in pair] for pair in zip(parts, changes, strict=True)]
    return np.array(loud, np.float32)


ENCODERS = {"tone-of-a-module": ToneEncoder}  # misnamed: its info says `tone`
