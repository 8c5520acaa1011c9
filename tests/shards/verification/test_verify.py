"""`verify` finds every kind of damage by name, and `--repair` keeps what is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from shards import Manifest, Reader, ShardError
from shards.__main__ import main
from shards.format.index_store import load_index
from shards.format.raw_sample import parse_intact, parse_raw
from shards.verification.check import verify
from shards.verification.repair import rebuild_index, repair
from shards.webdataset_import.command import index_folder
from tests.shards.small_data import SCHEMA, flip_bit, make_samples, write
from tests.shards.webdataset_import.plain_tars import npy, plain_members, write_tar


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "data"
    write(folder, make_samples(40), shard_samples=15)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "data"))


def test_a_whole_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(folder, progress=lambda done, rows: seen.append((done, rows))) == []
    assert seen[-1] == (40, 40) and len(seen) == len(Manifest.open(folder))
    assert main(["verify", str(folder), "--quiet"]) == 0
    assert "whole, 40 samples" in capsys.readouterr().out
    (folder / "extra.tar").write_bytes(b"")
    assert main(["verify", str(folder), "--quiet"]) == 0
    assert "extra.tar is not in manifest" in capsys.readouterr().out


def test_every_byte_of_a_shard_counts(folder: Path) -> None:
    path = folder / "part-000001.tar"
    data = path.read_bytes()
    entry = Manifest.open(folder).entry(1)
    keys = Reader(Manifest.open(folder)).metadata(1)["key"].to_pylist()
    for position in range(0, len(data), len(data) // 60):
        path.write_bytes(data)
        flip_bit(path, position)
        problems = verify(folder)
        assert len(problems) == 1 and problems[0].shard == "part-000001" and problems[0].remedy, position
        sample = position // entry.stride
        assert problems[0].sample == (keys[sample] if sample < entry.count else None), position


def test_command_line_names_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_bit(folder / "part-000000.tar", Manifest.open(folder).entry(0).stride + 5)
    (folder / "part-000001.tar").unlink()
    flip_bit(folder / "part-000002.index.parquet", 900)
    assert main(["verify", str(folder)]) == 1
    output = capsys.readouterr().out
    assert "shard 'part-000000', sample 's1': checksum differs" in output and "Restore" in output
    assert "'part-000001': file part-000001.tar is missing" in output
    assert "'part-000002': index differs from the manifest" in output
    assert "3 problem(s) in 3 shard(s)" in output
    flip_bit(folder / "manifest.parquet", 2000)
    (folder / "manifest.parquet").write_bytes((folder / "manifest.parquet").read_bytes()[:-1])
    assert main(["verify", str(folder)]) == 1
    assert "not a readable manifest" in capsys.readouterr().out
    assert main(["verify", str(folder / "nowhere")]) == 2


def test_problems_of_several_corpora_name_each_by_its_corpus(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "lr=0.1"))
    assert main(["verify", str(folder), f"tv={other}", "--quiet"]) == 0
    whole = capsys.readouterr().out.splitlines()
    assert [line.partition(", digest")[0] for line in whole] == [
        f"data: {folder}: whole, 40 samples in 4 shards",
        f"tv: {other}: whole, 40 samples in 4 shards",
    ]
    flip_bit(folder / "part-000000.tar", Manifest.open(folder).entry(0).stride + 5)
    (other / "part-000001.tar").unlink()
    (other / "stray.tar").write_bytes(b"")
    assert main(["verify", f"own={folder}", f"tv={other}"]) == 1
    output = capsys.readouterr()
    assert "shard 'own/part-000000', sample 's1': checksum differs" in output.out
    assert "shard 'tv/part-000001': file part-000001.tar is missing" in output.out
    assert output.out.splitlines()[-2:] == ["own: 1 problem(s) in 1 shard(s)", "tv: 1 problem(s) in 1 shard(s)"]
    assert "own/ 40 of 40" in output.err and "tv/ 40 of 40" in output.err
    assert main(["verify", str(other), "--quiet"]) == 1, "a folder's whole name is no NAME=FOLDER"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{0}", "x={0}"], "found {0} twice, as 'data' and 'x'"),
        (["x={0}", "x={0}/views"], "corpus 'x' is named twice"),
        (["{0}", "tv={0}/nowhere"], "corpus 'tv'"),
        (["{0}", "a.b={0}/views"], "corpus 'a.b': expected a name of 1 to 40 letters"),
        (["{0}", "tv={0}/views", "--repair"], "repair: found 2 folders, expected one"),
    ],
)
def test_several_folders_are_refused_before_any_is_read(
    folder: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *(word.format(folder) for word in words)]) == 2
    output = capsys.readouterr()
    assert told.format(folder) in output.err and not output.out


def test_repair_keeps_the_whole_and_lists_the_rest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Manifest.open(folder)
    flip_bit(folder / "part-000000.tar", 5000)
    flip_bit(folder / "part-000001.index.parquet", 300)
    assert main(["verify", str(folder), "--repair"]) == 3
    output = capsys.readouterr().out
    assert "left out" in output and "'part-000000'" in output and "rebuilt the index of shard 'part-000001'" in output
    after = Manifest.open(folder)
    assert after.shards["name"].to_pylist() == before.shards["name"].to_pylist()[1:]
    assert verify(folder) == [] and (folder / "part-000000.tar").is_file()
    rows, expected = Reader(after).read(0, 0, 5), make_samples(40)[int(before.rows_before[1]) :]
    np.testing.assert_array_equal(rows.features["video"][0, :7], expected[0].columns["v2d"])


def test_repair_without_manifest_gives_the_same_data_set(folder: Path) -> None:
    before = Manifest.open(folder)
    (folder / "manifest.parquet").unlink()
    (folder / "part-000001.index.parquet").unlink()
    outcome = repair(folder)
    assert outcome.rebuilt == ["part-000001"] and not outcome.left_out and outcome.notes
    assert outcome.manifest.digest == before.digest and outcome.manifest.shards.equals(before.shards)


def test_a_rebuilt_index_must_have_the_digest_that_the_manifest_says(folder: Path) -> None:
    (folder / "part-000001.index.parquet").unlink()
    flip_bit(folder / "part-000001.tar", 512 + 128 + 5)  # a number, which no structure betrays
    outcome = repair(folder)
    assert [name for name, _ in outcome.left_out] == ["part-000001"]
    assert "content differs from the manifest's digest" in outcome.left_out[0][1]
    assert not (folder / "part-000001.index.parquet").exists()


def test_repair_refuses_when_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.tar"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no shard is whole.*part-000000"):
        repair(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a readable manifest nor a readable index"):
        repair(tmp_path / "empty")
    with pytest.raises(ValueError, match="not a local folder"):
        repair(tmp_path / "nowhere")


@pytest.mark.parametrize("cut", [100, 5000, -10240, -1])
def test_an_index_is_not_rebuilt_from_half_a_shard(folder: Path, cut: int) -> None:
    tar = folder / "part-000001.tar"
    tar.write_bytes(tar.read_bytes()[:cut])
    with pytest.raises(ShardError, match="part-000001"):
        rebuild_index(tar, SCHEMA)


def test_imported_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", plain_members())
    index_folder(tmp_path)
    assert verify(tmp_path) == []
    data = (tmp_path / "t.tar").read_bytes()
    at = data.index(npy(np.full(3, 2, np.float32)))
    flip_bit(tmp_path / "t.tar", at + 130)
    assert [(p.sample, p.reason) for p in verify(tmp_path)] == [("k2", "checksum differs from the index")]
    (tmp_path / "t.tar").write_bytes(data)
    flip_bit(tmp_path / "t.tar", at - 512)  # a name: the arrays are whole, the archive is not
    assert "header checksum" in verify(tmp_path)[0].reason


def test_index_that_disagrees_with_its_shard(folder: Path) -> None:
    from shards.format.index import IndexRows, decode_index, encode_index, read_table

    path = folder / "part-000000.index.parquet"
    index, table = decode_index("p", path.read_bytes()), read_table("p", path.read_bytes())
    labels = {name: values.tolist() for name, values in index.labels.items()}
    labels["mood"][2] = 0
    rows = IndexRows(
        table["key"].to_pylist(), table["offset"].to_numpy(), index.checksums, index.present, labels,
        ["other", *table["group"].to_pylist()[1:]], table["text"].to_pylist(),
        {"split": table["meta.split"].to_pylist()},
    )  # fmt: skip
    path.write_bytes(encode_index(SCHEMA, index.layout_dict, rows))
    Manifest.assemble(folder, Manifest.open(folder).shards["name"].to_pylist())
    found = [(p.sample, p.reason) for p in verify(folder)]
    differs = "differs between shard and index"
    assert found == [("s0", f"group {differs}"), ("s2", f"label.mood {differs}")]


def test_the_check_of_many_slots_agrees_with_the_check_of_one(folder: Path) -> None:
    """Whatever byte differs, `parse_intact` gives no record exactly where `parse_raw` raises or the key is another."""
    manifest = Manifest.open(folder)
    index = load_index(manifest, manifest.entry(0))
    keys = Reader(manifest).metadata(0)["key"].to_pylist()
    assert index.layout is not None
    stride = index.layout.stride
    data = np.frombuffer((folder / "part-000000.tar").read_bytes(), np.uint8)[: len(keys) * stride].reshape(-1, stride)
    whole = parse_intact(SCHEMA, index.layout, data, keys)
    assert [record and record.payload for record in whole] == [
        parse_raw(SCHEMA, index.layout, sample.data).payload for sample in data
    ]
    assert parse_intact(SCHEMA, index.layout, data[:2], [keys[0], keys[0]])[1] is None
    raw = data.copy()
    for start in range(0, stride, 37 * len(raw)):
        raw[:] = data
        for i, sample in enumerate(raw):
            sample[min(start + 37 * i, stride - 1)] ^= 0x10
        for sample, record in zip(raw, parse_intact(SCHEMA, index.layout, raw, keys), strict=True):
            try:
                alone = repr(parse_raw(SCHEMA, index.layout, sample.data))  # as text: NaN is not equal to itself
            except ValueError:
                alone = "None"
            assert repr(record) == alone
