"""A small data set with everything in it: three columns, missing ones, all kinds of labels, groups, texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shards import Column, Label, Manifest, Sample, Schema, ShardWriter

SCHEMA = Schema(
    columns=(Column("v2d", 7), Column("v3d", 5, "float16"), Column("audio", 130, "float64")),
    modalities={"video": ("v2d", "v3d"), "audio": ("audio",)},
    labels=(
        Label("mood", "class", ("calm", "angry", "sad")),
        Label("valence", "continuous"),
        Label("signs", "multilabel", ("smile", "frown")),
    ),
    grouped=True,
    meta=("split",),
)


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """Samples s0, s1, ...; every fifth lacks v3d, every seventh audio, some labels and groups are missing."""
    random = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        columns: dict[str, np.ndarray | None] = {
            "v2d": random.standard_normal(7).astype(np.float32),
            "v3d": None if i % 5 == 4 else random.standard_normal(5).astype(np.float16),
            "audio": np.full(130, np.nan) if i % 7 == 6 else random.standard_normal(130),
        }
        labels = {
            "mood": None if i % 11 == 10 else ("calm", "angry", "sad")[i % 3],
            "valence": None if i % 4 == 3 else i / 8,
            "signs": [float(i % 2), np.nan if i % 6 == 5 else 1.0],
        }
        group = None if i % 13 == 12 else f"speaker {i % 3}"
        text = None if i % 2 else f"said «{i}» " + "x" * (i % 50)
        samples.append(Sample(f"s{i}", columns, labels, group, text, None, {"split": "train" if i % 3 else "test"}))
    return samples


def write(folder: Path, samples: list[Sample], shard_samples: int = 10, **options: object) -> Manifest:
    """Written with shards of about so many samples."""
    with ShardWriter(folder, SCHEMA, max_shard_bytes=shard_samples * 4608 + 10240, **options) as writer:  # type: ignore[arg-type]
        for sample in samples:
            writer.append(sample)
    assert writer.manifest is not None
    return writer.manifest


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)
