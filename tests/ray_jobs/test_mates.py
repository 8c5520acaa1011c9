"""What is known of a data set where few rows of a batch find others of their speaker, counted row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conclugen import presets
from conclugen.mates import LARGER_BATCH, OTHER_COLUMNS
from ray_jobs.run_config import DataConfig
from ray_jobs.source import Source, mates
from shards import Column, Manifest, Sample, Schema, ShardWriter, View


def source(folder: Path, speakers: int, clips: int, dialogues: int, **data: str) -> Source:
    """Of a view that leaves the first speaker out; each has so many clips, and each dialogue rows of all speakers."""
    schema = Schema(tuple(Column(m, 3) for m in ("video", "audio")), grouped=True, meta=("dialogue",))
    rng = np.random.default_rng(0)
    with ShardWriter(folder, schema) as writer:
        for row in range(speakers * clips):
            columns = {m: rng.normal(size=3) for m in ("video", "audio")}
            meta = {"dialogue": f"d{row % dialogues}"}
            writer.append(Sample(f"k{row}", columns, {}, f"s{row // clips}", meta=meta))
    manifest = Manifest.open(folder)
    View.where(manifest, np.concatenate([[False] * clips, [True] * (speakers - 1) * clips]), "train").save()
    config = presets.build("contrast_only_video_audio", global_batch=16, epochs=1, model={"representation_dim": 8})
    return Source.open(DataConfig(str(folder), view="train", validation_view=None, **data), config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("speakers", "clips", "dialogues", "larger", "columns"),
    [
        (7, 10, 70, 32, 0),  # of 60 rows 32 hold 4.7 others of a row's ten on average, 16 hold 2.3
        (31, 2, 62, 0, 0),  # nobody has four others, nor has a dialogue
        (31, 2, 2, 0, 1),  # dialogues have
    ],
)
def test_a_larger_batch_or_another_column_is_found(
    speakers: int, clips: int, dialogues: int, larger: int, columns: int, tmp_path: Path
) -> None:
    found = mates(source(tmp_path / "data", speakers, clips, dialogues), 16)
    assert found == {LARGER_BATCH: larger, OTHER_COLUMNS: columns}


def test_the_column_is_the_one_that_is_named(tmp_path: Path) -> None:
    opened = source(tmp_path / "data", 31, 2, 2, speaker="meta.dialogue")
    assert mates(opened, 16) == {LARGER_BATCH: 32, OTHER_COLUMNS: 0}


def test_what_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    opened = source(tmp_path / "data", 7, 10, 70)
    for path in (tmp_path / "data").glob("*.index.parquet"):
        path.write_bytes(b"damaged")
    assert mates(opened, 16) == {} and mates(object(), 16) == {}
