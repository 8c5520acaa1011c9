"""From a stored clip to arrays for encoders: face frames at several rates from one pass, sound, text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conclugen.common.names import did_you_mean
from shards.clips.reader import StoredClip
from shards.media.audio import read_audio
from shards.media.face_track import CROPS
from shards.media.frames import Box, Frames, read_frames
from shards.media.limits import Limits

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
    limits: Limits | None = None,
) -> DecodedClip:
    """Decode one clip.

    rates: frames a second, each by presentation time; size: (height, width) of every frame, None as stored. crop:
    `follow` the face, the `union` of its boxes over the clip (as published), or `none`; a clip without a face gives
    whole frames. low_confidence: whether to hand out transcripts that are marked so. Raises MediaError for a clip that
    can't be decoded and ValueError for an unknown crop.
    """
    if crop not in CROPS:
        raise ValueError(f"crop is {crop!r}, {did_you_mean(crop, CROPS)}")
    limits = limits or Limits()
    frames = read_frames(clip.video, rates, size, crop=_crop(clip, crop), limits=limits) if rates else {}
    sound = None if clip.sound is None else read_audio(clip.sound, sample_rate, limits=limits)
    samples = None if sound is None or not len(sound.samples) else sound.samples
    text = clip.text if low_confidence or not clip.low_confidence else None
    return DecodedClip(clip.key, clip.row, frames, samples, sample_rate, text)


def _crop(clip: StoredClip, crop: str) -> Callable[[float], Box | None] | None:
    track = clip.face
    if track is None or crop == "none":
        return None
    if crop == "union":
        box = track.union()
        return lambda time: box
    return track.at
