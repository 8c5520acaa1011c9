"""What the files of clips say when they are looked into: which open, what they hold, and whether intervals fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conclugen.common import extras
from conclugen.common.screen import Progress
from shards.adapters.clip_set import Clip, ClipSet
from shards.adapters.files import shown
from shards.media.limits import Limits, MediaError

_NAMED = 5
_SECONDS = 30.0  # for a look into one file
_OVERHANG = 0.5  # seconds by which an interval may end after its video, as where it is cut

# Of a file: what `shards.media.look.Look` holds, or why it can't be used.
Found = Mapping[str, Any] | MediaError


@dataclass(frozen=True)
class Opened:
    """lines: to print; refused: keys of clips that will be quarantined for what their files are."""

    lines: list[str]
    refused: list[str]


def open_files(clips: ClipSet, most: int | None = None, limits: Limits | None = None) -> Opened:
    """Look into the files of clips, each file once, in a process that they can't harm.

    most: so many videos at most, spread over the set (None: all). Without the libraries that read media no file is
    opened, and the lines say so.
    """
    videos = list(dict.fromkeys(clip.video for clip in clips.clips))
    chosen = set(videos if most is None else _spread(videos, most))
    if not chosen:
        return Opened([f"files: none of {len(videos)} videos was opened"] if videos else [], [])
    if missing := extras.absent("media"):
        what = ", ".join(missing)
        return Opened([f'files: none was opened, which takes {what}: pip install "conclugen[media]"'], [])
    limits = limits or Limits()
    looked = [clip for clip in clips.clips if clip.video in chosen]
    found = _look(clips, looked, limits)
    problems = {clip.key: problem for clip in looked if (problem := _problem(clip, found, limits)) is not None}
    return Opened(_lines(looked, found, problems, len(chosen), len(videos)), list(problems))


def _spread(items: Sequence[str], most: int) -> list[str]:
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _look(clips: ClipSet, looked: Sequence[Clip], limits: Limits) -> dict[str, Found]:
    """Relative path -> what was found, of videos and of sound files of their own."""
    from shards.media.isolated import IsolatedPreparer  # OpenCV and PyAV

    sounds = {clip.audio for clip in looked if clip.audio is not None}
    paths = list(dict.fromkeys(path for clip in looked for path in (clip.video, clip.audio) if path is not None))
    found: dict[str, Found] = {}
    progress = Progress()
    with IsolatedPreparer(_SECONDS) as child:
        for path in paths:
            try:
                found[path] = child.look(str(clips.source / path), path in sounds, limits)
            except MediaError as error:
                found[path] = error
            if len(paths) > 1:
                progress.show(f"{len(found):,}/{len(paths):,} files looked into", len(found) / len(paths))
    return found


def _problem(clip: Clip, found: Mapping[str, Found], limits: Limits) -> MediaError | None:
    """Why the clip can't be used, as far as a look can tell."""
    for path in (clip.video, clip.audio):
        if path is not None and isinstance(of := found[path], MediaError):
            return of
    video = found[clip.video]
    assert not isinstance(video, MediaError)
    seconds = math.inf if video["seconds"] is None else float(video["seconds"])
    try:
        if clip.start is None or clip.end is None:
            limits.check_seconds(0.0 if math.isinf(seconds) else seconds)
            return None
        limits.check_seconds(clip.end - clip.start)
    except MediaError as error:
        return error
    if clip.start >= seconds or clip.end > seconds + _OVERHANG:
        said = f"the interval {clip.start:g} to {clip.end:g} s leaves the video of {seconds:.2f} s"
        return MediaError("bad_interval", said)
    return None


def _lines(
    looked: Sequence[Clip], found: Mapping[str, Found], problems: Mapping[str, MediaError], opened: int, videos: int
) -> list[str]:
    own = [of for path in dict.fromkeys(clip.video for clip in looked) if isinstance(of := found[path], Mapping)]
    spread = "" if opened == videos else ", spread over all (--look none: all)"
    line = f"files: looked into {opened} videos of {videos}{spread}"
    if own:
        codecs = ", ".join(f"{name} {count}" for name, count in Counter(each["codec"] for each in own).most_common())
        sizes = sorted({(each["width"], each["height"]) for each in own}, key=lambda size: (math.prod(size), size))
        shown_sizes = " to ".join(f"{width} x {height}" for width, height in dict.fromkeys((sizes[0], sizes[-1])))
        line += f": {codecs}; {shown_sizes} pixels"
        lengths = [float(each["seconds"]) for each in own if each["seconds"] is not None]
        if lengths:
            line += f"; {min(lengths):.1f} to {max(lengths):.1f} s, {math.fsum(lengths):.1f} s in all"
        line += f"; with sound {sum(each['sound'] is not None for each in own)} of {len(own)}"
    lines = [line]
    if problems:
        lines.append(f"{len(problems)} clips can't be used for what their files are, and will be quarantined:")
        named = {clip.key: clip.video for clip in looked}
        listed = list(problems.items())
        lines += [f"  {shown(named[key])}: {error.reason}: {error}" for key, error in listed[:_NAMED]]
        if len(listed) > _NAMED:
            lines.append(f"  and {len(listed) - _NAMED} more")
    return lines
