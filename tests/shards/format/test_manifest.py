"""The manifest: strict when opened, small and quick with a million shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import Column, Manifest, ManifestError, Schema, ShardError
from shards.format.layout import archive_bytes
from shards.format.manifest import table_of
from tests.shards.small_data import SCHEMA, flip_bit, make_samples, write

Change = Callable[[Any], Any]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write(tmp_path / "data", make_samples(35))


def test_it_opens_as_it_was_written(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Manifest.open(manifest.folder)
    assert again.digest == manifest.digest and again.schema == SCHEMA and again.shards.equals(manifest.shards)
    assert again.rows == 35 and again.rows_before.tolist() == [0, *np.cumsum(again.counts)]
    assert again.modalities == {"video": ("v2d", "v3d"), "audio": ("audio",)}
    assert Manifest.open(f"{manifest.folder}/manifest.parquet").digest == manifest.digest
    monkeypatch.chdir(manifest.folder)
    assert Manifest.open(".").folder == Manifest.open("manifest.parquet").folder == manifest.folder


def test_where_it_lies_is_not_part_of_the_digest(manifest: Manifest, tmp_path: Path) -> None:
    Path(manifest.folder).rename(tmp_path / "elsewhere")
    assert Manifest.open(tmp_path / "elsewhere").digest == manifest.digest


def test_the_digest_is_over_content_and_names(manifest: Manifest) -> None:
    entries = [manifest.entry(i) for i in range(len(manifest))]
    reordered = Manifest("x", SCHEMA, table_of(entries[::-1]))
    other_schema = Manifest("x", Schema(SCHEMA.columns), table_of(entries))
    assert len({manifest.digest, reordered.digest, other_schema.digest}) == 3
    assert Manifest("x", SCHEMA, manifest.shards.slice(1)).digest == Manifest("x", SCHEMA, table_of(entries[1:])).digest


def test_a_flipped_bit_is_refused_or_changes_nothing(manifest: Manifest) -> None:
    path = Path(manifest.folder) / "manifest.parquet"
    data = path.read_bytes()
    refused = 0
    for position in range(0, len(data), 7):
        path.write_bytes(data)
        flip_bit(path, position)
        try:
            again = Manifest.open(manifest.folder)
        except ManifestError as error:
            assert "manifest.parquet" in str(error)
            refused += 1
        else:
            assert again.digest == manifest.digest and again.shards.equals(manifest.shards)
            assert again.schema == SCHEMA
    assert refused > len(data) // 7 / 2


@pytest.mark.parametrize("cut", [0, 3, 100, -1, -8])
def test_a_cut_manifest_is_refused(manifest: Manifest, cut: int) -> None:
    path = Path(manifest.folder) / "manifest.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ManifestError, match="not a readable manifest"):
        Manifest.open(manifest.folder)


def test_no_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="conclugen pack"):
        Manifest.open(tmp_path)


def _with(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    i = table.schema.get_field_index(name)
    return table.set_column(i, table.schema.field(i), pa.array(values, table.schema.field(i).type))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: _with(t, "name", ["../up", *t["name"].to_pylist()[1:]]), "unsafe shard name"),
        (lambda t: _with(t, "name", ["a/b", *t["name"].to_pylist()[1:]]), "unsafe shard name"),
        (lambda t: _with(t, "name", ["/abs", *t["name"].to_pylist()[1:]]), "unsafe shard name"),
        (lambda t: _with(t, "name", ["a..b", *t["name"].to_pylist()[1:]]), "unsafe shard name"),
        (lambda t: _with(t, "name", ["x"] * len(t)), "'x' is listed twice"),
        (lambda t: _with(t, "name", [None] * len(t)), "empty fields"),
        (lambda t: _with(t, "count", [-1] * len(t)), "negative"),
        (lambda t: _with(t, "count", [1 << 61] * len(t)), "do not fit together"),
        (lambda t: _with(t, "bytes", [1] * len(t)), "do not fit together"),
        (lambda t: _with(t, "stride", [1 << 40] * len(t)), "do not fit together"),
        (lambda t: t.slice(0, 0), "no shards"),
    ],
)
def test_claims_that_do_not_fit_together(manifest: Manifest, change: Change, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest(manifest.folder, SCHEMA, change(manifest.shards))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["schema"]["columns"][0].update(dtype="object"), "'object'.*allowed: float16"),
        (lambda m: m["schema"]["columns"][0].update(width=-3), "width is -3"),
        (lambda m: m["schema"]["columns"][0].update(width=True), "width is True"),
        (lambda m: m["schema"]["columns"][0].update(name="../../etc"), r"column name '\.\./\.\./etc'"),
        (lambda m: m["schema"].update(extra=1), "'extra' is unknown"),
        (lambda m: m["schema"].pop("labels"), "'labels' is missing"),
        (lambda m: m["schema"]["modalities"].update(m=["nope"]), "'nope' is unknown"),
        (lambda m: m.update(format=99), "format version differs.*expected 1, found 99"),
        (lambda m: m.update(digest="0" * 32), "digest differs"),
        (lambda m: m.update(schema=[]), "schema is not valid"),
    ],
)
def test_descriptions_that_are_refused(manifest: Manifest, change: Change, message: str) -> None:
    from shards.format.manifest import _METADATA_KEY, _self_check

    path = Path(manifest.folder) / "manifest.parquet"
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[_METADATA_KEY])
    del metadata["check"]
    change(metadata)
    metadata["check"] = _self_check(metadata)  # as somebody who knows the format would forge it
    pq.write_table(table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)}), path)
    with pytest.raises(ManifestError, match=message):
        Manifest.open(manifest.folder)


def test_a_parquet_file_of_something_else(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "manifest.parquet")
    with pytest.raises(ManifestError, match="not a readable manifest"):
        Manifest.open(tmp_path)


def test_a_million_shards_stay_small(tmp_path: Path) -> None:
    count, stride = 1_000_000, 28672
    random = np.random.default_rng(0)
    counts = random.integers(900, 1100, count)
    digests = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(random.bytes(16 * count))])
    others = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(random.bytes(16 * count))])
    table = pa.table(
        {
            "name": pa.array([f"part-{i:07d}" for i in range(count)]),
            "count": counts,
            "bytes": -(-(counts * stride + 1024) // 10240) * 10240,
            "stride": np.full(count, stride),
            "digest": digests,
            "index_bytes": random.integers(30_000, 40_000, count),
            "index_digest": others,
        }
    )
    assert table["bytes"][5].as_py() == archive_bytes(int(counts[5]), stride)
    manifest = Manifest(str(tmp_path), Schema((Column("a", 5888),)), table)
    manifest.save()
    size = (tmp_path / "manifest.parquet").stat().st_size
    assert size < 48e6, f"{size / 1e6:.1f} MB; 32 MB of it are digests, which do not compress"
    again = Manifest.open(tmp_path)
    assert again.digest == manifest.digest and again.rows == counts.sum()
    assert again.entry(777_777).name == "part-0777777"


def test_an_index_of_another_schema_is_refused(manifest: Manifest) -> None:
    from shards import Reader

    entries = [manifest.entry(i) for i in range(len(manifest))]
    forged = Manifest(manifest.folder, Schema((Column("v2d", 7), Column("v3d", 10, "float16"))), table_of(entries))
    with pytest.raises(ShardError, match=r"'part-000000': columns differ from the manifest.*width=10.*width=5"):
        Reader(forged).read(0, 0, 1)
