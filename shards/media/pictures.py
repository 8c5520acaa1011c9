"""Decodes the pictures of a video in the order they are shown, and counts what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from shards.media.limits import Limits, MediaError
from shards.media.probe import Source, exact, open_media, seconds_of, start_of, video_stream


@dataclass
class Tally:
    """What decoding met: good pictures, damaged ones (undecodable packets, corrupt or misplaced pictures), and the
    time at which the last good picture ends, in seconds of the clip."""

    good: int = 0
    damaged: int = 0
    end: Fraction = Fraction(0)

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
class Picture:
    """time: seconds from the clip's begin, when the picture appears; length: seconds until the next one, as announced;
    frame: the decoded PyAV frame; rotation: quarter turns counter-clockwise that show it upright."""

    time: Fraction
    length: Fraction
    frame: Any
    rotation: int

    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8, upright."""
        pixels = self.frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(pixels, self.rotation)) if self.rotation else pixels


def decode_pictures(
    source: Source, limits: Limits, tally: Tally, start: float | None = None, end: float | None = None
) -> Iterator[Picture]:
    """Good pictures shown in [start, end) (seconds from the first picture; None: the whole video), in order.

    The video's own clock counts, not the number of pictures, so variable frame rates need no care. Raises MediaError
    for files that can't be opened and for clips longer than allowed; `tally` gathers the rest.
    """
    with open_media(source, limits) as container:
        stream = video_stream(container, limits)
        if start is None and end is None:
            limits.check_seconds(seconds_of(stream, container) or 0.0)
        # Before the interval pictures must be decoded from a key frame on; they are not shown.
        origin = start_of(stream)
        if start:
            _seek(container, stream, origin + exact(start))
        yield from _shown(container, stream, limits, tally, origin, start, end)


def _shown(
    container: Any,
    stream: Any,
    limits: Limits,
    tally: Tally,
    origin: Fraction,
    start: float | None,
    end: float | None,
) -> Iterator[Picture]:
    first, last = exact(start or 0.0), None if end is None else exact(end)
    usual = 1 / Fraction(stream.average_rate) if stream.average_rate else Fraction(1, 25)
    previous: Fraction | None = None
    begun = False
    for frames, failed in _decoded(container, stream):
        if begun or start is None:
            tally.damaged += failed
        for frame in frames:
            length = frame.duration * Fraction(frame.time_base) if frame.duration else usual
            if frame.pts is None:
                time = Fraction(0) if previous is None else previous + usual
            else:
                time = frame.pts * Fraction(frame.time_base) - origin
            if previous is None and start is None:
                # A stream may announce another start than that of its first picture: the clip begins with a picture.
                origin, time = origin + time, Fraction(0)
            if time < first:
                continue
            if last is not None and time >= last:
                return
            begun = True
            if frame.is_corrupt or (previous is not None and time <= previous):
                tally.damaged += 1
                continue
            previous = time
            shown = time - first
            limits.check_seconds(float(shown))
            tally.good += 1
            tally.end = time - first + length if last is None else min(time + length, last) - first
            yield Picture(shown, tally.end - shown, frame, round(frame.rotation / 90) % 4)


def _decoded(container: Any, stream: Any) -> Iterator[tuple[list[Any], int]]:
    """(frames, number of failures) of each packet; ends where the file ends or can't be read any further."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.InvalidDataError, av.error.EOFError):
            yield [], 1
            return
        if packet is None:
            return
        try:
            yield packet.decode(), 0
        except av.error.EOFError:
            return
        except av.error.InvalidDataError:
            yield [], 1
        except av.error.FFmpegError as error:
            # Sizes beyond max_pixels and memory beyond reason end here, not in the memory of this machine.
            raise MediaError("damaged", f"decoding stopped: {error.strerror or error}") from None


def _seek(container: Any, stream: Any, time: Fraction) -> None:
    """To the key frame at or before a time; formats without an index land anywhere, so they are read from the begin."""
    if "mpeg" in container.format.name.split(","):
        return
    try:
        container.seek(int(time / Fraction(stream.time_base)), stream=stream, backward=True, any_frame=False)
    except av.error.FFmpegError:
        container.seek(0)
