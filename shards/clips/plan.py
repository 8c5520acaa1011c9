"""Which clip goes into which shard, decided once, so that a build can be killed and continue."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from conclugen.common.names import did_you_mean
from shards.adapters.clip_set import Clip, ClipSet, Rejected
from shards.adapters.files import shown
from shards.clips.reader import ClipSchema
from shards.format.record import check_text
from shards.format.schema import CLIP_KEY_LIMIT, safe_key
from shards.format.writer import shuffled_order
from shards.media.isolated import DEFAULT_MEMORY, DEFAULT_TIMEOUT
from shards.media.limits import AUDIO_LENGTHS, CASCADES, DETECTOR, FINDERS, Limits
from shards.output_folder import Ownership, digest_of
from shards.quarantine import FILE_NAME, SUMMARY_NAME

FACES = ("keep", "drop", "off")
PLAN_NAME, REPORTS, CLOCKS = "build.json", "reports", "clocks"
# Of what a build stores: 3 since a stream of several programs gives the sound of its picture's own.
_FORMAT = 3
OWNERSHIP = Ownership(
    "build",
    PLAN_NAME,
    (
        "clips-*.tar",
        "clips-*.index.parquet",
        f"{REPORTS}/*.json",
        *(f"{CLOCKS}/{pattern}" for pattern in ("*.json", "*.lock", "*.lock.marker", ".*.partial")),
        FILE_NAME,
        SUMMARY_NAME,
    ),
)


@dataclass(frozen=True)
class BuildOptions:
    """How clips become shards.

    clips_per_shard: None chooses by the number of clips. shuffle_seed: of the order of clips over all shards, so that
    neighbours are strangers; None keeps the keys' order. sound: flac or wav; audio_rate: Hz, None as in the source.
    audio_length: where sound and picture are not equally long, one of `shards.media.limits.AUDIO_LENGTHS`. faces:
    `keep` whole frames where no face is found, `drop` such clips, `off` looks for none. face_finder, face_weights: one
    of `shards.media.limits.FINDERS`, and where the weights of the detector are. recogniser: for clips
    without a transcript (None: they have none), with its model or grammar, on `device`. timeout and memory: of one
    clip, in seconds and bytes.
    """

    clips_per_shard: int | None = None
    shuffle_seed: int | None = 0
    sound: str = "flac"
    audio_rate: int | None = 16_000
    audio_length: str = "refuse"
    faces: str = "keep"
    recogniser: str | None = None
    speech_model: str | None = None
    grammar: str | None = None
    device: str = "cpu"
    timeout: float = DEFAULT_TIMEOUT
    memory: int = DEFAULT_MEMORY
    limits: Limits = field(default_factory=Limits)
    face_finder: str = CASCADES
    face_weights: str | None = None

    def __post_init__(self) -> None:
        if self.faces not in FACES:
            raise ValueError(f"--faces {self.faces}: {did_you_mean(self.faces, FACES)}")
        if self.face_finder not in FINDERS:
            raise ValueError(f"--face-finder {self.face_finder}: {did_you_mean(self.face_finder, FINDERS)}")
        if self.face_weights is not None and self.face_finder != DETECTOR:
            raise ValueError(f"--face-weights belongs to the detector: give --face-finder {DETECTOR}")
        if self.audio_length not in AUDIO_LENGTHS:
            raise ValueError(f"--audio-length {self.audio_length}: {did_you_mean(self.audio_length, AUDIO_LENGTHS)}")
        if self.clips_per_shard is not None and self.clips_per_shard < 1:
            raise ValueError(f"--clips-per-shard {self.clips_per_shard}: expected a positive number")
        if self.audio_rate is not None and not 8000 <= self.audio_rate <= 192_000:
            raise ValueError(f"--audio-rate {self.audio_rate}: expected 8000 to 192000 Hz, or `source`")
        if self.recogniser is None and (self.speech_model or self.grammar):
            raise ValueError("--speech-model and --grammar belong to a recogniser: name one with --transcribe")

    def identity(self) -> dict[str, Any]:
        """What the content of the shards depends on: not where and how long it may take."""
        free = ["timeout", "memory", "device", "face_weights"]  # of which there is one version
        if self.face_finder == CASCADES or self.faces == "off":
            free.append("face_finder")  # builds from before there was a choice have none
        return {name: value for name, value in asdict(self).items() if name not in free}


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to build one shard; small enough to be sent."""

    name: str
    out: str
    source: str
    schema: ClipSchema
    clips: tuple[Clip, ...]
    options: BuildOptions
    digest: str


