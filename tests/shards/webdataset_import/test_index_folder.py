"""Archives of webdataset.TarWriter, GNU tar and Python's tarfile in all its formats, read through an index."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from shards import Column, Label, Manifest, Reader, ShardError, group_id
from shards.__main__ import main
from shards.webdataset_import.command import index_folder, read_folder
from shards.webdataset_import.mapping import LabelSource, MemberMapping, Source
from tests.shards.webdataset_import.plain_tars import npy, plain_members, write_tar

MAPPING = MemberMapping(
    labels=(LabelSource("mood", Source.parse("json#labels.mood"), "class"),),
    group=Source.parse("json#speaker"),
    text=Source.parse("txt"),
    meta={"part": Source.parse("json#part")},
)


@pytest.fixture
def arrays() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        {"video.npy": random.standard_normal(9).astype(np.float32), "audio.npy": random.standard_normal((1, 4))}
        for _ in range(7)
    ]


def _fields(i: int) -> dict[str, object]:
    return {"labels": {"mood": ["sad", "calm"][i % 2]}, "speaker": f"p{i % 3}", "part": i % 2}


def _check(folder: Path, arrays: list[dict[str, np.ndarray]], manifest: Manifest, names: list[int]) -> None:
    assert set(manifest.columns) == {Column("video", 9), Column("audio", 4, "float64")}
    rows = Reader(manifest).read_ranges([(0, 0, len(names))])
    keys = Reader(manifest).metadata(0)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(rows.features["video"][i], arrays[name]["video.npy"])
        np.testing.assert_array_equal(rows.features["audio"][i], arrays[name]["audio.npy"][0])
        assert rows.labels["mood"][i] == (1 if name % 2 == 0 else 0), "classes are sorted: calm, sad"
        assert rows.group is not None and rows.group[i] == group_id(f"p{name % 3}")
        assert keys["text"][i].as_py() == f"text {name}" and keys["meta.part"][i].as_py() == str(name % 2)
    assert all(rows.present["video"]) and all(rows.present["audio"])


def test_webdataset_tar_writer(tmp_path: Path, arrays: list[dict[str, np.ndarray]]) -> None:
    import webdataset

    with (tmp_path / "x.tar").open("wb") as file, webdataset.TarWriter(file) as writer:
        for i, sample in enumerate(arrays):
            writer.write({"__key__": f"clips/sample{i}", **sample, "json": _fields(i), "txt": f"text {i}"})
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert all(member.pax_headers for member in tar), "the point of this test: a PAX header before every member"
    manifest = index_folder(tmp_path, MAPPING)
    _check(tmp_path, arrays, manifest, list(range(7)))
    assert Reader(manifest).metadata(0)["key"][3].as_py() == "clips/sample3"
    assert main(["verify", str(tmp_path), "--quiet"]) == 0


@pytest.mark.parametrize(
    "options", [["--format=gnu"], ["--format=pax"], ["--format=ustar"], ["--format=gnu", "--sparse"]]
)
def test_gnu_tar_with_long_names(tmp_path: Path, arrays: list[dict[str, np.ndarray]], options: list[str]) -> None:
    folder = tmp_path / "in" / ("d" * 80) / ("e" * (40 if "--format=ustar" in options else 120))
    folder.mkdir(parents=True)
    for i, sample in enumerate(arrays):
        for end, array in sample.items():
            (folder / f"s{i}.{end}").write_bytes(npy(array))
        (folder / f"s{i}.json").write_text(json.dumps(_fields(i)))
        (folder / f"s{i}.txt").write_text(f"text {i}\n")
    out = tmp_path / "out"
    out.mkdir()
    command = ["tar", *options, "--sort=name", "-cf", str(out / "x.tar"), "-C", str(tmp_path / "in"), "."]
    subprocess.run(command, check=True)
    _check(out, arrays, index_folder(out, MAPPING), list(range(7)))


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="bsdtar is not installed")
def test_bsdtar(tmp_path: Path, arrays: list[dict[str, np.ndarray]]) -> None:
    (tmp_path / "in").mkdir()
    names = []
    for i, sample in enumerate(arrays):
        for end, array in sample.items():
            (tmp_path / "in" / f"s{i}.{end}").write_bytes(npy(array))
        (tmp_path / "in" / f"s{i}.json").write_text(json.dumps(_fields(i)))
        (tmp_path / "in" / f"s{i}.txt").write_text(f"text {i}")
        names += [f"s{i}.{end}" for end in (*sample, "json", "txt")]
    (tmp_path / "out").mkdir()
    subprocess.run(["bsdtar", "-cf", str(tmp_path / "out" / "x.tar"), "-C", str(tmp_path / "in"), *names], check=True)
    _check(tmp_path / "out", arrays, index_folder(tmp_path / "out", MAPPING), list(range(7)))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_missing_members_nan_rows_orders_and_versions(tmp_path: Path, kind: int) -> None:
    version_2 = b"\x93NUMPY\x02\x00" + (118 - 2).to_bytes(4, "little") + npy(np.zeros(3, np.float32))[10:126]
    big = np.array([1.5, 2.5, 3.5], ">f4")
    members = [
        ("a.x.npy", npy(np.array([1, 2, 3], np.float32))), ("a.y.npy", npy(np.ones(2))), ("a.cls", b"1"),
        ("b.y.npy", npy(np.full(2, np.nan))), ("b.cls", b"0"),
        ("c.X.NPY", npy(big)), ("c.y.npy", npy(np.full((1, 2), 7.0))), ("c.cls", b"4"),
        ("d.x.npy", version_2 + b"\n" * 0 + np.array([9, 8, 7], "<f4").tobytes()), ("d.y.npy", npy(np.ones(2))),
        ("README", b"no sample"), ("__note__", b"metadata"),
    ]  # fmt: skip
    write_tar(tmp_path / "t.tar", members, kind)
    manifest = index_folder(
        tmp_path,
        MemberMapping(
            columns={"wide": "x.npy", "y": "y.npy"},
            modalities={"both": ("wide", "y"), "y": ("y",)},
            labels=(
                LabelSource("n", Source.parse("cls"), "class"),
                LabelSource("v", Source.parse("cls"), "continuous"),
            ),
        ),
    )
    rows = Reader(manifest).read(0, 0, 4)
    assert rows.present["both"].tolist() == [True, False, True, True]
    assert rows.present["y"].tolist() == [True, False, True, True]
    assert rows.features["both"].tolist() == [[1, 2, 3, 1, 1], [0] * 5, [1.5, 2.5, 3.5, 7, 7], [9, 8, 7, 1, 1]]
    assert rows.labels["n"].tolist() == [1, 0, 4, -1] and np.isnan(rows.labels["v"][3])
    assert manifest.labels[0] == Label("n", "class", ("0", "1", "2", "3", "4"))


def test_the_same_data_index_alike_and_a_second_time_only_on_request(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", plain_members())
    digest = index_folder(tmp_path).digest
    with pytest.raises(ValueError, match="manifest already"):
        index_folder(tmp_path)
    assert index_folder(tmp_path, overwrite=True).digest == digest
    labelled = MemberMapping(labels=(LabelSource("n", Source.parse("cls"), "class"),))
    assert index_folder(tmp_path, labelled, overwrite=True).digest != digest


def test_a_folder_with_nothing_but_traces_of_locks_is_empty(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "t.tar", plain_members())
    out = tmp_path / "out"
    out.mkdir()
    for name in (".lock", ".lock.marker", ".room-0123abcd"):
        (out / name).touch()
    digest = index_folder(tmp_path / "in", out=out).digest
    (out / "manifest.parquet").unlink()
    with pytest.raises(ValueError, match=r"^output: .* is not empty"):
        index_folder(tmp_path / "in", out=out)
    assert index_folder(tmp_path / "in", out=out, overwrite=True).digest == digest


def test_shards_in_place_need_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many file systems of disks and shares have none."""
    for name in ("t", "u"):
        write_tar(tmp_path / f"{name}.tar", [(f"{name}{member}", data) for member, data in plain_members()])

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "symlink_to", refused)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shards.format.publication.sync_file", stopped)  # all is staged, nothing published
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # as a kill leaves it
        index_folder(tmp_path)
    assert (tmp_path / ".staging" / "manifest.parquet").is_file()
    manifest = index_folder(tmp_path)
    assert manifest.rows == 8 and Reader(manifest).read(0, 0, 4).features["a"][:, 0].tolist() == [0, 1, 2, 3]
    assert not [path for path in tmp_path.iterdir() if path.is_symlink()]


