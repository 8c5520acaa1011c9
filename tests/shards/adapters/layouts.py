"""Folders laid out as the data sets are; adapters look at names and tables, so the files may be empty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

MELD_HEAD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"


def touch(root: Path, names: Iterable[str]) -> Path:
    """Empty files below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def meld(root: Path) -> Path:
    """Three splits with one or two rows each, the traps among them, Windows-1252 bytes in the text."""
    rows = {
        "train": b"1,It\x92s fine,Chandler,neutral,neutral,0,0,8,21,a,b\n"
        b'2,"Oh, no! \xe2\x80\x93 she said",The Interviewer,surprise,negative,125,3,8,21,a,b\n'
        b"3,Joey\xc2\x92s here,Joey,joy,positive,1,0,8,21,a,b\n"
        b"4,Not that one,Joey,disgust,negative,110,7,8,21,a,b\n",
        "dev": b"1,What?,Rachel,anger,negative,110,7,8,21,a,b\n2,Fine,Rachel,sadness,negative,0,0,8,21,a,b\n",
        "test": b"1,Yes,Ross,fear,negative,0,0,8,21,a,b\n",
    }
    for split, content in rows.items():
        (root / f"{split}_sent_emo.csv").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{split}_sent_emo.csv").write_bytes(MELD_HEAD.encode() + content)
    return touch(
        root,
        [
            "train/train_splits/dia0_utt0.mp4",
            "train/train_splits/dia125_utt3.mp4",
            "train/train_splits/dia110_utt7.mp4",
            "train/train_splits/dia1_utt0.mp4",
            "dev/dev_splits_complete/dia110_utt7.mp4",
            "dev/dev_splits_complete/dia0_utt0.mp4",
            "test/output_repeated_splits_test/dia0_utt0.mp4",
            "test/output_repeated_splits_test/final_videos_testdia0_utt0.mp4",
            "test/output_repeated_splits_test/._dia0_utt0.mp4",
        ],
    )


def mosei(root: Path, videos: Mapping[str, list[tuple[float, float, list[float]]]]) -> Path:
    """Full videos, a label file as the SDK writes it, transcripts, and the folds of the SDK."""
    touch(root, [f"Raw/Videos/Full/Combined/{video}.mp4" for video in videos])
    texts = root / "Raw/Transcript/Segmented/Combined"
    texts.mkdir(parents=True)
    with h5py.File(root / "CMU_MOSEI_Labels.csd", "w") as file:
        group = file.create_group("All Labels")
        group.create_group("metadata")
        data = group.create_group("data")
        for video, clips in videos.items():
            data.create_dataset(f"{video}/intervals", data=np.array([[s, e] for s, e, _ in clips]))
            data.create_dataset(f"{video}/features", data=np.array([row for _, _, row in clips], np.float32))
            lines = [f"{video}___{i}___{s:.3f}___{e:.3f}___sentence {i} of it" for i, (s, e, _) in enumerate(clips)]
            (texts / f"{video}.txt").write_text("\n".join(lines))
    names = sorted(videos)
    (root / "cmu_mosei_std_folds.py").write_text(
        "import os\nraise SystemExit('never run')\n"
        f"standard_train_fold = {names[:1]!r}\nstandard_valid_fold = {names[1:2]!r}\nstandard_test_fold = []\n"
    )
    return root
