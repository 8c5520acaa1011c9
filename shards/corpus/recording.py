"""Writes pictures and sound as an MP4 file (H.264, AAC). One thread and no dates: the same input, the same bytes."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from shards.files import replace_atomically

_QUALITY = {"crf": "21", "preset": "veryfast"}


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
            frame = av.AudioFrame.from_ndarray(samples.astype(np.float32).reshape(1, -1), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, 0
            # The encoder (open since the first picture's packet wrote the file's head) takes frames of its own size.
            cutter = av.AudioResampler("fltp", "mono", rate, frame_size=audio.codec_context.frame_size)
            for part in (*cutter.resample(frame), *cutter.resample(None)):
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))
    data = target.getvalue()
    replace_atomically(path, data)
    return len(data)
