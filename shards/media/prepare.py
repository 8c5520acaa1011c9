"""One clip from its source file(s) to what is stored: cut, checked picture by picture, sound, face."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from shards.media.audio import FORMATS, SPEECH_RATE, Sound, encode_audio, read_audio
from shards.media.cut import CutVideo, cut_until, cut_video
from shards.media.face_search import FaceSearch
from shards.media.face_track import Faces
from shards.media.frames import with_ends
from shards.media.limits import AUDIO_LENGTHS, CASCADES, Limits, MediaError
from shards.media.one_clock import check_clock
from shards.media.pictures import Tally, decode_pictures
from shards.media.probe import exact

_LEAST_MISSING = 0.5  # seconds by which a whole video may end before what it announces
_EDIT = Fraction(1, 500)  # seconds: edit lists count in milliseconds


@dataclass(frozen=True)
class Request:
    """What to prepare. video, audio: paths (audio None: the video's own sound); start, end: seconds or None for all;
    audio_rate: Hz, None for the source's; sound: `flac` or `wav`; faces: whether to look for one; audio_length: one of
    `AUDIO_LENGTHS`; clocks_checked: whether it is known already that each file has one clock; face_finder,
    face_weights: see `FaceSearch`. Times count from the start of each file (`shards.media.probe.start_of`)."""

    video: str
    audio: str | None = None
    start: float | None = None
    end: float | None = None
    audio_rate: int | None = SPEECH_RATE
    sound: str = "flac"
    faces: bool = True
    limits: Limits = field(default_factory=Limits)
    audio_length: str = "refuse"
    clocks_checked: bool = False
    face_finder: str = CASCADES
    face_weights: str | None = None

    def __post_init__(self) -> None:
        if self.audio_length not in AUDIO_LENGTHS:
            raise ValueError(f"audio_length is {self.audio_length!r}, allowed: {', '.join(AUDIO_LENGTHS)}")
        if self.sound not in FORMATS:
            raise ValueError(f"sound format is {self.sound!r}, allowed: {', '.join(FORMATS)}")

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "limits": self.limits.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Request:
        return cls(**{**data, "limits": Limits(**data["limits"])})


@dataclass(frozen=True)
class Prepared:
    """video: MP4 bytes; sound: FLAC or WAV bytes or None; details: `video`, `audio`, `face`, `taken` for the clip's
    JSON."""

    video: bytes
    sound: bytes | None
    details: dict[str, Any]


def prepare(request: Request) -> Prepared:
    """Cut and check one clip. Raises MediaError, whose `reason` says why the clip can't be used.

    Unless `clocks_checked`, whole files are read for their clocks, again at each call: who prepares many intervals of
    one remembers what was found (`shards.media.clock_verdicts`).

    Every picture of the result is decoded once: what is stored has been seen to be readable, and to show what was asked
    for at its time. A copy that does not is made again by encoding; so is interlaced video.
    """
    limits = request.limits
    for path in (request.audio, request.video):
        if path is not None and not request.clocks_checked:
            check_clock(path, limits)
    cut, view = _cut(request)
    seconds = view.seconds(cut)
    if cut.announced is not None and cut.announced - seconds > max(_LEAST_MISSING, 0.05 * cut.announced):
        raise MediaError(
            "truncated", f"the file announces {cut.announced:.2f} s, its pictures end at {float(seconds):.2f} s"
        )
    view.tally.check(limits)
    if request.start is None and view.tally.good + view.tally.damaged == 1:
        raise MediaError("no_video", "the video is a single still picture")
    source = _sound(request, cut, seconds)
    picture_cut = Fraction(0)
    if source is not None and request.audio_length == "cut" and _length(source) < seconds - view.picture:
        cut, view = _cut(request, until=cut.origin + _length(source))
        picture_cut, seconds = seconds - view.seconds(cut), view.seconds(cut)
    sound = None if source is None else _fitted(source, seconds)
    if sound is not None and abs(_length(sound) - seconds) > view.picture:
        raise MediaError("cut_mismatch", f"the sound lasts {sound.seconds:.3f} s, the picture {float(seconds):.3f} s")
    stay, at = view.longest_stay(seconds)
    if request.start is not None and cut.origin - exact(request.start) > stay:
        stay, at = cut.origin - exact(request.start), exact(request.start) - cut.origin
    limits.check_picture_gap(float(stay), float(cut.origin + at))
    details = {
        "video": {
            "width": view.width,
            "height": view.height,
            "pictures": view.tally.good,
            "damaged": view.tally.damaged + cut.damaged,
            "seconds": round(float(seconds), 6),
            "longest_stay": round(float(stay), 6),
            "copied": cut.copied,
            "cuts": None if view.cuts is None else [round(time, 4) for time in view.cuts],
        },
        "audio": None if source is None or sound is None else _audio_details(source, sound, view.picture),
        "face": None if view.face is None else view.face.to_dict(),
        "taken": {
            "begin": round(float(cut.origin), 6),
            "picture_cut": round(float(picture_cut), 6),
            "deinterlaced": cut.deinterlaced,
            "video": cut.track,
            "audio": None if source is None else source.track,
        },
    }
    return Prepared(cut.data, None if sound is None else encode_audio(sound, request.sound), details)


def _audio_details(source: Sound, sound: Sound, picture: Fraction) -> dict[str, Any]:
    """rate and seconds; padded and cut: seconds of silence added at the end, or taken off there, where they are more
    than a picture's length; holes and overlaps: seconds within it."""
    longer = sound.seconds - source.seconds
    return {
        "rate": sound.rate,
        "seconds": round(sound.seconds, 6),
        "padded": round(longer, 6) if longer > picture else 0.0,
        "cut": round(-longer, 6) if -longer > picture else 0.0,
        "holes": round(source.holes, 6),
        "overlaps": round(source.overlaps, 6),
    }


@dataclass(frozen=True)
class _View:
    """What the pictures of a cut clip show. length: seconds that the clip lasts; times: seconds of the good ones;
    width, height: as shown; cuts: seconds at which another shot begins (None: not looked for)."""

    length: Fraction
    tally: Tally
    times: list[Fraction]
    width: int
    height: int
    cuts: list[float] | None
    face: Faces | None

    @property
    def picture(self) -> Fraction:
        """A picture's length, on average."""
        # At a variable rate what a decoder says of the last picture's length may be one tick.
        return max(self.length, self.tally.end) / max(1, self.tally.good)

    def seconds(self, cut: CutVideo) -> Fraction:
        """Of the clip; where its last pictures are damaged, until the last good one ends."""
        whole = not cut.times or self.tally.last + _EDIT >= cut.times[-1]
        return cut.length if whole else min(self.tally.end, cut.length)

    def longest_stay(self, seconds: Fraction) -> tuple[Fraction, Fraction]:
        """For how long a picture stays at most until the next one, or until the clip of so many seconds ends, and when
        it is shown, in seconds from the clip's first picture."""
        ends = [*self.times[1:], max(seconds, self.times[-1])]
        return max((end - time, time) for time, end in zip(self.times, ends, strict=True))


def _cut(request: Request, until: Fraction | None = None) -> tuple[CutVideo, _View]:
    """The cut clip, compared with what was asked. until: seconds from the file's start at which it ends instead."""

    def attempt(reencode: bool) -> tuple[CutVideo, _View]:
        if until is None:
            cut = cut_video(request.video, request.start, request.end, request.limits, reencode)
        else:
            cut = cut_until(request.video, request.start, until, request.limits, reencode)
        return cut, _look(cut, request)

    cut, view = attempt(reencode=False)
    if cut.copied and (view.tally.interlaced or _mismatch(cut, view, _EDIT) is not None):
        cut, view = attempt(reencode=True)
    if view.tally.good and (problem := _mismatch(cut, view, view.picture)) is not None:
        raise MediaError("cut_mismatch", problem)
    return cut, view


def _mismatch(cut: CutVideo, view: _View, tolerance: Fraction) -> str | None:
    """What the clip shows else than the source's time stamps promise; None where it shows that, to a tolerance in
    seconds. Damaged pictures are missing, and counted apart."""
    found = view.tally.good + view.tally.damaged
    if found != cut.expected:
        return f"{cut.expected} pictures were to be shown, {found} are"
    if view.tally.damaged:
        off = [min(abs(time - wanted) for wanted in _around(cut.times, time)) for time in view.times]
    else:
        off = [abs(time - wanted) for time, wanted in zip(view.times, cut.times, strict=True)]
    worst = max(off, default=Fraction(0))
    if worst > tolerance:
        number = off.index(worst)
        return f"picture {number} is shown at {float(view.times[number]):.3f} s, {float(worst):.3f} s off"
    return None


def _around(times: Sequence[Fraction], time: Fraction) -> Sequence[Fraction]:
    at = bisect_left(times, time)
    return times[max(0, at - 1) : at + 1]


def _look(cut: CutVideo, request: Request) -> _View:
    """Decode all pictures of the cut clip; width and height as shown upright."""
    tally = Tally()
    search = FaceSearch(request.face_finder, request.face_weights) if request.faces else None
    shown: list[Fraction] = []
    width = height = 0
    for picture, until in with_ends(decode_pictures(cut.data, request.limits, tally), tally):
        shown.append(picture.time)
        if not width:
            height, width = picture.size
        if search is not None:
            search.add(picture, until)
    cuts = face = None
    if search is not None and width:
        cuts = search.cuts()
        face = search.faces(cuts, float(tally.end), width / height)
    return _View(cut.length, tally, shown, width, height, cuts, face)


def _sound(request: Request, cut: CutVideo, seconds: Fraction) -> Sound | None:
    """The sound from the clip's first picture on: of an interval what lies within it, else all; None where there is
    none. A sound file of its own has the video's time zero."""
    own = request.audio is None
    sound = read_audio(
        request.video if own else str(request.audio),
        request.audio_rate,
        start=cut.origin,
        end=None if request.start is None else cut.origin + seconds,
        limits=request.limits,
    )
    if not own and (sound is None or not len(sound.samples)):
        raise MediaError("audio_damaged", "the sound file has no sound at the clip's time")
    if sound is not None and request.audio_length == "refuse":
        request.limits.check_audio_length(sound.seconds, float(seconds))
    return sound if sound is not None and len(sound.samples) else None


def _length(sound: Sound) -> Fraction:
    return Fraction(len(sound.samples), sound.rate)


def _fitted(sound: Sound, seconds: Fraction) -> Sound:
    """As long as the picture: silence added at the end, or what continues left out."""
    count = round(seconds * sound.rate)
    samples = np.pad(sound.samples[:count], (0, max(0, count - len(sound.samples))))
    return replace(sound, samples=samples)
