"""One clip from its source file(s) to what is stored: cut, checked picture by picture, sound, face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from shards.media.audio import FORMATS, SPEECH_RATE, Sound, encode_audio, read_audio
from shards.media.cut import CutVideo, cut_video, encode_video
from shards.media.face_track import FaceTrack, track_face
from shards.media.faces import FaceFinder
from shards.media.frames import SteadyRate, with_ends
from shards.media.limits import Limits, MediaError
from shards.media.pictures import Tally, decode_pictures
from shards.media.probe import check_file

_FACE_RATE = 5.0  # pictures a second that are searched
_LEAST_MISSING = 0.5  # seconds by which a whole video may end before what it announces


@dataclass(frozen=True)
class Request:
    """What to prepare. video, audio: paths (audio None: the video's own sound); start, end: seconds or None for all;
    audio_rate: Hz, None for the source's; sound: `flac` or `wav`; faces: whether to look for one."""

    video: str
    audio: str | None = None
    start: float | None = None
    end: float | None = None
    audio_rate: int | None = SPEECH_RATE
    sound: str = "flac"
    faces: bool = True
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.sound not in FORMATS:
            raise ValueError(f"sound format is {self.sound!r}, allowed: {', '.join(FORMATS)}")

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "limits": self.limits.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Request:
        return cls(**{**data, "limits": Limits(**data["limits"])})


@dataclass(frozen=True)
class Prepared:
    """video: MP4 bytes; sound: FLAC or WAV bytes or None; details: `video`, `audio`, `face` for the clip's JSON."""

    video: bytes
    sound: bytes | None
    details: dict[str, Any]


def prepare(request: Request) -> Prepared:
    """Cut and check one clip. Raises MediaError, whose `reason` says why the clip can't be used.

    Every picture of the result is decoded once: what is stored has been seen to be readable. A copy that does not show
    the pictures its packets promised is made anew by encoding.
    """
    limits = request.limits
    if request.audio is not None:
        check_file(request.audio)
    cut = cut_video(request.video, request.start, request.end, limits)
    view = _look(cut, request)
    if cut.copied and view.tally.good + view.tally.damaged != cut.expected:
        cut = encode_video(request.video, request.start, request.end, limits)
        view = _look(cut, request)
    seconds = float(view.tally.end)
    if cut.announced is not None and cut.announced - seconds > max(_LEAST_MISSING, 0.05 * cut.announced):
        raise MediaError("truncated", f"the file announces {cut.announced:.2f} s, its pictures end at {seconds:.2f} s")
    view.tally.check(limits)
    sound = _sound(request, cut, seconds)
    details = {
        "video": {
            "width": view.width,
            "height": view.height,
            "pictures": view.tally.good,
            "damaged": view.tally.damaged,
            "seconds": round(seconds, 6),
            "copied": cut.copied,
        },
        "audio": None if sound is None else {"rate": sound.rate, "seconds": round(sound.seconds, 6)},
        "face": None if view.face is None else view.face.to_dict(),
    }
    return Prepared(cut.data, None if sound is None else encode_audio(sound, request.sound), details)


@dataclass(frozen=True)
class _View:
    tally: Tally
    width: int
    height: int
    face: FaceTrack | None


def _look(cut: CutVideo, request: Request) -> _View:
    """Decode all pictures of the cut clip; width and height as shown upright."""
    tally, chooser = Tally(), SteadyRate(_FACE_RATE)
    finder = FaceFinder() if request.faces else None
    times: list[float] = []
    found: list[np.ndarray] = []
    width = height = 0
    for picture, until in with_ends(decode_pictures(cut.data, request.limits, tally), tally):
        if not width:
            width, height = picture.frame.width, picture.frame.height
            if picture.rotation % 2:
                width, height = height, width
        if finder is not None and chooser.wants(until):
            times.append(float(picture.time))
            found.append(finder(picture.rgb()))
    face = track_face(times, found, width / height) if times else None
    return _View(tally, width, height, face)


def _sound(request: Request, cut: CutVideo, seconds: float) -> Sound | None:
    """The clip's sound, beginning with its first picture; None where the video has none."""
    own = request.audio is None
    # A file of its own keeps its own time; sound in the video keeps the video's.
    start, end = request.start, request.end
    if own and start is not None and end is not None:
        start, end = 0.0, end - start
    sound = read_audio(
        request.video if own else str(request.audio),
        request.audio_rate,
        start=start,
        end=end,
        origin=cut.origin if own else None,
        limits=request.limits,
    )
    if sound is None or not len(sound.samples):
        if not own:
            raise MediaError("audio_damaged", "the sound file has no sound")
        return None
    sound = _aligned(sound)
    request.limits.check_audio_length(sound.seconds, seconds)
    return sound


def _aligned(sound: Sound) -> Sound:
    """Without offset: silence before sound that begins late, and nothing of what begins before the picture."""
    shift = round(Fraction(sound.offset) * sound.rate)
    if shift > 0:
        samples = np.concatenate([np.zeros(min(shift, len(sound.samples)), np.float32), sound.samples])
    else:
        samples = sound.samples[-shift:]
    return replace(sound, samples=samples, offset=0.0)