def test_damage_after_indexing(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", plain_members())
    manifest = index_folder(tmp_path)
    data = bytearray((tmp_path / "t.tar").read_bytes())
    at = bytes(data).index(npy(np.full(3, 2, np.float32)))
    data[at + 130] ^= 1
    (tmp_path / "t.tar").write_bytes(data)
    reader = Reader(manifest, max_corrupt_share=1.0)
    rows = reader.read(0, 0, 4)
    assert [damage.key for damage in reader.corrupt] == ["k2"] and rows.present["a"].tolist() == [
        True,
        True,
        False,
        True,
    ]
    assert not rows.features["a"][2].any() and rows.row.tolist() == [0, 1, 2, 3]
    (tmp_path / "t.tar").write_bytes(data[:-512])
    with pytest.raises(ShardError, match="size in bytes differs"):
        Reader(manifest).read(0, 0, 1)


def test_samples_with_a_text_are_counted(tmp_path: Path) -> None:
    members = [(f"k{i}.a.npy", npy(np.ones(3, np.float32))) for i in range(3)]
    write_tar(tmp_path / "t.tar", sorted([*members, ("k1.txt", b"said"), ("k2.txt", b"too")]))
    found = read_folder(tmp_path, MemberMapping(text=Source.parse("txt")))
    assert "transcripts: 2 of 3" in found.lines()


@pytest.mark.parametrize(
    ("written", "classes", "values"),
    [(("0", "2", "0"), ("0", "1", "2"), [0, 2, 0]), (("no", "yes", "no"), ("no", "yes"), [0, 1, 0])],
)
def test_classes_that_are_not_listed_are_those_of_the_data(
    written: tuple[str, ...], classes: tuple[str, ...], values: list[int], tmp_path: Path
) -> None:
    """Numbers count from 0 to the highest one; names are sorted."""
    members = [(f"k{i}.a.npy", npy(np.ones(3, np.float32))) for i in range(3)]
    members += [(f"k{i}.cls", value.encode()) for i, value in enumerate(written)]
    write_tar(tmp_path / "t.tar", sorted(members))
    manifest = index_folder(tmp_path, MemberMapping(labels=(LabelSource("n", Source.parse("cls"), "class"),)))
    assert manifest.labels == (Label("n", "class", classes),)
    assert Reader(manifest).read(0, 0, 3).labels["n"].tolist() == values


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "t.tar", plain_members())
    command = ["index", str(tmp_path), "--column", "f=a.npy", "--modality", "m=f", "--label", "n=cls:class:no,yes"]
    assert main([*command, "--text", "cls"]) == 0
    assert "4 samples in 1 shards" in capsys.readouterr().out
    manifest = Manifest.open(tmp_path)
    assert manifest.labels == (Label("n", "class", ("no", "yes")),) and list(manifest.modalities) == ["m"]
    assert Reader(manifest).read(0, 0, 4).labels["n"].tolist() == [0, 1, 0, 1]
    for wrong, message in (
        (["--label", "n=cls:klass"], "did you mean 'class'"),
        (["--label", "n"], "expected NAME=VALUE"),
        (["--column", "f=b.npy"], "no sample has a member .b.npy"),
        (["--label", "n=cls:class:no"], "'t', sample 'k1'.*class 1, expected 0..0"),
        (["--label", "n=json#x:class"], "no sample has a value at json#x"),
    ):
        assert main(["index", str(tmp_path), "--overwrite", *wrong]) == 2
        error = capsys.readouterr().err
        assert all(part in error for part in message.split(".*")), error


