"""Several programs in a transport stream: the picture's own one gives the sound and the time zero, no other."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest

from shards.media.prepare import Request, prepare
from shards.media.probe import start_of
from tests.campaigns.media_matrix import read_wav
from tests.shards.media.timed_media import Recipe, make, shown, steady, time_heard

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")

LATE = 0.5  # seconds by which the picture begins after the sound
TOLD = 5.0  # seconds that the second recording's sound tells more than it lies at


def ffmpeg(*words: str | Path) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, words)], check=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two recordings, the second on a clock 500 s behind, and a small picture on the clock of the first."""
    folder = tmp_path_factory.mktemp("recordings")
    made = []
    for number, shift in enumerate((500, 0)):
        recipe = Recipe(
            steady(88, begin=LATE),
            [(0.0, 4.0)],
            codec="mpeg2video",
            sound_codec="mp2",
            gop=12,
            shift=Fraction(shift),
            number=100 * number,
            told=TOLD * number,
        )
        made.append(make(folder / f"{number}.ts", recipe))
    size = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=3", "-c:v", "mpeg2video")
    ffmpeg(*size, "-output_ts_offset", "501", folder / "small.ts")
    return [*made, folder / "small.ts"]


def mux(inputs: Sequence[Path], path: Path, maps: str, *programs: str) -> Path:
    """One transport stream of the inputs' streams `maps`; programs: each as numbers among those, such as `0:1`."""
    words: list[str | Path] = []
    for one in inputs:
        words += ["-i", one]
    for stream in maps.split():
        words += ["-map", stream]
    for number, streams in enumerate(programs):
        # A name that looks like the library's listing of programs.
        name = f"{number}\n  No Program\n  Program 9 \n  Stream #0\\:1[0x101]\\: Audio\\: mp2"
        words += ["-program", f"title={name}:st={streams.replace(':', ':st=')}"]
    ffmpeg("-copyts", *words, "-c", "copy", path)
    return path


# What is muxed, and by whose time zero the pictures lie and what is heard: the first recording's sound begins it.
CASES = {
    "two": ("0:v 0:a 1:v 1:a", ["0:1", "2:3"], True),
    "a radio first": ("0:v 0:a 1:a", ["2", "0:1"], True),
    "a radio last": ("0:v 0:a 1:a", ["0:1", "2"], True),
    "a radio of the same sound": ("0:v 0:a", ["1", "0:1"], True),
    "an earlier picture with the same sound": ("0:v 0:a 2:v", ["2:1", "0:1"], True),
    "a later picture with the same sound": ("0:v 0:a 2:v", ["0:1", "2:1"], True),
    "the same picture with another sound": ("0:v 0:a 1:a", ["0:1", "0:2"], True),
    "a sound in no program": ("0:v 0:a", ["0"], True),
    "no sound beside another picture's": ("0:v 1:v 1:a", ["0", "1:2"], False),
    "no sound beside an earlier one's": ("0:v 2:v 1:a", ["1:2", "0"], False),
    "no sound beside a radio": ("0:v 1:a", ["0", "1"], False),
    "no sound beside two": ("0:v 0:a 1:a", ["1", "0", "2"], False),
}


@pytest.mark.parametrize(("maps", "programs", "heard"), CASES.values(), ids=CASES)
def test_the_program_of_the_picture(
    maps: str, programs: list[str], heard: bool, inputs: list[Path], tmp_path: Path
) -> None:
    """The interval [1, 3) of the first recording: the pictures' numbers and the time that the sound tells."""
    path = mux(inputs, tmp_path / "a.ts", maps, *programs)
    clip = prepare(Request(str(path), None, 1.0, 3.0, sound="wav", faces=False))
    first = 13 if heard else 25  # the first picture at or after 1 s: number 12.5 where it begins half a second late
    assert [number for _, number in shown(clip.video)] == list(range(first, first + 50))
    assert (clip.sound is not None) == heard
    if clip.sound is not None:
        begin = LATE + first / 25
        assert time_heard(*read_wav(clip.sound), 0.3) == pytest.approx(begin + 0.3, abs=0.05)


def test_two_sounds_of_one_program_have_one_zero(inputs: list[Path], tmp_path: Path) -> None:
    with av.open(str(mux(inputs, tmp_path / "a.ts", "0:v 0:a 1:a"))) as container:
        assert float(start_of(container)) == pytest.approx(container.start_time / av.time_base, abs=1e-5)
        assert container.start_time / av.time_base < 10
