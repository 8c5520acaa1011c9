"""Small clip shards, and the obvious extraction: one process, one clip after the other, no Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.extraction.clip_features import Decoder, stages, unique
from ray_jobs.extraction.feature_shards import ExtractionSummary, ShardCollector, finish
from ray_jobs.extraction.plan import EncoderChoice, Extraction
from shards.clips.reader import ClipManifest, ClipReader, ClipSchema
from shards.clips.writer import NewClip, write_clip_shard
from shards.format.schema import Label
from shards.media.audio import Sound, encode_audio
from tests.shards.media.make_media import make_video

RANDOM = ("random-image", "random-audio", "random-text")
SCHEMA = ClipSchema("flac", (Label("mood", "class", ("calm", "angry")),), grouped=True)


def make_clips(folder: Path, shards: int = 2, per_shard: int = 4, pictures: int = 30) -> ClipManifest:
    """Clip `c<n>`: silent if n % 4 == 2, wordless if n % 4 == 1, no label if n % 5 == 4; train but n % 4 == 3."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for shard in range(shards):
        clips = [new_clip(folder, shard * per_shard + number, pictures) for number in range(per_shard)]
        entries.append(write_clip_shard(folder, f"clips-{shard:06d}", SCHEMA, clips))
    return ClipManifest.assemble(folder, [entry for entry in entries if entry is not None], {"set": "made"})


def new_clip(folder: Path, number: int, pictures: int = 30) -> NewClip:
    """One clip of `make_clips`."""
    path = make_video(folder / "made.mp4", pictures, (48 + 2 * (number % 3), 64))
    video = path.read_bytes()
    path.unlink()
    seconds = pictures / 25
    tone = 0.4 * np.sin(np.arange(int(seconds * 16_000)) * (0.02 + 0.01 * number)).astype(np.float32)
    return NewClip(
        f"c{number}",
        video,
        None if number % 4 == 2 else encode_audio(Sound(tone, 16_000), "flac"),
        None if number % 4 == 1 else f"clip number {number}",
        {} if number % 5 == 4 else {"mood": number % 2},
        f"speaker{3 if number % 4 == 3 else number % 3}",  # the test part has one of its own
        {"split": "test" if number % 4 == 3 else "train", "source": f"{number}.mp4", "seconds": f"{seconds:.3f}"},
        {"video": {"seconds": seconds}, "face": None, "transcript": None},
    )


def make_plan(clips: ClipManifest, out: Path, names: tuple[str, ...] = RANDOM, **options: Any) -> Extraction:
    """A claimed extraction."""
    plan = Extraction.make(clips, out, [EncoderChoice(name) for name in names], **options)
    plan.acquire()
    return plan


def run_loop(plan: Extraction, stop_after: int | None = None) -> ExtractionSummary:
    """Extract in this process; stop_after: number of clips, after which it dies by KeyboardInterrupt."""
    began, done = time.monotonic(), 0
    collector = ShardCollector(plan)
    takes = [info.takes for info in plan.infos]
    decoder = Decoder(ClipReader(plan.clips), unique(takes), plan.decoding)
    chain = stages(plan.choices, plan.infos, takes, plan.augmentation, plan.dtype, {}, plan.sequences)
    for shard in collector.todo:
        for table in decoder.tables(shard, 0, int(plan.clips.counts[shard])):
            for stage in chain:
                table = stage(table)
            if done == stop_after:
                raise KeyboardInterrupt
            done += collector.add(table)
    return finish(plan, collector, began)
