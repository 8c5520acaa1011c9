"""`verify` on clip shards: every byte of every member counts, by the clip's name, and every name."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from shards.__main__ import main
from shards.clips import writer
from shards.clips.reader import ClipManifest
from shards.clips.writer import write_clip_shard
from shards.format.layout import BLOCK
from shards.verification.check import verify
from tests.shards.clips.test_clips import SCHEMA, new_clip
from tests.shards.small_data import flip_bit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, [[0, 1, 2], [3, 4, 5]])


def write(folder: Path, shards: list[list[int]]) -> Path:
    made = [
        write_clip_shard(folder, f"clips-{number}", SCHEMA, [new_clip(i) for i in clips])
        for number, clips in enumerate(shards)
    ]
    ClipManifest.assemble(folder, [entry for entry in made if entry is not None])
    return folder


def test_whole_clips(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(folder, progress=lambda done, rows: seen.append((done, rows))) == []
    assert seen == [(3, 6), (6, 6)]
    assert main(["verify", str(folder), "--quiet"]) == 0
    assert "whole, 6 clips in 2 shards" in capsys.readouterr().out


def test_every_byte_of_a_member_counts(folder: Path) -> None:
    path = folder / "clips-1.tar"
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert len(members) > 9
    for member in members:
        for position in {member.offset_data, member.offset_data + member.size - 1}:
            flip_bit(path, position)
            problems = verify(folder)
            assert [(p.shard, p.sample, p.reason) for p in problems] == [
                ("clips-1", member.name.split(".")[0], "checksum differs from the index")
            ]
            assert "conclugen build" in problems[0].remedy
            path.write_bytes(data)
        flip_bit(path, member.offset + 3)  # its name, in the header
        assert any("header" in problem.reason for problem in verify(folder))
        path.write_bytes(data)
    path.write_bytes(data[: -2 * BLOCK])
    assert {problem.shard for problem in verify(folder)} == {"clips-1"}


def test_a_member_under_another_name(folder: Path) -> None:
    path = folder / "clips-0.tar"
    with tarfile.open(path) as archive:
        member = archive.getmembers()[0]
    assert member.name == "clip0.mp4"
    data = bytearray(path.read_bytes())
    member.name = "clipX.mp4"
    data[member.offset : member.offset + BLOCK] = member.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)
    assert [(p.sample, p.reason) for p in verify(folder)] == [
        ("clip0", "the index finds its .mp4 where the archive has none")
    ]


def test_members_that_the_index_does_not_know(folder: Path) -> None:
    path = folder / "clips-0.tar"
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    stranger = tarfile.TarInfo("stranger.mp4")  # without bytes of its own, in the padding at the archive's end
    place = last.offset_data + -(-last.size // BLOCK) * BLOCK
    path.write_bytes(data[:place] + stranger.tobuf(tarfile.USTAR_FORMAT) + data[place + BLOCK :])
    assert [(p.sample, p.reason) for p in verify(folder)] == [
        (None, "'stranger.mp4' is in the archive, but not in the index")
    ]


def test_what_the_json_says_against_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = writer.clip_json

    def lie(schema: Any, clip: Any, encoded: Any) -> bytes:
        return said(schema, clip, {"mood": 1 - encoded["mood"]})

    monkeypatch.setattr(writer, "clip_json", lie)
    write(tmp_path, [[0, 1]])
    assert [(p.sample, p.reason) for p in verify(tmp_path)] == [
        ("clip0", "label.mood differs between shard and index"),
        ("clip1", "label.mood differs between shard and index"),
    ]


def test_one_key_in_two_shards_and_no_repair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.format.manifest._refuse_duplicates", lambda entries, keys: None)
    write(tmp_path, [[0, 1], [1, 2]])
    assert [(p.shard, p.sample) for p in verify(tmp_path)] == [("clips-1", "clip1")]
    before = (tmp_path / "manifest.parquet").read_bytes()
    assert main(["verify", str(tmp_path), "--repair"]) == 2
    assert "clip shards are not repaired here. Remove the damaged shard's tar" in capsys.readouterr().err
    assert (tmp_path / "manifest.parquet").read_bytes() == before
