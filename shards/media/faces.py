"""Finds faces in the pictures of a clip, with the cascades that come inside the OpenCV package (Viola & Jones 2001)."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shards.media.libraries import cv2

# Pictures are searched at this size; a face of less than a tenth of it is not a talking face.
_LONGEST_SIDE = 320
_SMALLEST_SHARE = 0.1
_NEIGHBOURS = 4
_SCALE_STEP = 1.15
# What a face may look like, in the order tried: cascade, degrees by which the picture is turned first, mirrored.
_VIEWS = (
    ("frontal", 0, False),
    ("frontal", 20, False),
    ("frontal", -20, False),
    ("profile", 0, False),
    ("profile", 0, True),
)
_FULL_SEARCH_EVERY = 5
_AROUND = 0.5  # of a box's side, on each side: how far a face moves between searched pictures


class FaceFinder:
    """Finds the faces of one clip, picture after picture.

    A face is looked for where it last was, and in the view (frontal, tilted, profile) that last showed it; every fifth
    picture, and whenever it isn't there, everywhere. Without that a search takes five times as long. ValueError where
    the installed OpenCV brings no cascades (version 5 and later don't).
    """

    def __init__(self) -> None:
        self._cascades = {
            "frontal": _cascade("haarcascade_frontalface_alt2.xml", threading.get_ident()),
            "profile": _cascade("haarcascade_profileface.xml", threading.get_ident()),
        }
        self._view = _VIEWS[0]
        self._last = np.empty((0, 4))
        self._count = 0

    def start_again(self) -> None:
        """Look everywhere in the next picture: it may be another shot's."""
        self._last, self._count = np.empty((0, 4)), 0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(n, 4) float64 boxes (left, top, right, bottom) as shares of width and height, of an (H, W, 3) uint8 RGB
        picture; n may be 0."""
        height, width = image.shape[:2]
        scale = min(1.0, _LONGEST_SIDE / max(height, width))
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if scale < 1.0:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        extent = np.array([grey.shape[1], grey.shape[0]] * 2, np.float64)
        found = np.empty((0, 4))
        if self._count % _FULL_SEARCH_EVERY:
            found = self._near(grey, self._last * extent)
        if not len(found):
            found = self._anywhere(grey)
        self._count += 1
        self._last = found / extent
        return self._last

    def _near(self, grey: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        found = []
        for left, top, right, bottom in boxes:
            side = right - left
            x, y = max(0, int(left - _AROUND * side)), max(0, int(top - _AROUND * side))
            region = grey[y : int(bottom + _AROUND * side), x : int(right + _AROUND * side)]
            here = self._search(np.ascontiguousarray(region), self._view, 0.7 * side, 1.4 * side)
            found += [box + np.array([x, y, x, y]) for box in here[:1]]
        return np.array(found).reshape(-1, 4)

    def _anywhere(self, grey: np.ndarray) -> np.ndarray:
        smallest = _SMALLEST_SHARE * max(grey.shape)
        for view in (self._view, *(view for view in _VIEWS if view != self._view)):
            found = self._search(grey, view, smallest, float(max(grey.shape)))
            if len(found):
                self._view = view
                return found
        return np.empty((0, 4))

    def _search(self, grey: np.ndarray, view: tuple[str, int, bool], smallest: float, largest: float) -> np.ndarray:
        """(n, 4) boxes in pixels, the largest first."""
        name, degrees, mirrored = view
        height, width = grey.shape
        if min(height, width) < 24:
            return np.empty((0, 4))
        seen = np.ascontiguousarray(grey[:, ::-1]) if mirrored else grey
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
        if degrees:
            seen = cv2.warpAffine(seen, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
        least, most = max(20, round(smallest)), max(24, round(largest))
        found = self._cascades[name].detectMultiScale(
            seen, _SCALE_STEP, _NEIGHBOURS, minSize=(least, least), maxSize=(most, most)
        )
        boxes = np.asarray(found, np.float64).reshape(-1, 4)
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        if degrees and len(boxes):
            back = cv2.invertAffineTransform(turn)
            centres = centres @ back[:, :2].T + back[:, 2]
        if mirrored:
            centres[:, 0] = width - centres[:, 0]
        half = boxes[:, 2:] / 2
        order = np.argsort(-boxes[:, 2], kind="stable")
        return np.concatenate([centres - half, centres + half], axis=1)[order]


@lru_cache(maxsize=8)
def _cascade(name: str, thread: int) -> Any:
    """One for each thread: reading it takes longer than searching a picture, and it holds the search's state."""
    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(
            f"the installed OpenCV {cv2.__version__} has no {name}; install opencv-python-headless below version 5"
        )
    return cv2.CascadeClassifier(str(path))
