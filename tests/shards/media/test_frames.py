"""Frames by presentation time: every kind of video against the obvious selection from all its pictures."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.media.frames import SteadyRate, read_frames, resize
from shards.media.limits import Limits, MediaError
from tests.shards.media.make_media import decode_everything, grey_of, make_video, picture, sine

KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {"codec": "libx264"},
    "bframes.mp4": {"codec": "libx264", "options": {"bf": "3"}},
    "hevc.mp4": {"codec": "libx265"},
    "mpeg1.mpg": {"codec": "mpeg1video", "format": "mpeg", "size": (288, 352)},
    "mpeg2.ts": {"codec": "mpeg2video", "format": "mpegts"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "msmpeg4.avi": {"codec": "msmpeg4"},
    "mjpeg.avi": {"codec": "mjpeg"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "odd.mkv": {"codec": "libx264", "size": (35, 51)},
    "slow.mp4": {"codec": "libx264", "rate": 8},
    "fast.mp4": {"codec": "libx264", "rate": 60, "times": 90},
    "variable.mp4": {"times": [0, 0.04, 0.05, 0.2, 0.9, 0.95, 1.0, 1.4, 1.41, 1.42, 2.0, 2.6]},
    "late.mp4": {"times": [1.5, 1.6, 1.7, 2.1, 2.3]},
}


def expected_times(times: list[float], end: float, rate: float) -> list[float]:
    """For each k / rate the last picture that has appeared by then, without repeats: the definition, word by word."""
    chosen = []
    k = 0
    while k / rate < end - 1e-9:
        on_screen = max(time for time in times if time <= k / rate + 1e-9)
        if on_screen not in chosen:
            chosen.append(on_screen)
        k += 1
    return chosen


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_video(name: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / name, **KINDS[name])
    everything = decode_everything(path)
    times = [time for time, _ in everything]
    frames = read_frames(path, (1, 16, 25))
    last = 1 / 25 if isinstance(KINDS[name].get("times", 25), list) else 1 / KINDS[name].get("rate", 25)
    for rate in (1, 16, 25):
        wanted = expected_times(times, times[-1] + last, rate)
        # A variable rate leaves the last picture's length to the container: one wanted time more or less.
        assert abs(len(frames[rate]) - len(wanted)) <= (name in ("variable.mp4", "late.mp4"))
        common = min(len(wanted), len(frames[rate]))
        assert frames[rate].times[:common] == pytest.approx(wanted[:common], abs=2e-3)
        for time, image in zip(frames[rate].times, frames[rate].pixels, strict=True):
            nearest = min(everything, key=lambda pair: abs(pair[0] - time))
            assert np.array_equal(image, nearest[1])
        assert frames[rate].pixels.dtype == np.uint8


def test_greys_tell_the_right_pictures(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 50, rate=25)
    frames = read_frames(path, (5,))[5]
    assert [grey_of(image) for image in frames.pixels] == pytest.approx(
        [grey_of(picture(5 * k, (48, 64))) for k in range(10)], abs=4
    )


@pytest.mark.parametrize(
    ("degrees", "corner"), [(90, "bottom left"), (-90, "top right"), (180, "bottom right"), (0, "top left")]
)
def test_rotation_flags_are_obeyed(degrees: int, corner: str, tmp_path: Path) -> None:
    """The bright corner of the stored picture is at the top left; the display matrix turns it counter-clockwise."""
    path = make_video(tmp_path / "a.mp4", 5, size=(48, 96), rotation=degrees)
    image = read_frames(path, (1,))[1].pixels[0]
    assert image.shape == ((96, 48, 3) if degrees in (90, -90) else (48, 96, 3))
    half = (image.shape[0] // 2, image.shape[1] // 2)
    quarters = {
        "top left": image[: half[0], : half[1]],
        "top right": image[: half[0], half[1] :],
        "bottom left": image[half[0] :, : half[1]],
        "bottom right": image[half[0] :, half[1] :],
    }
    assert max(quarters, key=lambda name: quarters[name].mean()) == corner
    # The file's own matrix (ISO/IEC 14496-12, 8.3.2): b > 0 takes the x axis to the y axis, which points down.
    content = path.read_bytes()
    a, b = struct.unpack_from(">ii", content, content.index(b"tkhd") + 4 + 40)
    assert (a, b) == {0: (1 << 16, 0), 180: (-1 << 16, 0), -90: (0, 1 << 16), 90: (0, -1 << 16)}[degrees]


def test_interval_and_size(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 75, sound=sine(3, 44_100, 2))
    frames = read_frames(path, (25,), (20, 30), start=1.0, end=2.0)[25]
    assert frames.pixels.shape == (25, 20, 30, 3)
    assert frames.times == pytest.approx(np.arange(25) / 25, abs=1e-3)
    assert [grey_of(image) for image in frames.pixels] == pytest.approx(
        [grey_of(picture(25 + k, (48, 64))) for k in range(25)], abs=4
    )


def test_crop_cuts_out_before_resizing(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 10)
    bright = read_frames(path, (25,), (24, 24), crop=lambda time: (0.0, 0.0, 0.45, 0.45))[25]
    dark = read_frames(path, (25,), (24, 24), crop=lambda time: (0.55, 0.55, 1.0, 1.0))[25]
    assert bright.pixels.min() > 230 and dark.pixels.max() < 100


def test_resize_takes_means_of_areas() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    blocks = image.reshape(20, 2, 20, 3, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize(image, (20, 20)) - blocks).max() <= 1


def test_same_rate_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 30)
    assert np.array_equal(read_frames(path, (16,))[16].pixels, read_frames(path.read_bytes(), (16,))[16].pixels)


def test_memory_is_bounded_before_it_is_taken(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 50)
    with pytest.raises(MediaError) as caught:
        read_frames(path, (25,), (180, 180), limits=Limits(max_decoded_bytes=1_000_000))
    assert caught.value.reason == "too_many_bytes"


def test_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="frame rate is 0"):
        SteadyRate(0)


def test_real_clips(real_data: Path) -> None:
    for path in sorted((real_data / "clips").glob("*"))[::4]:
        everything = decode_everything(path)
        times = [time for time, _ in everything]
        step = times[1] - times[0]
        for rate, frames in read_frames(path, (1, 16)).items():
            assert frames.times == pytest.approx(expected_times(times, times[-1] + step, rate), abs=1e-3), path.name
            shown = {round(time, 3): image for time, image in everything}
            assert all(
                np.array_equal(image, shown[round(time, 3)])
                for time, image in zip(frames.times, frames.pixels, strict=True)
            )
