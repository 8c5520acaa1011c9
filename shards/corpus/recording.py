"""Writes pictures and sound as an MP4 file (H.264, AAC). One thread and no dates: the same input, the same bytes."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common.atomic import write_bytes
from shards.media.libraries import av

# A fixed quantiser, nothing looked ahead: with rate control about one encoding in 50 came out a few bytes different.
_QUALITY = {"qp": "24", "preset": "veryfast", "tune": "zerolatency"}


def write_mp4(path: Path, pictures: np.ndarray, fps: int, samples: np.ndarray | None, rate: int) -> int:
    """Write (T, H, W, 3) uint8 RGB pictures (even sizes) and (N,) float32 mono sound, or none; returns the file's size.

    The file is complete or not there. Raises ValueError for other shapes.
    """
    if pictures.ndim != 4 or pictures.dtype != np.uint8 or pictures.shape[3] != 3 or not len(pictures):
        raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}, expected (T, H, W, 3) uint8, T >= 1")
    if pictures.shape[1] % 2 or pictures.shape[2] % 2:
        raise ValueError(f"pictures are {pictures.shape[2]} x {pictures.shape[1]}; H.264 needs even sizes")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=fps, options={**_QUALITY, "flags": "+bitexact"})
        video.height, video.width = pictures.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.gop_size = 2 * fps
        video.codec_context.thread_count = 1
        audio = None
        if samples is not None:
            audio = container.add_stream("aac", rate=rate, layout="mono", options={"flags": "+bitexact"})
            audio.bit_rate = 64_000
        for number, pixels in enumerate(pictures):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if audio is not None and samples is not None:
            _encode_sound(container, audio, samples, rate)
    data = target.getvalue()
    write_bytes(path, data)
    return len(data)


def _encode_sound(container: Any, stream: Any, samples: np.ndarray, rate: int) -> None:
    """Frames of the encoder's own size (it is open since the first picture), the last one filled up with silence."""
    size = stream.codec_context.frame_size
    padded = np.pad(samples.astype(np.float32), (0, -len(samples) % size))
    for start in range(0, len(padded), size):
        frame = av.AudioFrame.from_ndarray(padded[None, start : start + size].copy(), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
