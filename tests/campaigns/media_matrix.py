"""Prints what is cut out of files of all kinds beside what `ffmpeg -ss -to` gives, values read back from both.

    python -m tests.campaigns.media_matrix [--checkout FOLDER] [--only TEXT] [--long] > matrix.md
    python -m tests.campaigns.media_matrix [--checkout FOLDER] --cost CLIPS

--checkout: a working tree whose `shards` package is measured (default: this one); --long: also files of three hours;
--cost: instead, CPU seconds that preparing a folder's clips takes in this process.
Needs the `ffmpeg` program for the columns beside it; without it they are empty.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import av
import numpy as np

from tests.shards.media.containers import KINDS, LONG_KINDS
from tests.shards.media.timed_media import HEIGHT, RATE, WIDTH, number_of, shown, time_heard

PLACES = (0.02, 0.45, 0.85)  # where the sound is listened to, as shares of the clip
Interval = tuple[float, float] | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="a working tree whose `shards` package is measured")
    parser.add_argument("--only", default="", metavar="TEXT", help="kinds whose name holds the text")
    parser.add_argument("--long", action="store_true", help="also files of three hours")
    parser.add_argument("--cost", type=Path, metavar="CLIPS", help="CPU seconds that a folder's clips take, instead")
    args = parser.parse_args()
    if args.checkout is not None:
        sys.path.insert(0, str(args.checkout.absolute()))
    if args.cost is not None:
        print(cost(args.cost))
        return
    print("| file | interval | stored: pictures (count) | sound says | right | ffmpeg: pictures (count) | sound says |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in {**KINDS, **(LONG_KINDS if args.long else {})}.items():
            if args.only not in name:
                continue
            path = kind.make(Path(folder), "file")
            for interval in kind.intervals:
                asked = "whole" if interval is None else f"{interval[0]:g} to {interval[1]:g}"
                truth = told([number for at, number in shown(path) if inside(float(at), interval)])
                print(
                    f"| {name} | {asked} | {stored(path, interval)} | {truth} | {by_ffmpeg(path, interval)} |",
                    flush=True,
                )
            path.unlink()


def cost(clips: Path) -> str:
    """CPU seconds of all clips of a folder, with faces looked for and without; a first clip warms up."""
    from shards.media.prepare import Request, prepare

    paths = [str(path) for path in sorted(clips.iterdir()) if path.suffix in (".mp4", ".mpg", ".avi", ".mov", ".mkv")]
    prepare(Request(paths[0]))
    told = []
    for faces in (True, False):
        began = time.process_time()
        for path in paths:
            prepare(Request(path, faces=faces))
        told.append(f"{time.process_time() - began:.2f} CPU s {'with' if faces else 'without'} faces")
    return f"{len(paths)} clips: {', '.join(told)}"


def inside(at: float, interval: Interval) -> bool:
    return interval is None or interval[0] - 1e-6 <= at < interval[1] - 1e-6


def told(numbers: list[int]) -> str:
    """First and last number, count, and whether any is missing between."""
    if not numbers:
        return "none"
    steps = " with gaps" if numbers != list(range(numbers[0], numbers[0] + len(numbers))) else ""
    return f"{numbers[0]}..{numbers[-1]} ({len(numbers)}{steps})"


def listened(samples: np.ndarray, rate: int) -> str:
    """What the sound says at three places, each minus the place: the time at which the clip begins by its sound."""
    begins = []
    for share in PLACES:
        at = share * len(samples) / rate
        heard = time_heard(samples, rate, at)
        begins.append(f"{round(heard - at, 2) + 0.0:.2f}" if isinstance(heard, float) else str(heard))
    return "begins at " + (begins[0] if len(set(begins)) == 1 else ", ".join(begins))


def stored(path: Path, interval: Interval) -> str:
    from shards.media.limits import MediaError
    from shards.media.prepare import Request, prepare

    start, end = interval or (None, None)
    try:
        clip = prepare(Request(str(path), None, start, end, sound="wav", faces=False))
    except MediaError as error:
        return f"refused, {error.reason} | -"
    numbers = [number for _, number in shown(clip.video)]
    if clip.sound is None:
        return f"{told(numbers)} | no sound"
    return f"{told(numbers)} | {listened(*read_wav(clip.sound))}"


def read_wav(data: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        return samples, file.getframerate()


def by_ffmpeg(path: Path, interval: Interval) -> str:
    """What the program decodes of the interval: its pictures' numbers, and its sound."""
    if shutil.which("ffmpeg") is None:
        return "- | -"
    numbers, samples = ffmpeg_cut(path, interval)
    return f"{told(numbers)} | {listened(samples, RATE)}"


def ffmpeg_cut(path: Path, interval: Interval) -> tuple[list[int], np.ndarray]:
    """(numbers of the pictures, sound at `RATE`) that `ffmpeg -ss START -to END` decodes."""
    span = [] if interval is None else ["-ss", str(interval[0]), "-to", str(interval[1])]
    command = ["ffmpeg", "-v", "quiet", "-nostdin", *span, "-i", str(path)]
    pictures = subprocess.run(
        [*command, "-map", "0:v:0", "-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True,
        check=True,
    ).stdout
    sound = subprocess.run(
        [*command, "-map", "0:a:0", "-ac", "1", "-ar", str(RATE), "-f", "f32le", "-"], capture_output=True, check=True
    ).stdout
    images = np.frombuffer(pictures, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    return [number_of(image) for image in images], np.frombuffer(sound, np.float32)


if __name__ == "__main__":
    av.logging.set_level(av.logging.PANIC)
    main()
