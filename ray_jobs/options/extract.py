"""Options of `conclugen features`, and those of every job that runs encoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """Which copies of the encoders run.

    Attributes:
        plugin: Module of your own, in the working folder or on PYTHONPATH, that lists encoders in `ENCODERS`. It is
            imported; so files given by --config can't name one.
        weights: Encoder -> local copy of its weights: a file, a folder, or a model's name on a hub.
        mirror: Folder or URL where published weight files are found under their own names; none: their own addresses.
    """

    plugin: tuple[str, ...] = field(default=(), metadata={"line_only": True})
    weights: dict[str, str] | None = None
    mirror: str | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(WeightOptions):
    """Which copies of the encoders run, and on what: shared by the jobs that run encoders over many clips.

    Attributes:
        gpus: Share of a GPU for each actor, of every encoder or of those named; 0: a CPU.
        actors: Most actors of an encoder, of every one or of those named. Without, only those on GPUs have any (one
            each); the others run in the processes that decode, as many as there are cores.
        cpus: Logical CPUs of each decoding task and each actor.
        clips_per_task: Clips that one task decodes.
        block_mib: Size of what travels between the stages at once, in MiB; a single longer clip is a block of its own.
    """

    gpus: float | dict[str, float] = 0.0
    actors: int | dict[str, int] | None = None
    cpus: float = 1.0
    clips_per_task: int = 8
    block_mib: float = 32.0


@dataclass(frozen=True, kw_only=True)
class ExtractJob(EncoderOptions):
    """Clip shards to feature shards through frozen encoders.

    Killed, the job resumes where it was, shard by shard. Clips that cannot be used are listed with their reason in
    quarantine.jsonl, and the job ends with status 3.

    Attributes:
        data: Clip shards (folder or URL), as `ray_jobs.build_shards` makes them; given without an option.
        output: Folder where the feature shards go.
        encoders: Encoders, or sets of them.
        overwrite: Replace another extraction in the output.
        crop: Faces: `follow` the face, the `union` of its boxes (as published), or `none`.
        whole_frames: Take whole frames where a clip's face is not seen, which is left out otherwise.
        low_confidence: Use transcripts that a recogniser was unsure of.
        views: Augmented views of every clip beside the clean one.
        view_strength: How much a view differs from the clean clip.
        seed: Of the augmented views.
        dtype: Number type of the feature shards.
        sequences: Keep vectors before their mean over time as well, in `<output>/sequences/SHARD.tar`.
        quiet: No progress lines.
    """

    data: str
    output: Path
    encoders: tuple[str, ...] = ("offline",)
    overwrite: bool = False
    crop: str = "follow"
    whole_frames: bool = False
    low_confidence: bool = False
    views: int = 0
    view_strength: str = "mild"
    seed: int = 127
    dtype: Literal["float32", "float16"] = "float32"
    sequences: bool = False
    quiet: bool = False
