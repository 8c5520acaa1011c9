"""Batches out of memory against those that are read from the shards, and rows kept in float16 against the stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardError
from shards.format.manifest import TAR_SUFFIX, Manifest
from shards.format.schema import Column, Sample, Schema
from shards.format.writer import ShardWriter
from shards.planning.plan import REMAINDERS, Cursor, EpochPlan
from shards.planning.view import View
from shards.reading import resident
from shards.reading.reader import Reader
from shards.reading.resident import HALF, Resident
from shards.reading.rows import Rows
from shards.reading.stream import stream
from tests.shards.reading import test_mixed_reader
from tests.shards.reading.test_stream import Blocks
from tests.shards.small_data import flip_bit

ROWS = 157


def write(folder: Path, large: float = 1.0) -> Manifest:
    """Several shards; a modality of two columns, missing values, rows without a group."""
    schema = Schema((Column("a", 3), Column("b", 5)), {"one": ("a", "b"), "two": ("b",)}, grouped=True)
    rng = np.random.default_rng(0)
    with ShardWriter(folder, schema, max_shard_bytes=81_920) as writer:
        for i in range(ROWS):
            a, b = rng.standard_normal(3), None if i % 9 == 2 else rng.standard_normal(5)
            a[0] *= large if i == 102 else 1.0
            text = "y" * (700 * (i // 60))
            writer.append(Sample(f"k{i}", {"a": a, "b": b}, group=f"g{i % 7}" if i % 8 else None, text=text))
    assert writer.manifest is not None
    return writer.manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(tmp_path_factory.mktemp("resident") / "data")


def filled(kept: Resident, parts: int = 1) -> Resident:
    """As several processes fill it, the last one first."""
    read = sum(rows for part in reversed(range(parts)) for rows in kept.read(part, parts))
    assert read == kept.total
    return kept


def assert_same(found: Rows, expected: Rows) -> None:
    assert found.cursor == expected.cursor
    assert (found.group is None) == (expected.group is None) and (found.corpus is None) == (expected.corpus is None)
    assert list(found.features) == list(expected.features) and list(found.present) == list(expected.present)
    for name, values in expected.features.items():
        assert found.features[name].dtype == values.dtype
        np.testing.assert_array_equal(found.features[name], values)
        np.testing.assert_array_equal(found.present[name], expected.present[name])
    for one, two in ((found.row, expected.row), (found.group, expected.group), (found.corpus, expected.corpus)):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize("world", [1, 3])
def test_batches_are_those_of_the_stream(
    manifest: Manifest, remainder: str, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_BLOCK_BYTES", 13 * 13 * 4)  # of 13 rows: borders within and between shards
    monkeypatch.setattr(resident, "PIECES_PLANNED", 20)  # windows of few steps
    assert len(manifest.counts) > 1
    view = View.where(manifest, np.arange(ROWS) % 5 != 2)
    plan = EpochPlan(view.counts, seed=4, global_batch=32, chunk_rows=5, remainder=remainder)
    reader = Reader(manifest, view)
    kept = filled(Resident(reader), parts=world)
    for rank in range(world):
        expected = list(stream(reader, plan, rank, world, Cursor(0, 2), 9))
        with resident.stream(kept, plan, rank, world, Cursor(0, 2), 9) as batches:
            held = list(batches)
        assert len(held) == len(expected) == 9
        for one, two in zip(held, expected, strict=True):
            assert_same(one, two)


def test_batches_are_copied_into_memory_that_is_given(manifest: Manifest) -> None:
    reader, memory = Reader(manifest, labels=()), Blocks()
    plan = EpochPlan(reader.counts, seed=4, global_batch=32, chunk_rows=5, remainder="pad")
    expected = list(stream(reader, plan, 0, 1, Cursor(), 12))
    with resident.stream(filled(Resident(reader)), plan, 0, 1, Cursor(), 12, memory=memory) as batches:
        for one, two in zip(batches, expected, strict=True):
            assert memory.hold(one)
            assert_same(one, two)
            del one
    assert len(memory.blocks) <= 6 * 6, "memory is not used again"


def test_batches_of_a_mixture_are_those_of_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora of other dtypes, modalities and speakers."""
    monkeypatch.setattr(resident, "_BLOCK_BYTES", 200)
    manifests = {corpus: test_mixed_reader.write(tmp_path, corpus) for corpus in test_mixed_reader.COLUMNS}
    reader, plan, _ = test_mixed_reader.mixture(manifests)
    kept = filled(Resident(reader), parts=2)
    expected = list(stream(reader, plan, 1, 2, Cursor(), 25))
    with resident.stream(kept, plan, 1, 2, Cursor(), 25) as batches:
        for one, two in zip(batches, expected, strict=True):
            assert one.corpus is not None
            assert_same(one, two)


def test_a_damaged_row_is_logged_once_and_stays_empty(tmp_path: Path) -> None:
    manifest = write(tmp_path / "data")
    flip_bit(Path(manifest.path(manifest.entry(0).name + TAR_SUFFIX)), 3 * manifest.entry(0).stride + 700)
    reader = Reader(manifest, max_corrupt_share=1.0)
    kept = filled(Resident(reader))
    assert [sample.row for sample in reader.corrupt] == [3]
    assert kept.rows.row[3] == 3 and not any(present[3] for present in kept.rows.present.values())
    assert all((values[3] == 0).all() for values in kept.rows.features.values())


def test_rows_in_float16_are_rounded_and_nothing_else(manifest: Manifest) -> None:
    """To 11 bits: at most half a unit in the last place, 2^-11 of the value."""
    exact, rounded = filled(Resident(Reader(manifest))), filled(Resident(Reader(manifest), HALF))
    for name, values in exact.rows.features.items():
        found = rounded.rows.features[name]
        assert found.dtype == np.float16 and (found != values).any()
        normal = np.abs(values) > 2.0**-14
        assert (np.abs(found.astype(np.float64) - values) <= 2.0**-11 * np.abs(values))[normal].all()
        np.testing.assert_array_equal(rounded.rows.present[name], exact.rows.present[name])
    np.testing.assert_array_equal(rounded.rows.row, exact.rows.row)
    np.testing.assert_array_equal(rounded.rows.group, exact.rows.group)
    assert resident.nbytes(rounded.reader, HALF) < 0.65 * resident.nbytes(exact.reader)


def test_what_float16_does_not_hold_is_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path / "data", large=1e7)
    with pytest.raises(ShardError, match=r"row 102, modality 'one': feature 0 does not fit into float16") as refused:
        filled(Resident(Reader(manifest), HALF))
    assert "data.rows_in=stored" in str(refused.value)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (3, 12), (9, 9), (4, 6), (12, 12)])
def test_rows_between_two_positions(start: int, stop: int) -> None:
    """Looked up one by one; shards without rows among them."""
    counts = np.array([0, 4, 0, 1, 5, 0, 2, 0])
    every = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    found = [(s, row) for s, lo, hi in resident.ranges_between(counts, start, stop) for row in range(lo, hi)]
    assert found == every[start:stop]
