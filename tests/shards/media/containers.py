"""The kinds of files that people bring, each a recipe of `timed_media`: containers, codecs, and what is odd in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from tests.shards.media.timed_media import Recipe, make, steady

_B = {"preset": "veryfast", "sc_threshold": "0", "bf": "3"}
_OPEN = {**_B, "x264-params": "open-gop=1:bframes=3:b-adapt=0"}
_OPEN_265 = {"x265-params": "log-level=none:open-gop=1:bframes=3:b-adapt=0:scenecut=0", "preset": "ultrafast"}
_NTSC = Fraction(30_000, 1001)


@dataclass(frozen=True)
class Kind:
    """suffix of the file's name; recipe: of a length in seconds; after: what is done to the file's bytes; lag: seconds
    by which the container shows pictures late; seconds: its usual length; intervals: to cut (None: the whole)."""

    suffix: str
    recipe: Callable[[float], Recipe]
    after: Callable[[bytes], bytes] = lambda data: data
    lag: float = 0.0
    seconds: float = 9.0
    intervals: tuple[tuple[float, float] | None, ...] = (None, (0.5, 1.5), (3.0, 5.0), (6.37, 7.41))

    def make(self, folder: Path, name: str, seconds: float | None = None) -> Path:
        path = make(folder / f"{name}.{self.suffix}", self.recipe(seconds or self.seconds))
        path.write_bytes(self.after(path.read_bytes()))
        return path


def _of(rate: Fraction | int = 25, begin: float = 0.0, **changes: object) -> Callable[[float], Recipe]:
    def recipe(seconds: float) -> Recipe:
        count = int((seconds - begin) * rate)
        return Recipe(steady(count, rate, begin), [(0.0, seconds)], **changes)  # type: ignore[arg-type]

    return recipe


def _variable(seconds: float) -> Recipe:
    """Pictures of 20 to 120 ms."""
    times, now, number = [], Fraction(0), 0
    while now < seconds:
        times.append(now)
        now += Fraction((20, 40, 120, 40, 60)[number % 5], 1000)
        number += 1
    return Recipe(times, [(0.0, seconds)], options=_B)


def _amid(data: bytes) -> bytes:
    """The stream's tables, then what follows its first 0.7 s or so: a recording that began amid a group of pictures."""
    packets = len(data) // 188
    return data[: 188 * 3] + data[188 * (packets // 12) :]


KINDS: dict[str, Kind] = {
    "MP4 H.264, B pictures": Kind("mp4", _of(options=_B)),
    "MP4 H.264, open groups": Kind("mp4", _of(options=_OPEN, gop=24)),
    "MP4 HEVC, open groups": Kind("mp4", _of(codec="libx265", options=_OPEN_265, gop=24)),
    "MP4 MPEG-4": Kind("mp4", _of(codec="mpeg4", b_pictures=2)),
    "MP4 AV1": Kind("mp4", _of(codec="libsvtav1")),
    "MP4 29.97": Kind("mp4", _of(_NTSC, options=_B)),
    "MP4 variable rate": Kind("mp4", _variable),
    "MP4 picture 1 s late": Kind("mp4", _of(begin=1.0, options=_B)),
    "MP4 begins at -0.52 s": Kind(
        "mp4", _of(options=_B, shift=Fraction(-13, 25), muxer={"avoid_negative_ts": "disabled"})
    ),
    "MP4 fragments": Kind("mp4", _of(options=_B, muxer={"movflags": "frag_keyframe+empty_moov"})),
    "MOV H.264, PCM": Kind("mov", _of(options=_B, sound_codec="pcm_s16le")),
    "MOV ProRes": Kind("mov", _of(codec="prores", sound_codec="pcm_s16le")),
    "MKV H.264, Opus": Kind("mkv", _of(options=_B, sound_codec="libopus")),
    "MKV picture 1 s late": Kind("mkv", _of(begin=1.0, options=_B, sound_codec="flac")),
    "MKV 29.97, 50 s groups": Kind("mkv", _of(_NTSC, gop=1500, options=_B, sound_codec="flac")),
    "WebM VP8": Kind("webm", _of(codec="libvpx", sound_codec="libopus")),
    "WebM VP9": Kind("webm", _of(codec="libvpx-vp9", sound_codec="libopus", options={"cpu-used": "8"})),
    "WebM AV1": Kind("webm", _of(codec="libsvtav1", sound_codec="libopus")),
    "TS H.264, groups of 12": Kind("ts", _of(options=_B, gop=12, sound_codec="mp2")),
    "TS H.264, groups of 50": Kind("ts", _of(options=_B, gop=50)),
    "TS H.264, open groups": Kind("ts", _of(options=_OPEN, gop=24)),
    "TS HEVC": Kind("ts", _of(codec="libx265", options=_OPEN_265, gop=24)),
    "TS MPEG-2, begins amid a group": Kind("ts", _of(codec="mpeg2video", b_pictures=2, sound_codec="mp2"), _amid),
    "TS H.264, begins amid a group": Kind("ts", _of(options=_OPEN, gop=24, sound_codec="mp2"), _amid),
    "M2TS H.264, AC-3": Kind(
        "m2ts", _of(options=_B, sound_codec="ac3", format="mpegts", muxer={"mpegts_m2ts_mode": "1"})
    ),
    "MPG MPEG-1": Kind("mpg", _of(codec="mpeg1video", sound_codec="mp2", b_pictures=2)),
    "VOB MPEG-2": Kind("vob", _of(codec="mpeg2video", sound_codec="mp2", b_pictures=2, format="vob")),
    "AVI MPEG-4, B pictures": Kind("avi", _of(codec="mpeg4", b_pictures=2, sound_codec="pcm_s16le"), lag=0.04),
    "AVI H.264, B pictures": Kind("avi", _of(options=_B, sound_codec="pcm_s16le"), lag=0.08),
    "AVI Motion JPEG": Kind("avi", _of(codec="mjpeg", sound_codec="pcm_s16le")),
    "FLV H.264": Kind("flv", _of(options=_B)),
    "FLV Sorenson": Kind("flv", _of(codec="flv", sound_codec="libmp3lame")),
    "WMV": Kind("wmv", _of(codec="wmv2", sound_codec="wmav2")),
}


def _hours(**changes: object) -> Callable[[float], Recipe]:
    """Two pictures a second, and sound where it is listened to."""

    def recipe(seconds: float) -> Recipe:
        sounds = [(0.0, 8.0), (seconds / 2 - 5, 20.0), (seconds - 40, 40.0)]
        return Recipe(steady(int(seconds * 2), 2), sounds, options=_B, **changes)  # type: ignore[arg-type]

    return recipe


_FAR = ((2.0, 6.0), (5400.0, 5404.0), (10_790.0, 10_794.25))
LONG_KINDS = {
    "MP4, three hours": Kind("mp4", _hours(gop=20), seconds=10_800, intervals=_FAR),
    "MKV, three hours": Kind("mkv", _hours(gop=100, sound_codec="libopus"), seconds=10_800, intervals=_FAR),
    "TS, three hours": Kind("ts", _hours(gop=24, sound_codec="mp2"), seconds=10_800, intervals=_FAR),
    "MPG, three minutes": Kind(
        "mpg",
        _of(codec="mpeg1video", sound_codec="mp2", b_pictures=2),
        seconds=180,
        intervals=((3.0, 5.0), (90.0, 92.0), (170.37, 173.0)),
    ),
}
