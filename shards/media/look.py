"""A look into a media file: whether it opens, what it announces, whether its first picture and first sound are there.

It takes milliseconds, so that a whole folder can be looked into before hours of decoding. What lies further in (a file
that was cut off, damaged pictures, two clocks) shows when the clip is prepared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shards.media.audio import read_audio
from shards.media.limits import Limits, MediaError
from shards.media.pictures import Tally, decode_pictures
from shards.media.probe import probe

_HEARD = 0.5  # seconds of sound


@dataclass(frozen=True)
class Look:
    """Of a video: codec, size as shown in pixels, and the codec of its sound, or None; of a sound file its own codec.
    seconds: as the file announces, None where it does not."""

    codec: str
    width: int
    height: int
    seconds: float | None
    sound: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(path: str, limits: Limits, sound_alone: bool = False) -> Look:
    """Look into a video, or into a sound file. Raises MediaError, whose `reason` says why it can't be used."""
    info = probe(path, limits)
    heard = None
    if info.audio is not None:
        heard = read_audio(path, None, start=0, end=_HEARD, limits=limits)
    if sound_alone:
        if info.audio is None or heard is None or not len(heard.samples):
            raise MediaError("audio_damaged", "the file has no sound")
        return Look(info.audio.codec, 0, 0, info.audio.seconds, info.audio.codec)
    tally = Tally()
    first = next(decode_pictures(path, limits, tally, start=0), None)
    if first is None or info.video is None:
        raise MediaError("no_video", f"no picture could be decoded ({tally.damaged} damaged packets)")
    height, width = first.size
    return Look(info.video.codec, width, height, info.video.seconds, None if info.audio is None else info.audio.codec)
