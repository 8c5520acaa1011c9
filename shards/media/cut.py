"""Cuts a video to an interval without encoding it again wherever that is possible.

The packets from the key frame before the interval up to its last picture are copied into an MP4; an edit list hides
what lies before the interval and what comes after it, so every player shows exactly the interval. What MP4 can't hold,
what has no usable timestamps, or what would carry too much in front of it is encoded again as H.264.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from shards.media.libraries import av
from shards.media.limits import Limits, MediaError
from shards.media.pictures import Tally, decode_pictures
from shards.media.probe import (
    Source,
    exact,
    open_media,
    seconds_of,
    seek,
    start_of,
    steps_back,
    taken,
    video_stream,
)

_COPIED = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "av1", "vp9", "mjpeg"})
# Where these begin within a group of pictures, readers disagree on which picture the edit list means.
_COPIED_WHOLE_ONLY = frozenset({"mpeg1video", "mpeg2video"})
# Of these AVI knows neither the order in which pictures are shown nor the time.
_SHUFFLED = frozenset({"h264", "hevc"})
_READ_BACK = 16  # seconds, further than which no key frame is looked for to copy from, if the limits don't say so
_CLOCK = 90_000
# Visually lossless. Macroblock trees gave one small file in 100 other bytes, from the same pictures on one thread.
_ENCODER = {"crf": "16", "preset": "fast", "mbtree": "0"}
# Labels give intervals in round numbers: one that begins this little before the pictures, or ends this little after
# them, is cut where they begin or end.
_OVERHANG = 0.5


@dataclass(frozen=True)
class CutVideo:
    """data: an MP4 that shows the interval, its first picture at time 0. copied: whether its packets are the source's
    own. origin: when its first picture is shown, in seconds from the source's start; length: seconds that it lasts.
    times: of its pictures, in seconds from the first one, by the source's time stamps; damaged: pictures that could not
    be read, and are not in it; deinterlaced: how many were interlaced. announced: seconds that the source claims for
    the whole (None: no claim, or an interval). track: the stream taken (`shards.media.probe.taken`)."""

    data: bytes
    copied: bool
    origin: Fraction
    length: Fraction
    times: tuple[Fraction, ...]
    track: dict[str, Any]
    damaged: int = 0
    deinterlaced: int = 0
    announced: float | None = None

    @property
    def expected(self) -> int:
        """Number of pictures."""
        return len(self.times)


@dataclass(frozen=True)
class _Interval:
    """Seconds from the file's start; None: from its begin, to its end. covered: whether the file must have pictures
    all through it."""

    start: Fraction | None
    end: Fraction | None
    covered: bool

    def check(self, first: Fraction, last: Fraction, before: bool, after: bool, usual: Fraction) -> None:
        """Refuse an interval that leaves the pictures by more than labels are rounded. first, last: when pictures begin
        and end within it; before, after: whether there are pictures on either side of it."""
        if not self.covered or self.start is None or self.end is None:
            return
        late, early = first - self.start, self.end - last
        if not before and late > max(exact(_OVERHANG), usual):
            self._refuse(f"the first picture is shown at {float(first):.2f} s")
        if not after and early > max(exact(_OVERHANG), usual):
            self._refuse(f"the last picture ends at {float(last):.2f} s")

    def _refuse(self, found: str) -> None:
        assert self.start is not None and self.end is not None
        span = f"{float(self.start):g} to {float(self.end):g} s"
        raise MediaError("bad_interval", f"the interval {span} leaves the video: {found}")


class _NotCopiedError(Exception):
    """The packets can't be copied; the message says why."""


def cut_video(
    source: Source, start: float | None, end: float | None, limits: Limits, reencode: bool = False
) -> CutVideo:
    """The pictures shown in [start, end) seconds from the file's start (None: all) as an MP4 without sound.

    The file's start is that of `shards.media.probe.start_of`. reencode: encode also what could be copied: as H.264,
    visually lossless, upright, deinterlaced, with square pixels, and with one thread so that bytes are reproducible.
    Raises MediaError: `bad_interval`, `too_long`, `too_many_bytes`, `no_video`, ...
    """
    if (start is None) != (end is None) or (start is not None and end is not None and not 0 <= start < end):
        raise MediaError("bad_interval", f"the interval is {start} to {end} s")
    if start is not None and end is not None:
        limits.check_seconds(end - start)
        return _cut(source, _Interval(exact(start), exact(end), True), limits, reencode)
    return _cut(source, _Interval(None, None, False), limits, reencode)


