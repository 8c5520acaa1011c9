"""Mel spectrogram of speech, as the published audio front end takes it (Halawa et al. 2024, repository configuration).

Window and FFT of 2048 samples, hop 160, Hann, power 2, 128 bands on the HTK scale, no logarithm; then per clip
(x - min) / (max - min + 1e-8).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from conclugen.common.extras import require

BANDS = 128
WINDOW = 2048
HOP = 160


def mel_bands(samples: np.ndarray, rate: int = 16_000) -> np.ndarray:
    """(128, T) float32 power in mel bands of (N,) samples; T = 1 + N // 160 (the window is centred, edges reflected).

    A sound too short to be reflected is padded with silence first. Raises ValueError for no samples.
    """
    import torch  # a second to import, and most of this package does without

    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"samples have the shape {samples.shape}, expected (N,) with at least one sample")
    padded = np.pad(samples, (0, max(0, WINDOW // 2 + 1 - len(samples)))).astype(np.float32)
    with torch.inference_mode():
        return _transform(rate)(torch.from_numpy(padded)).numpy()


def min_max(values: np.ndarray) -> np.ndarray:
    """(x - min) / (max - min + 1e-8) over the whole array: in [0, 1); all 0 for silence."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low + 1e-8)


@lru_cache(maxsize=4)
def _transform(rate: int) -> Any:
    require("mel spectrograms", "torchaudio")
    import torchaudio

    return torchaudio.transforms.MelSpectrogram(
        sample_rate=rate, n_fft=WINDOW, win_length=WINDOW, hop_length=HOP, n_mels=BANDS, power=2.0
    )
