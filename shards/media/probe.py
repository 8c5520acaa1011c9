"""Opens media files without trusting them, and says what is in them."""

from __future__ import annotations

import io
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from shards.media.libraries import Disposition, av
from shards.media.limits import Limits, MediaError

Source = str | Path | bytes

# Playlists and scripts (HLS, concat, DASH, ...) name other files or hosts: only formats that hold their own data.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,rm,dv,gxf,mxf,nut,h264,hevc,m4v,ivf,"
    "wav,w64,flac,mp3,aac,aiff,au,caf,amr,ac3"
)
# Formats that find a time by guessing at positions in the file.
_UNINDEXED = frozenset({"mpeg", "mpegts", "mpegvideo", "h264", "hevc", "m4v", "asf", "mp3", "aac", "ac3"})
# Formats whose seeks go by bytes a second: exact for PCM alone. What follows is stamped as if the seek had been exact.
_BY_BYTES = frozenset({"wav", "w64", "aiff", "au"})
_NEAR = 10  # seconds
_NOT_MOVING = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_SPECIAL_SOUND = (
    Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.comment
    | Disposition.dub
    | Disposition.karaoke
    | Disposition.clean_effects
    | Disposition.dependent
)
_LISTED = re.compile(r"  Stream #\d+:(\d+)")
# What the library says of a picture that it was told not to decode.
_TOO_LARGE = re.compile(r"Picture size (\d+)x(\d+) exceeds specified max pixel count")


@dataclass(frozen=True)
class VideoInfo:
    """codec; stored width and height in pixels; fps: average, as announced; seconds: as announced, None where it
    isn't."""

    codec: str
    width: int
    height: int
    fps: float | None
    seconds: float | None


@dataclass(frozen=True)
class AudioInfo:
    """codec; sample rate in Hz; channels; seconds as announced, None where it isn't."""

    codec: str
    rate: int
    channels: int
    seconds: float | None


@dataclass(frozen=True)
class MediaInfo:
    """What a file announces: its container format and the streams that would be used."""

    format: str
    video: VideoInfo | None
    audio: AudioInfo | None


