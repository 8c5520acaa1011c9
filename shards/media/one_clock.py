"""Refuses recordings whose clock restarts or jumps: parts joined byte by byte, each with time stamps of its own.

In such a file one time means several moments, and which of them a seek finds is chance; players and annotation tools
count on in ways of their own. So no interval of it, and no whole, can be said to be what a label means.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from shards.media.libraries import av
from shards.media.limits import Limits, MediaError
from shards.media.probe import audio_stream, open_media, start_of, video_stream

RULE = 2  # one more whenever other recordings are refused than before: verdicts that were kept are by a rule
_BACK = 0.1  # seconds: less is jitter of a writer, or of a demuxer that has to guess decoding times
# MPEG streams carry a clock reference every tenth of a second. Programs that replay them take a larger step for a new
# clock (as ffmpeg does), others for a hole; so does a restart that looks like a wrap of 33 bits.
_AHEAD = 10.0  # seconds
_IN_A_ROW = 5  # packets of a stream: fewer are damaged time stamps
_MPEG = frozenset({"mpeg", "mpegts"})
_REMEDY_MPEG = "`ffmpeg -fflags +genpts -i FILE -c copy FILE.mkv` plays the parts one after the other"
_REMEDY = (
    "join the parts again with `ffmpeg -f concat -safe 0 -i LIST.txt -c copy FILE.mkv`, "
    "where LIST.txt has a line `file 'PART'` for each"
)


def check_clock(path: str | Path, limits: Limits) -> bool:
    """Raise MediaError `clock_jumps` where the decoding times of a stream to be used run backwards, or (MPEG streams)
    leap ahead in all of them at once. Only formats in which that can be are read, to their end: returns whether it
    was."""
    with open_media(path, limits) as container:
        names = set(container.format.name.split(","))
        if not _can_restart(names, path):
            return False
        used = [audio_stream(container)]
        with contextlib.suppress(MediaError):  # its pictures are not asked for, or are refused for a better reason
            used.append(video_stream(container, limits))
        streams = [stream for stream in used if stream is not None]
        if not streams:
            return False
        zero, leaps = float(start_of(container)), bool(names & _MPEG)
        watch = _Watch(leaps)
        for packet in _readable(container, streams):
            if packet.dts is None:
                continue
            jump = watch.add(packet.stream_index, float(packet.dts * packet.time_base), packet.pos)
            if jump is not None:
                raise MediaError("clock_jumps", _told(jump.before - zero, jump.after - zero, jump.place, leaps))
    return True


@dataclass(frozen=True)
class _Jump:
    """From and to which time, in seconds on the file's own clock; place: byte of the first packet after it."""

    before: float
    after: float
    place: int | None


@dataclass
class _Stream:
    """accepted: number of packets that lie on the clock; recent: the times of the last of them, oldest first; off: the
    jump that the packets since then would be, and how many they are."""

    accepted: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_IN_A_ROW))
    off: tuple[_Jump, int] | None = None

    def accept(self, time: float) -> None:
        # What was later, and is followed by this, was damaged.
        later = [other for other in self.recent if other > time]
        for other in later:
            self.recent.remove(other)
        self.recent.append(time)
        self.accepted, self.off = self.accepted + 1, None


class _Watch:
    """Tells a jump of the clock from damaged time stamps: by as many packets in a row on either side of it.

    So a packet runs back only where all of the last few do lie after it: if some do not, the others were stamped late.
    leaps: whether a leap ahead counts too.
    """

    def __init__(self, leaps: bool) -> None:
        self._leaps = leaps
        self._streams: dict[int, _Stream] = {}

    def add(self, number: int, time: float, place: int | None) -> _Jump | None:
        """The jump that is certain with this packet of a stream; time: when it is decoded, in seconds."""
        stream = self._streams.setdefault(number, _Stream())
        latest = max((other.recent[-1] for other in self._streams.values() if other.recent), default=time)
        back = all(time < other - _BACK for other in stream.recent)
        ahead = self._leaps and time > latest + _AHEAD
        if stream.accepted < _IN_A_ROW or not (back or ahead):
            stream.accept(time)
            return None
        if stream.off is None or (stream.off[0].after < stream.off[0].before) != back:
            stream.off = (_Jump(stream.recent[-1] if back else latest, time, place), 0)
        jump, count = stream.off
        stream.off = (jump, count + 1)
        if count + 1 < _IN_A_ROW:
            return None
        # Where the next pictures are as far from one another as the first of them from those before, they come slowly.
        if ahead and abs(time - jump.after) > (jump.after - jump.before) / 2:
            stream.accept(time)
            return None
        return jump


def _told(before: float, after: float, place: int | None, mpeg: bool) -> str:
    where = "" if place is None else f" at byte {place}"
    way = "back" if after < before else "ahead"
    return (
        f"the clock jumps {way} from {before:.2f} to {after:.2f} s{where}: parts with clocks of their own were joined. "
        f"Use the parts themselves, or {_REMEDY_MPEG if mpeg else _REMEDY}"
    )


def _readable(container: Any, streams: list[Any]) -> Any:
    """Packets up to where the file ends or can't be read any further, which is reported elsewhere."""
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            return
        if packet is None:
            return
        yield packet


def _can_restart(names: set[str], path: str | Path) -> bool:
    """Whether a file may hold a second clock. Where an index or a length stands in front of all that is read, what was
    appended after it is not."""
    if names & (_MPEG | {"ogg", "nut"}):
        return True
    with Path(path).open("rb") as file:
        if "matroska" in names:
            return not _one_segment(file, Path(path).stat().st_size)
        return "mp4" in names and _in_fragments(file)


def _in_fragments(file: BinaryIO) -> bool:
    """Whether an MP4 announces fragments (ISO/IEC 14496-12, 8.8.1): a box `mvex` in its first `moov`."""
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        skip = size - 8
        if size == 1:
            skip = struct.unpack(">Q", file.read(8).rjust(8, b"\0"))[0] - 16
        if kind == b"moov":
            return b"mvex" in file.read(max(0, skip))
        if skip < 0:
            break
        file.seek(skip, 1)
    return False


def _one_segment(file: BinaryIO, size: int) -> bool:
    """Whether a Matroska file is a header and one segment of known length up to its end (RFC 9559, 4.5)."""
    if file.read(4) != b"\x1a\x45\xdf\xa3":
        return False
    length = _variable(file)
    if length is None:
        return False
    file.seek(length, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return False
    length = _variable(file)
    return length is not None and file.tell() + length >= size


def _variable(file: BinaryIO) -> int | None:
    """An EBML number (RFC 8794, 4); None for "unknown" and for what is none."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    value = int.from_bytes(first + rest, "big") & ((1 << 7 * (more + 1)) - 1)
    return None if len(rest) < more or value == (1 << 7 * (more + 1)) - 1 else value
