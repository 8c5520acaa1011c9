"""What an adapter understood of a data set, before any clip is opened: lines to print, and doubts."""

from __future__ import annotations

import math
from typing import Any

from shards.adapters.clip_set import Clip, ClipSet
from shards.adapters.files import shown
from shards.doubts import Samples, classes_of
from shards.format.schema import Label

_NAMED, _EXAMPLES = 5, 3
_LONGEST = 40  # characters of a transcript


def clip_samples(clips: ClipSet) -> Samples:
    """The clips' labels, speakers, parts and transcripts. Values that do not fit a label are left to the build, which
    quarantines such clips by name."""
    classes = {}
    for label in clips.labels:
        if label.classes:
            classes[label.name] = classes_of(label, [_encoded(label, clip) for clip in clips.clips])
    return Samples(
        len(clips.clips),
        clips.labels,
        classes,
        [clip.group for clip in clips.clips] if clips.grouped else None,
        [clip.split for clip in clips.clips] if any(clip.split is not None for clip in clips.clips) else None,
        sum(clip.transcript is not None for clip in clips.clips),
    )


def _encoded(label: Label, clip: Clip) -> Any:
    try:
        return label.encode(clip.labels.get(label.name))
    except (ValueError, TypeError):
        return label.encode(None)


def describe_clips(clips: ClipSet) -> list[str]:
    """How tables and texts were read, what was found and what is missing, intervals, labels, speakers, parts."""
    videos = {clip.video for clip in clips.clips}
    lines = [f"{clips.name}: {len(clips.clips)} clips of {len(videos)} videos", *clips.how, *clips.report()]
    lengths = [clip.end - clip.start for clip in clips.clips if clip.start is not None and clip.end is not None]
    if lengths:
        whole = len(clips.clips) - len(lengths)
        lines.append(
            f"intervals: {len(lengths)}, {min(lengths):g} to {max(lengths):g} s, {math.fsum(lengths):.1f} s in all"
            + (f"; {whole} clips are whole videos" if whole else "")
        )
    sounds = sum(clip.audio is not None for clip in clips.clips)
    if sounds:
        lines.append(f"sound from files of their own: {sounds} of {len(clips.clips)} clips")
    lines += clip_samples(clips).lines()
    if clips.rejected:
        lines.append(f"{len(clips.rejected)} will be quarantined:")
        lines += [f"  {item.name}: {item.reason}: {item.message}" for item in clips.rejected[:_NAMED]]
        if len(clips.rejected) > _NAMED:
            lines.append(f"  and {len(clips.rejected) - _NAMED} more")
    return lines


def example_clips(clips: ClipSet) -> list[str]:
    """The first clips with what is known of each, by which a row that belongs to another file is seen."""
    lines = []
    for clip in clips.clips[:_EXAMPLES]:
        known = [f"{clip.start:g} to {clip.end:g} s"] if clip.start is not None and clip.end is not None else []
        for label in clips.labels:
            if label.classes and (classes := classes_of(label, [_encoded(label, clip)])[0]):
                known.append(f"{label.name} {' + '.join(classes)}")
            elif not label.classes and clip.labels.get(label.name) is not None:
                known.append(f"{label.name} {clip.labels[label.name]}")
        known += [f"speaker {clip.group}"] if clip.group is not None else []
        known += [f"part {clip.split}"] if clip.split is not None else []
        known += [f'"{clip.transcript[:_LONGEST]}"'] if clip.transcript is not None else []
        lines.append(f"such as {shown(clip.video)}: {shown(', '.join(known)) or 'nothing else is known'}")
    return lines


def doubt_clips(clips: ClipSet) -> list[str]:
    """What may be meant otherwise: of the set itself, and of labels, speakers and parts."""
    return [*map(shown, clips.doubts), *map(shown, clip_samples(clips).doubts())]
