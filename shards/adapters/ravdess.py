"""RAVDESS (Livingstone & Russo 2018): everything about a clip is in its name, MM-VV-EE-II-SS-RR-AA."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from shards.adapters.clip_set import Clip, ClipSet, Count
from shards.adapters.files import Files
from shards.format.schema import Label

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
ACTORS = 24
BIBTEX = """@article{livingstone2018ravdess,
  title = {The {Ryerson} Audio-Visual Database of Emotional Speech and Song ({RAVDESS}): A dynamic, multimodal set of
           facial and vocal expressions in {North American English}},
  author = {Livingstone, Steven R. and Russo, Frank A.},
  journal = {PLoS ONE},
  volume = {13},
  number = {5},
  pages = {e0196391},
  year = {2018},
}"""
_NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])")
_LABELS = (
    Label("emotion", "class", EMOTIONS),
    Label("intensity", "class", ("normal", "strong")),
)


def read(source: Path) -> ClipSet:
    """Speech clips with picture and sound (01-01-...), grouped by actor, with the sound of 03-01-... .

    02 is the same picture without sound and is left out, and so is song (02 in the second place). A clip whose sound
    file is missing is named as missing, and keeps the video's own sound.
    """
    files = Files(source)
    sounds = {PurePosixPath(path).stem: path for path in files.find([".wav"])}
    clips, left_out, missing, found = [], {}, [], set()
    for path in files.find([".mp4"]):
        match = _NAME.fullmatch(PurePosixPath(path).stem)
        if match is None:
            left_out[path] = "not a name of this set"
            continue
        modality, channel, emotion, intensity, statement, _, actor = match.groups()
        if modality != "01" or channel != "01":
            left_out[path] = "without sound" if channel == "01" else "song"
            continue
        stem = match.group()
        audio = sounds.get(f"03{stem[2:]}")
        if audio is None:
            missing.append(f"03{stem[2:]}.wav")
        found.add(stem)
        labels = {"emotion": int(emotion) - 1, "intensity": int(intensity) - 1}
        clips.append(Clip(stem, path, audio, labels=labels, group=actor, transcript=STATEMENTS[statement]))
    absent = [stem for stem in all_names() if stem not in found]
    counts = [
        Count("speech clips", 60 * ACTORS, len(found), absent),
        Count("sound files", len(clips), len(clips) - len(missing), missing),
    ]
    return ClipSet("RAVDESS", source, _LABELS, clips, files.rejected, counts, left_out)


def all_names() -> list[str]:
    """The 1440 names of speech clips: each actor says both statements twice in each emotion and intensity, but there
    is no strong neutral."""
    return [
        f"01-01-{emotion:02}-{intensity:02}-{statement:02}-{repetition:02}-{actor:02}"
        for actor in range(1, ACTORS + 1)
        for emotion in range(1, 9)
        for intensity in (1, 2)
        for statement in (1, 2)
        for repetition in (1, 2)
        if not (emotion == 1 and intensity == 2)
    ]
