"""Recordings joined byte by byte have several clocks: refused by name; a clock that wraps, or stops a while, is one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from shards.media import one_clock
from shards.media.limits import Limits, MediaError
from shards.media.one_clock import check_clock
from shards.media.prepare import Request, prepare
from tests.campaigns.media_matrix import read_wav
from tests.shards.media.timed_media import RATE, Recipe, make, shown, sound, steady, time_heard

_B = {"preset": "ultrafast", "bf": "2"}
KINDS: Mapping[str, Mapping[str, object]] = {
    "ts": {"options": _B, "gop": 12, "sound_codec": "mp2"},
    "m2ts": {
        "options": _B,
        "gop": 12,
        "sound_codec": "ac3",
        "format": "mpegts",
        "muxer": {"mpegts_m2ts_mode": "1"},
    },
    "mpg": {"codec": "mpeg1video", "sound_codec": "mp2", "b_pictures": 2},
    "mkv": {"options": _B, "sound_codec": "flac"},
    "mp4": {"options": _B, "muxer": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}},
}


def part(path: Path, number: int, seconds: int = 3, shift: float = 0.0) -> Path:
    """One of several recordings: pictures and sound that resume where the one before ended, time stamps that begin anew
    (plus `shift` seconds)."""
    recipe = Recipe(steady(seconds * 25), [(0.0, float(seconds))], **KINDS[path.suffix[1:]])  # type: ignore[arg-type]
    later = replace(recipe, number=number * seconds * 25, told=float(number * seconds), shift=Fraction(shift))
    return make(path, later)


def joined(folder: Path, suffix: str, *shifts: float, seconds: int = 3) -> tuple[Path, list[Path]]:
    parts = [part(folder / f"{i}.{suffix}", i, seconds, shift) for i, shift in enumerate(shifts)]
    path = folder / f"joined.{suffix}"
    path.write_bytes(b"".join(one.read_bytes() for one in parts))
    return path, parts


def numbers(path: Path, start: float | None = None, end: float | None = None) -> list[int]:
    return [n for _, n in shown(prepare(Request(str(path), None, start, end, faces=False)).video)]


@pytest.mark.parametrize("suffix", KINDS)
def test_a_clock_that_restarts_is_refused(suffix: str, tmp_path: Path) -> None:
    """Whole and intervals, with the place; the first part alone is read as it is."""
    path, parts = joined(tmp_path, suffix, 0.0, 0.0)
    for start, end in ((None, None), (1.0, 2.0), (4.0, 5.0)):
        with pytest.raises(MediaError, match=r"back from 2\.\d\d to -?0\.\d\d s at byte \d+: .*ffmpeg -f") as caught:
            prepare(Request(str(path), None, start, end, faces=False))
        assert caught.value.reason == "clock_jumps"
    found = numbers(parts[0], 1.0, 2.0)
    assert len(found) == 25 and found[0] in (23, 24, 25)  # fragments begin with their B pictures' delay


def test_a_clock_that_leaps_ahead(tmp_path: Path) -> None:
    """Of half a minute: programs replay it without the hole. Of some seconds: a recording that paused."""
    path, _ = joined(tmp_path, "ts", 0.0, 30.0)
    with pytest.raises(MediaError, match=r"ahead from 2\.\d+ to 29\.9\d s") as caught:
        numbers(path, 1.0, 2.0)
    assert caught.value.reason == "clock_jumps"
    path, _ = joined(tmp_path, "ts", 0.0, 7.0)
    for start, first in ((1.0, 25), (8.0, 100)):
        expected = [number for time, number in shown(path) if start <= time < start + 1]
        assert numbers(path, start, start + 1) == expected and len(expected) == 25 and abs(expected[0] - first) <= 3
    # A part whose clock began far below looks like one that wrapped.
    path, _ = joined(tmp_path, "ts", 500.0, 0.0)
    with pytest.raises(MediaError, match="ahead from"):
        numbers(path)


@pytest.mark.parametrize("begin", [95_440, pytest.param(95_300, marks=pytest.mark.slow)])
def test_a_clock_of_33_bits_that_wraps_is_one(begin: int, tmp_path: Path) -> None:
    """After 26.5 hours, here 3.7 s and 143.7 s after the begin (the demuxer treats the two in different ways)."""
    seconds = 6 if begin == 95_440 else 150
    rate = 25 if begin == 95_440 else 2
    sounds = [(0.0, float(seconds))]
    recipe = Recipe(steady(seconds * rate, rate), sounds, **KINDS["ts"])  # type: ignore[arg-type]
    path = make(tmp_path / "a.ts", replace(recipe, shift=Fraction(begin)))
    for at in (1.0, seconds - 3.3, seconds - 2.0):  # before, across and after
        clip = prepare(Request(str(path), None, at, at + 2, sound="wav", faces=False))
        found = [number for _, number in shown(clip.video)]
        assert found == [number for time, number in shown(path) if at <= time < at + 2] and len(found) == 2 * rate
        assert abs(found[0] - at * rate) <= 1 and clip.sound is not None
        heard = time_heard(*read_wav(clip.sound), 0.3)
        assert heard == pytest.approx(found[0] / rate + 0.3, abs=0.02)


def test_damaged_time_stamps_are_no_jump(tmp_path: Path) -> None:
    """Three pictures of a good recording are stamped two minutes late."""
    path = part(tmp_path / "a.ts", 0, 6)
    data = bytearray(path.read_bytes())
    at = changed = 0
    while changed < 3:
        at = data.index(b"\0\0\1\xe0", at + 1)
        if data[at + 7] & 0xC0 == 0xC0 and at > len(data) // 2:
            data[at + 16] ^= 0x14  # bits 23 and 25 of the decoding time
            changed += 1
    path.write_bytes(data)
    check_clock(path, Limits())
    assert numbers(path, 1.0, 2.0) == list(range(25, 50))


def live(folder: Path, suffix: str) -> Path:
    """A recording of 6 s in a form that may hold a second clock."""
    if suffix == "ogg":
        path = folder / "a.ogg"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libopus", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(sound(0.0, 6.0)[None], format="fltp", layout="mono")
            frame.sample_rate = RATE
            out.mux([*stream.encode(frame), *stream.encode(None)])
        return path
    muxer = {"live": "1"} if suffix == "mkv" else KINDS[suffix].get("muxer", {})
    recipe = Recipe(steady(150), [(0.0, 6.0)], **{**KINDS[suffix], "muxer": muxer})  # type: ignore[arg-type]
    return make(folder / f"a.{suffix}", recipe)


@pytest.mark.parametrize("suffix", [*KINDS, "ogg"])
def test_a_few_wrong_time_stamps_are_no_jump_anywhere(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One to four packets in a row of a good recording are stamped late or early, at any place; five are a jump."""
    path = live(tmp_path, suffix)
    with av.open(str(path)) as container:
        stream = container.streams[0]
        stamped = [packet.dts for packet in container.demux(stream) if packet.dts is not None]
        clock = stream.time_base
    real = one_clock._readable

    def check(wrong: slice, seconds: float) -> None:
        changed = set(stamped[wrong])

        def damaged(*given: Any) -> Iterator[av.Packet]:
            for packet in real(*given):
                if packet.stream_index == 0 and packet.dts in changed:
                    changed.remove(packet.dts)
                    packet.dts += round(seconds / clock)
                yield packet

        monkeypatch.setattr(one_clock, "_readable", damaged)
        assert check_clock(path, Limits())
        assert not changed

    half = len(stamped) // 2
    for seconds in (0.15, 1.0, 9.0, 93.0, -1.0, -93.0):
        for wrong in (slice(half, half + 1), slice(half, half + 4), slice(0, 1), slice(0, 4)):
            check(wrong, seconds)
    with pytest.raises(MediaError, match="back from"):
        check(slice(half, half + 5), -2.0)


