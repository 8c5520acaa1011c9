"""What the writer writes: bytes, order, names, and what it leaves when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import Column, Manifest, Reader, Sample, Schema, ShardError, ShardWriter, shuffled_order, write_shard
from shards.format.writer import shuffled_start
from tests.shards.small_data import SCHEMA, make_samples, write


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_same_input_and_seed_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, make_samples(35), shuffle_seed=4)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    other = write(tmp_path / "c", make_samples(35), shuffle_seed=5)
    assert other.digest != Manifest.open(tmp_path / "a").digest


def test_streamed_shuffle_is_the_random_access_one(tmp_path: Path) -> None:
    samples = make_samples(35)
    streamed = write(tmp_path / "a", samples, shuffle_seed=4)
    placed = write(tmp_path / "b", [samples[i] for i in shuffled_order(35, 4)])
    assert streamed.digest == placed.digest and len(streamed) > 2
    assert sorted(shuffled_order(1000, 1)) == list(range(1000))
    assert shuffled_order(6, 0).tolist() == [3, 2, 1, 0, 4, 5], "the order of existing data sets must never change"


@pytest.mark.parametrize("count", [0, 1, 300_000, 524_288, 600_001])
def test_the_start_of_an_order_needs_not_all_of_it(count: int) -> None:
    for length in (0, 1, 7, 300_000, 1_000_000):
        np.testing.assert_array_equal(shuffled_start(count, 3, length), shuffled_order(count, 3)[:length])


def test_shards_are_bounded_and_nothing_else_is_left(tmp_path: Path) -> None:
    manifest = write(tmp_path / "a", make_samples(35), shard_samples=10)
    limit = 10 * 4608 + 10240
    assert all((tmp_path / "a" / f"{n}.tar").stat().st_size <= limit for n in manifest.shards["name"].to_pylist())
    assert len(manifest) == 4 and manifest.rows == 35
    names = [path.name for path in (tmp_path / "a").iterdir()]
    assert sum(name.endswith(".tar") for name in names) == 4
    assert {name.split(".", 1)[1] for name in names} == {"tar", "index.parquet", "parquet"}


def test_one_sample_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    assert write(tmp_path / "a", make_samples(3), shard_samples=0).counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", [None, 1])
def test_an_exception_leaves_nothing(tmp_path: Path, seed: int | None) -> None:
    with pytest.raises(RuntimeError, match="stop"), ShardWriter(tmp_path / "a", SCHEMA, shuffle_seed=seed) as writer:
        for sample in make_samples(30):
            writer.append(sample)
        raise RuntimeError("stop")
    assert not (tmp_path / "a").exists()


def test_overwriting_keeps_the_old_until_the_new_is_whole(tmp_path: Path) -> None:
    old = write(tmp_path / "a", make_samples(35))
    before = _files(tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds a data set already.*overwrite"):
        write(tmp_path / "a", make_samples(3))
    with pytest.raises(ValueError, match="occurs twice"):
        write(tmp_path / "a", make_samples(3) * 2, overwrite=True)
    assert _files(tmp_path / "a") == before
    new = write(tmp_path / "a", make_samples(3), overwrite=True)
    assert new.rows == 3 and new.digest != old.digest
    assert len(_files(tmp_path / "a")) == 3


@pytest.mark.parametrize("info", [{"folder": Path("x")}, {"seen": {1, 2}}, {(1, 2): "pair"}])
def test_info_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path, info: dict[str, Any]) -> None:
    write(tmp_path / "a", make_samples(3))
    before = _files(tmp_path / "a")
    for folder in ("a", "new"):
        with pytest.raises(ValueError, match=r"manifest info is .* JSON cannot hold"):
            write(tmp_path / folder, make_samples(5), overwrite=True, info=info)
    assert _files(tmp_path / "a") == before and not (tmp_path / "new").exists()


def test_info_is_what_json_makes_of_it(tmp_path: Path) -> None:
    """Numbers as keys sort differently once they are text: the manifest's check of itself must not notice."""
    info = {"limits": {9: (1, 2), 10: None}}
    written = write(tmp_path / "a", make_samples(3), info=info)
    assert written.info == Manifest.open(tmp_path / "a").info == {"limits": {"9": [1, 2], "10": None}}


