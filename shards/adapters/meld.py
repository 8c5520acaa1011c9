"""MELD (Poria et al. 2019): a CSV for each split, and folders of diaX_uttY.mp4."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from shards.adapters.clip_set import Clip, ClipSet, Count
from shards.adapters.files import Files, file_named, folder_named
from shards.format.schema import Label
from shards.format.tables import parse_delimited

EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SENTIMENTS = ("neutral", "positive", "negative")
BIBTEX = """@inproceedings{poria2019meld,
  title = {{MELD}: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations},
  author = {Poria, Soujanya and Hazarika, Devamanyu and Majumder, Navonil and Naik, Gautam and Cambria, Erik and
            Mihalcea, Rada},
  booktitle = {Annual Meeting of the Association for Computational Linguistics (ACL)},
  pages = {527--536},
  year = {2019},
}"""
ROWS = {"train": 9989, "dev": 1109, "test": 2610}
FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
# Broken files of the set: they hold another scene, or none.
LEFT_OUT = {"train": {"dia125_utt3", "dia110_utt7"}, "dev": {"dia110_utt7"}, "test": set[str]()}
# Files that were cut in the wrong places: minutes of other scenes, with the label of one sentence.
CUT_WRONGLY = {"train": ("dia309_utt0",), "dev": (), "test": ("dia38_utt4", "dia220_utt0")}
ARCHIVES = {split: f"{split}.tar.gz" for split in ROWS}
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
_LABELS = (Label("emotion", "class", EMOTIONS), Label("sentiment", "class", SENTIMENTS))
_META = ("speaker", "dialogue")


def read(source: Path) -> ClipSet:
    """Clips SPLIT_diaX_uttY (the numbers repeat across splits), grouped by speaker, transcripts from the CSV; `speaker`
    and `dialogue` (SPLIT_diaX) are kept with each clip.

    CSV files and folders are found by name, at most four folders down, as MELD.Raw unpacks. Raises ValueError where no
    CSV is there, or one can't be read or lacks a column.
    """
    clips: list[Clip] = []
    counts: list[Count] = []
    left_out: dict[str, str] = {}
    doubts: list[str] = []
    files = Files(source)
    for split, expected in ROWS.items():
        table = file_named(source, f"{split}_sent_emo.csv")
        folder = folder_named(source, FOLDERS[split])
        if table is None or folder is None:
            absent = [f"{split}_sent_emo.csv"] * (table is None) + [FOLDERS[split]] * (folder is None)
            packed = file_named(source, ARCHIVES[split])
            remedy = "" if packed is None else f"unpack {packed.relative_to(source)}"
            counts.append(Count(f"{split}: table and folder", 2, 2 - len(absent), absent, remedy=remedy))
            continue
        videos = {}
        for path in files.find([".mp4"], folder.relative_to(source).as_posix(), depth=0):
            videos[PurePosixPath(path).stem] = path
        rows = read_rows(table)
        missing: list[str] = []
        for name, row in rows.items():
            path = videos.pop(name, "")
            if name in LEFT_OUT[split]:
                left_out[f"{split}/{name}"] = "known to be broken"
            elif not path:
                missing.append(f"{FOLDERS[split]}/{name}.mp4")
            else:
                clips.append(_clip(split, name, path, row))
                if name in CUT_WRONGLY[split]:
                    doubts.append(
                        f"{path} is known to be cut wrongly: minutes of other scenes, labelled as one sentence"
                    )
        for name, path in videos.items():
            leftover = name.startswith("final_videos")
            left_out[path] = "a leftover of how the set was made" if leftover else "not in the table"
        counts.append(Count(f"{split}: rows of the table", expected, len(rows)))
        counts.append(Count(f"{split}: videos", len(rows), len(rows) - len(missing), missing))
    if all(file_named(source, f"{split}_sent_emo.csv") is None for split in ROWS):
        raise ValueError(f"{source} holds none of {', '.join(f'{split}_sent_emo.csv' for split in ROWS)}")
    for name in files.hidden:
        left_out[name] = "hidden file"
    return ClipSet("MELD", source, _LABELS, clips, files.rejected, counts, left_out, doubts=doubts, meta=_META)


def _clip(split: str, name: str, path: str, row: Mapping[str, str | None]) -> Clip:
    speaker = row["Speaker"]
    return Clip(
        f"{split}_{name}",
        path,
        labels={"emotion": (row["Emotion"] or "").lower(), "sentiment": (row["Sentiment"] or "").lower()},
        group=speaker,
        split=split,
        transcript=row["Utterance"],
        meta={"speaker": speaker, "dialogue": f"{split}_{name.partition('_')[0]}"},
    )


def read_rows(table: Path) -> dict[str, dict[str, str | None]]:
    """diaX_uttY -> row of a MELD table. Apostrophes and dashes are Windows-1252 in it, as single bytes or decoded to
    control characters: both become what they mean. ValueError names the file where a column is missing, a number is
    none, or two different rows are of one utterance."""
    read = parse_delimited(table, repair_text(table.read_bytes()))
    columns = {name: read.column(name) for name in _COLUMNS}
    names = []
    for number, dialogue, utterance in zip(read.numbers, columns["Dialogue_ID"], columns["Utterance_ID"], strict=True):
        if not all(re.fullmatch(r"\d{1,6}", value or "") for value in (dialogue, utterance)):
            raise ValueError(
                f"{table}, row {number}: Dialogue_ID {dialogue!r} and Utterance_ID {utterance!r}, expected numbers"
            )
        names.append(f"dia{int(dialogue)}_utt{int(utterance)}")
    kept, rivals = read.once(names)
    for index, same in rivals.items():
        rows = " and ".join(str(read.numbers[other]) for other in same)
        raise ValueError(f"{table}: {names[index]} is in rows {rows}, which differ; keep the right one")
    return {names[index]: {name: values[index] for name, values in columns.items()} for index in kept}


def repair_text(data: bytes) -> str:
    """UTF-8, with bytes (or C1 control characters) that are none read as Windows-1252."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return "".join(_windows(c) if "\x80" <= c <= "\x9f" or "\udc80" <= c <= "\udcff" else c for c in text)


def _windows(character: str) -> str:
    return bytes([ord(character) & 0xFF]).decode("cp1252", "replace")
