"""Options of `conclugen embed`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray_jobs.options.extract import EncoderOptions
from ray_jobs.options.model import ModelOptions


@dataclass(frozen=True, kw_only=True)
class EmbedJob(EncoderOptions, ModelOptions):
    """Representations of new clips by a pretrained run: of video files, or of shards of clips or features.

    Clips go through the very encoders that made the run's features; other weights are refused. Probabilities are those
    of a probe of one of the run's evaluations (`ray_jobs.evaluate`). Results are Parquet files: of video files one, to
    which later calls add; of shards one for each, and a job that was stopped continues with those that are missing.
    Beside them lies embeddings.npz: all vectors as one NumPy archive, with keys and, of shards, labels and speakers.

    Attributes:
        files: Video files; given without an option.
        data: Shards of clips or of features (folder or URL), in the place of files.
        embeddings: Folder where embeddings and pictures go; none: `embeddings` in the run's folder, or
            beside it `embeddings-of-files` (`-of-shards`) where it holds those of shards (files).
        text: What is said in the clip (in the clip as a whole).
        overwrite: Replace embeddings of another run, label or corpus in the folder.
    """

    files: tuple[str, ...] = ()
    data: str | None = None
    embeddings: Path | None = None
    text: str | None = None
    overwrite: bool = False
