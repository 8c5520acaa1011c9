"""Moments against numpy on all rows at once; counts against the samples."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import Column, Manifest, Reader, Sample, Schema, ShardWriter, View, shuffled_order
from shards.__main__ import main
from shards.tools.stats import _chunks, check_present, column_moments, describe
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
    np.testing.assert_allclose(column_moments(reader.over(view))["m"][0], v2d.mean(axis=0, dtype=float), atol=1e-9)
    some = [column_moments(reader, 100, seed)["m"][0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(some[0], some[1])
    assert not np.array_equal(some[0], some[2])
    assert reader.corrupt.rows_read <= 3 * 100


def _listed_chunks(counts: list[int], max_rows: int | None, seed: int) -> list[tuple[int, int, int]]:
    """The same choice, slow and obvious: all chunks listed, taken in the whole seeded order until they are too many."""
    chunks = [(shard, at, min(at + 64, count)) for shard, count in enumerate(counts) for at in range(0, count, 64)]
    if max_rows is None or sum(counts) <= max_rows:
        return chunks
    chosen: list[tuple[int, int, int]] = []
    for number in shuffled_order(len(chunks), seed).tolist():
        _, start, stop = chunks[number]
        if chosen and sum(b - a for _, a, b in chosen) + stop - start > max_rows:
            break
        chosen.append(chunks[number])
    return sorted(chosen)


@given(
    st.lists(st.sampled_from([0, 1, 2, 63, 64, 65, 128, 200]), min_size=1, max_size=30),
    st.one_of(st.none(), st.integers(0, 3000)),
    st.integers(0, 5),
)
@settings(deadline=None, max_examples=200)
def test_chosen_rows_are_those_of_the_whole_list(counts: list[int], max_rows: int | None, seed: int) -> None:
    assert list(_chunks(np.array(counts), max_rows, seed)) == _listed_chunks(counts, max_rows, seed)


def test_choosing_rows_of_many_shards_takes_little_memory() -> None:
    """200,000 shards of 1,000 rows are 3.2 million chunks: their list took 517 MB."""
    counts = np.full(200_000, 1000)
    tracemalloc.start()
    try:
        chosen = list(_chunks(counts, 200_000, 0))
        whole = iter(_chunks(counts, None, 0))
        assert [next(whole) for _ in range(17)][15:] == [(0, 960, 1000), (1, 0, 64)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    rows = [stop - start for _, start, stop in chosen]
    assert 200_000 - 64 < sum(rows) <= 200_000 and chosen == sorted(set(chosen))
    # Spread over all shards, as a drawn choice is: the mean of n uniform numbers is within 5 deviations of the middle.
    assert abs(np.mean([shard for shard, _, _ in chosen]) / 2e5 - 0.5) < 5 * (1 / 12 / len(chosen)) ** 0.5
    assert peak < 40e6


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