def cut_until(source: Source, start: float | None, end: Fraction, limits: Limits, reencode: bool = False) -> CutVideo:
    """As `cut_video`, without asking that the pictures reach from `start` (None: wherever they begin) to `end`."""
    return _cut(source, _Interval(None if start is None else exact(start), end, False), limits, reencode)


def _cut(source: Source, interval: _Interval, limits: Limits, reencode: bool) -> CutVideo:
    if not reencode:
        try:
            return _copy(source, interval, limits)
        except _NotCopiedError:
            pass
    return _encode(source, interval, limits)


def _copy(source: Source, interval: _Interval, limits: Limits) -> CutVideo:
    number = 0
    while True:
        with open_media(source, limits) as container:
            stream, zero = video_stream(container, limits), start_of(container)
            codec = stream.codec_context.codec.canonical_name
            if codec not in _COPIED:
                raise _NotCopiedError(f"MP4 does not hold {codec}")
            if interval.start and codec in _COPIED_WHOLE_ONLY:
                raise _NotCopiedError(f"{codec} is not cut at a picture")
            if container.format.name == "avi" and codec in _SHUFFLED and stream.codec_context.has_b_frames:
                raise _NotCopiedError("AVI does not say when its pictures are shown")
            announced = _announced(stream, container)
            if interval.start is None:
                limits.check_seconds(seconds_of(stream, container) or 0.0)
            _check_announced(interval, announced, stream, zero)
            steps = (None,) if interval.start is None else steps_back(container, interval.start)
            back = steps[number]
            if back is not None and interval.start is not None:
                if interval.start and not seek(container, stream, zero + interval.start - back):
                    number = len(steps) - 1
                    continue
                if back > max(limits.max_preroll_seconds, _READ_BACK):
                    raise _NotCopiedError("the key frame before the interval lies too far back")
            selection = _select(container, stream, interval, zero, limits, from_begin=back is None)
            if selection is None:
                number += 1
                continue
            return _muxed(stream, selection, interval, zero, announced, limits)


def _announced(stream: Any, container: Any) -> float | None:
    """The video's own length, where its container keeps a record of it rather than guess from what is there."""
    if stream.duration is None or "mpeg" in container.format.name or "mpegts" in container.format.name:
        return None
    return float(stream.duration * stream.time_base)


def _check_announced(interval: _Interval, announced: float | None, stream: Any, zero: Fraction) -> None:
    """Refuse what lies outside the video by the file's own account, before anything is read."""
    if announced is None or not interval.covered or interval.start is None or interval.end is None:
        return
    begin = Fraction(0) if stream.start_time is None else stream.start_time * Fraction(stream.time_base) - zero
    stop = begin + exact(announced)
    if interval.start >= stop or interval.end > stop + exact(_OVERHANG):
        span = f"the interval {float(interval.start):g} to {float(interval.end):g} s"
        raise MediaError("bad_interval", f"{span} leaves the video of {float(stop):.2f} s")


@dataclass
class _Selection:
    """Packets to copy, in file order, and the interval [shown_from, shown_to) in ticks of the stream. before, after:
    whether pictures outside the interval were met on that side."""

    packets: list[Any]
    shown_from: int
    shown_to: int
    before: bool
    after: bool


def _select(
    container: Any, stream: Any, interval: _Interval, zero: Fraction, limits: Limits, from_begin: bool
) -> _Selection | None:
    """From the last key frame at or before the interval to its end. None where reading began after that key frame."""
    clock = Fraction(stream.time_base)
    shown_from = -(1 << 62) if interval.start is None else _ticks(zero + interval.start, clock)
    shown_to = 1 << 62 if interval.end is None else _ticks(zero + interval.end, clock)
    chosen = _Selection([], shown_from, shown_to, False, False)
    packets: list[Any] = chosen.packets
    size, key_at = 0, None
    for packet in _video_packets(container, stream):
        if packet.pts is None:
            raise _NotCopiedError("packets have no timestamps")
        chosen.before = chosen.before or (packet.pts < shown_from and not packet.is_discard)
        chosen.after = chosen.after or packet.pts >= shown_to
        if packet.is_keyframe and (key_at is None or packet.pts <= shown_from):
            if packet.pts > shown_from and not from_begin:
                return None
            packets.clear()
            size, key_at = 0, packet.pts
        if packet.dts is not None and packet.dts >= shown_to:
            break
        if key_at is None:
            continue  # amid a group of pictures: it needs what is not there
        if packet.pts < key_at:
            # A leading picture of the key frame may need what was left out. Before the interval it is not shown.
            if packet.pts >= shown_from:
                raise _NotCopiedError("the first group of pictures is open")
            continue
        packets.append(packet)
        size += packet.size
        limits.check_bytes(size, "the encoded clip")
        limits.check_seconds(float((packet.pts - max(shown_from, packets[0].pts)) * clock))
    while packets and packets[-1].pts >= shown_to:
        packets.pop()
    if not packets:
        if not from_begin:
            return None
        raise _NotCopiedError("no key frame to begin with")
    if interval.start is not None and (shown_from - packets[0].pts) * clock > limits.max_preroll_seconds:
        raise _NotCopiedError("the key frame before the interval lies too far back")
    _complete_order(packets, 1 / Fraction(stream.average_rate or 25) / clock)
    return chosen


