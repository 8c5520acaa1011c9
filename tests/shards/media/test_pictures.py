"""Pictures as they are seen: turned, mirrored, deinterlaced, with square pixels; copied where that shows the same."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from shards.media.cut import cut_video
from shards.media.frames import read_frames
from shards.media.limits import Limits
from shards.media.pictures import Tally, decode_pictures
from shards.media.prepare import Request, prepare
from tests.shards.media.make_media import make_video
from tests.shards.media.timed_media import Recipe, make, shown, steady

ONE = 1 << 16
# (a, b, c, d) of a display matrix, and what it makes of (H, W, 3) pixels.
TURNS: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {
    (ONE, 0, 0, ONE): lambda x: x,
    (0, ONE, -ONE, 0): lambda x: np.rot90(x, -1),
    (-ONE, 0, 0, -ONE): lambda x: np.rot90(x, 2),
    (0, -ONE, ONE, 0): lambda x: np.rot90(x, 1),
    (-ONE, 0, 0, ONE): lambda x: x[:, ::-1],
    (ONE, 0, 0, -ONE): lambda x: x[::-1],
    (0, ONE, ONE, 0): lambda x: x.transpose(1, 0, 2),
    (0, -ONE, -ONE, 0): lambda x: x[::-1, ::-1].transpose(1, 0, 2),
}


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The MP4 with another display matrix in its track header (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    assert struct.unpack_from(">ii", data, at) == (ONE, 0)
    a, b, c, d = matrix
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("matrix", TURNS)
def test_each_display_matrix_is_obeyed_in_copies_and_encoded_anew(
    matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    path = make_video(tmp_path / "a.mp4", 10, (48, 96))
    stored = read_frames(path, (1,))[1].pixels[0]
    expected = TURNS[matrix](stored)
    with_matrix(path, matrix)
    assert np.array_equal(read_frames(path, (1,))[1].pixels[0], expected)
    clip = prepare(Request(str(path), faces=False))
    assert clip.details["video"]["copied"]
    assert (clip.details["video"]["height"], clip.details["video"]["width"]) == expected.shape[:2]
    assert np.array_equal(read_frames(clip.video, (1,))[1].pixels[0], expected)
    encoded = cut_video(path, None, None, Limits(), reencode=True).data
    with av.open(io.BytesIO(encoded)) as container:
        plain = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert plain.shape == expected.shape
    assert np.abs(plain.astype(float) - expected).mean() < 2


def interlaced(path: Path, first: str, codec: str = "libx264") -> Path:
    """A bright bar that moves 2 pixels a field, 25 pictures of two fields each."""
    height, width, count = 96, 128, 25
    with av.open(str(path), "w") as out:
        # The fields must be coded apart, or compression mixes them.
        flags = {"flags": "+ildct+ilme", "qp": "4", "preset": "ultrafast", "x264-params": f"{first}=1:keyint=10"}
        stream = out.add_stream(codec, rate=25, options=flags if codec == "libx264" else {"flags": "+ildct+ilme"})
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        if codec != "libx264":
            stream.bit_rate = 8_000_000
        for number in range(count):
            image = np.full((height, width, 3), 40, np.uint8)
            for field in range(2):
                left = 4 * number + 2 * field
                row = field if first == "tff" else 1 - field
                image[row::2, left : left + 16] = 220
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU601", interpolation="POINT"
            )
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def combing(image: np.ndarray) -> float:
    """How much rows differ from their neighbours but not from the rows beyond: 0 for whole pictures."""
    grey = image.astype(float).mean(axis=2)
    return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean())


@pytest.mark.parametrize("first", ["tff", "bff"])
def test_interlaced_pictures_are_made_whole(first: str, tmp_path: Path) -> None:
    path = interlaced(tmp_path / "a.mp4", first)
    with av.open(str(path)) as container:
        raw = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert all(frame.interlaced_frame for frame in av.open(str(path)).decode(video=0))
    tally = Tally()
    seen = [(picture.time, picture.rgb()) for picture in decode_pictures(path, Limits(), tally)]
    assert [time for time, _ in seen] == [Fraction(k, 25) for k in range(25)]
    assert tally.good == tally.interlaced == 25
    clip = prepare(Request(str(path), None, 0.2, 0.8, faces=False))
    assert clip.details["taken"]["deinterlaced"] == 15 and not clip.details["video"]["copied"]
    stored = shown_images(clip.video)
    assert len(stored) == 15
    for number in range(5, 20):
        assert combing(raw[number]) > 5
        assert combing(seen[number][1]) < 0.15 * combing(raw[number])
        assert combing(stored[number - 5]) < 0.15 * combing(raw[number])
        # It is the first field's moment that is kept.
        bright = np.nonzero(seen[number][1].mean(axis=(0, 2)) > 130)[0]
        assert bright.min() == pytest.approx(4 * number, abs=2)


def shown_images(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
def test_deinterlacing_is_that_of_ffmpeg(tmp_path: Path) -> None:
    path = interlaced(tmp_path / "a.mp4", "tff")
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", "bwdif=send_frame:auto:interlaced"]
    raw = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"], capture_output=True, check=True
    ).stdout
    expected = np.frombuffer(raw, np.uint8).reshape(-1, 96 * 128 * 3 // 2)[:, : 96 * 128].reshape(-1, 96, 128)
    seen = [picture.frame.to_ndarray()[:96] for picture in decode_pictures(path, Limits(), Tally())]
    assert len(seen) == len(expected)
    assert np.abs(np.array(seen).astype(int) - expected).max() <= 1


def test_progressive_pictures_pass_as_they_are(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 20)
    tally = Tally()
    seen = [picture.rgb() for picture in decode_pictures(path, Limits(), tally)]
    assert tally.interlaced == 0
    assert all(np.array_equal(a, b) for a, b in zip(seen, shown_images(path.read_bytes()), strict=True))


def squeezed(path: Path, aspect: Fraction, codec: str = "libx264") -> Path:
    """A bright disc of 60 pixels on a screen of square pixels, stored with pixels of another shape."""
    height, width = 96, round(160 / aspect)
    y, x = np.mgrid[:height, :width]
    disc = ((x + 0.5) * float(aspect) - 80) ** 2 + (y + 0.5 - 48) ** 2 < 30**2
    image = np.repeat((disc * 200 + 30).astype(np.uint8)[..., None], 3, axis=2)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"qp": "8"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if codec != "libx264":
            stream.bit_rate = 8_000_000
        stream.codec_context.sample_aspect_ratio = aspect
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("aspect", [Fraction(16, 15), Fraction(8, 9), Fraction(2), Fraction(1, 2)])
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.mpg", "mpeg2video")])
def test_a_disc_is_round_with_pixels_of_any_shape(name: str, codec: str, aspect: Fraction, tmp_path: Path) -> None:
    if codec == "mpeg2video" and aspect not in (Fraction(16, 15), Fraction(8, 9)):
        pytest.skip("MPEG-2 knows a few shapes only")
    path = squeezed(tmp_path / name, aspect, codec)
    for interval in ((None, None), (0.5, 1.5)):
        clip = prepare(Request(str(path), None, *interval, faces=False))
        height, width = clip.details["video"]["height"], clip.details["video"]["width"]
        # MPEG-2 states the shape of the picture, of which that of a pixel follows roughly.
        assert (height, width) == (96, pytest.approx(160, abs=2 if codec == "libx264" else 60))
        image = read_frames(clip.video, (1,))[1].pixels[0]
        assert image.shape[:2] == (height, width)
        if codec == "libx264":
            bright = image.mean(axis=2) > 128
            assert bright.any(axis=0).sum() == pytest.approx(60, abs=2)
            assert bright.any(axis=1).sum() == pytest.approx(60, abs=2)
    encoded = cut_video(path, None, None, Limits(), reencode=True).data
    with av.open(io.BytesIO(encoded)) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio in (None, 1) and stream.width == width


def test_absurd_pixels_are_square(tmp_path: Path) -> None:
    path = squeezed(tmp_path / "a.mp4", Fraction(1))
    data = path.read_bytes()
    plain = read_frames(path, (1,))[1].pixels.shape
    with av.open(str(path), "r") as source, av.open(str(tmp_path / "b.mp4"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        stream.sample_aspect_ratio = Fraction(1, 255)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    assert data and read_frames(tmp_path / "b.mp4", (1,))[1].pixels.shape == plain


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libsvtav1"), ("webm", "libsvtav1"), ("webm", "libvpx-vp9")])
def test_what_mp4_can_hold_is_copied_whatever_decodes_it(suffix: str, codec: str, tmp_path: Path) -> None:
    path = make(tmp_path / f"a.{suffix}", Recipe(steady(50), codec=codec))
    clip = prepare(Request(str(path), None, 0.6, 1.4, faces=False))
    assert clip.details["video"]["copied"]
    assert [number for _, number in shown(clip.video)] == list(range(15, 35))
