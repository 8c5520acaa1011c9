"""Faces: tracks from boxes against hand-made motion; the detector on real faces and on none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.media.face_track import FaceTrack, track_face
from shards.media.faces import FaceFinder
from shards.media.frames import read_frames

TIMES = [k / 5 for k in range(30)]


def box(left: float, top: float, side: float) -> np.ndarray:
    return np.array([[left, top, left + side, top + side]])


def test_a_moving_face_is_followed_smoothly() -> None:
    rng = np.random.default_rng(0)
    found = [box(0.2 + 0.01 * k + rng.normal(0, 0.01), 0.3 + rng.normal(0, 0.01), 0.3) for k in range(30)]
    track = track_face(TIMES, found, 1.0)
    assert track is not None and track.seen == 1.0
    centres = (track.boxes[:, 0] + track.boxes[:, 2]) / 2
    truth = 0.35 + 0.01 * np.arange(30)
    assert centres[3:-3] == pytest.approx(truth[3:-3], abs=0.01)
    # Smoother than what was found: mean absolute second difference.
    raw = np.array([(b[0, 0] + b[0, 2]) / 2 for b in found])
    assert np.abs(np.diff(centres, 2)).mean() < 0.35 * np.abs(np.diff(raw, 2)).mean()


def test_one_wrong_box_and_a_gap_leave_no_trace() -> None:
    found = [box(0.3, 0.3, 0.3) for _ in range(30)]
    found[10] = box(0.42, 0.42, 0.3)
    for k in (15, 16, 17):
        found[k] = np.empty((0, 4))
    track = track_face(TIMES, found, 1.0)
    assert track is not None and track.seen == pytest.approx(26 / 30)
    assert track.boxes == pytest.approx(np.tile(track.boxes[0], (30, 1)), abs=0.005)


def test_the_most_prominent_face_wins_and_false_alarms_lose() -> None:
    small, large = box(0.1, 0.1, 0.15), box(0.5, 0.4, 0.3)
    found = [np.concatenate([small, large]) if k % 3 else small for k in range(30)]
    found[4] = np.concatenate([found[4], box(0.0, 0.0, 0.9)])  # huge, once
    track = track_face(TIMES, found, 1.0)
    assert track is not None
    centre = (track.boxes[:, :2] + track.boxes[:, 2:]) / 2
    assert centre == pytest.approx(np.tile([0.65, 0.55], (30, 1)), abs=0.01)


@pytest.mark.parametrize("seen", [0, 1, 2, 5])
def test_too_few_boxes_are_no_face(seen: int) -> None:
    found = [box(0.3, 0.3, 0.3) if k < seen else np.empty((0, 4)) for k in range(30)]
    assert track_face(TIMES, found, 1.0) is None


@pytest.mark.parametrize("aspect", [0.5, 1.0, 16 / 9])
def test_boxes_are_square_in_pixels_padded_and_inside(aspect: float) -> None:
    found = [np.array([[0.0, 0.4, 0.2, 0.4 + 0.2 * aspect]])] * 10
    track = track_face(TIMES[:10], found, aspect)
    assert track is not None
    width, height = track.boxes[0, 2] - track.boxes[0, 0], track.boxes[0, 3] - track.boxes[0, 1]
    assert width * aspect == pytest.approx(height)
    assert width == pytest.approx(0.2 * 1.2, rel=1e-6)
    assert track.boxes.min() >= 0 and track.boxes.max() <= 1


def test_union_and_interpolation() -> None:
    track = FaceTrack(np.array([0.0, 1.0]), np.array([[0.0, 0.1, 0.4, 0.5], [0.2, 0.1, 0.6, 0.5]]), 1.0)
    assert track.at(0.5) == pytest.approx((0.1, 0.1, 0.5, 0.5))
    assert track.at(9.0) == pytest.approx((0.2, 0.1, 0.6, 0.5))
    assert track.union() == pytest.approx((0.0, 0.1, 0.6, 0.5))
    again = FaceTrack.from_dict(track.to_dict())
    assert np.array_equal(again.boxes, track.boxes)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"times": [0], "boxes": [[0, 0, 1]], "seen": 1},
        {"times": [1, 0], "boxes": [[0, 0, 1, 1]] * 2, "seen": 1},
        {"times": [0], "boxes": [[0, 0, float("nan"), 1]], "seen": 1},
        {"times": [], "boxes": [], "seen": 1},
    ],
)
def test_what_is_no_track_is_refused(data: dict) -> None:
    with pytest.raises(ValueError, match="face track"):
        FaceTrack.from_dict(data)


def test_no_face_in_noise_or_nothing() -> None:
    finder = FaceFinder()
    rng = np.random.default_rng(0)
    found = [finder(rng.integers(0, 256, (120, 160, 3), np.uint8)) for _ in range(6)]
    found += [finder(np.zeros((9, 5, 3), np.uint8))]
    assert track_face(TIMES[:7], found, 4 / 3) is None


def test_real_faces_are_found_where_they_are(real_data: Path) -> None:
    """GRID's speakers sit in the middle and look at the camera; the interview's face is tilted and turned."""
    for name, middle in (("grid_brbk7n.mpg", (0.47, 0.62)), ("interview.mp4", (0.38, 0.5))):
        frames = read_frames(real_data / "clips" / name, (3,))[3]
        finder = FaceFinder()
        found = [finder(image) for image in frames.pixels]
        height, width = frames.pixels.shape[1:3]
        track = track_face(list(frames.times), found, width / height)
        assert track is not None and track.seen > 0.6, name
        left, top, right, bottom = np.median(track.boxes, axis=0)
        assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx(middle, abs=0.12), name
        assert 0.2 < (right - left) * width / height < 1.0
