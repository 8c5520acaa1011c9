"""Media that tell the truth about themselves: each picture carries its number, the sound at every moment its time.

Numbers are sixteen cells, bright or dark. The sound is two tones: one glides through 3000 Hz every 30 s and tells the
time to a few milliseconds, the other glides slowly and tells which 30 s they are.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder prints its whole configuration otherwise
HEIGHT, WIDTH = 64, 96
_CELLS = 4  # a side
RATE = 48_000
_LOW, _SWEEP, _PERIOD = 300.0, 100.0, 30.0  # Hz, Hz a second, seconds
_HIGH, _CREEP = 4000.0, 0.25
_BLOCK = 960
_CLOCK = 90_000


def picture(number: int) -> np.ndarray:
    """(64, 96, 3) uint8."""
    cells = [(number >> bit & 1) for bit in range(_CELLS * _CELLS)]
    grid = np.array(cells, np.uint8).reshape(_CELLS, _CELLS) * 200 + 30
    grey = np.kron(grid, np.ones((HEIGHT // _CELLS, WIDTH // _CELLS), np.uint8))
    return np.repeat(grey[..., None], 3, axis=2)


def number_of(image: np.ndarray) -> int:
    """The number of an (H, W, 3) picture of any size."""
    height, width = image.shape[:2]
    y, x = height / _CELLS, width / _CELLS
    number = 0
    for bit in range(_CELLS * _CELLS):
        top, left = bit // _CELLS * y, bit % _CELLS * x
        cell = image[int(top + 0.3 * y) : int(top + 0.7 * y), int(left + 0.3 * x) : int(left + 0.7 * x)]
        number |= int(cell.mean() > 128) << bit
    return number


def sound(start: float, seconds: float, rate: int = RATE) -> np.ndarray:
    """(N,) float32: the sound of the time from `start` on."""
    t = start + np.arange(round(seconds * rate)) / rate
    within = np.mod(t, _PERIOD)
    fast = _LOW * within + _SWEEP * within**2 / 2
    slow = _HIGH * t + _CREEP * t**2 / 2
    return (0.2 * np.sin(2 * np.pi * fast) + 0.2 * np.sin(2 * np.pi * np.mod(slow, 1))).astype(np.float32)


def time_heard(samples: np.ndarray, rate: int, at: float, span: float = 0.16) -> float | str | None:
    """The time that the sound tells at `at` seconds of (N,) samples: "silence", or None where there are none."""
    part = samples[round(at * rate) : round((at + span) * rate)].astype(np.float64)
    if len(part) < 0.9 * span * rate:
        return None
    if np.abs(part).max() < 0.01:
        return "silence"
    size = 1 << 17
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), size))
    middle = at + len(part) / rate / 2
    split = round(3600 * size / rate)
    fast, slow = (float(np.argmax(band) + low) * rate / size
                  for band, low in ((spectrum[:split], 0), (spectrum[split:], split)))  # fmt: skip
    within, about = (fast - _LOW) / _SWEEP, (slow - _HIGH) / _CREEP
    return round((about - within) / _PERIOD) * _PERIOD + within - (middle - at)


@dataclass(frozen=True)
class Recipe:
    """A file to make. times: when picture number i is shown, in seconds; sounds: (time, seconds) of stretches of sound,
    each telling the time at which it lies; shift: seconds added to all of the file's time stamps; number, told: the
    first picture's number, and seconds added to what the sound tells: of a part that was filmed later."""

    times: Sequence[Fraction]
    sounds: Sequence[tuple[float, float]] = ()
    codec: str = "libx264"
    sound_codec: str = "aac"
    options: Mapping[str, str] = field(default_factory=dict)
    gop: int = 25
    b_pictures: int = 0
    format: str | None = None
    muxer: Mapping[str, str] = field(default_factory=dict)
    shift: Fraction = Fraction(0)
    number: int = 0
    told: float = 0.0


def steady(count: int, rate: Fraction | int = 25, begin: float = 0.0) -> list[Fraction]:
    """Times of a steady rate."""
    return [Fraction(begin).limit_denominator(1000) + i / Fraction(rate) for i in range(count)]