def test_a_manifest_that_cannot_be_written_leaves_the_old_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", make_samples(35))
    before = _files(tmp_path / "a")

    def full(self: Manifest) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "save", full)
    for folder in ("a", "new"):
        with pytest.raises(OSError, match="No space"):
            write(tmp_path / folder, make_samples(3), overwrite=True)
    assert _files(tmp_path / "a") == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("obstacle", ["part-000001.index.parquet", "manifest.parquet"])
def test_a_move_that_fails_midway_is_taken_back(tmp_path: Path, obstacle: str) -> None:
    (tmp_path / "a" / "sub").mkdir(parents=True)
    with pytest.raises(IsADirectoryError), ShardWriter(tmp_path / "a", SCHEMA, max_shard_bytes=30_000) as writer:
        for sample in make_samples(30):
            writer.append(sample)
        (tmp_path / "a" / obstacle).mkdir()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"sub", obstacle}


def test_a_killed_writer_leaves_no_data_set_and_the_next_one_works(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom tests.shards.small_data import *\n"
        "with ShardWriter(sys.argv[1], SCHEMA, max_shard_bytes=30000) as w:\n"
        "    for s in make_samples(30): w.append(s)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], cwd=Path(__file__).parents[3], check=False)
    assert (tmp_path / "a").is_dir() and not list((tmp_path / "a").glob("*.tar"))
    assert write(tmp_path / "a", make_samples(5)).rows == 5
    assert len(_files(tmp_path / "a")) == 3


def test_two_writers_do_not_share_a_folder(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", SCHEMA) as writer:
        with (
            pytest.raises(ValueError, match=rf"shards are being written here by process {os.getpid()} on .*; wait"),
            ShardWriter(tmp_path / "a", SCHEMA),
        ):
            pass
        writer.append(make_samples(1)[0])
    assert Manifest.open(tmp_path / "a").rows == 1


def test_shards_without_a_manifest_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    write(tmp_path / "a", make_samples(3))
    (tmp_path / "a" / "manifest.parquet").unlink()
    with pytest.raises(ValueError, match="shards without a manifest"):
        write(tmp_path / "a", make_samples(3))


def test_unsafe_keys_are_renamed_with_a_note(tmp_path: Path) -> None:
    schema = Schema((Column("a", 1),))
    keys = ["x.y", "x.z", "sub/dir", "Müller", "k" * 95, "fine", "..", "a b"]
    with ShardWriter(tmp_path / "a", schema) as writer:
        for i, key in enumerate(keys):
            writer.append(Sample(key, {"a": np.array([i])}))
    table = Reader(Manifest.open(tmp_path / "a")).metadata(0)
    stored = table["key"].to_pylist()
    assert stored[5] == "fine" and len(set(stored)) == len(keys) and len(writer.notes) == len(keys) - 1
    assert all(repr(key) in note for key, note in zip([*keys[:5], *keys[6:]], writer.notes, strict=True))
    with tarfile.open(tmp_path / "a" / "part-000000.tar") as tar:
        assert all(len(name) <= 100 and name.split(".")[0] in stored for name in tar.getnames())
        originals = [json.load(tar.extractfile(m))["original"] for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    assert originals == keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"v2d": np.zeros(6)}}, r"'bad'.*'v2d'.*\(6,\).*\(7,\)"),
        ({"columns": {"v2d": np.array([0, np.nan, 0, 0, 0, 0, 0])}}, r"'bad'.*'v2d'.*NaN in 1 of 7.*element 1"),
        ({"columns": {"v3d": np.full(5, 1e6)}}, r"'bad'.*'v3d'.*float16"),
        ({"columns": {"v2d": np.full(7, np.inf)}}, r"'bad'.*'v2d'.*inf"),
        ({"columns": {"v2d": np.array(["a"] * 7)}}, r"'bad'.*'v2d'.*expected numbers"),
        ({"columns": {"v2e": np.zeros(7)}}, r"'bad'.*'v2e' is unknown.*did you mean 'v2d'"),
        ({"labels": {"mood": "glad"}}, r"'bad'.*'glad' is unknown.*calm"),
        ({"labels": {"mood": 3}}, r"'bad'.*class 3.*0\.\.2"),
        ({"labels": {"signs": [1.0]}}, r"'bad'.*'signs'.*2 finite"),
        ({"labels": {"modo": 1}}, r"'bad'.*'modo' is unknown.*'mood'"),
        ({"group": 3}, r"'bad'.*group is 3"),
        ({"text": "half \ud800"}, r"'bad'.*text is 'half.*not valid Unicode"),
        ({"meta": {"spilt": "x"}}, r"'bad'.*'spilt'.*'split'"),
        ({"key": ""}, "not empty"),
    ],
)
def test_samples_the_schema_refuses(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), ShardWriter(tmp_path / "a", SCHEMA) as writer:
        writer.append(Sample(**({"key": "bad", "columns": {}} | change)))  # type: ignore[arg-type]


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a local path"):
        ShardWriter("s3://bucket/a", SCHEMA)
    with pytest.raises(ValueError, match="at least one"), ShardWriter(tmp_path / "a", SCHEMA):
        pass
    with pytest.raises(ValueError, match="grouped=False"), ShardWriter(tmp_path / "a", Schema((Column("a", 1),))) as w:
        w.append(Sample("k", {}, group="x"))
    with pytest.raises(ValueError, match="context manager"):
        ShardWriter(tmp_path / "a", SCHEMA).append(make_samples(1)[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Column("a.b", 1), "'a.b'"),
        (lambda: Column("../a", 1), r"'\.\./a'"),
        (lambda: Column("a", 0), "width is 0"),
        (lambda: Column("a", 1, "int32"), "'int32'"),
        (lambda: Schema(()), "at least one column"),
        (lambda: Schema((Column("a", 1), Column("A", 1))), "named twice"),
        (lambda: Schema((Column("a", 1),), {"m": ("b",)}), "'b' is unknown"),
    ],
)
def test_schemas_that_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_shards_written_side_by_side_make_one_data_set(tmp_path: Path) -> None:
    samples = make_samples(30)
    entries = [write_shard(tmp_path, f"w{i}", SCHEMA, samples[i * 10 : i * 10 + 10]) for i in range(3)]
    whole = Manifest.assemble(tmp_path, entries)
    assert whole.digest == Manifest.assemble(tmp_path, ["w0", "w1", "w2"]).digest
    rows = Reader(whole).read_ranges([(i, 0, 10) for i in range(3)])
    np.testing.assert_array_equal(rows.features["video"][0, :7], samples[0].columns["v2d"])
    write_shard(tmp_path, "w3", SCHEMA, samples[5:8])
    with pytest.raises(ShardError, match=r"'s[567]'.*occurs twice.*w0.*w3"):
        Manifest.assemble(tmp_path, [*entries, "w3"])
    write_shard(tmp_path, "w4", Schema((Column("a", 1),)), [Sample("k", {"a": np.ones(1)})])
    with pytest.raises(ShardError, match=r"'w4'.*schema differs"):
        Manifest.assemble(tmp_path, [*entries, "w4"])
    with pytest.raises(ShardError, match=r"'w9'.*w9\.tar is missing"):
        Manifest.assemble(tmp_path, [*entries, "w9"])
    with pytest.raises(ShardError, match=r"'s5': key occurs twice"):
        write_shard(tmp_path, "w5", SCHEMA, [samples[5], samples[5]])
    assert not (tmp_path / "w5.tar").exists()
