"""Data sets as they are distributed: each adapter finds the clips with interval, labels, group, split, transcript."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conclugen.common.names import did_you_mean
from shards.adapters.clip_set import ClipSet, IncompleteError

# Name -> (module with `read(source, **options) -> ClipSet`, the options it takes, one line on what it reads).
ADAPTERS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "voxceleb2": (
        "shards.adapters.voxceleb2",
        (),
        "dev/mp4/ID/VIDEO/NNNNN.mp4, dev/aac/ID/VIDEO/NNNNN.m4a; the test part, mp4 and aac",
    ),
    "mosei": ("shards.adapters.mosei", ("folds", "encoding"), "CMU-MOSEI: Combined/*.mp4, CMU_MOSEI_Labels.csd, folds"),
    "meld": ("shards.adapters.meld", (), "{train,dev,test}_sent_emo.csv and the three folders of diaX_uttY.mp4"),
    "caer": ("shards.adapters.caer", (), "{train,validation,test}/CLASS/NNNN.avi"),
    "ravdess": ("shards.adapters.ravdess", (), "Actor_NN/MM-VV-EE-II-SS-RR-AA.mp4, sound in .wav with MM = 03"),
    "grid": ("shards.adapters.grid", (), "GRID: sN/bbaf2n.mpg; the name spells the sentence"),
    "folder": (
        "shards.adapters.folder",
        ("table", "fields", "labels", "encoding"),
        "any videos, or a CSV, JSONL, Parquet table",
    ),
    "webdataset": (
        "shards.adapters.webdataset",
        ("unpack", "fields", "labels", "encoding"),
        "*.tar, *.tar.gz with KEY.mp4, KEY.txt, KEY.json, also in train/ and test/; unpacked into --unpack",
    ),
}


def read_clips(adapter: str, source: Path, allow_incomplete: bool = False, **options: Any) -> ClipSet:
    """The clips of a data set.

    Raises ValueError for an unknown adapter, options it does not take, or a source that is not laid out as it expects;
    IncompleteError where clips are missing, unless that is allowed.
    """
    if adapter not in ADAPTERS:
        raise ValueError(f"adapter {adapter!r} is unknown, {did_you_mean(adapter, ADAPTERS)}")
    module, known, layout = ADAPTERS[adapter]
    given = {name: value for name, value in options.items() if value not in (None, {}, (), [])}
    for name in given:
        if name not in known:
            raise ValueError(f"adapter {adapter} takes no --{name}; it reads {layout}")
    if not source.is_dir():
        raise ValueError(f"--source {source} is no folder; {adapter} reads {layout}")
    clips = importlib.import_module(module).read(source, **given)
    if not clips.clips and not clips.rejected:
        raise ValueError(f"{source} holds no clips; {adapter} reads {layout}")
    if not allow_incomplete and not clips.complete:
        raise IncompleteError(clips)
    return clips
