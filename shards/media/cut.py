"""Cuts a video to an interval without encoding it anew wherever that is possible.

The packets from the key frame before the interval up to its last picture are copied into an MP4; an edit list hides
what lies before the interval and what comes after it, so every player shows exactly the interval. What MP4 can't hold,
what has no usable timestamps, or what would carry too much in front of it is encoded anew as H.264.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from shards.media.limits import Limits, MediaError
from shards.media.pictures import Tally, decode_pictures
from shards.media.probe import Source, exact, open_media, seconds_of, start_of, video_stream

_COPIED = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "av1", "vp9", "mjpeg"})
# Where these begin within a group of pictures, readers disagree on which picture the edit list means.
_COPIED_WHOLE_ONLY = frozenset({"mpeg1video", "mpeg2video"})
_CLOCK = 90_000
# Labels give intervals in round numbers: one that ends this little after the video is cut at the video's end.
_OVERHANG = 0.5


@dataclass(frozen=True)
class CutVideo:
    """data: an MP4 that shows the interval. copied: whether its packets are the source's own. origin: time of the
    interval's begin on the source's own clock. announced: seconds that the source claims for the interval (None: no
    claim), expected: number of pictures that its packets promise (None: unknown)."""

    data: bytes
    copied: bool
    origin: Fraction
    announced: float | None
    expected: int | None


class _NotCopiedError(Exception):
    """The packets can't be copied; the message says why."""


def cut_video(source: Source, start: float | None, end: float | None, limits: Limits) -> CutVideo:
    """The pictures shown in [start, end) seconds from the first one (None: all) as an MP4 without sound.

    Raises MediaError: `bad_interval`, `too_long`, `too_many_bytes`, `no_video`, ...
    """
    if (start is None) != (end is None) or (start is not None and end is not None and not 0 <= start < end):
        raise MediaError("bad_interval", f"the interval is {start} to {end} s")
    if start is not None and end is not None:
        limits.check_seconds(end - start)
    try:
        return _copy(source, start, end, limits)
    except _NotCopiedError:
        return encode_video(source, start, end, limits)


def _copy(source: Source, start: float | None, end: float | None, limits: Limits) -> CutVideo:
    with open_media(source, limits) as container:
        stream = video_stream(container, limits)
        if stream.codec_context.name not in _COPIED:
            raise _NotCopiedError(f"MP4 does not hold {stream.codec_context.name}")
        if start and stream.codec_context.name in _COPIED_WHOLE_ONLY:
            raise _NotCopiedError(f"{stream.codec_context.name} is not cut at a picture")
        announced = _announced(stream, container)
        if start is None:
            limits.check_seconds(seconds_of(stream, container) or 0.0)
        elif announced is not None:
            _check_interval(start, end, announced)
        clock = Fraction(stream.time_base)
        packets, shown_from, shown_to = _select(container, stream, start, end, limits)
        times = sorted(p.pts for p in packets if shown_from <= p.pts < shown_to and not p.is_discard)
        if not times:
            raise MediaError("bad_interval", "no picture is shown in the interval")
        # The clip begins with its first picture, so that it has the same clock in any player.
        begin, last = times[0], max(p.pts + (p.duration or 0) for p in packets if not p.is_discard)
        data = set_edit_length(_mux(stream, packets, begin), (min(shown_to, last) - begin) * clock)
        return CutVideo(data, True, begin * clock, announced if start is None else None, len(times))


def _announced(stream: Any, container: Any) -> float | None:
    """The video's own length, where its container keeps a record of it rather than guess from what is there."""
    if stream.duration is None or "mpeg" in container.format.name or "mpegts" in container.format.name:
        return None
    return float(stream.duration * stream.time_base)


def _check_interval(start: float, end: float | None, seconds: float) -> None:
    assert end is not None
    if start >= seconds or end > seconds + _OVERHANG:
        raise MediaError("bad_interval", f"the interval {start:g} to {end:g} s leaves the video of {seconds:.2f} s")


def _select(
    container: Any, stream: Any, start: float | None, end: float | None, limits: Limits
) -> tuple[list[Any], int, int]:
    """Packets to copy in file order, and the interval [from, to) in the stream's clock."""
    clock = Fraction(stream.time_base)
    origin = start_of(stream)
    shown_from = -(1 << 62) if start is None else _ticks(origin + exact(start), clock)
    shown_to = 1 << 62 if end is None else _ticks(origin + exact(end), clock)
    if start:
        _seek_packets(container, stream, shown_from)
    packets: list[Any] = []
    size, key_at = 0, None
    for packet in _video_packets(container, stream):
        if packet.pts is None:
            raise _NotCopiedError("packets have no timestamps")
        if packet.is_keyframe and packet.pts <= shown_from:
            packets, size, key_at = [], 0, packet.pts
        if start is not None and key_at is None and not packets and not packet.is_keyframe:
            raise _NotCopiedError("no key frame before the interval")
        if packet.dts is not None and packet.dts >= shown_to:
            break
        if key_at is not None and packet.pts < key_at:
            continue  # a leading picture of the key frame: it needs what was left out, and is not shown
        packets.append(packet)
        size += packet.size
        limits.check_bytes(size, "the encoded clip")
        limits.check_seconds(float((packet.pts - max(shown_from, packets[0].pts)) * clock))
    while packets and packets[-1].pts >= shown_to:
        packets.pop()
    if not packets or not packets[0].is_keyframe:
        raise _NotCopiedError("no key frame to begin with")
    if start is not None and (shown_from - packets[0].pts) * clock > limits.max_preroll_seconds:
        raise _NotCopiedError("the key frame before the interval lies too far back")
    _complete_order(packets, 1 / Fraction(stream.average_rate or 25) / clock)
    return packets, shown_from, shown_to


