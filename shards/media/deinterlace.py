"""Makes whole pictures of interlaced ones: as many as before, at the same times."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
from av.filter import Graph

_SMALLEST = 4  # pixels on a side, below which the filter refuses a picture


@dataclass(frozen=True)
class Shown:
    """A decoded picture. time: seconds on the file's own clock; length: seconds until the next one, as announced;
    corrupt, interlaced: as the decoder marked it."""

    frame: Any
    time: Fraction
    length: Fraction
    corrupt: bool
    interlaced: bool


class Deinterlacer:
    """Passes pictures through until the first one that is marked interlaced; from there on through FFmpeg's bwdif
    (which leaves progressive pictures as they are), one picture for each, one picture later."""

    def __init__(self) -> None:
        self._filter: tuple[Graph, Any, Any] | None = None
        self._form: tuple[int, int, str] | None = None
        self._inside: deque[Shown] = deque()

    def __call__(self, pictures: Sequence[Shown]) -> list[Shown]:
        ready: list[Shown] = []
        for picture in pictures:
            frame = picture.frame
            form = (frame.width, frame.height, frame.format.name)
            if self._filter is not None and form != self._form:
                ready += self.rest()
            if self._filter is None and picture.interlaced and min(form[:2]) >= _SMALLEST:
                self._filter, self._form = _bwdif(frame), form
            if self._filter is None:
                ready.append(picture)
                continue
            self._inside.append(picture)
            self._filter[1].push(frame)
            ready += self._finished()
        return ready

    def rest(self) -> list[Shown]:
        """The pictures that are still inside."""
        if self._filter is None:
            return []
        self._filter[1].push(None)
        ready = self._finished()
        self._filter, self._form = None, None
        self._inside.clear()
        return ready

    def _finished(self) -> list[Shown]:
        assert self._filter is not None
        ready = []
        while self._inside:
            try:
                frame = self._filter[2].pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            ready.append(replace(self._inside.popleft(), frame=frame))
        return ready


def _bwdif(frame: Any) -> tuple[Graph, Any, Any]:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(frame.time_base)
    )
    bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    return graph, source, sink
