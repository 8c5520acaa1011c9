"""Decodes the pictures of a video in the order and the form in which they are shown, and counts what is damaged.

As shown: turned and flipped as the display matrix says, deinterlaced, with square pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np

from shards.media.deinterlace import Deinterlacer, Shown
from shards.media.libraries import av
from shards.media.limits import Limits, MediaError
from shards.media.probe import Source, exact, open_media, seconds_of, seek, start_of, steps_back, video_stream

# Decoders of this family show grey smears where they have not seen a key frame; all others wait for one.
_WAIT_FOR_KEY = frozenset(
    {"mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4v3", "h263", "flv1", "wmv1", "wmv2"}
)
# Pixels whose sides differ more than this come from damaged headers.
_LONGEST_PIXEL = 8


@dataclass
class Tally:
    """What decoding met, with times in seconds from the first good picture.

    good, damaged: pictures (damaged: undecodable packets, corrupt or misplaced pictures). begin: of the first good
    picture, in seconds from the file's start (`shards.media.probe.start_of`). last: when the last good picture appears;
    end: when it ends, but not after the interval. before, after: whether a picture outside the interval was met on that
    side, so that the interval is known to be covered there. interlaced: pictures that the decoder marked so.
    """

    good: int = 0
    damaged: int = 0
    begin: Fraction = Fraction(0)
    last: Fraction = Fraction(0)
    end: Fraction = Fraction(0)
    before: bool = False
    after: bool = False
    interlaced: int = 0

    def check(self, limits: Limits) -> None:
        """Raise MediaError where nothing could be decoded, or a larger share is damaged than allowed."""
        if not self.good:
            raise MediaError("no_video", f"no picture could be decoded ({self.damaged} damaged packets)")
        share = self.damaged / (self.good + self.damaged)
        if share > limits.max_damaged_share:
            raise MediaError(
                "damaged",
                f"{self.damaged} of {self.good + self.damaged} pictures are damaged, allowed is a share of "
                f"{limits.max_damaged_share:g}",
            )


@dataclass(frozen=True)
class Orientation:
    """How a stored picture is shown: first mirrored along its main diagonal (`transposed`), then left to right
    (`mirrored`) and top to bottom (`flipped`). The eight values are all quarter turns and their mirror images."""

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    @classmethod
    def of(cls, frame: Any) -> Orientation:
        """By the display matrix (ISO/IEC 14496-12, 6.2.2), rounded to quarter turns: x' = a x + c y, y' = b x + d y."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return _UPRIGHT
        a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), np.int32)[:5])
        if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) upright."""
        if self.transposed:
            pixels = pixels.transpose(1, 0, 2)
        pixels = pixels[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]
        return np.ascontiguousarray(pixels)


_UPRIGHT = Orientation()


@dataclass(frozen=True)
class Picture:
    """time: seconds from the clip's first picture, when this one appears; length: seconds until the next one, as
    announced; frame: the decoded PyAV frame; pixel_aspect: width / height of its pixels."""

    time: Fraction
    length: Fraction
    frame: Any
    pixel_aspect: Fraction = Fraction(1)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of `rgb`."""
        height, width = self.frame.height, self._width
        return (width, height) if Orientation.of(self.frame).transposed else (height, width)

    @property
    def _width(self) -> int:
        """With square pixels: the height stays, as players do it."""
        width = self.frame.width
        if self.pixel_aspect == 1:
            return int(width)
        step = 2 - width % 2  # an even width stays even, so that colour can be stored at half resolution
        return max(step, round(width * self.pixel_aspect / step) * step)

    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8, upright, with square pixels."""
        frame = self.frame
        if self._width == frame.width:
            pixels = frame.to_ndarray(format="rgb24")
        else:
            square = frame.reformat(width=self._width, height=frame.height, format="rgb24", interpolation="BICUBIC")
            pixels = square.to_ndarray()
        orientation = Orientation.of(frame)
        return pixels if orientation == _UPRIGHT else orientation(pixels)


def decode_pictures(
    source: Source, limits: Limits, tally: Tally, start: float | None = None, end: float | None = None
) -> Iterator[Picture]:
    """Good pictures shown in [start, end), seconds from the file's start (None: from its begin, to its end), in order.

    The video's own clock counts, not the number of pictures, so variable frame rates need no care. A seek is never
    trusted: what is decoded first must lie at or before `start`. Raises MediaError for files that can't be opened and
    for clips longer than allowed; `tally` gathers the rest.
    """
    first, last = None if start is None else exact(start), None if end is None else exact(end)
    with ExitStack() as stack:
        stream, decoded, zero = _approach(source, limits, first, stack)
        if first is None and last is None:
            limits.check_seconds(seconds_of(stream, stream.container) or 0.0)
        aspect = _pixel_aspect(stream)
        previous: Fraction | None = None
        for pictures, failed in decoded:
            if tally.good or first is None:
                tally.damaged += failed
            for shown in pictures:
                time = shown.time - zero
                if first is not None and time < first:
                    tally.before = True
                    continue
                if last is not None and time >= last:
                    tally.after = True
                    if tally.good:
                        tally.end = last - tally.begin  # the last picture stays until this one
                    return
                if shown.corrupt or (previous is not None and time <= previous):
                    tally.damaged += 1
                    continue
                if previous is None:
                    tally.begin = time
                previous = time
                limits.check_seconds(float(time - tally.begin))
                tally.good += 1
                tally.interlaced += shown.interlaced
                tally.last = time - tally.begin
                until = time + shown.length
                tally.end = (until if last is None else min(until, last)) - tally.begin
                picture = Picture(tally.last, tally.end - tally.last, shown.frame, aspect)
                if aspect != 1:
                    limits.check_pixels(*picture.size)
                yield picture


def _pixel_aspect(stream: Any) -> Fraction:
    aspect = stream.sample_aspect_ratio
    if not aspect or not 1 / _LONGEST_PIXEL <= aspect <= _LONGEST_PIXEL:
        return Fraction(1)
    return Fraction(aspect)


def _approach(
    source: Source, limits: Limits, first: Fraction | None, stack: ExitStack
) -> tuple[Any, Iterator[tuple[list[Shown], int]], Fraction]:
    """The stream, its pictures from one at or before `first` (or the file's begin) on, and the file's time zero. The
    file stays open until `stack` closes."""
    number = 0
    while True:
        with ExitStack() as attempt:
            container = attempt.enter_context(open_media(source, limits))
            stream, zero = video_stream(container, limits), start_of(container)
            steps = (None,) if first is None else steps_back(container, first)
            decoded = _timed(container, stream)
            back = steps[number]
            if first is None or back is None:
                stack.enter_context(attempt.pop_all())
                return stream, decoded, zero
            if not seek(container, stream, zero + first - back):
                number = len(steps) - 1
                continue
            head = []
            for shown, failed in decoded:
                head.append((shown, failed))
                if shown:
                    break
            if head and head[-1][0] and head[-1][0][0].time - zero <= first:
                stack.enter_context(attempt.pop_all())
                return stream, chain(head, decoded), zero
            number += 1


def _timed(container: Any, stream: Any) -> Iterator[tuple[list[Shown], int]]:
    """(pictures, number of failures) of each packet: deinterlaced, with their times on the file's own clock.

    What comes before the first key frame is not counted: a recording may begin amid a group of pictures.
    """
    usual = 1 / Fraction(stream.average_rate) if stream.average_rate else Fraction(1, 25)
    # AVI knows when a picture is decoded, not when it is shown: decoded one after the other, they are shown so.
    in_order = container.format.name == "avi"
    # Of several pictures in a pack the first alone has a time; the demuxer's guesses for the others may be one late,
    # and the next pack's first picture is then stamped as the last of them.
    guessed = container.format.name == "mpeg"
    waiting = stream.codec_context.codec.canonical_name in _WAIT_FOR_KEY
    deinterlacer = Deinterlacer()
    previous: Fraction | None = None
    keyed = False
    for frames, failed, is_key in _decoded(container, stream):
        keyed = keyed or is_key
        shown = []
        for frame in frames:
            clock = Fraction(frame.time_base)
            length = frame.duration * clock if frame.duration else usual
            stamp = frame.dts if in_order else frame.pts
            # Pictures without a time follow one another.
            follows = start_of(container) if previous is None else previous + usual
            time = follows if stamp is None else stamp * clock
            if guessed and previous is not None and previous - 2 * usual < time <= previous:
                time = previous + usual / 4
            if (waiting and not frame.key_frame) or (frame.is_corrupt and not keyed):
                continue
            waiting, previous = False, time
            shown.append(Shown(frame, time, length, bool(frame.is_corrupt), bool(frame.interlaced_frame)))
        yield deinterlacer(shown), failed if keyed else 0
    yield deinterlacer.rest(), 0


def _decoded(container: Any, stream: Any) -> Iterator[tuple[list[Any], int, bool]]:
    """(frames, number of failures, whether it is a key frame's) of each packet; ends where the file ends or can't be
    read any further."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.InvalidDataError, av.error.EOFError):
            yield [], 1, False
            return
        if packet is None:
            return
        is_key = packet.is_keyframe
        try:
            yield packet.decode(), 0, is_key
        except av.error.EOFError:
            return
        except av.error.InvalidDataError:
            yield [], 1, is_key
        except av.error.FFmpegError as error:
            # Sizes beyond max_pixels and memory beyond reason end here, not in the memory of this machine.
            raise MediaError("damaged", f"decoding stopped: {error.strerror or error}") from None
