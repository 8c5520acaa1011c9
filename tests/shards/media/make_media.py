"""Small media files of every kind, made on the spot with PyAV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLOCK = 90_000


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: grey that tells the number, the top left quarter bright, so that turning shows."""
    height, width = size
    image = np.full((height, width, 3), 30 + (number * 5) % 150, np.uint8)
    image[: height // 2, : width // 2] = 250
    return image


def grey_of(image: np.ndarray) -> int:
    """The grey that `picture` chose, from the bottom right quarter."""
    height, width = image.shape[:2]
    return round(float(image[height * 5 // 8 : height * 7 // 8, width * 5 // 8 : width * 7 // 8].mean()))


def sine(seconds: float, rate: int, channels: int, frequency: float = 440.0) -> np.ndarray:
    """(channels, N) float32; the second channel is silent."""
    samples = np.zeros((channels, round(seconds * rate)), np.float32)
    samples[0] = 0.5 * np.sin(2 * np.pi * frequency * np.arange(samples.shape[1]) / rate)
    return samples


def make_video(
    path: Path,
    times: Sequence[float] | int = 25,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    format: str | None = None,
    rate: int = 25,
    rotation: int = 0,
    sound: np.ndarray | None = None,
    sound_rate: int = 44_100,
    sound_codec: str = "aac",
    gop: int = 10,
    options: dict[str, str] | None = None,
) -> Path:
    """A video whose picture i is `picture(i)`; times: presentation times in seconds, or a number of pictures at `rate`.

    sound: (channels, N) float32, or None for none.
    """
    steady = isinstance(times, int)
    shown = [i / rate for i in range(times)] if isinstance(times, int) else list(times)
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options={**quiet, **(options or {})})
        stream.height, stream.width = size
        odd = size[0] % 2 or size[1] % 2
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv444p" if odd else "yuv420p"
        stream.codec_context.gop_size = gop
        if not codec.startswith("lib"):
            stream.bit_rate = 8_000_000
        stream.codec_context.thread_count = 1
        if not steady:
            stream.codec_context.time_base = Fraction(1, CLOCK)
        if rotation:
            stream.set_display_rotation(rotation)
        audio = None
        if sound is not None:
            layout = "mono" if len(sound) == 1 else "stereo"
            audio = container.add_stream(sound_codec, rate=sound_rate, layout=layout)
        for number, time in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            frame.pts = number if steady else round(time * CLOCK)
            frame.time_base = Fraction(1, rate) if steady else Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None and sound is not None:
            for part in _frames(sound, sound_rate, audio):
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))
    return path


def make_sound(path: Path, sound: np.ndarray, rate: int = 44_100, codec: str = "pcm_s16le") -> Path:
    """A sound file of (channels, N) float32."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono" if len(sound) == 1 else "stereo")
        for part in _frames(sound, rate, stream):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def _frames(sound: np.ndarray, rate: int, stream: object) -> list[av.AudioFrame]:
    context = stream.codec_context  # type: ignore[attr-defined]
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(sound), format="fltp", layout="mono" if len(sound) == 1 else "stereo"
    )
    frame.sample_rate, frame.pts = rate, 0
    if not context.is_open:
        context.open()
    resampler = av.AudioResampler(
        format=context.format.name, layout=context.layout.name, rate=rate, frame_size=context.frame_size or 1024
    )
    return [*resampler.resample(frame), *resampler.resample(None)]


def decode_everything(path: Path | bytes) -> list[tuple[float, np.ndarray]]:
    """(time from the first picture, RGB) of every picture a plain decoder shows, in the order of their times."""
    with av.open(io.BytesIO(path) if isinstance(path, bytes) else str(path)) as container:
        frames = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    frames.sort(key=lambda pair: pair[0])
    return [(time - frames[0][0], image) for time, image in frames]
