"""Augmented views of a clip's inputs: each is a pure function of (seed, purpose, key, view, input).

Ranges are the published ones (Halawa et al. 2024, authors' repository): `mild` is what labelled training uses, `strong`
what SimCLR's two views use. A view is constant over time: one crop, one flip, one colour for all frames of a clip.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from conclugen import random
from conclugen.encoders.encoder import FRAMES, MEL, TEXT, WAVE, Array

STRENGTHS = ("mild", "strong")
_GREY = (0.299, 0.587, 0.114)  # Rec. 601 luma
_BLUR_KERNEL = 19
_FFT, _HOP = 1024, 160
_RATE = 16_000


class Draws:
    """Numbers in [0, 1) in a fixed order, a function of (seed, purpose, key, view) alone."""

    def __init__(self, seed: int, purpose: str, key: str, view: int, count: int = 64) -> None:
        number = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        row = torch.tensor([number - (1 << 63)], dtype=torch.int64)
        self._values = random.uniform(seed, f"augmentation {purpose}", view, row, count)[0].tolist()
        self._next = 0

    def number(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform in [low, high)."""
        value = self._values[self._next]
        self._next += 1
        return low + (high - low) * value

    def below(self, count: int) -> int:
        """Uniform integer in [0, count)."""
        return min(int(self.number(0, count)), count - 1)

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return self.number() < probability


@dataclass(frozen=True)
class VideoRanges:
    """scale: share of the picture's area that is kept; ratio: of the crop's width to its height, relative to the
    picture's own. Probabilities of flip, colour jitter, grey, blur."""

    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float = 0.5
    jitter: float = 0.0
    grey: float = 0.0
    blur: float = 0.0


VIDEO = {
    "mild": VideoRanges((0.8, 1.0), (0.8, 1.2)),
    "strong": VideoRanges((0.3, 1.0), (0.5, 2.0), jitter=0.8, grey=0.2, blur=0.5),
}


def augment(kind: str, value: Any, *, seed: int, key: str, view: int, strength: str = "mild", rate: int = _RATE) -> Any:
    """View number `view` (1, 2, ...) of one clip's input of a kind (`encoder.KINDS`), of the same shape and dtype.
    rate: of samples, in Hz.

    Inputs of one kind share their draws: the frames at 1 and at 16 a second are cropped alike.
    """
    if strength not in STRENGTHS:
        raise ValueError(f"strength of views is {strength!r}, allowed: {', '.join(STRENGTHS)}")
    if view < 1:
        raise ValueError(f"view is {view}, expected 1 or more; the unchanged input is not a view")
    purpose = "audio" if kind in (WAVE, MEL) else kind
    draws = Draws(seed, purpose, key, view)
    if kind == FRAMES:
        return video(value, draws, VIDEO[strength])
    if kind == MEL:
        return mask_spectrogram(value, draws)
    if kind == WAVE:
        return mask_wave(value, draws, rate)
    assert kind == TEXT, kind
    return text(value, draws)


def video(frames: Array, draws: Draws, ranges: VideoRanges) -> Array:
    """(T, H, W, 3) uint8: resized crop, flip; colour jitter, grey and blur where the ranges have them."""
    height, width = frames.shape[1:3]
    top, left, rows, columns = crop_box(height, width, draws, ranges)
    flip = draws.chance(ranges.flip)
    x = torch.from_numpy(frames[:, top : top + rows, left : left + columns].copy())
    x = x.permute(0, 3, 1, 2).to(torch.float32) / 255
    x = functional.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)
    x = x.flip(3) if flip else x
    if draws.chance(ranges.jitter):
        x = jitter(x, draws)
    if draws.chance(ranges.grey):
        x = _grey(x).expand(-1, 3, -1, -1)
    if draws.chance(ranges.blur):
        x = blur(x, draws.number(0.1, 2.0))
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def crop_box(height: int, width: int, draws: Draws, ranges: VideoRanges) -> tuple[int, int, int, int]:
    """(top, left, rows, columns) of a crop whose area and aspect are drawn; the aspect uniformly on a log scale."""
    area = draws.number(*ranges.scale)
    low, high = (math.log(value) for value in ranges.ratio)
    ratio = math.exp(draws.number(low, high))
    rows = min(height, max(1, round(height * math.sqrt(area / ratio))))
    columns = min(width, max(1, round(width * math.sqrt(area * ratio))))
    return draws.below(height - rows + 1), draws.below(width - columns + 1), rows, columns


