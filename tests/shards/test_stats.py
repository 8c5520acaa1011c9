"""Moments against numpy on all rows at once; counts against the samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shards import Column, Manifest, Reader, Sample, Schema, ShardWriter, View
from shards.__main__ import main
from shards.stats import check_present, column_moments, describe
from tests.shards.small_data import make_samples, write


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(tmp_path_factory.mktemp("stats") / "data", make_samples(300), shard_samples=150)


def test_moments_are_those_of_numpy(manifest: Manifest) -> None:
    audio = np.stack([s.columns["audio"] for i, s in enumerate(make_samples(300)) if i % 7 != 6])  # type: ignore[misc]
    mean, std = column_moments(Reader(manifest))["audio"]
    np.testing.assert_allclose(mean, audio.mean(axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(std, audio.std(axis=0), rtol=1e-12)


def test_moments_do_not_lose_digits_far_from_zero(tmp_path: Path) -> None:
    values = 1e7 + np.random.default_rng(0).standard_normal((500, 1))
    with ShardWriter(tmp_path / "a", Schema((Column("x", 1, "float64"),))) as writer:
        for i, value in enumerate(values):
            writer.append(Sample(f"k{i}", {"x": value}))
    _, std = column_moments(Reader(Manifest.open(tmp_path / "a")))["x"]
    np.testing.assert_allclose(std, values.std(axis=0), rtol=1e-9)


def test_a_view_and_a_seeded_choice_of_rows(manifest: Manifest) -> None:
    view = View.where(manifest, np.arange(300) % 2 == 0)
    v2d = np.stack([s.columns["v2d"] for s in make_samples(300)])[::2]  # type: ignore[misc]
    reader = Reader(manifest, modalities={"m": ("v2d",)})
    np.testing.assert_allclose(column_moments(reader, view)["m"][0], v2d.mean(axis=0, dtype=float), atol=1e-9)
    some = [column_moments(reader, None, 100, seed)["m"][0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(some[0], some[1])
    assert not np.array_equal(some[0], some[2])
    assert reader.damage.rows_read <= 3 * 100


def test_a_modality_that_no_row_has(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", Schema((Column("x", 1), Column("y", 1)))) as writer:
        writer.append(Sample("k", {"x": np.ones(1)}))
    manifest = Manifest.open(tmp_path / "a")
    with pytest.raises(ValueError, match="'y' is missing in every row"):
        column_moments(Reader(manifest))
    assert describe(manifest)["columns"]["y"]["present"] == 0


def test_a_modality_that_no_row_of_a_view_has(tmp_path: Path) -> None:
    """Found from the indexes: of columns that are never there together, and by the rows of the view alone."""
    schema = Schema((Column("x", 1), Column("y", 1)), {"x": ("x",), "y": ("y",), "both": ("x", "y")})
    with ShardWriter(tmp_path / "a", schema, max_shard_bytes=20_000) as writer:
        for i in range(60):
            one = "x" if i < 30 else "y"
            writer.append(Sample(f"k{i}", {one: np.ones(1)}))
    written = Manifest.open(tmp_path / "a")
    assert len(written) > 1
    check_present(Reader(written, modalities={"x": ("x",), "y": ("y",)}))
    with pytest.raises(ValueError, match="modality 'both' is missing in all 60 rows"):
        check_present(Reader(written))
    early = Reader(written, View.where(written, np.arange(60) < 30), {"x": ("x",), "y": ("y",)})
    with pytest.raises(ValueError, match="modality 'y' is missing in all 30 rows"):
        check_present(early)
    neither = Reader(written, early.view, {"both": ("x", "y"), "x": ("x",), "y": ("y",)})
    with pytest.raises(ValueError, match="modalities 'both', 'y' are missing in all 30 rows; leave them out"):
        check_present(neither)


def test_description(manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, samples = describe(manifest), make_samples(300)
    assert summary["rows"] == 300 and summary["columns"]["v3d"]["present"] == 240
    for name in ("calm", "angry", "sad"):
        assert summary["labels"]["mood"]["classes"][name] == sum(s.labels["mood"] == name for s in samples)
    assert summary["labels"]["valence"]["missing"] == 75 and summary["groups"]["count"] == 3
    assert main(["stats", manifest.folder, "--json", str(tmp_path / "s.json")]) == 0
    assert "mood: calm" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text()) == summary
    assert main(["stats", manifest.folder, "--view", "nope"]) == 2
