"""From faces in single pictures to faces over time: tracked within shots, chosen track by track, smoothed, padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from shards.media.frames import Box

CROPS = ("follow", "union", "none")
# Of several faces at the same time: decided once for each track, so that a crop never jumps from one to the other.
RULE = "of several faces in a shot, the one with the largest sum of areas, as long as it is seen"
_SAME_FACE = 0.3  # intersection over union of a face's boxes in neighbouring pictures
_MOST_GAP = 1.0  # seconds that a face may be lost without its track coming to an end
_FEWEST_SEEN = 3
_LEAST_SHARE = 1 / 3  # of the pictures between a track's first and last box
_SMOOTHING = 0.35  # seconds: standard deviation of the Gaussian
_PADDING = 0.1  # of a box's side, on each side: the boxes end at brows and chin
TIME_ROUNDING = 1e-3  # seconds: less than any picture lasts, more than stored times are rounded by


@dataclass(frozen=True)
class FaceTrack:
    """One face, for as long as it is seen within one shot: [start, end) in seconds. times: (n,) seconds of the searched
    pictures; boxes: (n, 4) (left, top, right, bottom) as shares of the upright picture, smoothed and padded."""

    start: float
    end: float
    times: np.ndarray
    boxes: np.ndarray

    def holds(self, time: float) -> bool:
        """Whether the face is seen at a time."""
        return self.start - TIME_ROUNDING <= time < self.end - TIME_ROUNDING

    def at(self, time: float) -> Box:
        """The box at a time that the track holds: linear between the searched pictures."""
        left, top, right, bottom = (float(np.interp(time, self.times, self.boxes[:, i])) for i in range(4))
        return left, top, right, bottom

    def union(self) -> Box:
        """The smallest box that holds the face throughout (as the published preprocessing crops)."""
        low, high = self.boxes.min(axis=0), self.boxes.max(axis=0)
        return float(low[0]), float(low[1]), float(high[2]), float(high[3])


@dataclass(frozen=True)
class Faces:
    """The faces of a clip: at most one at any time (see `RULE`). tracks: in the order of time, none overlapping; cuts:
    seconds at which another shot begins; seen: share of the searched pictures in which a track's face was found;
    others: tracks of further faces that were passed over."""

    tracks: tuple[FaceTrack, ...]
    cuts: tuple[float, ...]
    seen: float
    others: int

    def track(self, time: float) -> FaceTrack | None:
        """The track that holds a time; None where no face is seen."""
        return next((track for track in self.tracks if track.holds(time)), None)

    def at(self, time: float) -> Box | None:
        """The box at a time; None where no face is seen."""
        track = self.track(time)
        return None if track is None else track.at(time)

    def union(self, time: float) -> Box | None:
        """The smallest box that holds the face at a time throughout its track; None where no face is seen."""
        track = self.track(time)
        return None if track is None else track.union()

    def to_dict(self) -> dict[str, Any]:
        """For JSON; four decimals are half a pixel of 4K."""
        tracks = [
            {
                "start": round(track.start, 4),
                "end": round(track.end, 4),
                "times": [round(float(time), 4) for time in track.times],
                "boxes": [[round(float(value), 4) for value in box] for box in track.boxes],
            }
            for track in self.tracks
        ]
        cuts = [round(cut, 4) for cut in self.cuts]
        return {"tracks": tracks, "cuts": cuts, "seen": round(self.seen, 4), "others": self.others}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Faces:
        """Inverse of `to_dict`; ValueError for anything that is not a track."""
        try:
            tracks = tuple(
                FaceTrack(
                    float(track["start"]),
                    float(track["end"]),
                    np.array(track["times"], np.float64),
                    np.array(track["boxes"], np.float64),
                )
                for track in data["tracks"]
            )
            cuts = tuple(float(cut) for cut in data["cuts"])
            seen, others = float(data["seen"]), int(data["others"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"face track cannot be read: {error!r}; build the clip shards again") from None
        ends = 0.0 - TIME_ROUNDING
        for track in tracks:
            good = track.times.ndim == 1 and len(track.times) and track.boxes.shape == (len(track.times), 4)
            if not good or not (np.isfinite(track.times).all() and np.isfinite(track.boxes).all()):
                raise ValueError("face track: expected times and a box of four finite numbers for each")
            if (np.diff(track.times) <= 0).any() or not ends <= track.start < track.end < np.inf:
                raise ValueError("face track: expected rising times, and tracks one after another")
            ends = track.end - 2 * TIME_ROUNDING
        if not tracks:
            raise ValueError("face track: expected one track or more")
        return cls(tracks, cuts, seen, others)


def track_faces(
    times: Sequence[float], found: Sequence[np.ndarray], cuts: Sequence[float], end: float, aspect: float
) -> Faces | None:
    """The faces over the searched pictures, or None.

    times: (n,) seconds of the searched pictures; found: for each the (k, 4) boxes of a `FaceFinder`; cuts: seconds at
    which another shot begins; end: of the clip, in seconds; aspect: width / height of the picture. Boxes of
    neighbouring pictures of one shot that overlap are one face, which may be lost for a second. It holds from the
    picture of its first box to the searched picture (or the cut) after its last one, and nowhere beyond. Less than
    three boxes (two in a shot of two searched pictures), or boxes in less than a third of the pictures between, are no
    face. Of faces that are there at the same time that with the largest sum of areas is taken, as a whole.
    """
    at = np.array(times, np.float64)
    shot = np.searchsorted(np.array(sorted(cuts)), at, "right") if len(cuts) else np.zeros(len(at), int)
    # A searched picture stands for the time until the next one, in its own shot.
    until = np.append(at[1:], max(end, at[-1] + 2 * TIME_ROUNDING)) if len(at) else at
    for cut in cuts:
        until = np.where((at < cut) & (until > cut), cut, until)
    held: list[tuple[float, list[int], list[np.ndarray]]] = []
    for number in np.unique(shot):
        pictures = np.flatnonzero(shot == number).tolist()
        needed = min(_FEWEST_SEEN, max(2, len(pictures)), len(at))
        for track, boxes in _linked(pictures, at, found):
            span = sum(track[0] <= picture <= track[-1] for picture in pictures)
            if len(track) >= needed and len(track) >= _LEAST_SHARE * span:
                held.append((sum(_area(box) for box in boxes), track, boxes))
    chosen: list[tuple[list[int], list[np.ndarray]]] = []
    for _, track, boxes in sorted(held, key=lambda item: -item[0]):
        if all(track[-1] < other[0] or other[-1] < track[0] for other, _ in chosen):
            chosen.append((track, boxes))
    if not chosen:
        return None
    tracks = []
    for track, boxes in sorted(chosen, key=lambda item: item[0][0]):
        own, everywhere = at[track], at[track[0] : track[-1] + 1]
        dense = np.stack([np.interp(everywhere, own, np.array(boxes)[:, i]) for i in range(4)], axis=1)
        square = _square(_smooth(everywhere, dense), aspect)
        tracks.append(FaceTrack(float(own[0]), float(until[track[-1]]), everywhere, square))
    seen = sum(len(track) for track, _ in chosen) / len(at)
    return Faces(tuple(tracks), tuple(sorted(float(cut) for cut in cuts)), seen, len(held) - len(chosen))


def _linked(
    pictures: Sequence[int], times: np.ndarray, found: Sequence[np.ndarray]
) -> list[tuple[list[int], list[np.ndarray]]]:
    """(numbers of the pictures, boxes) of every face of a shot."""
    tracks: list[tuple[list[int], list[np.ndarray]]] = []
    for number in pictures:
        free = list(found[number])
        # The longest-living faces choose first.
        for track, own in sorted(tracks, key=lambda pair: -len(pair[0])):
            if not free or times[number] - times[track[-1]] > _MOST_GAP + TIME_ROUNDING:
                continue
            overlaps = [_overlap(own[-1], box) for box in free]
            best = int(np.argmax(overlaps))
            if overlaps[best] >= _SAME_FACE:
                track.append(number)
                own.append(free.pop(best))
        tracks += [([number], [box]) for box in free]
    return tracks


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
