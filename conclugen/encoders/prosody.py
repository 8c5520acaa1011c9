"""Loudness, pitch and spectrum of speech, computed: no weights, and what a normalising network forgets.

Windows of 1 s every 0.5 s (the last one shorter). Each window: mean and standard deviation over its 10 ms frames of
the level in 40 mel bands (dB, floor -100), of the whole level, of the spectral centroid (octaves above 100 Hz) and of
the spectral change; share of voiced frames; mean, deviation and slope of the pitch (octaves above 100 Hz; 0 where
nothing is voiced). Pitch: the highest peak of the normalised autocorrelation of 40 ms between 60 and 400 Hz (Boersma
1993, without its path search); voiced above 0.5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from conclugen.encoders.encoder import WAVE, Array, EncoderInfo, FrozenEncoder, Takes, check_wave

NAME = "prosody"
RATE = 16_000
TAKES = Takes(WAVE, RATE)
BIBTEX = {
    NAME: """@article{boersma1993pitch,
  title = {Accurate Short-Term Analysis of the Fundamental Frequency and the Harmonics-to-Noise Ratio of a Sampled
           Sound},
  author = {Boersma, Paul},
  journal = {Proceedings of the Institute of Phonetic Sciences, University of Amsterdam},
  volume = {17},
  pages = {97--110},
  year = {1993},
}"""
}
BANDS, HOP, FRAME, FFT = 40, 160, 640, 1024
WIDTH = 2 * (BANDS + 3) + 4
_WINDOW, _STRIDE = 100, 50  # frames
_FLOOR = 1e-10
_LOWEST, _HIGHEST, _VOICED = 60.0, 400.0, 0.5
_FORMULA = "1"  # raise when a number changes: features before and after can't be compared


def create(given: str | None, mirror: str | None, device: str) -> ProsodyEncoder:
    """Nothing to load: `given` is refused, the device is the CPU."""
    if given is not None:
        raise ValueError(f"encoder {NAME} has no weights; leave out --weights {NAME}={given}")
    info = EncoderInfo(
        name=NAME,
        modality="audio",
        column="audio_prosody",
        width=WIDTH,
        takes=TAKES,
        preprocessing="levels, pitch and centroid in windows of 1 s",
        source="computed, no weights",
        licence="Apache-2.0 (this project)",
        digest=hashlib.sha256(f"{NAME} {_FORMULA}".encode()).hexdigest(),
    )
    return ProsodyEncoder(info, None, "cpu", 1)


class ProsodyEncoder(FrozenEncoder):
    """(N,) at 16 kHz -> (windows, 90)."""

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        return [_windows(frame_values(samples)) for samples in check_wave(batch)]


def frame_values(samples: Array) -> Array:
    """(N,) to (T, 45), T = ceil(N / 160): 40 band levels, level, centroid, change, pitch (NaN unvoiced), strength."""
    count = -(-len(samples) // HOP)
    before = (FRAME - HOP) // 2
    padded = np.pad(samples, (before, count * HOP - len(samples) + FRAME - HOP - before)).astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    power = _power(frames * np.hanning(FRAME), FFT) / FRAME
    bands = 10 * np.log10(power @ _filters().T + _FLOOR)
    level = 10 * np.log10((frames**2).mean(axis=1) + _FLOOR)
    frequencies = np.fft.rfftfreq(FFT, 1 / RATE)
    centroid = np.log2((power @ frequencies + _FLOOR * 100) / (power.sum(axis=1) + _FLOOR) / 100)
    change = np.abs(np.diff(bands, axis=0, prepend=bands[:1])).mean(axis=1)
    pitch, strength = _pitch(frames)
    return np.column_stack([bands, level, centroid, change, pitch, strength])


def _pitch(frames: Array) -> tuple[Array, Array]:
    """(T,) octaves above 100 Hz, NaN where unvoiced; (T,) height of the peak."""
    window = np.hanning(FRAME)
    own = _autocorrelation(window[None])[0]
    centred = frames - frames.mean(axis=1, keepdims=True)
    correlation = _autocorrelation(centred * window)
    # Divided by the window's own autocorrelation, a steady tone keeps its height at every lag.
    correlation = correlation / np.maximum(correlation[:, :1], _FLOOR) / (own / own[0])
    low, high = int(RATE / _HIGHEST), int(RATE / _LOWEST)
    # A period's multiples are as high as the period: the shortest lag near the highest peak is the pitch.
    part = correlation[:, low : high + 1]
    peak = part.max(axis=1)
    local = (part >= np.roll(correlation, 1, axis=1)[:, low : high + 1]) & (
        part >= np.roll(correlation, -1, axis=1)[:, low : high + 1]
    )
    near = local & (part >= 0.9 * peak[:, None])
    lag = np.where(near.any(axis=1), near.argmax(axis=1), part.argmax(axis=1)) + low
    quiet = (frames**2).mean(axis=1) < 1e-7
    voiced = (peak > _VOICED) & ~quiet
    return np.where(voiced, np.log2(RATE / lag / 100), np.nan), np.where(quiet, 0, peak)


def _autocorrelation(frames: Array) -> Array:
    result: Array = torch.fft.irfft(torch.from_numpy(_power(frames, 2 * FRAME))).numpy()[:, : FRAME // 2]
    return result


def _power(frames: Array, length: int) -> Array:
    """|FFT|^2 of each frame, by torch's transform, which takes a third of the time of numpy's."""
    spectrum = torch.fft.rfft(torch.from_numpy(np.ascontiguousarray(frames)), length)
    power: Array = (spectrum.real.square() + spectrum.imag.square()).numpy()
    return power


def _windows(values: Array) -> Array:
    starts = range(0, max(1, len(values) - _STRIDE), _STRIDE)
    return np.stack([_summary(values[start : start + _WINDOW]) for start in starts]).astype(np.float32)


def _summary(values: Array) -> Array:
    plain, pitch = values[:, : BANDS + 3], values[:, BANDS + 3]
    at = np.flatnonzero(np.isfinite(pitch))
    share = len(at) / len(pitch)
    heights = pitch[at]
    if len(at) >= 2:
        slope = float(np.polyfit(at * (HOP / RATE), heights, 1)[0]) if at[-1] - at[0] >= 10 else 0.0
        melody = [share, heights.mean(), heights.std(), np.clip(slope, -10, 10)]
    else:
        melody = [share, 0.0, 0.0, 0.0]
    return np.concatenate([plain.mean(axis=0), plain.std(axis=0), melody])


@lru_cache(maxsize=1)
def _filters() -> Array:
    """(40, 513) triangles on the mel scale from 60 to 8000 Hz, each of sum 1."""
    mel = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 8000 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    at = np.fft.rfftfreq(FFT, 1 / RATE)
    rise = (at - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - at) / np.diff(edges)[1:, None]
    triangles: Array = np.clip(np.minimum(rise, fall), 0, None)
    return triangles / np.maximum(triangles.sum(axis=1, keepdims=True), 1e-12)