def check_file(path: str | Path) -> int:
    """Size in bytes of a readable regular file; MediaError for anything else (a pipe would block its reader)."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise MediaError("not_a_file", "not a regular file")
        if status.st_size == 0:
            raise MediaError("empty", "the file has 0 bytes")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("missing", "the file does not exist") from None
    except ValueError as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError("bad_name", f"the name cannot be opened: {error}") from None
    except OSError as error:
        raise MediaError("unreadable", f"the file cannot be read: {error.strerror or error}") from None
    return status.st_size


@contextmanager
def open_media(source: Source, limits: Limits) -> Iterator[Any]:
    """An open PyAV container of a file (path) or of a file's content (bytes).

    Raises MediaError where it can't be opened, and for errors of the library while the block reads from it.
    """
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        check_file(source)
    elif not source:
        raise MediaError("empty", "no bytes")
    try:
        container, complaints = _open(file, limits)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        problem = f"cannot be opened as a video or sound file: {_plain(error)}"
        raise MediaError("not_media", problem + _hint(source)) from None
    try:
        with container:
            for complaint in complaints:
                size = _TOO_LARGE.search(complaint)
                if size:  # FFmpeg's log is one for the whole process: another file may have been over its own limit
                    limits.check_pixels(int(size[1]), int(size[2]))
            yield container
    except av.error.FFmpegError as error:
        raise MediaError("damaged", f"reading stopped: {_plain(error)}") from None


def _hint(source: Source) -> str:
    """For an MP4 (ISO/IEC 14496-12), whose index often lies at its end."""
    if isinstance(source, bytes):
        head = source[:8]
    else:
        with Path(source).open("rb") as file:
            head = file.read(8)
    return " (it begins as an MP4, but its index is missing or damaged: was it cut off?)" if head[4:] == b"ftyp" else ""


def _open(file: Any, limits: Limits) -> tuple[Any, list[str]]:
    """The container, and what the library complained of while it looked at the streams.

    max_pixels also binds the decoders that run then, before any size is known here; that they refused a picture is said
    in a message only.
    """
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as messages:
            container = av.open(
                file,
                metadata_errors="replace",
                options={
                    "format_whitelist": _FORMATS,
                    "protocol_whitelist": "file",
                    "max_pixels": str(limits.max_pixels),
                    "max_streams": "64",
                },
            )
    finally:
        av.logging.set_level(level)
    return container, [text for _, _, text in messages if "pixel" in text]


def video_stream(container: Any, limits: Limits) -> Any:
    """The video stream to use, with one decoding thread: of those that are not cover pictures the one marked default,
    else the largest. MediaError where there is none, where its codec is unknown or its pictures are larger than
    allowed."""
    if not _moving(container):
        still = len(container.streams.video) > 0
        raise MediaError("no_video", "the only picture is a cover or a still" if still else "there is no video stream")
    stream = _picture(container)
    if stream is None:
        raise MediaError("no_video", "the video is of a codec that is not read")
    context = stream.codec_context
    limits.check_pixels(context.width, context.height)
    # One thread: many clips are decoded side by side, and the order of errors must not depend on timing.
    context.thread_count = 1
    return stream


def _moving(container: Any) -> list[Any]:
    return [stream for stream in container.streams.video if not stream.disposition & _NOT_MOVING]


def _picture(container: Any) -> Any | None:
    """The video stream to use, of those whose codec is known."""
    return max((s for s in _moving(container) if s.codec_context is not None), key=_video_rank, default=None)


def _video_rank(stream: Any) -> tuple[Any, ...]:
    # A track of one picture is a still, whatever its flags say.
    context, announced = stream.codec_context, stream.frames
    default = bool(stream.disposition & Disposition.default)
    return announced != 1, default, context.width * context.height, announced, -stream.index


def audio_stream(container: Any) -> Any | None:
    """The sound stream to use, or None: of those whose codec is known the one marked default, else the best: not made
    for the hard of hearing or seeing, most channels, highest sample rate, most bits; else the first.

    In a transport stream of several programs none but those of the picture's program: there, as players do, by the
    library's choice."""
    known = [s for s in container.streams.audio if s.codec_context is not None and s.codec_context.sample_rate > 0]
    picture = _picture(container)
    if container.format.name == "mpegts" and known and picture is not None:
        program = {stream.index for stream in _program(container, picture)}
        known = [stream for stream in known if stream.index in program]
        best = container.streams.best("audio", related=picture)
        if best is not None and any(stream.index == best.index for stream in known):
            return best
    return max(known, key=_audio_rank) if known else None


def _audio_rank(stream: Any) -> tuple[Any, ...]:
    context, marks = stream.codec_context, stream.disposition
    default, special = bool(marks & Disposition.default), bool(marks & _SPECIAL_SOUND)
    return default, not special, context.channels, context.sample_rate, context.bit_rate or 0, -stream.index


def taken(stream: Any) -> dict[str, Any]:
    """Which stream was chosen, for a clip's JSON. number: among all streams of the file; of: streams of its kind."""
    same = [other for other in stream.container.streams if other.type == stream.type]
    return {
        "number": stream.index,
        "of": len(same),
        "codec": stream.codec_context.codec.canonical_name,
        "default": bool(stream.disposition & Disposition.default),
        "language": stream.language,
    }


def seconds_of(stream: Any, container: Any) -> float | None:
    """Announced length of a stream, else of the container, in seconds."""
    if stream.duration is not None and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration is None or container.duration <= 0:
        return None
    # Matroska as FFmpeg writes it says when the file ends, on its own clock, which need not begin at 0.
    begin = container.start_time or 0 if "matroska" in container.format.name else 0
    return (container.duration - (begin if 0 < begin < container.duration else 0)) / av.time_base


def exact(seconds: float) -> Fraction:
    """Seconds of a label or an option as a time that can be compared with a video's: 0.8 is 4/5, not a bit more."""
    return Fraction(round(seconds * 1_000_000), 1_000_000)