def make(path: Path, recipe: Recipe) -> Path:
    """Write the file: packets of both streams in the order of their decoding times."""
    with av.open(str(path), "w", format=recipe.format, options=dict(recipe.muxer)) as out:
        gaps = [b - a for a, b in zip(recipe.times, recipe.times[1:], strict=False)]
        usual = 1 / min(gaps) if len(set(gaps)) == 1 else Fraction(25)
        options = {**_QUIET.get(recipe.codec, {}), **recipe.options}
        video = out.add_stream(recipe.codec, rate=usual, options=options)
        video.width, video.height = WIDTH, HEIGHT
        video.pix_fmt = {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}.get(recipe.codec, "yuv420p")
        context = video.codec_context
        context.gop_size, context.thread_count = recipe.gop, 1
        clock = 1 / usual if len(set(gaps)) == 1 else Fraction(1, _CLOCK)
        if recipe.codec in ("libx264", "libx265", "libsvtav1", "libvpx", "libvpx-vp9"):
            context.time_base = clock
        else:
            video.bit_rate = 2_000_000
        if recipe.b_pictures:
            context.max_b_frames = recipe.b_pictures
        audio = out.add_stream(recipe.sound_codec, rate=RATE, layout="mono") if recipe.sounds else None
        if recipe.sound_codec == "wmav2" and audio is not None:
            audio.bit_rate = 96_000
        streams = [_pictures(video, recipe, clock)] + ([_sounds(audio, recipe)] if audio is not None else [])
        packets = [list(stream) for stream in streams]
        for packet in sorted(chain(*packets), key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


_QUIET = {
    "libx265": {"x265-params": "log-level=none"},
    "libsvtav1": {"preset": "6"},
    "libx264": {"preset": "ultrafast"},
}


def _pictures(stream: Any, recipe: Recipe, clock: Fraction) -> Iterator[Any]:
    begin = recipe.times[0]
    for number, time in enumerate(recipe.times):
        frame = av.VideoFrame.from_ndarray(picture(recipe.number + number), format="rgb24")
        frame.pts, frame.time_base = round((time - begin) / clock), clock
        yield from _shifted(stream.encode(frame), begin + recipe.shift)
    yield from _shifted(stream.encode(None), begin + recipe.shift)


def _sounds(stream: Any, recipe: Recipe) -> Iterator[Any]:
    stream.codec_context.open()
    context = stream.codec_context
    form = {"format": context.format.name, "layout": "mono", "rate": RATE}
    size = context.frame_size or _BLOCK
    for at, seconds in recipe.sounds:
        samples = sound(at + recipe.told, seconds)
        for number in range(len(samples) // size):
            block = samples[None, number * size : (number + 1) * size]
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate = RATE
            part = av.AudioResampler(**form).resample(frame)[0]
            part.pts, part.time_base = round(at * RATE) + number * size, Fraction(1, RATE)
            yield from _shifted(stream.encode(part), recipe.shift)
    yield from _shifted(stream.encode(None), recipe.shift)


def _shifted(packets: list[Any], seconds: Fraction) -> list[Any]:
    packets = [packet for packet in packets if packet.dts is not None and packet.size]
    for packet in packets:
        ticks = round(seconds / Fraction(packet.time_base))
        packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
    return packets


def shown(source: Path | bytes) -> list[tuple[Fraction, int]]:
    """(seconds from the file's start, number) of all pictures of a file, read from its begin to its end."""
    # AVI has no times of showing: pictures follow one another as they are decoded, the last ones without a stamp.
    by_order = isinstance(source, Path) and source.suffix == ".avi"
    found: list[tuple[Fraction, int]] = []
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        start = Fraction(container.start_time or 0, av.time_base)
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                stamp = frame.dts if by_order else frame.pts
                time = 2 * found[-1][0] - found[-2][0] if stamp is None else stamp * Fraction(frame.time_base) - start
                if not frame.is_corrupt:
                    found.append((time, number_of(frame.to_ndarray(format="rgb24"))))
    return found
