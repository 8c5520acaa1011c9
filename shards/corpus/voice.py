"""A voiced sound: harmonics of a glottal source through the resonances of a vocal tract, and a hiss for fricatives.

The source is a sum of cosines in phase (a pulse in each period) whose amplitudes fall by a spectral slope; the tract is
a cascade of second-order resonances (Klatt 1980), given by its gain at each harmonic.
"""

from __future__ import annotations

import numpy as np

from shards.corpus.acting import CONTROL, Speech
from shards.corpus.speaker import VoiceBox

RATE = 16_000
_HIGHEST = 4500.0  # Hz: of a harmonic
_MOST_HARMONICS = 48
_WIDTHS = (80.0, 110.0, 160.0)  # Hz: bandwidths of the resonances
_LEVEL = 0.05  # root mean square at 0 dB of a voiced stretch


def synthesise(rng: np.random.Generator, speech: Speech, box: VoiceBox, count: int) -> np.ndarray:
    """(count,) float64 at 16 kHz, about 0.05 root mean square at 0 dB, with nothing around it."""
    ticks = np.arange(speech.pitch.size) / CONTROL
    at = np.arange(count) / RATE
    pitch = np.interp(at, ticks, speech.pitch)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    harmonics = min(_MOST_HARMONICS, int(_HIGHEST / speech.pitch.min()))
    gain = _gains(speech, harmonics)
    # cos(k x) by the recurrence of Chebyshev: one cosine for all harmonics.
    twice = 2 * np.cos(phase)
    before, now = np.ones(count), twice / 2
    voice = np.zeros(count)
    for row in gain:
        voice += np.interp(at, ticks, row) * now
        before, now = now, twice * now - before
    noise = rng.standard_normal(count)
    breath = box.breath * np.interp(at, ticks, speech.voicing) * noise
    hiss = np.interp(at, ticks, speech.friction) * np.diff(noise, prepend=noise[:1]) * 0.25
    loud = 10 ** (np.interp(at, ticks, speech.level) / 20)
    sound: np.ndarray = _LEVEL * loud * (voice + breath + hiss)
    return sound


def _gains(speech: Speech, harmonics: int) -> np.ndarray:
    """(harmonics, n) amplitude of each, of unit power where fully voiced."""
    number = np.arange(1, harmonics + 1)[:, None]
    frequency = number * speech.pitch[None]
    gain = number ** (speech.slope[None] / (20 * np.log10(2)))
    for formant, width in zip(speech.formants, _WIDTHS, strict=True):
        gain = gain * formant**2 / np.hypot(formant**2 - frequency**2, width * frequency)
    gain = np.where(frequency < _HIGHEST, gain, 0)
    power = np.sqrt((gain**2).sum(axis=0) / 2)
    scaled: np.ndarray = gain / np.maximum(power, 1e-12) * speech.voicing
    return scaled
