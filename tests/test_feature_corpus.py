"""The made-up feature corpus: deterministic, complete, and neither trivial nor random."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from shards.format.manifest import Manifest
from shards.planning.view import IndexValues, View
from shards.reading.reader import Reader
from tests import feature_corpus as corpus


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return corpus.write_corpus(tmp_path_factory.mktemp("corpus") / "data")


def test_shape_of_the_corpus(manifest: Manifest) -> None:
    assert manifest.rows == 24 * 5 * 16 and len(manifest) >= 4
    assert Reader(manifest).widths == {"video": 96, "audio": 48, "text": 40}
    groups = IndexValues.read(manifest, "group")
    speakers = {name: set(groups.codes[_rows(manifest, name)].tolist()) for name in ("train", "valid", "test")}
    assert [len(speakers[name]) for name in ("train", "valid", "test")] == [16, 4, 4]
    assert len(set.union(*speakers.values())) == 24
    emotions = IndexValues.read(manifest, "label.emotion").sizes
    assert emotions == dict.fromkeys(emotions, 24 * 16) and set(emotions) == set(corpus.EMOTIONS)
    everything = Reader(manifest).read_ranges([(s, 0, int(n)) for s, n in enumerate(manifest.counts)])
    present = np.stack(list(everything.present.values()))
    assert present.any(axis=0).all()
    for there in present:
        assert 0.02 < 1 - there.mean() < 0.06
    valence, emotion = everything.labels["valence"], everything.labels["emotion"]
    assert 0.005 < np.isnan(valence).mean() < 0.04
    means = [np.nanmean(valence[emotion == c]) for c in range(5)]
    assert np.abs(np.array(means) - corpus.VALENCE).max() < 0.1


def _rows(manifest: Manifest, name: str) -> np.ndarray:
    view = View.open(manifest, name)
    return np.concatenate([view.mask(shard) for shard in range(len(manifest))])


def test_same_seed_same_bytes(manifest: Manifest, tmp_path: Path) -> None:
    def digests(folder: str) -> dict[str, str]:
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    corpus.write_corpus(tmp_path / "again")
    assert digests(str(tmp_path / "again")) == digests(manifest.folder)
    other = corpus.write_corpus(tmp_path / "other", seed=1, speakers=3, takes=1)
    assert other.rows == 15 and other.digest != manifest.digest
    with pytest.raises(ValueError, match="speakers is 2"):
        corpus.write_corpus(tmp_path / "few", speakers=2)


def test_raw_features_are_neither_trivial_nor_random(manifest: Manifest) -> None:
    """Logistic regression on raw features, 10 % of the training labels, speakers not met before; chance is 0.2."""
    train, test = (Reader(manifest, View.open(manifest, name)) for name in ("train", "test"))
    parts = [reader.read_ranges([(s, 0, int(n)) for s, n in enumerate(reader.counts)]) for reader in (train, test)]
    scores = {}
    for name, modalities in {"all": ("video", "audio", "text"), "audio": ("audio",)}.items():
        x, x_test = (np.concatenate([part.features[m] for m in modalities], axis=1) for part in parts)
        few = np.random.default_rng(0).permutation(len(x))[: len(x) // 10]
        scaler = StandardScaler().fit(x)
        model = LogisticRegression(C=0.1, max_iter=500).fit(scaler.transform(x[few]), parts[0].labels["emotion"][few])
        scores[name] = model.score(scaler.transform(x_test), parts[1].labels["emotion"])
    assert 0.55 < scores["all"] < 0.8
    assert 0.25 < scores["audio"] < scores["all"]
