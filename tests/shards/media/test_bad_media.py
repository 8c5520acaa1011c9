"""Bad input: each kind is refused with its reason, and none of it hangs, crashes or is lost."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from shards.media.isolated import IsolatedPreparer
from shards.media.limits import Limits, MediaError
from shards.media.prepare import Request, prepare
from shards.media.probe import probe
from tests.shards.media.make_media import make_sound, make_video, sine


def reason(path: Path, **options: object) -> str:
    with pytest.raises(MediaError) as caught:
        prepare(Request(str(path), **options))  # type: ignore[arg-type]
    return caught.value.reason


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n%s\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda d: written(d / "a.mp4", b""), "empty"),
        (lambda d: written(d / "a.mp4", b"just some text\n" * 100), "not_media"),
        (lambda d: written(d / "a.mp4", np.random.default_rng(0).bytes(50_000)), "not_media"),
        (lambda d: written(d / "a.mp4", PLAYLIST % os.fsencode(make_video(d / "b.mp4"))), "not_media"),
        (lambda d: written(d / "a.mp4", b"ffconcat version 1.0\nfile b.mp4\n"), "not_media"),
        (lambda d: d / "nothing.mp4", "missing"),
        (lambda d: d, "not_a_file"),
        (lambda d: make_sound(d / "a.wav", sine(1, 16_000, 1), 16_000), "no_video"),
    ],
)
def test_what_is_no_video(make: Callable[[Path], Path], expected: str, tmp_path: Path) -> None:
    assert reason(make(tmp_path)) == expected


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert reason(tmp_path / "a.mp4") == "not_a_file"


def test_unreadable_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4")
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything: what the system tells others

        def refuse(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    assert reason(path) == "unreadable"


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_truncated(share: float, tmp_path: Path) -> None:
    """With its index in front the file still opens, and ends early; with its index at the end it does not open."""
    front = tmp_path / "front.mp4"
    make_video(front, 100, (240, 320), gop=5)
    data = faststart(front.read_bytes())
    end = written(tmp_path / "end.mp4", front.read_bytes()[: int(share * len(data))])
    front.write_bytes(data[: int(share * len(data))])
    assert reason(front) in ("truncated", "damaged")
    with pytest.raises(MediaError, match="its index is missing or damaged: was it cut off") as refused:
        prepare(Request(str(end)))
    assert refused.value.reason == "not_media"


def faststart(data: bytes) -> bytes:
    """The MP4 with its index moved to the front, chunk offsets corrected."""
    at, boxes = 0, {}
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        boxes[kind] = data[at : at + size]
        at += size
    moov = bytearray(boxes[b"moov"])
    for place in range(len(moov) - 4):
        if moov[place : place + 4] == b"stco":
            for i in range(struct.unpack_from(">I", moov, place + 8)[0]):
                old = struct.unpack_from(">I", moov, place + 12 + 4 * i)[0]
                struct.pack_into(">I", moov, place + 12 + 4 * i, old + len(moov))
    return boxes[b"ftyp"] + bytes(moov) + boxes.get(b"free", b"") + boxes[b"mdat"]


def test_damaged_pictures(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", 60, (120, 160), codec="mjpeg")
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data) - 2) if data[i : i + 3] == b"\xff\xd8\xff"]
    for start in starts[10:40]:
        data[start + 2 : start + 400] = bytes(398)
    path.write_bytes(data)
    assert reason(path) in ("damaged", "not_media")


def test_no_good_picture_at_all(tmp_path: Path) -> None:
    """Every packet is there, in its place, and none can be decoded."""
    path = make_video(tmp_path / "a.mp4", 20, (120, 160), codec="mjpeg")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for place, size in packets:
        data[place + 4 : place + size] = bytes(size - 4)
    assert len(packets) == 20
    with pytest.raises(MediaError, match=r"announces 0\.80 s, its pictures end at 0\.00 s"):
        prepare(Request(str(written(path, bytes(data)))))


def test_sound_of_another_length(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 50, sound=sine(5.0, 44_100, 1))
    assert reason(path) == "audio_length"
    apart = make_sound(tmp_path / "a.wav", sine(0.5, 16_000, 1), 16_000)
    assert reason(make_video(tmp_path / "b.mp4", 50), audio=str(apart)) == "audio_length"


def test_sound_file_without_sound(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", 50)
    assert reason(video, audio=str(make_video(tmp_path / "b.mp4", 50))) == "audio_damaged"
    assert reason(video, audio=str(tmp_path / "none.m4a")) == "missing"


def test_a_hundred_megapixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", 2, (480, 640), codec="mjpeg")
    # The size is in the frame header of every JPEG (ITU-T T.81, B.2.2): marker, length, precision, height, width.
    before, after = (b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", *size) for size in ((480, 640), (10_000, 12_000)))
    assert before in path.read_bytes()
    hidden = path.read_bytes().replace(before, after)
    # Where the container lies about it, the decoder is told the limit and gives no picture.
    assert reason(written(tmp_path / "hidden.avi", hidden)) in ("too_many_pixels", "no_video")
    honest = hidden.replace(struct.pack("<ii", 640, 480), struct.pack("<ii", 12_000, 10_000))
    with pytest.raises(MediaError, match=r"12000 x 10000 is 120\.0 megapixels, allowed are 9\.4") as caught:
        prepare(Request(str(written(tmp_path / "honest.avi", honest))))
    assert caught.value.reason == "too_many_pixels"
    with pytest.raises(MediaError) as caught:
        probe(path, Limits(max_pixels=640 * 479))
    assert caught.value.reason == "too_many_pixels"


def test_hour_long(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", [0, 1800, 3600], (32, 32))
    assert reason(path) == "too_long"
    assert reason(make_video(tmp_path / "b.mp4", 50), limits=Limits(max_seconds=1)) == "too_long"


def test_too_many_bytes(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 50, (240, 320))
    assert reason(path, limits=Limits(max_decoded_bytes=2000)) == "too_many_bytes"


def test_limits_must_make_sense() -> None:
    for wrong in ({"max_pixels": 0}, {"max_seconds": -1}, {"max_damaged_share": 1.0}, {"audio_gap_seconds": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)


def test_good_clip_beside_its_details(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 50, (48, 64), rotation=90, sound=sine(2.0, 44_100, 2))
    prepared = prepare(Request(str(path)))
    assert prepared.details["video"] == {
        "width": 48, "height": 64, "pictures": 50, "damaged": 0, "seconds": 2.0, "copied": True,
        "longest_stay": 0.04, "cuts": [],
    }  # fmt: skip
    assert prepared.details["audio"]["rate"] == 16_000 and prepared.details["face"] is None
    assert prepared.sound is not None


def test_isolated_gives_the_same(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 30, sound=sine(1.2, 44_100, 1))
    with IsolatedPreparer() as preparer:
        assert preparer.prepare(Request(str(path))) == prepare(Request(str(path)))
        with pytest.raises(MediaError) as caught:
            preparer.prepare(Request(str(tmp_path / "none.mp4")))
        assert caught.value.reason == "missing"
        # The same child continues after a refusal.
        assert preparer.prepare(Request(str(path), sound="wav")).sound is not None


def test_hang_and_crash_end_the_child_and_not_the_job(tmp_path: Path) -> None:
    long = make_video(tmp_path / "long.mp4", 300, (480, 640), options={"preset": "ultrafast"})
    short = make_video(tmp_path / "short.mp4", 10)
    with IsolatedPreparer(timeout=0.1) as preparer:
        with pytest.raises(MediaError) as caught:
            preparer.prepare(Request(str(long)))
        assert caught.value.reason == "timeout"
    with IsolatedPreparer() as preparer:
        assert preparer.prepare(Request(str(short))).video
        child = preparer._child
        assert child is not None
        threading.Timer(0.1, os.kill, (child.pid, signal.SIGSEGV)).start()
        with pytest.raises(MediaError) as caught:
            preparer.prepare(Request(str(long)))
        assert caught.value.reason == "crashed" and "signal 11" in str(caught.value)
        assert preparer.prepare(Request(str(short))).video


def test_memory_is_limited(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", 3, (2000, 3000), options={"preset": "ultrafast"})
    with IsolatedPreparer(memory=1) as preparer, pytest.raises(RuntimeError, match="does not start"):
        preparer.prepare(Request(str(path)))
