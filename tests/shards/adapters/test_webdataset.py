"""Tars of videos as others write them: the very bytes, texts and labels of each sample, from every kind of archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards import Manifest, Reader
from shards.__main__ import main
from shards.adapters import read_clips
from shards.packing.labels import LabelSpec


def write(path: Path, keys: list[str], **more: object) -> Path:
    """An archive as the webdataset package writes it (compressed where its name says so)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for number, key in enumerate(keys):
            sample = {
                "mp4": f"video {key}".encode(),
                "txt": f"says {key} é",
                "json": {"mood": "ab"[number % 2], "a": {"who": key}},
            }
            writer.write({"__key__": key, **{k: v for k, v in {**sample, **more}.items() if v is not None}})
    return path


def test_every_archive_is_read_with_its_split(tmp_path: Path) -> None:
    source = tmp_path / "set"
    write(source / "train/00000.tar", ["000000000", "000000001"])
    write(source / "train/00001.tar.gz", ["000010000", "x/000010001"], wav=b"sound")
    write(source / "test/00000.tgz", ["000020000"])
    (source / "train/00000_stats.json").write_text("{}")
    label = LabelSpec.parse("mood=json.mood:class")
    fields = {"group": "json.a.who"}
    clips = read_clips("webdataset", source, unpack=tmp_path / "un", labels=(label,), fields=fields)
    assert [clip.key for clip in clips.clips] == ["000020000", "000000000", "000000001", "000010000", "x_000010001"]
    for clip in clips.clips:
        name = clip.key.replace("_", "/")
        assert (clips.source / clip.video).read_bytes() == f"video {name}".encode()
        assert clip.transcript == f"says {name} é" and clip.group == name
        assert clip.split == ("test" if clip.key == "000020000" else "train")
        assert (clip.audio is not None) == (clip.key in ("000010000", "x_000010001"))
    assert clips.complete and not clips.rejected and clips.labels[0].classes == ("a", "b")
    # Nothing is unpacked twice, and other archives do not go into the same folder.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "un").rglob("*")}
    again = read_clips("webdataset", source, unpack=tmp_path / "un", labels=(label,), fields=fields)
    assert again.clips == clips.clips
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "un").rglob("*")}
    write(source / "train/00002.tar", ["z"])
    with pytest.raises(ValueError, match="other archives"):
        read_clips("webdataset", source, unpack=tmp_path / "un")


def test_a_sample_without_video_and_a_damaged_archive_are_told_by_name(tmp_path: Path) -> None:
    source = tmp_path / "set"
    write(source / "a.tar", ["k0"])
    write(source / "b.tar", ["k1"], mp4=None)
    whole = write(source / "c.tar", ["k2"]).read_bytes()
    (source / "c.tar").write_bytes(whole[:700])
    (source / "d.tar.gz").write_bytes(b"no gzip")
    clips = read_clips("webdataset", source, unpack=tmp_path / "un")
    assert [clip.key for clip in clips.clips] == ["k0"]
    assert clips.left_out == {"b.tar: k1": "no video in the sample"}
    assert sorted(item.name for item in clips.rejected) == ["c.tar", "d.tar.gz"]


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=r"has no \.tar"):
        read_clips("webdataset", tmp_path / "set", unpack=tmp_path / "un")
    write(tmp_path / "set/a.tar", ["k"], mp4=None)
    with pytest.raises(ValueError, match="--unpack FOLDER: name where"):
        read_clips("webdataset", tmp_path / "set")
    with pytest.raises(ValueError, match="no sample of 1 archives has a video"):
        read_clips("webdataset", tmp_path / "set", unpack=tmp_path / "un")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        read_clips("webdataset", tmp_path / "set", unpack=tmp_path / "other")


def arrays(path: Path, keys: list[str]) -> Path:
    with webdataset.TarWriter(str(path)) as writer:
        for number, key in enumerate(keys):
            writer.write({"__key__": key, "x.npy": np.full(3, number, np.float32)})
    return path


def test_a_folder_with_compressed_archives_beside_plain_ones_is_not_indexed_in_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays(tmp_path / "a.tar", ["k0"])
    arrays(tmp_path / "b.tar.gz", ["k1"])
    assert main(["index", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "b.tar.gz" in told and "gunzip" in told and not (tmp_path / "manifest.parquet").exists()


def test_a_read_only_folder_is_indexed_elsewhere(tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    arrays(source / "a.tar", ["k0", "k1"])
    arrays(source / "b.tar", ["k2"])
    before = sorted(source.iterdir())
    source.chmod(0o555)
    try:
        assert main(["index", str(source), "--out", str(tmp_path / "index")]) == 0
        assert sorted(source.iterdir()) == before
        reader = Reader(Manifest.open(tmp_path / "index"))
        assert reader.read_ranges([(0, 0, 2), (1, 0, 1)]).features["x"][:, 0].tolist() == [0, 1, 0]
        assert main(["verify", str(tmp_path / "index")]) == 0
        assert main(["index", str(source), "--out", str(tmp_path / "index")]) == 2
        assert main(["index", str(source), "--out", str(tmp_path / "index"), "--overwrite"]) == 0
    finally:
        source.chmod(0o755)
