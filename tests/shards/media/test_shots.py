"""Shot changes of generated pictures: cuts and fades are found where they were made; flashes, light and movement are
none. In a real file the faces of two people on either side of a cut stay apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from shards.clips.decode import decode_clip
from shards.clips.reader import StoredClip
from shards.media import shots
from shards.media.prepare import Request, prepare
from shards.media.shots import ShotFinder

RATE = 25


def scene(seed: int, contrast: float = 30.0) -> np.ndarray:
    """(180, 480, 3) uint8: coloured blots of all sizes, to be looked at through a window of 160 x 90."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(60, 160, 3) * np.ones((180, 480, 3))
    for size in (9, 20, 45):
        small = rng.normal(0, contrast, (180 // size + 2, 480 // size + 2, 3)).astype(np.float32)
        image = image + cv2.resize(small, (480, 180), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def shot(seed: int, count: int, speed: float = 0.3, grain: float = 2.0, contrast: float = 30.0) -> np.ndarray:
    """(count, 90, 160, 3): a camera that moves over a scene by `speed` pixels a picture, with a film's grain."""
    image, rng = scene(seed, contrast), np.random.default_rng(seed + 99)
    pictures = []
    for k in range(count):
        x, y = 20 + speed * k, 20 + 3 * np.sin(k / 9)
        move = np.array([[1, 0, -x], [0, 1, -y]], np.float32)
        view = cv2.warpAffine(image, move, (160, 90), flags=cv2.INTER_LINEAR)
        pictures.append(np.clip(view + rng.normal(0, grain, view.shape), 0, 255))
    return np.array(pictures)


def changes(pictures: np.ndarray, rate: float = RATE) -> list[int]:
    finder = ShotFinder()
    for number, picture in enumerate(pictures):
        finder.add(av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24"), number / rate)
    return [round(cut * rate) for cut in finder.cuts()]


@pytest.mark.parametrize("seed", range(3))
def test_cuts_are_found_to_the_picture(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(9, 40, 6)
    pictures = np.concatenate([shot(10 * seed + k, int(n), contrast=15 + 6 * k) for k, n in enumerate(lengths)])
    assert changes(pictures) == np.cumsum(lengths)[:-1].tolist()


def test_a_picture_that_mixes_two_shots_is_the_cut_between_them() -> None:
    """As frame-rate conversion leaves it."""
    a, b = shot(1, 30), shot(2, 30)
    a[-1] = 0.4 * a[-1] + 0.6 * b[0]
    assert changes(np.concatenate([a, b])) == [30]


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_a_flash_is_no_cut(length: int, seed: int) -> None:
    pictures = shot(seed, 60)
    for k in range(length):
        pictures[25 + k] = pictures[25 + k] * 1.5 + 200 * (1 - k / length)
    assert changes(pictures) == []


def test_a_flash_at_a_cut_hides_it_not() -> None:
    a, b = shot(1, 30), shot(2, 30)
    a[-2:] += 220
    found = changes(np.concatenate([a, b]))
    assert found and all(28 <= number <= 30 for number in found)


@pytest.mark.parametrize("speed", [1.0, 3.0, 8.0])
def test_a_moving_camera_is_no_cut(speed: float) -> None:
    """Panning over up to its whole sight in less than a second."""
    assert changes(shot(4, int(min(60, 280 / speed)), speed)) == []


def test_a_hand_held_camera_is_no_cut() -> None:
    image, rng = scene(5), np.random.default_rng(0)
    at = np.cumsum(rng.normal(0, 2, (60, 2)), axis=0) + np.array([160, 45])
    moves = [np.array([[1, 0, -x], [0, 1, -y]], np.float32) for x, y in at]
    assert changes(np.array([cv2.warpAffine(image, move, (160, 90)) for move in moves])) == []


@pytest.mark.parametrize("light", ["dimmed", "switched", "flicker"])
def test_light_is_no_cut(light: str) -> None:
    gain = {
        "dimmed": np.linspace(1, 0.3, 60),
        "switched": np.where(np.arange(60) < 30, 1.0, 0.5),
        "flicker": 1 - 0.4 * (np.arange(60) % 2),
    }[light]
    assert changes(shot(6, 60) * gain[:, None, None, None]) == []


@pytest.mark.parametrize(("after", "mixed"), [(119, False), (120, True)])
def test_a_mixture_is_of_pictures_that_differ_by_20_levels_at_least(after: int, mixed: bool) -> None:
    levels = np.array([100, 110, after], np.uint8)
    pictures = np.broadcast_to(levels[:, None, None, None], (3, shots._HEIGHT, shots._WIDTH, 3))
    assert shots._mixed(pictures, 0) is mixed


@pytest.mark.parametrize("seconds", [0.6, 1.0, 1.6])
@pytest.mark.parametrize("seed", range(3))
def test_a_dissolve_is_found_within_it(seconds: float, seed: int) -> None:
    length = round(seconds * RATE)
    a, b = shot(20 + seed, 40 + length), shot(40 + seed, 40 + length)
    share = ((np.arange(length) + 0.5) / length)[:, None, None, None]
    mixed = (1 - share) * a[40:] + share * b[:length]
    found = changes(np.concatenate([a[:40], mixed, b[length:]]))
    assert len(found) == 1 and 40 <= found[0] < 40 + length


def test_a_fade_through_black_ends_a_shot_and_begins_the_next() -> None:
    a, b = shot(7, 55), shot(8, 55)
    share = np.concatenate([np.ones(35), np.linspace(1, 0, 20)])[:, None, None, None]
    found = changes(np.concatenate([a * share, np.zeros((8, 90, 160, 3)), b * share[::-1]]))
    assert 1 <= len(found) <= 3 and all(48 <= number <= 70 for number in found)


@pytest.mark.parametrize("after", [6, 12])
def test_a_blink_of_dark_is_no_cut_and_does_not_hide_one(after: int) -> None:
    """The light goes down and up again within a fifth of a second, in a shot that soon ends, or from one to another:
    what is compared lies beyond the pictures that are half dark."""
    dip = np.ones((40 + after, 1, 1, 1))
    dip[35:42, 0, 0, 0] = [0.3, 0.08, 0, 0, 0, 0.08, 0.3]
    one, other = shot(7, 1), shot(8, 1)
    assert changes(one * dip) == []
    pictures = np.concatenate([one * dip[:39], other * dip[39:]])
    found = changes(pictures)
    assert found and all(35 <= number <= 42 for number in found)


def test_few_pictures_are_one_shot() -> None:
    assert changes(shot(9, 1)) == [] and changes(shot(9, 2)) == [] and changes(np.zeros((30, 90, 160, 3))) == []


# ---- faces in a file with cuts ------------------------------------------------------------------------------------


def write(path: Path, pictures: Sequence[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "16", "g": "250"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_real_clips_of_one_shot_have_no_cut(real_data: Path) -> None:
    """One of them is 24 pictures a second shown as 30: beside a picture that stands still, a turn of the head seems to
    stand out."""
    for path in sorted((real_data / "clips").glob("*.mp[4g]")):
        finder = ShotFinder()
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                finder.add(frame, float(frame.time))
        assert finder.cuts() == [], path.name


def test_faces_of_a_cut_video_stay_with_their_shots(real_data: Path, tmp_path: Path) -> None:
    """A face at the left, a second and a half of no face, another face at the right: crops hold the one, nothing, and
    the other, to the picture, at the rates of encoders as well."""
    people = []
    for name in ("grid_brbk7n.mpg", "grid_pwij3p.mpg"):
        with av.open(str(real_data / "clips" / name)) as container:
            people.append([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:50])
    height, width = people[0][0].shape[:2]
    empty = cv2.resize(scene(3, 30)[:90, :160], (2 * width, height))
    left, right = (np.full((height, 2 * width, 3), 90, np.uint8) for _ in range(2))
    pictures = []
    for k in range(50):
        left[:, :width] = people[0][k]
        pictures.append(left.copy())
    pictures += [empty] * 38
    for k in range(50):
        right[:, width:] = people[1][k]
        pictures.append(right.copy())
    made = prepare(Request(str(write(tmp_path / "cut.mp4", pictures)), None))
    face = made.details["face"]
    assert [round(cut * RATE) for cut in face["cuts"]] == [50, 88] and len(face["tracks"]) == 2
    first, second = face["tracks"]
    assert (round(first["start"] * RATE), round(first["end"] * RATE)) == (0, 50)
    assert (round(second["start"] * RATE), round(second["end"] * RATE)) == (88, 138)
    assert max(box[2] for box in first["boxes"]) < 0.5 < min(box[0] for box in second["boxes"])

    clip = StoredClip("cut", 0, made.video, None, None, {"face": face, "transcript": None})
    marked = decode_clip(clip, (1, RATE), (64, 64)).frames
    assert marked[RATE].cropped.tolist() == [True] * 50 + [False] * 38 + [True] * 50
    assert marked[1].cropped.tolist() == [True, True, False, False, True, True]
    kept = decode_clip(clip, (1, RATE), (64, 64), whole_frames=False).frames
    assert kept[1].times.tolist() == [0.0, 1.0, 4.0, 5.0]
    assert np.array_equal(kept[RATE].pixels, marked[RATE].pixels[marked[RATE].cropped])
    whole = decode_clip(clip, (1,), (64, 64), crop="none", whole_frames=False).frames[1]
    assert len(whole) == 6 and np.array_equal(whole.pixels[2], marked[1].pixels[2])
    # Where a rate meets no picture with the face, the first of the face's longest track stands for it.
    rare = decode_clip(clip, (0.4,), (64, 64), whole_frames=False).frames[0.4]
    assert rare.cropped.all() and rare.times.tolist() in ([0.0, 5.0], [0.0])
    late = {**face, "tracks": [{**second, "start": second["start"] + 0.2}], "cuts": []}
    clip = StoredClip("cut", 0, made.video, None, None, {"face": late, "transcript": None})
    only = decode_clip(clip, (0.1,), (64, 64), whole_frames=False).frames[0.1]
    expected = decode_clip(clip, (RATE,), (64, 64)).frames[RATE]
    assert only.times == pytest.approx([93 / RATE], abs=1e-3) and np.array_equal(only.pixels[0], expected.pixels[93])
