"""Opens media files without trusting them, and says what is in them."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from shards.media.limits import Limits, MediaError

Source = str | Path | bytes

# Playlists and scripts (HLS, concat, DASH, ...) name other files or hosts: only formats that hold their own data.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,rm,dv,gxf,mxf,nut,h264,hevc,m4v,ivf,"
    "wav,w64,flac,mp3,aac,aiff,au,caf,amr,ac3"
)
# What the library says of a picture that it was told not to decode.
_TOO_LARGE = re.compile(r"Picture size (\d+)x(\d+) exceeds specified max pixel count")


@dataclass(frozen=True)
class VideoInfo:
    """codec; stored width and height in pixels; rotation: degrees (0, 90, 180, 270) counter-clockwise to turn the
    stored picture for display; fps: average, as announced; seconds: as announced, None where it isn't."""

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
                if size:
                    limits.check_pixels(int(size[1]), int(size[2]))
                    raise MediaError("too_many_pixels", f"{size[0]}; allowed are {limits.max_pixels}")
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
    """The first video stream that is no cover picture, with one decoding thread; MediaError where there is none, where
    its codec is unknown or its pictures are larger than allowed."""
    for stream in container.streams.video:
        if "attached_pic" in str(stream.disposition.name or ""):
            continue
        context = stream.codec_context
        if context is None:
            raise MediaError("no_video", "the video is of a codec that is not read")
        limits.check_pixels(context.width, context.height)
        # One thread: many clips are decoded side by side, and the order of errors must not depend on timing.
        context.thread_count = 1
        return stream
    raise MediaError("no_video", "there is no video stream")


def audio_stream(container: Any) -> Any | None:
    """The first sound stream whose codec is known, or None."""
    for stream in container.streams.audio:
        if stream.codec_context is not None and stream.codec_context.sample_rate > 0:
            return stream
    return None


def seconds_of(stream: Any, container: Any) -> float | None:
    """Announced length of a stream, else of the container, in seconds."""
    if stream.duration is not None and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and container.duration > 0:
        return container.duration / av.time_base
    return None


def exact(seconds: float) -> Fraction:
    """Seconds of a label or an option as a time that can be compared with a video's: 0.8 is 4/5, not a bit more."""
    return Fraction(round(seconds * 1_000_000), 1_000_000)


def start_of(stream: Any) -> Fraction:
    """First presentation time that the stream announces, in seconds, at which a clip's own time begins."""
    return Fraction(0) if stream.start_time is None else stream.start_time * Fraction(stream.time_base)


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
                stream.codec_context.name,
                stream.codec_context.width,
                stream.codec_context.height,
                float(rate) if rate else None,
                seconds_of(stream, container),
            )
        stream = audio_stream(container)
        if stream is not None:
            context = stream.codec_context
            audio = AudioInfo(context.name, context.sample_rate, context.channels, seconds_of(stream, container))
        return MediaInfo(container.format.name, video, audio)


def _plain(error: BaseException) -> str:
    """The library's message without its error number and the file's name."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip()[:300]
