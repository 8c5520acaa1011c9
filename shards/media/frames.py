"""Frames at a steady rate by presentation time, as uint8: what a viewer would see at times 0, 1/rate, 2/rate, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from shards.media.libraries import cv2
from shards.media.limits import Limits, MediaError
from shards.media.pictures import Picture, Tally, decode_pictures
from shards.media.probe import Source

# (left, top, right, bottom) as shares of the upright picture's width and height.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frames:
    """pixels: (T, H, W, 3) uint8 RGB, upright; times: (T,) float64, seconds from the clip's begin; cropped: (T,) bool,
    whether a frame shows what `crop` found, and not the whole picture."""

    pixels: np.ndarray
    times: np.ndarray
    cropped: np.ndarray

    def __len__(self) -> int:
        return len(self.times)


class SteadyRate:
    """Chooses, for each time k / rate, the picture on the screen, none twice: a slower video gives fewer frames.

    (The published code takes pictures by number, at `linspace(0, N - 1, int(N * rate / fps))`, which a variable frame
    rate turns into uneven times.)
    """

    def __init__(self, rate: float):
        if not rate > 0:
            raise ValueError(f"frame rate is {rate!r}, expected a positive number of frames a second")
        self._rate = Fraction(rate).limit_denominator(1000)
        self._wanted = Fraction(0)

    def wants(self, picture_end: Fraction) -> bool:
        """Whether a wanted time lies before the end of the picture now on the screen; call once for each picture."""
        if self._wanted >= picture_end:
            return False
        # All times before the picture's end are served by it.
        self._wanted = Fraction(-(-(picture_end * self._rate).numerator // (picture_end * self._rate).denominator))
        self._wanted /= self._rate
        return True


def with_ends(pictures: Iterator[Picture], tally: Tally) -> Iterator[tuple[Picture, Fraction]]:
    """Each picture and the time at which the next one replaces it (for the last one: its announced end)."""
    current = next(pictures, None)
    if current is None:
        return
    for following in pictures:
        yield current, following.time
        current = following
    yield current, max(tally.end, current.time + Fraction(1, 1000))


def read_frames(
    source: Source,
    rates: Sequence[float],
    size: tuple[int, int] | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    crop: Callable[[float], Box | None] | None = None,
    limits: Limits | None = None,
) -> dict[float, Frames]:
    """Frames at each of the rates (frames a second) from one pass over the video.

    size: (height, width) to which each frame is resized without keeping its aspect; None keeps the first one's.
    crop: time in seconds -> box to cut out first, None for the whole picture. start, end: seconds, None for all.
    Raises MediaError for everything in `REASONS` that a video can be guilty of; memory is bounded by `limits` before it
    is taken.
    """
    limits = limits or Limits()
    tally = Tally()
    choosers = {rate: SteadyRate(rate) for rate in rates}
    pixels: dict[float, list[np.ndarray]] = {rate: [] for rate in rates}
    times: dict[float, list[float]] = {rate: [] for rate in rates}
    cropped: dict[float, list[bool]] = {rate: [] for rate in rates}
    held = 0
    for picture, until in with_ends(decode_pictures(source, limits, tally, start, end), tally):
        chosen = [rate for rate, chooser in choosers.items() if chooser.wants(until)]
        if not chosen:
            continue
        if size is None:
            limits.check_pixels(picture.frame.width, picture.frame.height)
        box = None if crop is None else crop(float(picture.time))
        image = _cut(picture.rgb(), box)
        size = size or image.shape[:2]
        held += size[0] * size[1] * 3 * len(chosen)
        limits.check_bytes(held, "the frames")
        image = resize(image, size)
        for rate in chosen:
            pixels[rate].append(image)
            times[rate].append(float(picture.time))
            cropped[rate].append(box is not None)
    tally.check(limits)
    return {rate: Frames(np.stack(pixels[rate]), np.array(times[rate]), np.array(cropped[rate])) for rate in rates}


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to (height, width): means over areas where it shrinks (no aliasing), linear where it grows."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _cut(image: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return image
    height, width = image.shape[:2]
    left, right = round(box[0] * width), round(box[2] * width)
    top, bottom = round(box[1] * height), round(box[3] * height)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    right, bottom = min(max(right, left + 1), width), min(max(bottom, top + 1), height)
    if not all(np.isfinite(box)):
        raise MediaError("damaged", f"the face box {box} is not finite")
    return image[top:bottom, left:right]
