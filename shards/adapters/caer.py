"""CAER (Lee et al. 2019): a folder for each split, in it a folder for each class, in it numbered .avi files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.adapters.clip_set import Clip, ClipSet, Count
from shards.adapters.files import VIDEO_SUFFIXES, Files, folder_named
from shards.format.schema import Label
from shards.names import fold

EXPECTED = 13_175
BIBTEX = """@inproceedings{lee2019caer,
  title = {Context-Aware Emotion Recognition Networks},
  author = {Lee, Jiyoung and Kim, Seungryong and Kim, Sunok and Park, Jungin and Sohn, Kwanghoon},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  pages = {10143--10152},
  year = {2019},
}"""
SPLITS = ("train", "validation", "test")
CLASSES = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
# Folders of classes, whatever their case; the set of stills, CAER-S, says Angry.
_CLASS_OF = {fold(name): name for name in CLASSES} | {"angry": "Anger"}


def read(source: Path) -> ClipSet:
    """Clips SPLIT_CLASS_NNNN (numbers repeat across splits). `source` holds the splits, or a folder with them (`CAER`)
    a few folders down. No groups: the set does not say who is seen.

    Raises ValueError where there is none of the splits.
    """
    root = next(_roots(source), None)
    if root is None:
        raise ValueError(f"{source} has none of the folders {', '.join(SPLITS)}, nor CAER with them")
    inside = "" if root == source else f"{root.relative_to(source).as_posix()}/"
    files = Files(source)
    clips, left_out, counts = [], {}, []
    for split in SPLITS:
        if not (root / split).is_dir():
            counts.append(Count(f"folder {split}", 1, 0, [split]))
            continue
        for path in files.find(VIDEO_SUFFIXES, f"{inside}{split}"):
            parts = PurePosixPath(path.removeprefix(inside)).parts
            name = _CLASS_OF.get(fold(parts[1])) if len(parts) == 3 else None
            if name is None:
                left_out[path] = "not SPLIT/CLASS/NNNN.avi"
                continue
            key = f"{split}_{name}_{PurePosixPath(path).stem}"
            clips.append(Clip(key, path, labels={"emotion": name}, split=split))
    for split in SPLITS:
        for name in CLASSES:
            if not any(clip.split == split and clip.labels["emotion"] == name for clip in clips):
                counts.append(Count(f"clips of {split}/{name}", 1, 0))
    counts.insert(0, Count("clips", EXPECTED, len(clips)))
    left_out |= dict.fromkeys(files.hidden, "hidden file")
    labels = (Label("emotion", "class", CLASSES),)
    return ClipSet("CAER", source, labels, clips, files.rejected, counts, left_out, grouped=False)


def _roots(source: Path) -> Iterator[Path]:
    """Folders that hold a split with a class in it, the least deep first."""
    for split in SPLITS:
        found = folder_named(source, split)
        if found is not None and any(fold(child.name) in _CLASS_OF for child in found.iterdir() if child.is_dir()):
            yield found.parent
