"""From a stored clip to arrays for encoders: face frames at several rates from one pass, sound, text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conclugen.common.names import did_you_mean
from shards.clips.reader import StoredClip
from shards.media.audio import read_audio
from shards.media.face_track import CROPS, TIME_ROUNDING
from shards.media.frames import Box, Frames, read_frames
from shards.media.limits import Limits, MediaError

PUBLISHED_SIZE = (180, 180)


@dataclass(frozen=True)
class DecodedClip:
    """frames: rate -> (T, H, W, 3) uint8 RGB with their times; samples: (N,) float32 mono at `sample_rate`, None where
    the clip has no sound; text: transcript, None where there is none (or none to be trusted)."""

    key: str
    row: int
    frames: Mapping[float, Frames]
    samples: np.ndarray | None
    sample_rate: int
    text: str | None


def decode_clip(
    clip: StoredClip,
    rates: Sequence[float] = (1, 16),
    size: tuple[int, int] | None = PUBLISHED_SIZE,
    crop: str = "follow",
    sample_rate: int = 16_000,
    low_confidence: bool = False,
    whole_frames: bool = True,
    limits: Limits | None = None,
) -> DecodedClip:
    """Decode one clip.

    rates: frames a second, each by presentation time; size: (height, width) of every frame, None as stored. crop:
    `follow` the face, the `union` of its boxes over its track (as published), or `none`; a clip without a face gives
    whole frames. whole_frames: whether a clip with a face gives whole frames where it is not seen (`Frames.cropped`
    marks them), or leaves those out; at least one frame with the face remains. low_confidence: whether to hand out
    transcripts that are marked so. Raises MediaError for a clip that can't be decoded, ValueError for an unknown crop.
    """
    if crop not in CROPS:
        raise ValueError(f"crop is {crop!r}, {did_you_mean(crop, CROPS)}")
    limits = limits or Limits()
    box = _crop(clip, crop)
    frames = read_frames(clip.video, rates, size, crop=box, limits=limits) if rates else {}
    if box is not None and not whole_frames:
        frames = {rate: _with_face(clip, rate, found, box, limits) for rate, found in frames.items()}
    sound = None if clip.sound is None else read_audio(clip.sound, sample_rate, limits=limits)
    samples = None if sound is None or not len(sound.samples) else sound.samples
    text = clip.text if low_confidence or not clip.low_confidence else None
    return DecodedClip(clip.key, clip.row, frames, samples, sample_rate, text)


def _crop(clip: StoredClip, crop: str) -> Callable[[float], Box | None] | None:
    faces = clip.faces
    if faces is None or crop == "none":
        return None
    return faces.union if crop == "union" else faces.at


def _with_face(
    clip: StoredClip, rate: float, frames: Frames, box: Callable[[float], Box | None], limits: Limits
) -> Frames:
    """The frames in which the face is seen; where it is seen between frames only, the first of its longest track."""
    if frames.cropped.any():
        return Frames(*(part[frames.cropped] for part in (frames.pixels, frames.times, frames.cropped)))
    assert clip.faces is not None
    track = max(clip.faces.tracks, key=lambda track: track.end - track.start)
    height, width = frames.pixels.shape[1:3]
    found = read_frames(
        clip.video,
        (rate,),
        (height, width),
        start=max(0.0, track.start - TIME_ROUNDING),
        end=track.end,
        crop=lambda time: box(track.start + time),
        limits=limits,
    )[rate]
    first = np.flatnonzero(found.cropped)[:1]
    if not len(first):
        raise MediaError("damaged", f"the picture at {track.start:.3f} s, which shows the face, cannot be decoded")
    return Frames(found.pixels[first], track.start + found.times[first], found.cropped[first])