@dataclass(frozen=True)
class BuildPlan:
    """The tasks, what was refused before any file is opened, and the digest of all that decides the content. missing:
    of the set, and allowed to be; it is not among what is found."""

    out: Path
    name: str
    tasks: tuple[ShardTask, ...]
    rejected: tuple[Rejected, ...]
    found: int
    digest: str
    identity: dict[str, Any]
    rendered: bool = False
    missing: tuple[Rejected, ...] = ()

    @classmethod
    def make(cls, clips: ClipSet, out: Path, options: BuildOptions) -> BuildPlan:
        """Refuse unusable and repeated keys, order the clips and divide them among shards. Pure: nothing is written."""
        good, rejected = _usable(clips)
        schema = ClipSchema(options.sound, clips.labels, clips.grouped, clips.meta)
        count = len(good)
        per_shard = options.clips_per_shard or max(8, min(256, -(-count // 32)))
        seed = options.shuffle_seed
        order = np.arange(count) if seed is None else shuffled_order(count, seed)
        listing = xxhash.xxh3_128()
        for clip in good:
            listing.update(json.dumps(asdict(clip), sort_keys=True, default=str).encode())
        identity = {
            "format": _FORMAT,
            "set": clips.name,
            "clips": count,
            "listing": listing.hexdigest(),
            "schema": schema.to_dict(),
            "per_shard": per_shard,
            **options.identity(),
        }
        digest = digest_of(identity)
        tasks = tuple(
            ShardTask(
                f"clips-{number:06d}",
                str(out),
                str(clips.source.absolute()),
                schema,
                tuple(good[i] for i in order[start : start + per_shard]),
                options,
                digest,
            )
            for number, start in enumerate(range(0, count, per_shard))
        )
        found = count + len(rejected)
        missing = tuple(Rejected(shown(item.name), item.reason, item.message) for item in clips.absent)
        return cls(out, clips.name, tasks, tuple(rejected), found, digest, identity, clips.rendered, missing)

    def acquire(self, overwrite: bool = False) -> None:
        """Make the folder this build's, or continue a build of the same plan: see
        `shards.output_folder.Ownership.acquire`."""
        OWNERSHIP.acquire(self.out, self.identity, overwrite)
        (self.out / REPORTS).mkdir(exist_ok=True)


def _usable(clips: ClipSet) -> tuple[list[Clip], list[Rejected]]:
    """Clips with keys of their own; those that share one are all refused, for none of them is the right one."""
    holders: dict[str, list[Clip]] = {}
    rejected = list(clips.rejected)
    for clip in clips.clips:
        try:
            for what in ("key", "group", "split", "transcript"):
                check_text(what, getattr(clip, what))
            for what, value in clip.meta.items():
                check_text(what, value)
        except ValueError as error:
            rejected.append(Rejected(shown(clip.video), "bad_name", str(error)))
            continue
        if not clip.key:
            rejected.append(Rejected(shown(clip.video), "bad_name", "the key is empty"))
            continue
        holders.setdefault(safe_key(clip.key, CLIP_KEY_LIMIT), []).append(clip)
    for same in holders.values():
        if len(same) > 1:
            for clip in same:
                others = ", ".join(shown(other.video) for other in same if other is not clip)
                message = f"the key {clip.key!r} is also that of {others}"
                rejected.append(Rejected(shown(clip.video), "duplicate_key", message))
    return [same[0] for _, same in sorted(holders.items()) if len(same) == 1], rejected