def test_one_flipped_bit_does_not_refuse_a_recording(tmp_path: Path) -> None:
    """Bit 16 of the 33 of one decoding time: 0.73 s."""
    path = part(tmp_path / "a.ts", 0, 6)
    good = path.read_bytes()
    at, flipped = len(good) // 2, 0
    while (at := good.find(b"\0\0\1\xe0", at + 1)) > 0 and flipped < 4:
        if good[at + 7] & 0xC0 == 0xC0:
            path.write_bytes(good[: at + 16] + bytes([good[at + 16] ^ 0x04]) + good[at + 17 :])
            check_clock(path, Limits())
            assert numbers(path, 1.0, 2.0) == list(range(25, 50))
            flipped += 1
    assert flipped == 4


@pytest.mark.parametrize("stays", [(15,) * 8 + (16,), (15, 9, 9, 4, 20, 9, 9, 9, 9, 9)])
def test_slides_are_no_leaps(stays: tuple[int, ...], tmp_path: Path) -> None:
    """Pictures without sound, seconds apart, in a transport stream; the clock that leaps far further is refused."""
    times = [Fraction(sum(stays[:i])) for i in range(len(stays) + 1)]
    recipe = Recipe(times, codec="mpeg2video", gop=1)
    path = make(tmp_path / "a.ts", recipe)
    check_clock(path, Limits())
    later = make(tmp_path / "b.ts", replace(recipe, shift=Fraction(2000)))
    path.write_bytes(path.read_bytes() + later.read_bytes())
    with pytest.raises(MediaError, match="ahead from"):
        check_clock(path, Limits())


def test_a_sound_file_of_its_own_is_read_too(tmp_path: Path) -> None:
    """Ogg streams that follow one another."""
    video = part(tmp_path / "a.mkv", 0)
    path = tmp_path / "a.ogg"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libopus", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound(0.0, 3.0)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        out.mux([*stream.encode(frame), *stream.encode(None)])
    clip = prepare(Request(str(video), str(path), sound="wav", faces=False))
    assert clip.sound is not None and time_heard(*read_wav(clip.sound), 1.0) == pytest.approx(1.0, abs=0.01)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(MediaError) as caught:
        prepare(Request(str(video), str(path), faces=False))
    assert caught.value.reason == "clock_jumps"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("suffix", KINDS)
def test_the_remedy_gives_one_clock(suffix: str, tmp_path: Path) -> None:
    """The command that the refusal names: every picture once, an interval of the second part, and one across."""
    path, parts = joined(tmp_path, suffix, 0.0, 0.0, seconds=12)
    with pytest.raises(MediaError) as caught:
        numbers(path)
    command = str(caught.value).split("`")[1].split()
    listed = tmp_path / "LIST.txt"
    listed.write_text("".join(f"file '{one}'\n" for one in parts))
    mended = tmp_path / "mended.mkv"
    names = {"FILE": str(path), "FILE.mkv": str(mended), "LIST.txt": str(listed)}
    subprocess.run([names.get(word, word) for word in command], check=True, capture_output=True)
    assert numbers(mended) == list(range(600))
    for start in (2.0, 11.0, 20.0):
        clip = prepare(Request(str(mended), None, start, start + 2, sound="wav", faces=False))
        found = [n for _, n in shown(clip.video)]
        assert found == list(range(found[0], found[0] + len(found))) and abs(found[0] - start * 25) <= 4
        assert len(found) in (48, 49, 50, 51)
        assert clip.sound is not None
        for at in (0.1, 1.6):
            heard = time_heard(*read_wav(clip.sound), at)
            assert heard == pytest.approx(found[0] / 25 + at, abs=0.1)
