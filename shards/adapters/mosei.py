"""CMU-MOSEI (Zadeh et al. 2018): whole videos, and a file of labels with the interval of each clip in seconds."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common.extras import needed_for
from shards.adapters.clip_set import Clip, ClipSet, Count, Rejected
from shards.adapters.files import Files, file_named, folder_named
from shards.format.schema import Label
from shards.names import EncodingError, decode_text

with needed_for("CMU-MOSEI in .csd files"):
    import h5py

BIBTEX = """@inproceedings{zadeh2018mosei,
  title = {Multimodal Language Analysis in the Wild: {CMU-MOSEI} Dataset and Interpretable Dynamic Fusion Graph},
  author = {Zadeh, AmirAli Bagher and Liang, Paul Pu and Poria, Soujanya and Cambria, Erik and Morency, Louis-Philippe},
  booktitle = {Annual Meeting of the Association for Computational Linguistics (ACL)},
  pages = {2236--2246},
  year = {2018},
}"""

VIDEOS, CLIPS = 3_837, 22_860
FOLD_SIZES = {"train": 2249, "valid": 300, "test": 678}
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
# Their sound or picture is broken.
LEFT_OUT = frozenset({"9cxlcpbmrH0_6", "2cwNG0YuwtQ_6"})
_LABELS = (
    Label("emotion", "multilabel", EMOTIONS),  # present where its intensity is above 0
    Label("intensity", "continuous", width=len(EMOTIONS)),  # 0 to 3, of the same six
    Label("sentiment", "continuous"),  # -3 to 3
)
_LABEL_FILE = "CMU_MOSEI_Labels.csd"
_FOLD_FILE = "cmu_mosei_std_folds.py"
_FOLD_NAMES = {"standard_train_fold": "train", "standard_valid_fold": "valid", "standard_test_fold": "test"}
_MOST_INTERVALS = 10_000  # of one video
_SAME_TIME = 0.1  # seconds within which an interval of a transcript is that of a label


def read(source: Path, folds: str | Path | None = None, encoding: str | None = None) -> ClipSet:
    """Clips VIDEO_i (i: number of the interval), grouped by video, with the official folds as splits.

    Intervals that begin before 0 (the aligner's doing: first sentences) begin at 0, and are counted.

    folds: the SDK's `cmu_mosei_std_folds.py` (read, never run) or JSON `{"train": [VIDEO, ...], "valid": ...}`; looked
    for in `source` if not given. Transcripts come from `Segmented/Combined/VIDEO.txt` where that is there; encoding: of
    those without a mark (None: UTF-8). Raises ValueError where the label file or the videos are missing or can't be
    read.
    """
    label_file = file_named(source, _LABEL_FILE)
    if label_file is None:
        raise ValueError(f"{source} has no {_LABEL_FILE} (CMU Multimodal SDK)")
    folder, texts = _video_folder(source), _transcript_folder(source)
    files = Files(source)
    inside = folder.relative_to(source).as_posix()
    videos = {Path(path).stem: path for path in files.find([".mp4"], "" if inside == "." else inside, depth=0)}
    split_of, fold_counts = _read_folds(source, folds)
    clips, left_out, unseen = [], {}, []
    rejected = list(files.rejected)
    number, early = 0, []
    for video, intervals, values in read_labels(label_file):
        number += len(intervals)
        if video not in videos:
            unseen.append(f"{inside}/{video}.mp4")
            continue
        try:
            spoken = _transcript(texts, video, encoding)
        except EncodingError as error:
            message = f"its transcript, {video}.txt: {error}"
            rejected += [Rejected(f"{video}_{i}", "bad_text", message) for i in range(len(intervals))]
            continue
        for i, ((start, end), row) in enumerate(zip(intervals.tolist(), values, strict=True)):
            key = f"{video}_{i}"
            if key in LEFT_OUT:
                left_out[key] = "known to be broken"
                continue
            text = _spoken_within(spoken, start, end)
            if start < 0 < end:
                early.append(start)
                start = 0.0
            clips.append(
                Clip(
                    key,
                    videos[video],
                    start=start,
                    end=end,
                    labels=_labels(row),
                    group=video,
                    split=split_of.get(video),
                    transcript=text,
                )
            )
    labelled = {clip.group for clip in clips} | {item.name.rpartition("_")[0] for item in rejected}
    for video in sorted(set(videos) - labelled):
        left_out[videos[video]] = "no labels"
    counts = [
        Count("videos with labels", VIDEOS, len(labelled), sorted(unseen)),
        Count("clips", CLIPS, len(clips) + len(rejected) + sum(key in LEFT_OUT for key in left_out)),
        *fold_counts,
    ]
    clips.sort(key=lambda clip: clip.key)
    how = []
    if early:
        how.append(
            f"intervals that begin before 0 (the earliest at {min(early):.4f} s), and are taken from 0 on: {len(early)}"
        )
    return ClipSet("CMU-MOSEI", source, _LABELS, clips, rejected, counts, left_out, how=how)


def _labels(row: np.ndarray) -> dict[str, Any]:
    emotions = row[1:]
    present = [float(value > 0) if np.isfinite(value) else float("nan") for value in emotions]
    return {"emotion": present, "intensity": [float(value) for value in emotions], "sentiment": float(row[0])}


def read_labels(path: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(video, (n, 2) seconds, (n, 7) sentiment and six emotions) of each video, in the order of their names.

    ValueError for anything but an HDF5 file of that layout; shapes are checked before any array is read.
    """
    try:
        with h5py.File(path, "r") as file:
            data = _data_group(file)
            for video in sorted(data):
                group = data[video]
                intervals, features = group["intervals"], group["features"]
                count = len(intervals)
                if intervals.shape != (count, 2) or features.shape != (count, 7) or count > _MOST_INTERVALS:
                    raise ValueError(
                        f"{path}: {video} has intervals {intervals.shape} and features {features.shape}, "
                        "expected (n, 2) and (n, 7)"
                    )
                if intervals.dtype.kind not in "fiu" or features.dtype.kind not in "fiu":
                    raise ValueError(f"{path}: {video} does not hold numbers")
                yield video, np.asarray(intervals, np.float64), np.asarray(features, np.float64)
    except (OSError, KeyError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as {_LABEL_FILE}: {error}") from None


def _data_group(file: Any) -> Any:
    """The SDK puts `data` below one group named after the kind of labels, `All Labels`."""
    for candidate in (file, *(file[name] for name in file)):
        if isinstance(candidate, h5py.Group) and "data" in candidate and isinstance(candidate["data"], h5py.Group):
            return candidate["data"]
    raise KeyError("no group 'data'")


def _video_folder(source: Path) -> Path:
    """`Combined` with videos in it; transcripts lie in a folder of that name as well."""
    for base in (source, *(folder_named(source, name) for name in ("Videos", "Full", "Raw"))):
        for folder in () if base is None else (base, base / "Combined", folder_named(base, "Combined")):
            if folder is not None and folder.is_dir() and any(folder.glob("*.mp4")):
                return folder
    raise ValueError(f"{source} has no folder Combined with videos")


def _transcript_folder(source: Path) -> Path | None:
    segmented = folder_named(source, "Segmented", depth=4)
    if segmented is None:
        return None
    return segmented / "Combined" if (segmented / "Combined").is_dir() else segmented


def _transcript(folder: Path | None, video: str, encoding: str | None) -> list[tuple[float, float, str]]:
    """(start, end, text) of lines VIDEO___i___START___END___TEXT; lines of another form are passed over."""
    if folder is None or not (folder / f"{video}.txt").is_file():
        return []
    lines = []
    for line in decode_text((folder / f"{video}.txt").read_bytes(), encoding)[0].splitlines():
        parts = line.split("___", 4)
        try:
            lines.append((float(parts[2]), float(parts[3]), parts[4].strip()))
        except (IndexError, ValueError):
            continue
    return [line for line in lines if line[2]]


def _spoken_within(spoken: Sequence[tuple[float, float, str]], start: float, end: float) -> str | None:
    """The text whose interval is a label's, the nearest of several. Both may begin before 0, or one of them at 0."""

    def apart(line: tuple[float, float, str]) -> float:
        return max(abs(max(line[0], 0.0) - max(start, 0.0)), abs(line[1] - end))

    nearest = min(spoken, key=apart, default=None)
    return None if nearest is None or apart(nearest) >= _SAME_TIME else nearest[2]


def _read_folds(source: Path, given: str | Path | None) -> tuple[dict[str, str], list[Count]]:
    """Video -> split, and how many videos each fold lists."""
    path = file_named(source, _FOLD_FILE) if given is None else Path(given)
    if path is None:
        missing = [f"{_FOLD_FILE} of the SDK (say where it is with --folds)"]
        return {}, [Count("official folds", len(FOLD_SIZES), 0, missing)]
    try:
        text = path.read_text()
        folds = json.loads(text) if path.suffix == ".json" else _python_lists(text)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read as folds: {error}") from None
    if not isinstance(folds, dict) or not all(isinstance(fold, list) for fold in folds.values()):
        raise ValueError(f"{path}: expected lists of video names for {', '.join(FOLD_SIZES)}")
    counts = [Count(f"videos of the fold {name}", size, len(folds.get(name, ()))) for name, size in FOLD_SIZES.items()]
    return {str(video): name for name in FOLD_SIZES for video in folds.get(name, ())}, counts


def _python_lists(text: str) -> Mapping[str, list[str]]:
    """Literal lists assigned to the SDK's names; nothing of the file is executed."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = _FOLD_NAMES.get(node.targets[0].id)
            if name is not None:
                found[name] = ast.literal_eval(node.value)
    return found