@pytest.mark.parametrize(
    ("kind", "classes", "member", "value", "message"),
    [
        (
            "class",
            (),
            "cls",
            b"4000000000",
            r"class number 4000000000, expected at most 99999.*--label n=cls:class:N",
        ),
        ("class", (), "json", b"9" * 4000, r"class number 9+\.\.\.9+, expected at most 99999"),
        ("class", (), "json", b"9" * 5000, r"member 'k1\.json' cannot be read"),
        ("class", (), "json", b"Infinity", r"class inf, expected 0\.\.1 or -1"),
        ("class", ("a", "b"), "json", b"-Infinity", r"class -inf, expected 0\.\.1 or -1"),
        ("continuous", (), "json", b"9" * 400, "label 'n' is 9.* finite"),
    ],
)
def test_absurd_labels_are_named(
    tmp_path: Path, kind: str, classes: tuple[str, ...], member: str, value: bytes, message: str
) -> None:
    """Found in an archive of a stranger: what a number costs must not depend on the number."""
    members = [*plain_members(1), ("k0.json", b"0"), ("k1.a.npy", npy(np.ones(3, np.float32))), (f"k1.{member}", value)]
    write_tar(tmp_path / "t.tar", members)
    tracemalloc.start()
    try:
        with pytest.raises(ShardError, match=rf"'t', sample 'k1'.*{message}"):
            index_folder(tmp_path, MemberMapping(labels=(LabelSource("n", Source.parse(member), kind, classes),)))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("value", [b'"half \\ud800"', b"[1]", b"{"])
def test_texts_that_are_none(tmp_path: Path, value: bytes) -> None:
    write_tar(tmp_path / "t.tar", [*plain_members(1), ("k1.a.npy", npy(np.ones(3, np.float32))), ("k1.json", value)])
    with pytest.raises(ShardError, match=r"'t', sample 'k1'.*json"):
        index_folder(tmp_path, MemberMapping(text=Source.parse("json")))


def test_folders_without_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \*\.tar"):
        index_folder(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.tar\.gz, which cannot be read by range"):
        index_folder(tmp_path)
