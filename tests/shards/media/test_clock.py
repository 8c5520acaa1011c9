"""One clock: whatever the container, an interval gives exactly its pictures, and the sound that was heard with them.

Beside what a plain decoder shows that reads each file from its begin to its end, and beside the `ffmpeg` program.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from shards.media import pictures
from shards.media import probe as probe_module
from shards.media.cut import CutVideo, cut_video
from shards.media.limits import Limits, MediaError
from shards.media.prepare import Prepared, Request, prepare
from shards.media.probe import start_of
from tests.campaigns.media_matrix import PLACES, ffmpeg_cut, inside, read_wav
from tests.shards.media.containers import KINDS, LONG_KINDS, Kind
from tests.shards.media.make_media import make_sound
from tests.shards.media.timed_media import RATE, Recipe, make, shown, sound, steady, time_heard

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
# What a sound's time may be off by: half a picture.
CLOSE = 0.02
CHEAP = [
    "MP4 H.264, open groups",
    "MP4 variable rate",
    "MP4 picture 1 s late",
    "MKV picture 1 s late",
    "TS H.264, groups of 50",
    "TS MPEG-2, begins amid a group",
    "MPG MPEG-1",
    "AVI MPEG-4, B pictures",
    "AVI H.264, B pictures",
]


def cut(path: Path, interval: tuple[float, float] | None, **options: object) -> Prepared:
    start, end = interval or (None, None)
    return prepare(Request(str(path), None, start, end, sound="wav", faces=False, **options))  # type: ignore[arg-type]


def check(path: Path, kind: Kind, interval: tuple[float, float] | None) -> None:
    """The clip's pictures are those of the interval by a plain decoder; the sound at three places tells the time at
    which the source's pictures there were filmed."""
    everything = shown(path)
    expected = [(time, number) for time, number in everything if inside(float(time), interval)]
    clip = cut(path, interval)
    got = shown(clip.video)
    assert [number for _, number in got] == [number for _, number in expected]
    begin = expected[0][0]
    assert [float(time) for time, _ in got] == pytest.approx([float(t - begin) for t, _ in expected], abs=2e-3)
    assert clip.details["taken"]["begin"] == pytest.approx(float(begin), abs=1e-3)
    assert clip.sound is not None
    samples, rate = read_wav(clip.sound)
    seconds = clip.details["video"]["seconds"]
    assert len(samples) / rate == pytest.approx(seconds, abs=1e-3)
    filmed = kind.recipe(kind.seconds).times
    for share in PLACES:
        at = share * seconds
        number, appears = next((n, float(t)) for t, n in reversed(got) if float(t) <= at)
        heard = time_heard(samples, rate, at, min(0.16, seconds - at))
        assert heard == pytest.approx(float(filmed[number]) + at - appears + kind.lag, abs=CLOSE), share


@pytest.mark.parametrize("name", CHEAP)
def test_pictures_and_sound_of_an_interval(name: str, tmp_path: Path) -> None:
    kind = replace(KINDS[name], seconds=5.5)
    path = kind.make(tmp_path, "file")
    check(path, kind, (3.0, 5.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, *LONG_KINDS])
def test_every_container_and_interval(name: str, tmp_path: Path) -> None:
    kind = {**KINDS, **LONG_KINDS}[name]
    path = kind.make(tmp_path, "file")
    for interval in kind.intervals:
        check(path, kind, interval)


@needs_ffmpeg
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name[:3] in ("MP4", "MOV", "MKV", "Web", "FLV", "WMV")])
def test_the_same_pictures_as_ffmpeg_decodes(name: str, tmp_path: Path) -> None:
    """In containers with an index; in MPEG streams the program itself begins at the key frame after the interval's
    begin."""
    kind = KINDS[name]
    path = kind.make(tmp_path, "file")
    for interval in kind.intervals:
        if interval == (0.5, 1.5) and "late" in name:
            continue  # the program keeps a second of what follows
        numbers, samples = ffmpeg_cut(path, interval)
        clip = cut(path, interval)
        if (name, interval) != ("MP4 fragments", (3.0, 5.0)):  # there too
            assert [number for _, number in shown(clip.video)] == numbers
        if interval is None:
            continue  # the program's sound begins with its first sample, whenever that is
        assert clip.sound is not None
        ours, rate = read_wav(clip.sound)
        lead = clip.details["taken"]["begin"] - interval[0]
        assert time_heard(ours, rate, 0.3) == pytest.approx(time_heard(samples, RATE, 0.3 + lead), abs=0.03)  # type: ignore[operator]


