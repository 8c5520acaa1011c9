"""GRID (Cooke et al. 2006): a folder for each speaker; a clip's name spells its sentence."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from shards.adapters.clip_set import Clip, ClipSet, Count
from shards.adapters.files import Files
from shards.format.schema import Label

BIBTEX = """@article{cooke2006grid,
  title = {An audio-visual corpus for speech perception and automatic speech recognition},
  author = {Cooke, Martin and Barker, Jon and Cunningham, Stuart and Shao, Xu},
  journal = {The Journal of the Acoustical Society of America},
  volume = {120},
  number = {5},
  pages = {2421--2424},
  year = {2006},
}"""

# In the order they are spoken: letter of the name -> word.
SLOTS: dict[str, dict[str, str]] = {
    "command": {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    "colour": {"b": "blue", "g": "green", "r": "red", "w": "white"},
    "preposition": {"a": "at", "b": "by", "i": "in", "w": "with"},
    "letter": {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},  # no w: the only name of two syllables
    "digit": {
        "z": "zero", "1": "one", "2": "two", "3": "three", "4": "four",
        "5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine",
    },
    "adverb": {"a": "again", "n": "now", "p": "please", "s": "soon"},
}  # fmt: skip
# 34 speakers said 1000 sentences each; of speaker 21 there are no pictures.
SPEAKERS = tuple(f"s{number}" for number in range(1, 35) if number != 21)
SENTENCES = 1000
_NAME = re.compile("".join(f"[{''.join(words)}]" for words in SLOTS.values()))
_SPEAKER = re.compile(r"s\d{1,2}")
_LABELS = tuple(Label(slot, "class", tuple(words.values())) for slot, words in SLOTS.items())


def sentence(code: str) -> list[str]:
    """The words that six letters spell: `bbaf2n` is bin blue at f two now. ValueError for anything else."""
    if not _NAME.fullmatch(code):
        raise ValueError(f"{code!r} is not a sentence of GRID: expected six letters such as bbaf2n")
    return [words[letter] for letter, words in zip(code, SLOTS.values(), strict=True)]


def read(source: Path) -> ClipSet:
    """Clips SPEAKER_CODE, grouped by speaker, labelled by the six words. Of a clip in two sizes (mpg_vcd, mpg_6000) the
    larger is taken."""
    files = Files(source)
    left_out: dict[str, str] = {}
    chosen: dict[str, tuple[str, str, str]] = {}
    for path in files.find([".mpg", ".mpeg", ".mp4"]):
        parts = PurePosixPath(path).parts
        code = PurePosixPath(path).stem
        speaker = next((part for part in parts[:-1] if _SPEAKER.fullmatch(part)), None)
        if speaker is None or not _NAME.fullmatch(code):
            left_out[path] = "not SPEAKER/CODE.mpg"
            continue
        key = f"{speaker}_{code}"
        other = chosen.get(key)
        if other is not None and ("mpg_6000" in other[0]) != ("mpg_6000" in path):
            smaller = other[0] if "mpg_6000" in path else path
            left_out[smaller] = "the same in a smaller size"
            if smaller == path:
                continue
        elif other is not None:
            chosen[f"{key}\0{path}"] = (path, speaker, code)  # the same key twice: quarantined where clips are planned
            continue
        chosen[key] = (path, speaker, code)
    clips = []
    for path, speaker, code in sorted(chosen.values(), key=lambda item: (item[1], item[2], item[0])):
        words = sentence(code)
        labels = dict(zip(SLOTS, words, strict=True))
        clips.append(Clip(f"{speaker}_{code}", path, labels=labels, group=speaker, transcript=" ".join(words)))
    there = {clip.group for clip in clips}
    counts = [
        Count("speakers", len(SPEAKERS), len(there), [name for name in SPEAKERS if name not in there]),
        Count("clips", SENTENCES * len(SPEAKERS), len(clips)),
    ]
    return ClipSet("GRID", source, _LABELS, clips, files.rejected, counts, left_out)
