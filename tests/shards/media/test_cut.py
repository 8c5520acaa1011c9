"""Cutting: the interval exactly, bit for bit where it is copied, in plain players as well."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from shards.media.cut import cut_video, set_edit_length
from shards.media.limits import Limits, MediaError
from tests.shards.media.make_media import decode_everything, grey_of, make_video, picture, sine

LIMITS = Limits()


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "mjpeg"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.5, 1.5), (0.97, 2.03), (1.234, 2.9)])
def test_interval_is_copied_exactly(codec: str, start: float, end: float, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 75, codec=codec, gop=25, sound=sine(3, 44_100, 1))
    cut = cut_video(path, start, end, LIMITS)
    everything = decode_everything(path)
    expected = [(time, image) for time, image in everything if start <= round(time, 6) < end]
    shown = decode_everything(cut.data)
    assert cut.copied and cut.expected == len(expected) == len(shown)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(shown, expected, strict=True))
    assert [t for t, _ in shown] == pytest.approx([t - expected[0][0] for t, _ in expected], abs=1e-3)
    assert float(cut.origin) == pytest.approx(expected[0][0], abs=1e-3)


def test_b_frames_are_cut_exactly(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 100, gop=40, options={"bf": "3", "sc_threshold": "0"})
    for start, end in ((0.3, 1.1), (1.7, 3.1), (2.04, 2.16)):
        cut = cut_video(path, start, end, LIMITS)
        expected = [image for time, image in decode_everything(path) if start <= round(time, 6) < end]
        shown = [image for _, image in decode_everything(cut.data)]
        assert cut.copied and len(shown) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))


def test_whole_video_keeps_its_packets(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", 30, sound=sine(1.2, 44_100, 2))
    cut = cut_video(path, None, None, LIMITS)
    with av.open(str(path)) as a, av.open(io.BytesIO(cut.data)) as b:
        assert len(b.streams) == 1
        before = [float(packet.pts * packet.time_base) for packet in a.demux(video=0) if packet.size]
        after = [float(packet.pts * packet.time_base) for packet in b.demux(video=0) if packet.size]
    assert after == pytest.approx(before, abs=2e-3)
    pairs = zip(decode_everything(path), decode_everything(cut.data), strict=True)
    assert all(np.array_equal(x, y) for (_, x), (_, y) in pairs)
    assert cut.copied and len(cut.data) < path.stat().st_size


@pytest.mark.parametrize(
    ("name", "codec", "size"), [("a.avi", "msmpeg4", (48, 64)), ("a.mpg", "mpeg1video", (288, 352))]
)
def test_what_cannot_be_copied_is_encoded_anew(name: str, codec: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = make_video(tmp_path / name, 50, size, codec, format="mpeg" if name == "a.mpg" else None)
    cut = cut_video(path, 0.8, 1.6, LIMITS)
    shown = decode_everything(cut.data)
    assert not cut.copied and len(shown) == cut.expected == 20
    assert [grey_of(image) for _, image in shown] == pytest.approx(
        [grey_of(picture(20 + k, size)) for k in range(20)], abs=6
    )
    assert [time for time, _ in shown] == pytest.approx(np.arange(20) / 25, abs=1e-3)


def test_far_key_frames_are_not_carried_along(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 100, gop=1000, options={"sc_threshold": "0"})
    near = cut_video(path, 3.0, 3.4, Limits(max_preroll_seconds=10))
    far = cut_video(path, 3.0, 3.4, Limits(max_preroll_seconds=1))
    assert near.copied and not far.copied
    assert len(decode_everything(near.data)) == len(decode_everything(far.data)) == 10


def test_rotation_survives(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 50, rotation=-90)
    with av.open(io.BytesIO(cut_video(path, 0.5, 1.0, LIMITS).data)) as container:
        assert next(container.decode(video=0)).rotation == -90


def test_same_cut_same_bytes(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", 20, codec="msmpeg4")
    assert cut_video(path, None, None, LIMITS).data == cut_video(path, None, None, LIMITS).data


@pytest.mark.parametrize(
    ("start", "end"), [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (5.0, 6.0), (0.5, 9.0), (1.0, None), (0.001, 0.002)]
)
def test_impossible_intervals(start: float, end: float | None, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 50)
    with pytest.raises(MediaError) as caught:
        cut_video(path, start, end, LIMITS)
    assert caught.value.reason == "bad_interval"


def test_an_interval_may_end_a_little_after_the_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 50)
    assert len(decode_everything(cut_video(path, 1.0, 2.3, LIMITS).data)) == 25


def test_edit_length_of_what_is_no_mp4() -> None:
    from fractions import Fraction

    for data in (b"", b"abc", b"\0\0\0\x08moov", b"\xff" * 64):
        assert set_edit_length(data, Fraction(1)) == data