def test_time_zero_is_exact_and_that_of_the_container(tmp_path: Path) -> None:
    """29.97 pictures a second, shifted by a time that microseconds cannot hold: picture 90 is at exactly 3.003 s."""
    recipe = Recipe(steady(120, Fraction(30_000, 1001)), shift=Fraction(1001, 30_000) * 7, options={"bf": "0"})
    path = make(tmp_path / "a.ts", recipe)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert start_of(container) == stream.start_time * stream.time_base
    numbers = [n for _, n in shown(cut_video(path, 3.003, 3.5035, Limits()).data)]
    assert numbers == list(range(90, 105))


def test_a_sound_file_beside_the_video_has_the_same_zero(tmp_path: Path) -> None:
    """The video's own clock begins at 1.4 s and its picture a second after its sound; the sound file is from zero."""
    kind = replace(KINDS["TS H.264, groups of 12"], seconds=6.0)
    recipe = replace(kind.recipe(6.0), times=steady(125, 25, 1.0))
    video = make(tmp_path / "a.ts", recipe)
    apart = make_sound(tmp_path / "a.wav", sound(0.0, 6.0)[None], RATE)
    for interval in ((3.0, 5.0), None):
        start, end = interval or (None, None)
        clip = prepare(Request(str(video), str(apart), start, end, sound="wav", faces=False))
        assert clip.sound is not None
        samples, rate = read_wav(clip.sound)
        begin = clip.details["taken"]["begin"]
        assert shown(clip.video)[0][1] == round((begin - 1.0) * 25)
        for at in (0.1, 1.0, 1.7):
            assert time_heard(samples, rate, at) == pytest.approx(begin + at, abs=CLOSE)


def test_seeks_that_land_too_late_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seek lands 1.5 s after its target, or is refused: neither pictures nor sound are other ones for it."""
    path = make(tmp_path / "a.mp4", Recipe(steady(200), [(0.0, 8.0)], gop=10))
    right = cut(path, (5.0, 7.0))
    real = probe_module.seek
    calls = []

    def late(container: object, stream: object, time: Fraction) -> bool:
        calls.append(time)
        return real(container, stream, time + Fraction(3, 2))

    for wrong in (late, lambda *_: False):
        for module in ("cut", "pictures", "audio"):
            monkeypatch.setattr(f"shards.media.{module}.seek", wrong)
        again = cut(path, (5.0, 7.0))
        assert shown(again.video) == shown(right.video)
        assert again.sound is not None and right.sound is not None
        assert read_wav(again.sound)[0] == pytest.approx(read_wav(right.sound)[0], abs=2 / 32768)
        assert [n for _, n in shown(cut_video(path, 5.0, 7.0, Limits(), reencode=True).data)] == list(range(125, 175))
    assert len(calls) >= 4


def test_intervals_that_the_pictures_do_not_reach(tmp_path: Path) -> None:
    """Half a second of rounding is borne; more is refused, also where the container announces no length."""
    late = make(tmp_path / "late.ts", Recipe(steady(100, 25, 1.0), [(0.0, 5.0)], sound_codec="mp2"))
    for interval, first in (((0.6, 2.5), 0), ((0.95, 2.5), 0)):
        assert shown(cut(late, interval).video)[0][1] == first
    for interval in ((0.1, 2.5), (3.0, 9.0), (8.0, 9.0)):
        with pytest.raises(MediaError) as caught:
            cut(late, interval)
        assert caught.value.reason == "bad_interval"


def test_a_clock_that_begins_after_an_hour(tmp_path: Path) -> None:
    """Matroska says when it ends, not how long it lasts."""
    path = make(tmp_path / "a.mkv", Recipe(steady(75), [(0.0, 3.0)], shift=Fraction(3600), sound_codec="flac"))
    kind = Kind("mkv", lambda _: Recipe(steady(75)), seconds=3.0)
    for interval in (None, (1.0, 2.0)):
        check(path, kind, interval)


def test_one_picture_of_a_variable_rate_is_as_long_as_it_is_shown(tmp_path: Path) -> None:
    """With B pictures the MP4 that the picture is copied to gives it a tick."""
    times = [Fraction(number, 25) for number in range(250) if number % 7 and number % 3]
    options = {"preset": "veryfast", "bf": "3", "sc_threshold": "0"}
    path = make(tmp_path / "a.ts", Recipe(times, [(0.0, 10.0)], sound_codec="mp2", options=options))
    for number in range(20, 40):
        begin = float(times[number]) - 0.02
        clip = cut(path, (begin, begin + 0.06))
        assert clip.details["video"]["pictures"] == len(shown(clip.video)) >= 1
        assert clip.details["video"]["seconds"] == pytest.approx(0.04, abs=0.021)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "flac"), ("ts", "mp2"), ("mp4", "aac")])
def test_a_picture_stays_until_the_next_one(suffix: str, codec: str, tmp_path: Path) -> None:
    """A screen recording whose picture does not change from 2 to 7 s: an interval that ends meanwhile has its length,
    and its sound, whether the packets are copied or encoded again."""
    times = [Fraction(i, 25) + 5 * (i >= 50) for i in range(100)]
    options = {"preset": "ultrafast", "bf": "0"}
    path = make(tmp_path / f"a.{suffix}", Recipe(times, [(0.0, 9.0)], sound_codec=codec, options=options))
    with pytest.raises(MediaError) as caught:
        cut(path, (1.0, 4.0))
    assert caught.value.reason == "picture_gap"
    clip = cut(path, (1.0, 4.0), limits=Limits(picture_gap_seconds=5))
    begin = clip.details["taken"]["begin"]
    assert [number for _, number in shown(clip.video)] == list(range(25, 50))
    assert clip.details["video"]["seconds"] == pytest.approx(4.0 - begin, abs=1e-3) and begin < 1.02
    assert clip.sound is not None and clip.details["audio"]["padded"] == clip.details["audio"]["holes"] == 0
    for at in (0.3, 2.6):
        assert time_heard(*read_wav(clip.sound), at) == pytest.approx(begin + at, abs=CLOSE)
    for reencode in (False, True):
        made = cut_video(path, 1.0, 4.0, Limits(), reencode=reencode)
        assert made.copied is not reencode and float(made.length) == pytest.approx(4.0 - begin, abs=1e-3)
        assert [number for _, number in shown(made.data)] == list(range(25, 50))


@pytest.mark.parametrize(("suffix", "codec", "sound_codec"), [
    ("ts", "libx264", "mp2"), ("ts", "mpeg2video", "mp2"), ("mp4", "libx264", "aac"),
])  # fmt: skip
def test_a_hole_in_the_pictures_is_not_stored_in_silence(
    suffix: str, codec: str, sound_codec: str, tmp_path: Path
) -> None:
    """Pictures are lost from 3.12 to 4.88 s, the sound continues: wherever the interval lies, its longest stay is what
    a plain decoder's times say; a clip that it leaves alone is stored as ever."""
    times = [time for time in steady(200) if not 3.1 < time < 4.9]
    path = make(tmp_path / f"a.{suffix}", Recipe(times, [(0.0, 8.0)], codec=codec, sound_codec=sound_codec))
    seen = [float(time) for time, _ in shown(path)]
    for interval in ((3.0, 5.0), (2.0, 4.5), (3.5, 6.0), None):
        begin, end = interval or (0.0, 8.0)
        within = [begin if interval else seen[0], *(time for time in seen if begin <= time < end), end]
        longest = max(b - a for a, b in pairwise(within))
        assert 1.3 < longest < 1.9
        with pytest.raises(MediaError, match=rf"stays for {longest:.2f} s, allowed are 1 s.*--picture-gap") as caught:
            cut(path, interval)
        assert caught.value.reason == "picture_gap"
        clip = cut(path, interval, limits=Limits(picture_gap_seconds=longest + 0.001))
        assert clip.details["video"]["longest_stay"] == pytest.approx(longest, abs=0.003)
    assert cut(path, (0.5, 2.5)).details["video"]["longest_stay"] == pytest.approx(0.04, abs=0.003)


