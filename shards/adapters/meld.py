"""MELD (Poria et al. 2019): a CSV for each split, and folders of diaX_uttY.mp4."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path, PurePosixPath

from shards.adapters.clip_set import Clip, ClipSet, Count
from shards.adapters.files import Files, file_named, folder_named
from shards.schema import Label

EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SENTIMENTS = ("neutral", "positive", "negative")
ROWS = {"train": 9989, "dev": 1109, "test": 2610}
FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
# Broken files of the set: they hold another scene, or none.
LEFT_OUT = {"train": {"dia125_utt3", "dia110_utt7"}, "dev": {"dia110_utt7"}, "test": set[str]()}
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
_LABELS = (Label("emotion", "class", EMOTIONS), Label("sentiment", "class", SENTIMENTS))


def read(source: Path) -> ClipSet:
    """Clips SPLIT_diaX_uttY (the numbers repeat across splits), grouped by speaker, transcripts from the CSV.

    CSV files and folders are found by name, at most four folders down. Raises ValueError where no CSV is there, or one
    lacks a column.
    """
    clips: list[Clip] = []
    counts: list[Count] = []
    left_out: dict[str, str] = {}
    files = Files(source)
    for split, expected in ROWS.items():
        table = file_named(source, f"{split}_sent_emo.csv")
        folder = folder_named(source, FOLDERS[split])
        if table is None or folder is None:
            absent = [f"{split}_sent_emo.csv"] * (table is None) + [FOLDERS[split]] * (folder is None)
            counts.append(Count(f"{split}: table and folder", 2, 2 - len(absent), absent))
            continue
        videos = {}
        for path in files.find([".mp4"], folder.relative_to(source).as_posix(), depth=0):
            videos[PurePosixPath(path).stem] = path
        rows = read_rows(table)
        missing: list[str] = []
        for row in rows:
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            path = videos.pop(name, "")
            if name in LEFT_OUT[split]:
                left_out[f"{split}/{name}"] = "known to be broken"
            elif not path:
                missing.append(f"{FOLDERS[split]}/{name}.mp4")
            else:
                clips.append(_clip(split, name, path, row))
        left_out |= dict.fromkeys(videos.values(), "not in the table")
        counts.append(Count(f"{split}: rows of the table", expected, len(rows)))
        counts.append(Count(f"{split}: videos", len(rows), len(rows) - len(missing), missing))
    if all(file_named(source, f"{split}_sent_emo.csv") is None for split in ROWS):
        raise ValueError(f"{source} holds none of {', '.join(f'{split}_sent_emo.csv' for split in ROWS)}")
    for name in files.hidden:
        left_out[name] = "hidden file"
    return ClipSet("MELD", source, _LABELS, clips, files.rejected, counts, left_out)


def _clip(split: str, name: str, path: str, row: dict[str, str]) -> Clip:
    return Clip(
        f"{split}_{name}",
        path,
        labels={"emotion": row["Emotion"].strip().lower(), "sentiment": row["Sentiment"].strip().lower()},
        group=row["Speaker"].strip() or None,
        split=split,
        transcript=row["Utterance"].strip() or None,
    )


def read_rows(table: Path) -> list[dict[str, str]]:
    """Rows of a MELD table. Apostrophes and dashes are Windows-1252 in it, as single bytes or decoded to control
    characters: both become what they mean. ValueError names the file where a column is missing or a number is none."""
    text = repair_text(table.read_bytes())
    reader = csv.DictReader(io.StringIO(text, newline=""))
    absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if absent:
        raise ValueError(f"{table} has no column {absent[0]!r}; found {', '.join(reader.fieldnames or ())}")
    rows = []
    for number, row in enumerate(reader, 2):
        if any(not re.fullmatch(r"\d{1,6}", row[name] or "") for name in ("Dialogue_ID", "Utterance_ID")):
            raise ValueError(f"{table}, row {number}: Dialogue_ID and Utterance_ID are not numbers: {row}")
        rows.append({name: row[name] or "" for name in _COLUMNS})
    return rows


def repair_text(data: bytes) -> str:
    """UTF-8, with bytes (or C1 control characters) that are none read as Windows-1252."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return "".join(_windows(c) if "\x80" <= c <= "\x9f" or "\udc80" <= c <= "\udcff" else c for c in text)


def _windows(character: str) -> str:
    return bytes([ord(character) & 0xFF]).decode("cp1252", "replace")
