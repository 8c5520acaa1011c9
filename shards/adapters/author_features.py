"""`python -m shards.adapters.author_features SOURCE --output FOLDER`: the published code's feature folders for `pack`.

SOURCE holds NAME/SPLIT/KEY.npy, or NAME_aug/augN/SPLIT/KEY.npy with ten augmented versions, where NAME is one of
frames_2d_180_cropped, frames_3d_180_cropped, audio_spectrograms_cropped_128, texts_cropped. FOLDER gets
COLUMN/SPLIT/KEY.npy as links to them, which `python -m shards pack --source FOLDER` reads.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conclugen.common.atomic import hidden_beside, remove_remnants
from conclugen.common.locks import folder_held
from conclugen.common.options import Command

# The published folder -> column, and its width.
COLUMNS: Mapping[str, tuple[str, int]] = {
    "frames_2d_180_cropped": ("video_2d", 2048),
    "frames_3d_180_cropped": ("video_3d", 2048),
    "audio_spectrograms_cropped_128": ("audio", 1024),
    "texts_cropped": ("text", 768),
}


def link_features(features: Path, out: Path, version: str | None = None) -> dict[str, int]:
    """Link one version (`aug1` ... `aug10`; None: the clean features) of every modality; files linked per column.

    Raises ValueError where `features` has none of the folders, `out` is not empty, or another process links there.
    """
    out = out.absolute()
    with folder_held(out.parent, "features are being linked here", "another --output", file=f".{out.name}.lock"):
        return _link(features, out, version)


def _link(features: Path, out: Path, version: str | None) -> dict[str, int]:
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"output: {out} is not empty; choose another folder")
    remove_remnants(out)
    whole = hidden_beside(out)  # one rename: half of the links would be taken for all of them
    linked: dict[str, int] = {}
    for name, (column, _) in COLUMNS.items():
        folder = features / name if version is None else features / f"{name}_aug" / version
        files = sorted(folder.glob("*/*.npy"))
        for file in files:
            target = whole / column / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.absolute())
        if files:
            linked[column] = len(files)
    if not linked:
        expected = ", ".join(name if version is None else f"{name}_aug/{version}" for name in COLUMNS)
        raise ValueError(f"{features} has none of {expected} with SPLIT/KEY.npy in it")
    if out.exists():
        out.rmdir()
    whole.rename(out)
    return linked


@dataclass(frozen=True, kw_only=True)
class LinkJob:
    """The published code's feature folders, as `python -m shards pack` reads them.

    The source holds NAME/SPLIT/KEY.npy, or NAME_aug/augN/SPLIT/KEY.npy with ten augmented versions; the output gets
    COLUMN/SPLIT/KEY.npy as links to them.

    Attributes:
        source: Folder of the published features; given without an option.
        output: A new or empty folder for the links.
        version: An augmented version, aug1 to aug10; none: the clean features.
    """

    source: Path
    output: Path
    version: str | None = None


def run(job: LinkJob) -> int:
    """Link, and say how to pack."""
    linked = link_features(job.source, job.output, job.version)
    print(", ".join(f"{column}: {count} files" for column, count in linked.items()))
    video = [column for column in ("video_2d", "video_3d") if column in linked]
    modalities = [f"video={','.join(video)}"] * bool(video) + [f"{m}={m}" for m in ("audio", "text") if m in linked]
    columns = " ".join(f"--column {column}" for column in linked)
    print(
        f"conclugen pack --source {job.output} --output SHARDS {columns} "
        f"{' '.join(f'--modality {m}' for m in modalities)} --meta split --view-by split"
    )
    return 0


COMMAND = Command("shards.adapters.author_features", LinkJob, run, was={"out": "output"}, bare="source")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
