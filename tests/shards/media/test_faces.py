"""Faces: tracks from boxes against hand-made motion, cuts and gaps; the detector on real faces and on none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shards.media import faces
from shards.media.face_track import Faces, FaceTrack, track_faces
from shards.media.faces import FaceFinder
from shards.media.frames import read_frames

TIMES = [k / 5 for k in range(30)]


def box(left: float, top: float, side: float) -> np.ndarray:
    return np.array([[left, top, left + side, top + side]])


NOTHING = np.empty((0, 4))


def tracked(found: Sequence[np.ndarray], cuts: Sequence[float] = (), aspect: float = 1.0) -> Faces | None:
    """What is tracked of boxes at five pictures a second; the clip ends a fifth of a second after the last."""
    times = TIMES[: len(found)]
    return track_faces(times, found, cuts, times[-1] + 0.2, aspect)


def centre(faces: Faces, time: float) -> tuple[float, float] | None:
    at = faces.at(time)
    return None if at is None else ((at[0] + at[2]) / 2, (at[1] + at[3]) / 2)


def test_a_moving_face_is_followed_smoothly() -> None:
    rng = np.random.default_rng(0)
    found = [box(0.2 + 0.01 * k + rng.normal(0, 0.01), 0.3 + rng.normal(0, 0.01), 0.3) for k in range(30)]
    faces = tracked(found)
    assert faces is not None and faces.seen == 1.0 and faces.others == 0
    (track,) = faces.tracks
    assert (track.start, track.end) == pytest.approx((0.0, 6.0))
    centres = (track.boxes[:, 0] + track.boxes[:, 2]) / 2
    truth = 0.35 + 0.01 * np.arange(30)
    assert centres[3:-3] == pytest.approx(truth[3:-3], abs=0.01)
    # Smoother than what was found: mean absolute second difference.
    raw = np.array([(b[0, 0] + b[0, 2]) / 2 for b in found])
    assert np.abs(np.diff(centres, 2)).mean() < 0.35 * np.abs(np.diff(raw, 2)).mean()


def test_one_wrong_box_and_a_short_gap_leave_no_trace() -> None:
    found = [box(0.3, 0.3, 0.3) for _ in range(30)]
    found[10] = box(0.42, 0.42, 0.3)
    for k in (15, 16, 17, 18):
        found[k] = NOTHING
    faces = tracked(found)
    assert faces is not None and faces.seen == pytest.approx(25 / 30)
    (track,) = faces.tracks
    assert track.boxes == pytest.approx(np.tile(track.boxes[0], (30, 1)), abs=0.005)


def test_a_track_ends_where_its_face_is_not_seen_for_a_second_and_nothing_is_made_up_there() -> None:
    """Seen in pictures 5 to 14 and, elsewhere, 21 to 29: the times between, before and after have no box."""
    found = [NOTHING] * 5 + [box(0.1, 0.3, 0.3)] * 10 + [NOTHING] * 6 + [box(0.5, 0.3, 0.3)] * 7 + [NOTHING] * 2
    faces = tracked(found)
    assert faces is not None and len(faces.tracks) == 2 and faces.others == 0
    assert [(t.start, t.end) for t in faces.tracks] == [pytest.approx((1.0, 3.0)), pytest.approx((4.2, 5.6))]
    for time in (0.0, 0.9, 3.0, 3.5, 4.1, 5.6, 5.9, 60.0):
        assert faces.at(time) is None and faces.union(time) is None
    assert centre(faces, 2.9) == pytest.approx((0.25, 0.45)) and centre(faces, 4.2) == pytest.approx((0.65, 0.45))
    assert faces.seen == pytest.approx(17 / 30)


def test_a_track_ends_at_a_shot_change() -> None:
    """Two people whose boxes overlap by more than half: no box is between the two, and each side has its own union."""
    found = [box(0.3, 0.3, 0.3)] * 12 + [box(0.38, 0.33, 0.3)] * 18
    faces = tracked(found, cuts=[2.33])
    assert faces is not None and faces.cuts == (2.33,)
    before, after = faces.tracks
    # The picture at 2.2 s is the last that was searched before the cut, that at 2.4 s the first after it.
    assert (before.end, after.start) == pytest.approx((2.33, 2.4))
    for time, expected in ((0.0, (0.45, 0.45)), (2.32, (0.45, 0.45)), (2.4, (0.53, 0.48)), (5.9, (0.53, 0.48))):
        assert centre(faces, time) == pytest.approx(expected, abs=1e-9)
    assert faces.at(2.35) is None
    assert faces.union(1.0) == pytest.approx(before.union()) and faces.union(5.0) == pytest.approx(after.union())
    # Without the cut it would be one track, smoothed from one to the other.
    one = tracked(found)
    assert one is not None and len(one.tracks) == 1 and centre(one, 2.32) != pytest.approx((0.45, 0.45), abs=0.01)


def test_of_two_faces_the_more_prominent_is_taken_for_its_whole_track() -> None:
    """Left and right swap which is larger in each picture: the crop stays with the one of the larger sum."""
    found = []
    for k in range(30):
        left, right = box(0.05, 0.3, 0.2 + 0.1 * (k % 2)), box(0.6, 0.3, 0.31 - 0.1 * (k % 2))
        found.append(np.concatenate([left, right] if k % 3 else [right, left]))
    faces = tracked(found)
    assert faces is not None and len(faces.tracks) == 1 and faces.others == 1
    sums = [
        sum(float((b[2] - b[0]) * (b[3] - b[1])) for f in found for b in f if (b[0] < 0.3) == side) for side in (1, 0)
    ]
    middles = [centre(faces, time) for time in np.arange(0, 6, 0.04)]
    assert all(middle is not None and (middle[0] < 0.5) == (sums[0] > sums[1]) for middle in middles)


def test_each_shot_has_its_own_most_prominent_face() -> None:
    small, large = box(0.1, 0.1, 0.15), box(0.5, 0.4, 0.3)
    found = [np.concatenate([small, large])] * 15 + [np.concatenate([box(0.05, 0.3, 0.4), large])] * 15
    faces = tracked(found, cuts=[3.0])
    assert faces is not None and len(faces.tracks) == 2 and faces.others == 2
    assert centre(faces, 1.0) == pytest.approx((0.65, 0.55)) and centre(faces, 5.0) == pytest.approx((0.25, 0.5))


def test_the_most_prominent_face_wins_and_false_alarms_lose() -> None:
    small, large = box(0.1, 0.1, 0.15), box(0.5, 0.4, 0.3)
    found = [np.concatenate([small, large]) if k % 3 else small for k in range(30)]
    found[4] = np.concatenate([found[4], box(0.0, 0.0, 0.9)])  # huge, once
    faces = tracked(found)
    assert faces is not None and len(faces.tracks) == 1
    assert [centre(faces, time) for time in (0.2, 3.0, 5.9)] == [pytest.approx((0.65, 0.55), abs=0.01)] * 3
    assert faces.at(0.0) is None  # the small face was seen there, the one that is followed was not


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_too_few_boxes_are_no_face(seen: int) -> None:
    assert tracked([box(0.3, 0.3, 0.3) if k < seen else NOTHING for k in range(30)]) is None


def test_sparse_boxes_are_no_face() -> None:
    """In every fourth picture of six seconds: none of them is a second from the next, but most pictures have none."""
    assert tracked([NOTHING if k % 4 else box(0.3, 0.3, 0.3) for k in range(30)]) is None


@pytest.mark.parametrize("aspect", [0.5, 1.0, 16 / 9])
def test_boxes_are_square_in_pixels_padded_and_inside(aspect: float) -> None:
    faces = tracked([np.array([[0.0, 0.4, 0.2, 0.4 + 0.2 * aspect]])] * 10, aspect=aspect)
    assert faces is not None
    boxes = faces.tracks[0].boxes
    width, height = boxes[0, 2] - boxes[0, 0], boxes[0, 3] - boxes[0, 1]
    assert width * aspect == pytest.approx(height)
    assert width == pytest.approx(0.2 * 1.2, rel=1e-6)
    assert boxes.min() >= 0 and boxes.max() <= 1


def test_union_interpolation_and_storage() -> None:
    track = FaceTrack(0.5, 1.7, np.array([0.5, 1.5]), np.array([[0.0, 0.1, 0.4, 0.5], [0.2, 0.1, 0.6, 0.5]]))
    faces = Faces((track,), (0.5, 1.7), 0.5, 2)
    assert faces.at(1.0) == pytest.approx((0.1, 0.1, 0.5, 0.5))
    assert faces.at(1.69) == pytest.approx((0.2, 0.1, 0.6, 0.5)) and faces.at(1.7) is None
    assert faces.union(1.0) == pytest.approx((0.0, 0.1, 0.6, 0.5))
    again = Faces.from_dict(json.loads(json.dumps(faces.to_dict())))
    assert np.array_equal(again.tracks[0].boxes, track.boxes) and again.to_dict() == faces.to_dict()
    # Times of pictures that were rounded when they were stored still find their box.
    third = Faces.from_dict(Faces((FaceTrack(1 / 3, 2 / 3, np.array([1 / 3]), track.boxes[:1]),), (), 1.0, 0).to_dict())
    assert third.at(1 / 3) is not None and third.at(2 / 3) is None and third.at(2 / 3 - 1 / 240) is not None


def a_track(**changed: object) -> dict:
    track = {"start": 0.0, "end": 1.0, "times": [0.0], "boxes": [[0, 0, 1, 1]]}
    return {"tracks": [{**track, **changed}], "cuts": [], "seen": 1, "others": 0}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"times": [0], "boxes": [[0, 0, 1, 1]], "seen": 1},
        {**a_track(), "tracks": []},
        {**a_track(), "tracks": a_track()["tracks"] * 2},
        a_track(boxes=[[0, 0, 1]]),
        a_track(times=[1, 0], boxes=[[0, 0, 1, 1]] * 2),
        a_track(boxes=[[0, 0, float("nan"), 1]]),
        a_track(times=[], boxes=[]),
        a_track(end=0.0),
        a_track(start=float("nan")),
    ],
)
def test_what_is_no_track_is_refused(data: dict) -> None:
    with pytest.raises(ValueError, match="face track"):
        Faces.from_dict(data)


def test_no_face_in_noise_or_nothing() -> None:
    finder = FaceFinder()
    rng = np.random.default_rng(0)
    found = [finder(rng.integers(0, 256, (120, 160, 3), np.uint8)) for _ in range(6)]
    found += [finder(np.zeros((9, 5, 3), np.uint8))]
    assert tracked(found) is None


def test_real_faces_are_found_where_they_are(real_data: Path) -> None:
    """GRID's speakers sit in the middle and look at the camera; the interview's face is tilted and turned."""
    for name, middle in (("grid_brbk7n.mpg", (0.47, 0.62)), ("interview.mp4", (0.38, 0.5))):
        frames = read_frames(real_data / "clips" / name, (3,))[3]
        finder = FaceFinder()
        found = [finder(image) for image in frames.pixels]
        height, width = frames.pixels.shape[1:3]
        faces = track_faces(list(frames.times), found, (), float(frames.times[-1]) + 1 / 3, width / height)
        assert faces is not None and faces.seen > 0.6, name
        left, top, right, bottom = np.median(np.concatenate([track.boxes for track in faces.tracks]), axis=0)
        assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx(middle, abs=0.12), name
        assert 0.2 < (right - left) * width / height < 1.0


def test_faces_are_looked_for_in_a_picture_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[int, ...]] = []

    def nowhere(grey: np.ndarray) -> np.ndarray:
        looked.append(grey.shape)
        return np.empty((0, 4))

    finder, longest = FaceFinder(), faces._LONGEST_SIDE
    monkeypatch.setattr(finder, "_anywhere", nowhere)
    for height, width in ((2 * longest, longest), (longest, longest // 2), (30, 40)):
        assert finder(np.zeros((height, width, 3), np.uint8)).shape == (0, 4)
    assert looked == [(longest, longest // 2), (longest, longest // 2), (30, 40)]