def _complete_order(packets: list[Any], usual: Fraction) -> None:
    """Fill in the decoding times that Matroska leaves out of its first packets: one picture's length apart."""
    known = next((i for i, packet in enumerate(packets) if packet.dts is not None), None)
    if known is None or any(packet.dts is None for packet in packets[known:]):
        raise _NotCopiedError("packets have no decoding times")
    for i in range(known - 1, -1, -1):
        packets[i].dts = packets[i + 1].dts - max(1, round(usual))


def _ticks(time: Fraction, clock: Fraction) -> int:
    return -(-(time / clock).numerator // (time / clock).denominator)


def _seek_packets(container: Any, stream: Any, target: int) -> None:
    if "mpeg" in container.format.name.split(","):
        return  # no index: seeking lands anywhere
    try:
        container.seek(target, stream=stream, backward=True, any_frame=False)
    except av.error.FFmpegError:
        container.seek(0)


def _video_packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets with data; ends where the file ends or can't be read any further (what is missing shows later)."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.InvalidDataError, av.error.EOFError):
            return
        if packet is None:
            return
        if packet.size:
            yield packet


def _mux(template: Any, packets: list[Any], begin: int) -> bytes:
    """An MP4 of the packets, with `begin` as time 0: the muxer writes an edit list for what lies before."""
    target = io.BytesIO()
    try:
        with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as output:
            stream = output.add_stream_from_template(template)
            for packet in packets:
                packet.pts -= begin
                packet.dts -= begin
                packet.stream = stream
                output.mux_one(packet)
    except (av.error.FFmpegError, ValueError) as error:
        raise _NotCopiedError(f"the MP4 writer refused: {error}") from None
    return target.getvalue()


def encode_video(source: Source, start: float | None, end: float | None, limits: Limits) -> CutVideo:
    """As `cut_video`, always encoded anew: H.264, visually lossless, with one thread so that bytes are reproducible."""
    tally = Tally()
    target = io.BytesIO()
    stream: Any = None
    size: tuple[int, int] | None = None
    origin, announced, codec = _origin(source, limits)
    if start is not None and announced is not None:
        _check_interval(start, end, announced)
    with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as output:
        for picture in decode_pictures(source, limits, tally, start, end):
            image = picture.rgb()
            if stream is None or size is None:
                size = image.shape[:2]
                stream = output.add_stream("libx264", rate=_CLOCK, options={"crf": "16", "preset": "fast"})
                stream.height, stream.width = size
                # Pictures of odd size have no half-resolution colour; those keep colour at full resolution.
                stream.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
                stream.codec_context.time_base = Fraction(1, _CLOCK)
                stream.codec_context.thread_count = 1
            if image.shape[:2] != size:
                raise MediaError("damaged", f"the picture size changes from {size} to {image.shape[:2]}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = round(picture.time * _CLOCK)
            frame.time_base = Fraction(1, _CLOCK)
            output.mux(stream.encode(frame))
            limits.check_bytes(target.tell(), "the encoded clip")
        if stream is not None:
            output.mux(stream.encode(None))
    if stream is None and start is not None:
        raise MediaError("bad_interval", f"no picture of {codec} is shown in {start:g} to {end:g} s")
    tally.check(limits)
    data = set_edit_length(target.getvalue(), tally.end)
    return CutVideo(data, False, origin + exact(start or 0.0), announced if start is None else None, tally.good)


def _origin(source: Source, limits: Limits) -> tuple[Fraction, float | None, str]:
    with open_media(source, limits) as container:
        stream = video_stream(container, limits)
        return start_of(stream), _announced(stream, container), stream.codec_context.name


def set_edit_length(data: bytes, seconds: Fraction) -> bytes:
    """The MP4 with the length of its one track's last edit set (ISO/IEC 14496-12, 8.6.6): pictures after it are in
    the file because others refer to them, but are not shown. Without an edit list the bytes stay as they are."""
    moov = _box(data, 0, len(data), b"moov")
    header = moov and _box(data, *moov, b"mvhd")
    track = moov and _box(data, *moov, b"trak")
    edits = track and _box(data, *track, b"edts")
    entries = edits and _box(data, *edits, b"elst")
    if not header or not entries:
        return data
    long = data[header[0]] == 1
    timescale = struct.unpack_from(">I", data, header[0] + (20 if long else 12))[0]
    version, count = data[entries[0]], struct.unpack_from(">I", data, entries[0] + 4)[0]
    width = 20 if version == 1 else 12
    last = entries[0] + 8 + (count - 1) * width
    if not count or last + width > entries[1]:
        return data
    changed = bytearray(data)
    struct.pack_into(">Q" if version == 1 else ">I", changed, last, max(1, int(seconds * timescale)))
    return bytes(changed)


def _box(data: bytes, start: int, stop: int, kind: bytes) -> tuple[int, int] | None:
    """[begin, end) of the content of the first box of a kind among those in [start, stop)."""
    while start + 8 <= stop:
        size, found = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= stop:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        elif size == 0:
            size = stop - start
        if size < head or start + size > stop:
            return None
        if found == kind:
            return start + head, start + size
        start += size
    return None