def start_of(container: Any) -> Fraction:
    """The file's time zero in seconds on its own clock: ffprobe's `format.start_time`, from which players, annotation
    tools and `ffmpeg -ss` count. It is the earliest start of any stream, after edit lists; in a transport stream of
    several programs, each of which has a clock of its own, of any stream of the picture's program."""
    streams = list(container.streams)
    picture = _picture(container)
    used = audio_stream(container) if picture is None else picture
    program = streams if used is None else _program(container, used)
    starts = [s.start_time * Fraction(s.time_base) for s in program if s.start_time is not None]
    if container.start_time is None or len(program) < len(streams):
        return min(starts, default=Fraction(0))
    announced = Fraction(container.start_time, av.time_base)
    # The container's own value is rounded to microseconds, which would put a picture at exactly 3 s outside [3, 5).
    nearest = min(starts, key=lambda start: abs(start - announced), default=announced)
    return nearest if abs(nearest - announced) <= Fraction(2, av.time_base) else announced


def _program(container: Any, stream: Any) -> list[Any]:
    """The streams of the first program that holds a stream, which players take; all where there are no two programs, or
    it is in none."""
    streams = list(container.streams)
    programs = [program for program in _programs(container) if program]
    own = next((program for program in programs if stream.index in program), None)
    return streams if own is None or len(programs) < 2 else [other for other in streams if other.index in own]


def _programs(container: Any) -> list[set[int]]:
    """Numbers of the streams of each program of a transport stream, in the order of its table; programs may share some.

    The library says it only in the listing that `ffmpeg -i` prints. What a broadcaster writes (names, languages) is
    indented further there, all its lines.
    """
    if container.format.name != "mpegts" or len(container.streams) < 2:
        return []
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        listing = container.dumps_format()
    finally:
        av.logging.set_level(level)
    programs: list[set[int]] = []
    for line in listing.split("\n"):
        if line == "  No Program":
            break
        if line.startswith("  Program "):
            programs.append(set())
        elif programs and (listed := _LISTED.match(line)):
            programs[-1].add(int(listed[1]))
    return programs


def seek(container: Any, stream: Any, time: Fraction) -> bool:
    """Go to a key frame at or before a time in seconds on the file's own clock, or so the file's index claims: the
    caller checks where it landed. False where the format refuses."""
    try:
        container.seek(math.floor(time / Fraction(stream.time_base)), stream=stream, backward=True, any_frame=False)
    except av.error.FFmpegError:
        try:
            container.seek(math.floor(time * av.time_base), backward=True, any_frame=False)
        except av.error.FFmpegError:
            return False
    return True


def steps_back(container: Any, ahead: Fraction) -> tuple[Fraction | None, ...]:
    """Seconds before a target to seek to, one after the other until what is decoded first lies at or before the target;
    None: read from the file's begin. ahead: seconds from the file's begin to the target.

    Formats without an index (MPEG streams) land amid a packet, and their first time stamps after that are guesses:
    there reading begins some seconds earlier, and from the file's begin if that is not far. Compressed sound in WAV and
    the like (ADPCM) is always read from its begin.
    """
    names = set(container.format.name.split(","))
    if names & _BY_BYTES and not all(
        s.codec_context and s.codec_context.name.startswith("pcm_") for s in container.streams
    ):
        return (None,)
    indexed = not _UNINDEXED & names
    if ahead <= (0 if indexed else _NEAR):
        return (None,)
    return (*(Fraction(step) for step in ((0, 2, 8, 32, 128) if indexed else (4, 16, 64, 256)) if step < ahead), None)


def probe(source: Source, limits: Limits | None = None) -> MediaInfo:
    """What a file announces. Decodes nothing itself. Raises MediaError for files that can't be opened, and for
    pictures larger than allowed."""
    limits = limits or Limits()
    with open_media(source, limits) as container:
        video = audio = None
        if container.streams.video:
            stream = video_stream(container, limits)
            rate = stream.average_rate
            video = VideoInfo(
                stream.codec_context.codec.canonical_name,
                stream.codec_context.width,
                stream.codec_context.height,
                float(rate) if rate else None,
                seconds_of(stream, container),
            )
        stream = audio_stream(container)
        if stream is not None:
            context = stream.codec_context
            audio = AudioInfo(
                context.codec.canonical_name, context.sample_rate, context.channels, seconds_of(stream, container)
            )
        return MediaInfo(container.format.name, video, audio)


def _plain(error: BaseException) -> str:
    """The library's message without its error number and the file's name."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip()[:300]