def jitter(x: Tensor, draws: Draws) -> Tensor:
    """(T, 3, H, W) in [0, 1]: brightness, contrast and saturation by factors in [0.2, 1.8], hue by up to a fifth of the
    circle (as a rotation about the grey axis)."""
    brightness, contrast, saturation = (draws.number(0.2, 1.8) for _ in range(3))
    x = (x * brightness).clamp(0, 1)
    x = ((x - _grey(x).mean()) * contrast + _grey(x).mean()).clamp(0, 1)
    grey = _grey(x)
    x = ((x - grey) * saturation + grey).clamp(0, 1)
    turn = draws.number(-0.2, 0.2) * 2 * math.pi
    c, s = math.cos(turn), math.sin(turn) / math.sqrt(3)
    base = (1 - c) / 3
    rotation = torch.tensor(
        [[base + c, base - s, base + s], [base + s, base + c, base - s], [base - s, base + s, base + c]]
    )
    return torch.einsum("ij,tjhw->tihw", rotation, x).clamp(0, 1)


def blur(x: Tensor, sigma: float) -> Tensor:
    """(T, 3, H, W) convolved with a Gaussian of 19 pixels; edges reflected."""
    reach = min(_BLUR_KERNEL // 2, x.shape[2] - 1, x.shape[3] - 1)
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = functional.pad(x, (reach, reach, reach, reach), mode="reflect")
    x = functional.conv2d(x, kernel.unsqueeze(2), groups=3)
    return functional.conv2d(x, kernel.unsqueeze(3), groups=3)


def _grey(x: Tensor) -> Tensor:
    return torch.einsum("c,tchw->thw", torch.tensor(_GREY), x).unsqueeze(1)


def masked_band(length: int, draws: Draws) -> tuple[int, int]:
    """[start, stop): the largest width is drawn from [.15 n, .35 n), the width below it, then the place."""
    largest = draws.number(0.15 * length, 0.35 * length)
    width = int(draws.number(0, largest))
    start = draws.below(length - width + 1)
    return start, start + width


def mask_spectrogram(mel: Array, draws: Draws) -> Array:
    """(bands, T): a band of frequencies and a stretch of time filled with 0."""
    masked = mel.copy()
    low, high = masked_band(mel.shape[0], draws)
    begin, end = masked_band(mel.shape[1], draws)
    masked[low:high] = 0
    masked[:, begin:end] = 0
    return masked


def mask_wave(samples: Array, draws: Draws, rate: int = _RATE) -> Array:
    """(N,) float32: the same two masks, on the short-time spectrum, and back to samples. Bands are counted on the mel
    scale, so that low and high frequencies are as likely to be masked as in a mel spectrogram."""
    count = len(samples)
    padded = np.pad(samples, (0, max(0, _FFT - count))).astype(np.float32)
    window = torch.hann_window(_FFT)
    spectrum = torch.stft(torch.from_numpy(padded), _FFT, _HOP, window=window, return_complex=True)
    bins = torch.linspace(0, rate / 2, spectrum.shape[0])
    mel = 2595 * torch.log10(1 + bins / 700)
    low, high = masked_band(1000, draws)
    begin, end = masked_band(spectrum.shape[1], draws)
    spectrum[(mel >= mel[-1] * low / 1000) & (mel < mel[-1] * high / 1000)] = 0
    spectrum[:, begin:end] = 0
    masked: Array = torch.istft(spectrum, _FFT, _HOP, window=window, length=len(padded)).numpy()[:count]
    return masked


def text(words: str, draws: Draws) -> str:
    """With probability a half each: two neighbouring words change places; two neighbouring letters within a word do."""
    parts = words.split(" ")
    swap_words, place, swap_letters, which, letter = (draws.number() for _ in range(5))
    if swap_words < 0.5 and len(parts) > 1:
        at = int(place * (len(parts) - 1))
        parts[at], parts[at + 1] = parts[at + 1], parts[at]
    long = [number for number, part in enumerate(parts) if len(part) > 1]
    if swap_letters < 0.5 and long:
        number = long[int(which * len(long))]
        part = parts[number]
        at = int(letter * (len(part) - 1))
        parts[number] = part[:at] + part[at + 1] + part[at] + part[at + 2 :]
    return " ".join(parts)