def test_pictures_of_a_program_stream_with_one_time_are_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stamps as a demuxer guessed them for a file of tiny pictures: the seventh is stamped as the sixth."""
    stamps = [2235600, 2239200, 2242800, 2246400, 2250000, 2253600, 2253600, 2257200, 2260800]

    def frames() -> Iterator[tuple[list[av.VideoFrame], int, bool]]:
        for stamp in stamps:
            frame = av.VideoFrame(96, 64, "yuv420p")
            frame.pts, frame.time_base = stamp, Fraction(1, 90_000)
            yield [frame], 0, True

    monkeypatch.setattr(pictures, "_decoded", lambda *_: frames())
    monkeypatch.setattr(pictures, "start_of", lambda _: Fraction(0))
    codec = SimpleNamespace(codec=SimpleNamespace(canonical_name="h264"))
    stream = SimpleNamespace(average_rate=25, codec_context=codec)
    for name, rising in (("mpeg", True), ("mpegts", False)):
        container = SimpleNamespace(format=SimpleNamespace(name=name))
        times = [shown.time for batch, _ in pictures._timed(container, stream) for shown in batch]
        assert (times == sorted(set(times))) is rising and len(times) == 9
        wanted = [Fraction(stamp, 90_000) for stamp in stamps]
        assert max(abs(a - b) for a, b in zip(times, wanted, strict=True)) <= Fraction(1, 100)


def test_a_cut_that_shows_something_else_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.mp4", Recipe(steady(100), [(0.0, 4.0)]))
    real = cut_video

    def wrong(first: float, second: float) -> object:
        def cut_wrongly(source: object, start: float, end: float, limits: Limits, reencode: bool = False) -> CutVideo:
            promised = real(path, start, end, limits, reencode)
            given = real(path, start + first, end + second, limits, reencode)
            return replace(given, times=promised.times, origin=promised.origin)

        return cut_wrongly

    monkeypatch.setattr("shards.media.prepare.cut_video", wrong(0, 0))
    assert len(shown(cut(path, (1.0, 2.0)).video)) == 25
    for shift in ((0.0, 0.2), (0.2, 0.0), (-0.04, 0.0)):
        monkeypatch.setattr("shards.media.prepare.cut_video", wrong(*shift))
        with pytest.raises(MediaError) as caught:
            cut(path, (1.0, 2.0))
        assert caught.value.reason == "cut_mismatch"


def test_edit_lists_that_begin_amid_a_group(tmp_path: Path) -> None:
    """An MP4 whose edit list hides its first 0.48 s, as trimming on a phone leaves it: zero is what is shown first."""
    path = make(tmp_path / "a.mp4", Recipe(steady(100), [(0.0, 4.0)], gop=100, options={"bf": "0"}))
    data = bytearray(path.read_bytes())
    for _ in range(2):  # the list of each track
        at = data.index(b"elst") + 4
        length, begin = struct.unpack_from(">Ii", data, at + 8)
        track = data.rindex(b"tkhd", 0, at)
        scale_at = data.index(b"mdhd", track) + 4
        scale = struct.unpack_from(">I", data, scale_at + 12)[0]
        struct.pack_into(">Ii", data, at + 8, length - 480, begin + scale * 12 // 25)
        data[at - 4 : at] = b"eLst"
    path.write_bytes(data.replace(b"eLst", b"elst"))
    kind = Kind("mp4", lambda _: Recipe(steady(100)), seconds=4.0)
    for interval in (None, (1.0, 2.0)):
        check(path, kind, interval)
    assert shown(cut(path, (1.0, 2.0)).video)[0][1] == 37


def test_a_still_is_no_clip(tmp_path: Path) -> None:
    """A cover picture beside the sound, and a track of one picture."""
    picture = make(tmp_path / "one.mp4", Recipe(steady(1), [(0.0, 3.0)]))
    cover = tmp_path / "cover.mp4"
    with av.open(str(cover), "w") as out:
        audio = out.add_stream("aac", rate=RATE, layout="mono")
        still = out.add_stream("mjpeg", rate=1)
        still.width, still.height, still.pix_fmt = 96, 64, "yuvj420p"
        still.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(sound(0, 1.024)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for part in av.AudioResampler("fltp", "mono", RATE, frame_size=1024).resample(frame):
            out.mux(audio.encode(part))
        out.mux(audio.encode(None))
        out.mux(still.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")))
        out.mux(still.encode(None))
    for path in (picture, cover):
        with pytest.raises(MediaError) as caught:
            cut(path, None)
        assert caught.value.reason == "no_video", path


@needs_ffmpeg
def test_the_streams_marked_default_then_the_best(tmp_path: Path) -> None:
    """Two pictures tracks and three sound tracks; which were taken is told."""
    one = make(tmp_path / "one.mkv", Recipe(steady(50), [(0.0, 2.0)], sound_codec="flac"))
    late = [number for _, number in shown(one)]
    command = ["ffmpeg", "-v", "error", "-i", str(one), "-f", "lavfi", "-t", "2", "-i", "anullsrc=cl=stereo:r=48000"]
    command += ["-f", "lavfi", "-t", "2", "-i", "color=s=320x240:r=25", "-map", "2:v", "-map", "0:v", "-map", "1:a"]
    command += ["-map", "0:a", "-c:a", "flac", "-c:v", "libx264", "-preset", "ultrafast", "-qp", "10"]
    for flags, video, audio in (
        (["-disposition:v:0", "0", "-disposition:v:1", "default"], 1, None),
        (["-disposition:a:0", "0", "-disposition:a:1", "default"], None, 3),
        (["-disposition:v", "0", "-disposition:a", "0"], 0, 2),
    ):
        path = tmp_path / "two.mkv"
        subprocess.run([*command, *flags, "-y", str(path)], check=True)
        clip = cut(path, None)
        taken = clip.details["taken"]
        if video is not None:
            assert taken["video"]["number"] == video and taken["video"]["of"] == 2
            assert (clip.details["video"]["width"] == 96) == (video == 1)
            assert video == 0 or [number for _, number in shown(clip.video)] == late
        if audio is not None:
            assert taken["audio"]["number"] == audio and taken["audio"]["of"] == 2
            assert clip.sound is not None
            assert (np.abs(read_wav(clip.sound)[0]).max() > 0.1) == (audio == 3)
