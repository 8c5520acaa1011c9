"""Looks for the faces of a clip while its pictures are decoded: steadily, and where a shot may begin."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from shards.media.face_detector import FaceDetector
from shards.media.face_track import Faces, track_faces
from shards.media.faces import FaceFinder
from shards.media.frames import SteadyRate
from shards.media.limits import CASCADES
from shards.media.pictures import Picture
from shards.media.shots import ShotFinder

_RATE = 5.0  # pictures a second that are searched


class FaceSearch:
    """Takes every picture of a clip in order, and tells at the end where the faces are. finder: one of
    `limits.FINDERS`; weights: where those of the detector are.

    ValueError where the installed OpenCV brings no cascades, or the detector's weights are not there.
    """

    def __init__(self, finder: str = CASCADES, weights: str | None = None) -> None:
        self._finder = FaceFinder() if finder == CASCADES else _detector(weights, threading.get_ident())
        self._shots, self._chooser = ShotFinder(), SteadyRate(_RATE)
        self._times: list[float] = []
        self._found: list[np.ndarray] = []

    def add(self, picture: Picture, until: Fraction) -> None:
        """until: seconds at which the next picture replaces it."""
        time = float(picture.time)
        begins = self._shots.add(picture.frame, time)
        if begins:
            self._finder.start_again()
        if self._chooser.wants(until) or begins:
            self._times.append(time)
            self._found.append(self._finder(picture.rgb()))

    def cuts(self) -> list[float]:
        """Seconds, rising, at which another shot begins."""
        return self._shots.cuts()

    def faces(self, cuts: Sequence[float], end: float, aspect: float) -> Faces | None:
        """The faces of the clip, which has these cuts and ends at `end` (seconds); None where there is none. aspect:
        width / height."""
        return track_faces(self._times, self._found, cuts, end, aspect)


@lru_cache(maxsize=8)
def _detector(weights: str | None, thread: int) -> FaceDetector:
    """One for each thread, which holds the state of its network."""
    return FaceDetector(weights)
