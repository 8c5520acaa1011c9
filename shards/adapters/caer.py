"""CAER (Lee et al. 2019): a folder for each split, in it a folder for each class, in it numbered .avi files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from shards.adapters.clip_set import Clip, ClipSet, Count
from shards.adapters.files import Files
from shards.schema import Label

EXPECTED = 13_175
SPLITS = ("train", "validation", "test")
CLASSES = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")


def read(source: Path) -> ClipSet:
    """Clips SPLIT_CLASS_NNNN (numbers repeat across splits). `source` holds `CAER` or the splits. No groups.

    Raises ValueError where there is none of the splits.
    """
    inside = "" if any((source / split).is_dir() for split in SPLITS) else "CAER/"
    if not any((source / inside / split).is_dir() for split in SPLITS):
        raise ValueError(f"{source} has none of the folders {', '.join(SPLITS)}, nor CAER with them")
    files = Files(source)
    clips, left_out, counts = [], {}, []
    for split in SPLITS:
        if not (source / inside / split).is_dir():
            counts.append(Count(f"folder {split}", 1, 0, [split]))
            continue
        for path in files.find([".avi"], f"{inside}{split}"):
            parts = PurePosixPath(path.removeprefix(inside)).parts
            if len(parts) != 3 or parts[1] not in CLASSES:
                left_out[path] = "not SPLIT/CLASS/NNNN.avi"
                continue
            key = f"{split}_{parts[1]}_{PurePosixPath(path).stem}"
            clips.append(Clip(key, path, labels={"emotion": parts[1]}, split=split))
    for split in SPLITS:
        for name in CLASSES:
            if not any(clip.split == split and clip.labels["emotion"] == name for clip in clips):
                counts.append(Count(f"clips of {split}/{name}", 1, 0))
    counts.insert(0, Count("clips", EXPECTED, len(clips)))
    labels = (Label("emotion", "class", CLASSES),)
    return ClipSet("CAER", source, labels, clips, files.rejected, counts, left_out, grouped=False)
