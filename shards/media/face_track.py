"""From faces in single pictures to one face over time: tracked, smoothed, padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.media.frames import Box

CROPS = ("follow", "union", "none")
_SAME_FACE = 0.3  # intersection over union of a face's boxes in neighbouring pictures
_MOST_GAP = 2.0  # seconds that a face may be lost without becoming another one
_FEWEST_SEEN = 3
_LEAST_SHARE = 0.2
_SMOOTHING = 0.35  # seconds: standard deviation of the Gaussian
_PADDING = 0.1  # of a box's side, on each side: the boxes end at brows and chin


@dataclass(frozen=True)
class FaceTrack:
    """The most prominent face of a clip. times: (n,) seconds; boxes: (n, 4) (left, top, right, bottom) as shares of the
    upright picture, smoothed and padded; seen: share of the searched pictures in which the face itself was found."""

    times: np.ndarray
    boxes: np.ndarray
    seen: float

    def at(self, time: float) -> Box:
        """The box at a time: linear between the searched pictures, constant before the first and after the last."""
        left, top, right, bottom = (float(np.interp(time, self.times, self.boxes[:, i])) for i in range(4))
        return left, top, right, bottom

    def union(self) -> Box:
        """The smallest box that holds the face throughout (as the published preprocessing crops)."""
        low, high = self.boxes.min(axis=0), self.boxes.max(axis=0)
        return float(low[0]), float(low[1]), float(high[2]), float(high[3])

    def to_dict(self) -> dict[str, Any]:
        """For JSON; four decimals are half a pixel of 4K."""
        return {
            "times": [round(float(time), 4) for time in self.times],
            "boxes": [[round(float(value), 4) for value in box] for box in self.boxes],
            "seen": round(self.seen, 4),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FaceTrack:
        """Inverse of `to_dict`; ValueError for anything that is no track."""
        try:
            times, boxes = np.array(data["times"], np.float64), np.array(data["boxes"], np.float64)
            seen = float(data["seen"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"face track cannot be read: {error!r}") from None
        good = times.ndim == 1 and len(times) and boxes.shape == (len(times), 4)
        if not good or not (np.isfinite(times).all() and np.isfinite(boxes).all()) or (np.diff(times) <= 0).any():
            raise ValueError("face track: expected rising times and a box of four finite numbers for each")
        return cls(times, boxes, seen)


def track_face(times: Sequence[float], found: Sequence[np.ndarray], aspect: float) -> FaceTrack | None:
    """The most prominent face over the searched pictures, or None.

    times: (n,) seconds; found: for each the (k, 4) boxes of a `FaceDetector`; aspect: width / height of the picture.
    Boxes of neighbouring pictures that overlap are one face; of several faces that with the largest sum of areas wins,
    so neither a passer-by nor a single false alarm does. Less than three boxes, or boxes in less than a fifth of the
    pictures, are no face.
    """
    tracks: list[list[int]] = []
    boxes: list[list[np.ndarray]] = []
    for number, candidates in enumerate(found):
        free = list(candidates)
        # The longest-living faces choose first.
        for track, own in sorted(zip(tracks, boxes, strict=True), key=lambda pair: -len(pair[0])):
            if not free or times[number] - times[track[-1]] > _MOST_GAP:
                continue
            overlaps = [_overlap(own[-1], box) for box in free]
            best = int(np.argmax(overlaps))
            if overlaps[best] >= _SAME_FACE:
                track.append(number)
                own.append(free.pop(best))
        for box in free:
            tracks.append([number])
            boxes.append([box])
    if not tracks:
        return None
    winner = max(range(len(tracks)), key=lambda i: sum(_area(box) for box in boxes[i]))
    needed = max(min(_FEWEST_SEEN, len(times)), _LEAST_SHARE * len(times))
    if len(tracks[winner]) < needed:
        return None
    at = np.array([times[number] for number in tracks[winner]], np.float64)
    everywhere = np.array(times, np.float64)
    dense = np.stack([np.interp(everywhere, at, np.array(boxes[winner])[:, i]) for i in range(4)], axis=1)
    return FaceTrack(everywhere, _square(_smooth(everywhere, dense), aspect), len(at) / len(times))


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return float(width * height / (_area(a) + _area(b) - width * height))


def _smooth(times: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Running median of three against single wrong boxes, then a Gaussian over time against their jitter."""
    padded = np.concatenate([boxes[:1], boxes, boxes[-1:]])
    median = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
    weights = np.exp(-0.5 * ((times[:, None] - times[None]) / _SMOOTHING) ** 2)
    return weights / weights.sum(axis=1, keepdims=True) @ median


def _square(boxes: np.ndarray, aspect: float) -> np.ndarray:
    """Padded squares (in pixels, hence the aspect) of one side throughout, moved into the picture where they fit."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = np.maximum((boxes[:, 2] - boxes[:, 0]) * aspect, boxes[:, 3] - boxes[:, 1]) * (1 + 2 * _PADDING)
    height = np.minimum(sides, min(1.0, aspect))  # as a share of the picture's height
    half = np.stack([height / aspect, height], axis=1) / 2
    centre = np.clip(centre, half, 1 - half)
    return np.clip(np.concatenate([centre - half, centre + half], axis=1), 0.0, 1.0)
