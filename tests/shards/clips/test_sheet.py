"""The picture of cropped faces: a row for each class, faces that are faces, one clip of each group first."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.adapters import read_clips
from shards.clips.build import build_shard
from shards.clips.plan import BuildOptions, BuildPlan
from shards.clips.reader import ClipManifest
from shards.clips.sheet import face_sheet
from shards.clips.summary import finish
from shards.corpus.emotions import EMOTIONS
from shards.corpus.writing import CorpusConfig, write_corpus
from shards.packing.labels import LabelSpec


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ClipManifest:
    """Twelve clips of two speakers, from rendered files to clip shards."""
    folder = tmp_path_factory.mktemp("sheet")
    rows = write_corpus(folder / "video", CorpusConfig(speakers=2, takes=1, without_transcript=0))
    clips = read_clips(
        "folder",
        folder / "video",
        table=folder / "video/clips.csv",
        fields={"group": "speaker", "text": "transcript"},
        labels=(LabelSpec("emotion", ("emotion",), "class", tuple(EMOTIONS)),),
    )
    plan = BuildPlan.make(clips, folder / "clips", BuildOptions(clips_per_shard=8))
    plan.acquire()
    summary = finish(plan, [build_shard(task, isolated=False) for task in plan.tasks])
    assert (summary.found, summary.written, summary.quarantined) == (12, 12, {})
    assert summary.counts["transcript of the set"] == len(rows) == 12
    assert summary.counts["copied"] == 12  # nothing of a rendered file has to be encoded again
    # Of these two speakers the second is one whom the detector mostly misses: its clips continue as whole frames.
    assert 6 <= summary.counts["with a face"] == 12 - summary.counts["no face, whole frames"]
    return ClipManifest.open(folder / "clips")


def test_sheet(manifest: ClipManifest, tmp_path: Path) -> None:
    assert face_sheet(manifest, "emotion", tmp_path / "faces.png", each=3) == 12
    picture = cv2.imread(str(tmp_path / "faces.png"))
    height, width = picture.shape[:2]
    assert 3 * 112 < width < 3 * 130 and 6 * 112 < height < 6 * 140
    row = height / 6
    for number in range(6):
        part = picture[int((number + 0.3) * row) : int((number + 0.9) * row)]
        thirds = [part[:, : width // 3], part[:, width // 3 : 2 * width // 3], part[:, 2 * width // 3 :]]
        filled = [np.mean(third < 250) > 0.5 for third in thirds]
        assert filled == [True, True, False]  # two speakers, one clip of each


def test_a_label_without_classes_is_refused(manifest: ClipManifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label 'emotions' is not a class label"):
        face_sheet(manifest, "emotions", tmp_path / "faces.png")
    assert not (tmp_path / "faces.png").exists()
