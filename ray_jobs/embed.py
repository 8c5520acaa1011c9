"""Job: representations of new clips by a pretrained run. `python -m ray_jobs.embed --help`.

python -m ray_jobs.embed CLIP... --run NAME            video files: embeddings, class probabilities, timelines
python -m ray_jobs.embed --data FOLDER --run NAME      shards of clips or of features, through Ray Data
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from conclugen.common.options import Command
from ray_jobs.extract_features import EncoderOptions


@dataclass(frozen=True, kw_only=True)
class EmbedJob(EncoderOptions):
    """Representations of new clips by a pretrained run: of video files, or of shards of clips or features.

    Clips go through the very encoders that made the run's features; other weights are refused. Probabilities are those
    of a probe of one of the run's evaluations (`ray_jobs.evaluate`). Results are Parquet files: of video files one, to
    which later calls add; of shards one for each, and a job that was stopped goes on with those that are missing.
    Beside them lies embeddings.npz, all vectors as one NumPy archive with keys and, of shards, labels and speakers.
    Beside the one of video files lies embeddings.npz: the same vectors as NumPy arrays.

    Attributes:
        run: A finished pretraining run in `output`.
        files: Video files; given without an option.
        data: Shards of clips or of features (folder or URL), in the place of files.
        output: Folder of all runs.
        embeddings: Folder where embeddings and pictures go; none: `embeddings` in the run's folder.
        label: Evaluated label whose probe gives probabilities; none: the only one, of a run with several none.
        evaluation: Of several evaluations of the label (of other data, views or fusion) the one whose probe it is: its
            folder's name in the run's `evaluation`; none: the only one.
        fusion: How modalities become one vector: `concat`, `mean`, `concat+raw` (beside the raw features, each half of
            the variance), or one modality.
        window: Length of a timeline's window in seconds.
        stride: Seconds from the start of one window to that of the next.
        text: What is said in the clip (in the clip as a whole).
        overwrite: Replace embeddings of another run, label or corpus that stand in the folder.
    """

    run: str
    files: tuple[str, ...] = ()
    data: str | None = None
    output: Path = Path("outputs")
    embeddings: Path | None = None
    label: str | None = None
    evaluation: str | None = None
    fusion: str = "concat"
    window: float = 2.0
    stride: float = 0.5
    text: str | None = None
    overwrite: bool = False


def run(job: EmbedJob) -> int:
    from ray_jobs.embedding import embed  # torch, Ray: not before a wrong option has been refused

    return embed.run(job)


COMMAND = Command(
    "ray_jobs.embed",
    EmbedJob,
    run,
    shown=(
        *("run", "files", "data", "output", "embeddings", "label", "evaluation", "fusion", "window", "stride", "text"),
        *("weights", "plugin", "gpus", "actors"),
    ),
    was={"clips": "data", "features": "data", "out": "embeddings"},
    bare="files",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
