"""Makes whole pictures of interlaced ones: as many as before, at the same times."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from shards.media.libraries import Graph, av

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
    (which leaves progressive pictures as they are), one picture for each, a little later."""

    def __init__(self) -> None:
        self._filter: tuple[Graph, Any, Any] | None = None
        self._form: tuple[int, int, str] | None = None
        self._first: Shown | None = None
        self._inside: deque[Shown | None] = deque()

    def __call__(self, pictures: Sequence[Shown]) -> list[Shown]:
        ready: list[Shown] = []
        for picture in pictures:
            frame = picture.frame
            form = (frame.width, frame.height, frame.format.name)
            if form != self._form:
                ready += self.rest()
            if self._filter is None and self._first is None:
                if picture.interlaced and min(form[:2]) >= _SMALLEST:
                    self._first, self._form = picture, form
                else:
                    ready.append(picture)
                continue
            if self._first is not None:
                # What moves shows beside a neighbour only: the first picture's next one goes before it, too.
                self._begin(self._first, frame)
            self._push(picture)
            ready += self._finished()
        return ready

    def _begin(self, first: Shown, neighbour: Any) -> None:
        self._filter, self._first = _bwdif(first.frame), None
        self._inside.append(None)
        self._filter[1].push(neighbour)
        self._push(first)

    def _push(self, picture: Shown) -> None:
        assert self._filter is not None
        self._inside.append(picture)
        self._filter[1].push(picture.frame)

    def rest(self) -> list[Shown]:
        """The pictures that are still inside."""
        if self._filter is None:
            ready = [] if self._first is None else [self._first]
        else:
            self._filter[1].push(None)
            ready = self._finished()
        self._filter, self._first, self._form = None, None, None
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
            picture = self._inside.popleft()
            if picture is not None:
                ready.append(replace(picture, frame=frame))
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