def _muxed(
    stream: Any, chosen: _Selection, interval: _Interval, zero: Fraction, announced: float | None, limits: Limits
) -> CutVideo:
    clock = Fraction(stream.time_base)
    usual = 1 / Fraction(stream.average_rate or 25)
    shown = [p for p in chosen.packets if chosen.shown_from <= p.pts < chosen.shown_to and not p.is_discard]
    if not shown:
        raise MediaError("bad_interval", "no picture is shown in the interval")
    # The clip begins with its first picture, so that it has the same clock in any player.
    times = sorted(p.pts for p in shown)
    begin, stop = times[0], max(p.pts + (p.duration or round(usual / clock)) for p in shown)
    if chosen.after:
        stop = max(stop, chosen.shown_to)  # the last picture stays until the next one, whatever its usual length
    interval.check(begin * clock - zero, stop * clock - zero, chosen.before, chosen.after, usual)
    length = (min(stop, chosen.shown_to) - begin) * clock
    data = set_edit_length(_mux(stream, chosen.packets, begin), length)
    exact_times = tuple((time - begin) * clock for time in times)
    whole = announced if interval.end is None else None
    return CutVideo(data, True, begin * clock - zero, length, exact_times, taken(stream), announced=whole)


def _complete_order(packets: list[Any], usual: Fraction) -> None:
    """Fill in the decoding times that Matroska leaves out of its first packets: one picture's length apart."""
    known = next((i for i, packet in enumerate(packets) if packet.dts is not None), None)
    if known is None or any(packet.dts is None for packet in packets[known:]):
        raise _NotCopiedError("packets have no decoding times")
    for i in range(known - 1, -1, -1):
        packets[i].dts = packets[i + 1].dts - max(1, round(usual))


def _ticks(time: Fraction, clock: Fraction) -> int:
    return -(-(time / clock).numerator // (time / clock).denominator)


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
            stream = output.add_stream_from_template(template, opaque=True)
            for packet in packets:
                packet.pts -= begin
                packet.dts -= begin
                packet.stream = stream
                output.mux_one(packet)
    except (av.error.FFmpegError, ValueError) as error:
        raise _NotCopiedError(f"the MP4 writer refused: {error}") from None
    return target.getvalue()


def _encode(source: Source, interval: _Interval, limits: Limits) -> CutVideo:
    with open_media(source, limits) as container:
        original, zero = video_stream(container, limits), start_of(container)
        announced, codec = _announced(original, container), original.codec_context.codec.canonical_name
        _check_announced(interval, announced, original, zero)
        usual, track = 1 / Fraction(original.average_rate or 25), taken(original)
    tally = Tally()
    target = io.BytesIO()
    stream: Any = None
    size: tuple[int, int] | None = None
    times: list[Fraction] = []
    start, end = (None if time is None else float(time) for time in (interval.start, interval.end))
    with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as output:
        for picture in decode_pictures(source, limits, tally, start, end):
            image = picture.rgb()
            if stream is None or size is None:
                size = image.shape[:2]
                stream = output.add_stream("libx264", rate=_CLOCK, options=_ENCODER)
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
            times.append(picture.time)
            output.mux(stream.encode(frame))
            limits.check_bytes(target.tell(), "the encoded clip")
        if stream is not None:
            output.mux(stream.encode(None))
    if stream is None and start is not None:
        raise MediaError("bad_interval", f"no picture of {codec} is shown in {start:g} to {end:g} s")
    tally.check(limits)
    interval.check(tally.begin, tally.begin + tally.end, tally.before, tally.after, usual)
    data = set_edit_length(target.getvalue(), tally.end)
    whole = announced if interval.end is None else None
    return CutVideo(
        data, False, tally.begin, tally.end, tuple(times), track, tally.damaged, tally.interlaced, announced=whole
    )


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
