"""Data sets as their archives unpack, values read: intervals before 0, VoxCeleb2's two parts, MELD.Raw, CAER."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from shards.adapters import read_clips
from shards.adapters.clip_set import ClipSet
from shards.clips.plan import BuildOptions, BuildPlan
from shards.clips.reader import ClipManifest, ClipReader, ClipSchema
from shards.clips.writer import NewClip, write_clip_shard
from shards.format.schema import Label
from shards.packing.labels import LabelSpec
from tests.shards.adapters import layouts
from tests.shards.adapters.layouts import touch


def read(adapter: str, root: Path, **options: object) -> ClipSet:
    return read_clips(adapter, root, allow_incomplete=True, **options)


def test_mosei_intervals_before_zero_start_at_zero(tmp_path: Path) -> None:
    """Transcripts whose interval begins before 0, at 0 or elsewhere belong to the label that ends with them."""
    intervals = [(3.37, 7.02), (-0.4776, 4.104), (-0.2, -0.1), (7.02, 9.0), (0.0, 2.0)]
    root = layouts.mosei(tmp_path, {"v": [(s, e, [float(i)] * 7) for i, (s, e) in enumerate(intervals)]})
    lines = [
        "v___0___0.000___4.104___first, cut at zero",
        "v___1___3.370___7.020___second",
        "v___2___-0.478___3.9___another that begins before zero",
        "v___3___7.02___8.95___nearly the fourth",
        "v___4___7.02___9.0___the fourth",
    ]
    (root / "Raw/Transcript/Segmented/Combined/v.txt").write_bytes("\r\n".join(lines).encode("utf-16"))
    found = read("mosei", root)
    clips = {clip.key: clip for clip in found.clips}
    assert [(clips[f"v_{i}"].start, clips[f"v_{i}"].end) for i in range(5)] == [
        (3.37, 7.02), (0.0, 4.104), (-0.2, -0.1), (7.02, 9.0), (0.0, 2.0)
    ]  # fmt: skip
    assert [clips[f"v_{i}"].transcript for i in range(5)] == [
        "second", "first, cut at zero", None, "the fourth", None
    ]  # fmt: skip
    assert [clips[f"v_{i}"].labels["sentiment"] for i in range(5)] == [0, 1, 2, 3, 4]
    assert found.how == ["intervals that begin before 0 (the earliest at -0.4776 s), and are taken from 0 on: 1"]
    (root / "Raw/Transcript/Segmented/Combined/v.txt").write_bytes("v___0___0___4.1___caf\u00e9".encode("cp1252"))
    refused = read("mosei", root)
    assert [item.name for item in refused.rejected] == [f"v_{i}" for i in range(5)] and not refused.clips
    assert all("--encoding" in item.message and item.reason == "bad_text" for item in refused.rejected)
    assert read("mosei", root, encoding="cp1252").clips[1].transcript == "caf\u00e9"


def voxceleb(root: Path, *names: str) -> Path:
    return touch(root, [f"{n}.mp4" if "/mp4/" in f"/{n}" else f"{n}.m4a" for n in names])


def parts(found: ClipSet) -> dict[str, tuple[str | None, str, str | None]]:
    return {clip.key: (clip.split, clip.video, clip.audio) for clip in found.clips}


DEV, TEST = "id00012/21Uxsk56VDQ/00001", "id00017/01dfn2spqyE/00001"


@pytest.mark.parametrize(
    ("dev", "test", "sounds"),
    [
        ("dev/", "", True),  # all archives unzipped into one folder
        ("dev/", "test/", True),
        ("vox2_dev_mp4/dev/", "vox2_test_mp4/", False),
        ("VoxCeleb2/dev/", "VoxCeleb2/test/", True),
    ],
)
def test_voxceleb2_as_it_unzips(dev: str, test: str, sounds: bool, tmp_path: Path) -> None:
    names = [f"{dev}mp4/{DEV}", f"{test}mp4/{TEST}"]
    voxceleb(tmp_path, *names)
    if sounds:
        voxceleb(tmp_path, f"{dev}aac/{DEV}", f"{test}aac/{TEST}")
    found = read("voxceleb2", tmp_path)
    heard = (lambda part, name: f"{part}aac/{name}.m4a") if sounds else (lambda part, name: None)
    assert parts(found) == {
        "id00012_21Uxsk56VDQ_00001": ("dev", f"{names[0]}.mp4", heard(dev, DEV)),
        "id00017_01dfn2spqyE_00001": ("test", f"{names[1]}.mp4", heard(test, TEST)),
    }
    report = "\n".join(map(str, found.counts))
    assert "dev: clips with picture and sound: expected 549,984, found 1" in report
    assert "test: clips with picture and sound: expected 36,237, found 1" in report
    assert any("no folder aac" in line for line in found.how) is not sounds


def test_voxceleb2_sound_in_an_archive_of_its_own(tmp_path: Path) -> None:
    voxceleb(tmp_path, f"vox2_test_mp4/mp4/{TEST}", f"vox2_test_aac/aac/{TEST}")
    assert parts(read("voxceleb2", tmp_path)) == {
        "id00017_01dfn2spqyE_00001": ("test", f"vox2_test_mp4/mp4/{TEST}.mp4", f"vox2_test_aac/aac/{TEST}.m4a")
    }


def test_voxceleb2_parts_that_no_folder_names(tmp_path: Path) -> None:
    """By the official list where it is there, else by how many speakers there are; both are told."""
    voxceleb(tmp_path / "few", f"mp4/{TEST}", f"mp4/{DEV}", f"aac/{TEST}", f"aac/{DEV}")
    assert {clip.split for clip in read("voxceleb2", tmp_path / "few").clips} == {"test"}
    assert "mp4 is taken for the part test" in "\n".join(read("voxceleb2", tmp_path / "few").how)
    (tmp_path / "few/vox2_meta.csv").write_text(
        "VoxCeleb2 ID ,VGGFace2 ID ,Gender,Set\nid00012 ,n000001 ,m,dev\nid00017 ,n000002 ,f,test\n"
    )
    assert {clip.group: clip.split for clip in read("voxceleb2", tmp_path / "few").clips} == {
        "id00012": "dev", "id00017": "test"
    }  # fmt: skip
    voxceleb(tmp_path / "many", *[f"mp4/id{number:05}/video/00001" for number in range(119)])
    assert {clip.split for clip in read("voxceleb2", tmp_path / "many").clips} == {"dev"}
    touch(tmp_path, ["none/mp4/readme.mp4"])
    with pytest.raises(ValueError, match="no folder mp4 with folders of speakers"):
        read("voxceleb2", tmp_path / "none")


def test_meld_raw_as_it_unpacks(tmp_path: Path) -> None:
    head = layouts.MELD_HEAD
    root = touch(
        tmp_path / "MELD.Raw",
        [
            "train_splits/dia0_utt0.mp4", "train_splits/dia309_utt0.mp4",
            "dev_splits_complete/dia0_utt0.mp4", "dev_splits_complete/dia66_utt9.mp4",
            "output_repeated_splits_test/dia38_utt4.mp4", "output_repeated_splits_test/._dia38_utt4.mp4",
            "output_repeated_splits_test/final_videos_testdia101_utt0.mp4", "test.tar.gz",
        ],
    )  # fmt: skip
    (root / "train/").mkdir()
    (root / "train/train_sent_emo.csv").write_bytes(
        head.encode() + b'1,"also I was the point person, he said \x93no\x94",Chandler,neutral,neutral,0,0,8,21,a,b\r\n'
        b"2,She doesn\x92t,Monica,Joy,positive,309,0,8,21,a,b\r\n"
        b"2,She doesn\x92t,Monica,Joy,positive,309,0,8,21,a,b\r\n"
    )
    (root / "dev_sent_emo.csv").write_text(head + "1,Oh,Phoebe,sadness,negative,0,0,4,7,a,b\n")
    (root / "test_sent_emo.csv").write_text(head + "1,Why,Mark,surprise,positive,38,4,3,19,a,b\n")
    found = read("meld", tmp_path)
    clips = {clip.key: clip for clip in found.clips}
    assert {key: (clip.group, dict(clip.meta)) for key, clip in clips.items()} == {
        "train_dia0_utt0": ("Chandler", {"speaker": "Chandler", "dialogue": "train_dia0"}),
        "train_dia309_utt0": ("Monica", {"speaker": "Monica", "dialogue": "train_dia309"}),
        "dev_dia0_utt0": ("Phoebe", {"speaker": "Phoebe", "dialogue": "dev_dia0"}),
        "test_dia38_utt4": ("Mark", {"speaker": "Mark", "dialogue": "test_dia38"}),
    }
    assert clips["train_dia0_utt0"].transcript == "also I was the point person, he said \u201cno\u201d"
    assert clips["train_dia309_utt0"].labels == {"emotion": "joy", "sentiment": "positive"}
    assert sorted(doubt.split()[0] for doubt in found.doubts) == [
        "MELD.Raw/output_repeated_splits_test/dia38_utt4.mp4", "MELD.Raw/train_splits/dia309_utt0.mp4"
    ]  # fmt: skip
    prefix = "MELD.Raw/output_repeated_splits_test/"
    assert found.left_out == {
        "MELD.Raw/dev_splits_complete/dia66_utt9.mp4": "not in the table",
        f"{prefix}final_videos_testdia101_utt0.mp4": "a leftover of how the set was made",
        f"{prefix}._dia38_utt4.mp4": "hidden file",
    }
    plan = BuildPlan.make(found, tmp_path / "out", BuildOptions())
    assert plan.tasks[0].schema.meta[-2:] == ("speaker", "dialogue")
    for row, message in (
        ("1,Why,Mark\n", "row 3: 3 fields"),
        ("1,Why,Mark,joy,positive,38,4,3,19,a,b\n", "rows 2 and 3"),
    ):
        with (root / "test_sent_emo.csv").open("a") as file:
            file.write(row)
        with pytest.raises(ValueError, match=message):
            read("meld", tmp_path)
        (root / "test_sent_emo.csv").write_text(head + "1,Why,Mark,surprise,positive,38,4,3,19,a,b\n")
    for path in (root / "output_repeated_splits_test").iterdir():
        path.unlink()
    (root / "output_repeated_splits_test").rmdir()
    assert "missing: output_repeated_splits_test (unpack MELD.Raw/test.tar.gz)" in "\n".join(
        read("meld", tmp_path).report()
    )


@pytest.mark.parametrize("inside", ["", "CAER/", "data/CAER/"])
def test_caer_wherever_it_is_unpacked(inside: str, tmp_path: Path) -> None:
    names = ["train/Anger/0001.avi", "train/angry/0002.AVI", "validation/Happy/0001.avi", "test/Surprise/0001.avi"]
    touch(tmp_path, [inside + name for name in names])
    touch(tmp_path, [f"{inside}train/Joy/0003.avi", f"{inside}test/Surprise/._0001.avi"])
    found = read("caer", tmp_path)
    assert [(clip.key, clip.split, clip.labels["emotion"], clip.video) for clip in found.clips] == [
        ("train_Anger_0001", "train", "Anger", inside + names[0]),
        ("train_Anger_0002", "train", "Anger", inside + names[1]),
        ("validation_Happy_0001", "validation", "Happy", inside + names[2]),
        ("test_Surprise_0001", "test", "Surprise", inside + names[3]),
    ]
    assert found.left_out == {
        f"{inside}train/Joy/0003.avi": "not SPLIT/CLASS/NNNN.avi",
        f"{inside}test/Surprise/._0001.avi": "hidden file",
    }


def test_labels_of_mosei_are_numbers_of_any_width(tmp_path: Path) -> None:
    """Single precision holds -0.4776 inexactly; the clip still begins at 0, its end is the stored number."""
    touch(tmp_path, ["Combined/a.mp4"])
    with h5py.File(tmp_path / "CMU_MOSEI_Labels.csd", "w") as file:
        group = file.create_group("All Labels/data/a")
        group["intervals"] = np.array([[-0.4776, 4.104]], np.float32)
        group["features"] = np.zeros((1, 7), np.float32)
    clip = read("mosei", tmp_path).clips[0]
    assert (clip.start, clip.end) == (0.0, float(np.float32(4.104)))


def test_strings_that_only_some_sets_have_are_stored(tmp_path: Path) -> None:
    """Speaker and dialogue of MELD, from the adapter through shard, index and manifest; other sets have none."""
    root = layouts.meld(tmp_path / "in")
    task = BuildPlan.make(read("meld", root), tmp_path, BuildOptions()).tasks[0]
    clips = [NewClip(clip.key, b"x", None, None, clip.labels, clip.group, clip.meta) for clip in task.clips]
    write_clip_shard(tmp_path, "clips-000000", task.schema, clips)
    manifest = ClipManifest.open(ClipManifest.assemble(tmp_path, ["clips-000000"], {}).folder)
    assert manifest.schema == task.schema and manifest.schema.further == ("speaker", "dialogue")
    found = {
        field: dict(zip(values["key"].to_pylist(), values[f"meta.{field}"].to_pylist(), strict=True))
        for field in ("speaker", "dialogue")
        for values in [ClipReader(manifest).table(0)]
    }
    assert found["dialogue"] == {
        "train_dia0_utt0": "train_dia0", "train_dia1_utt0": "train_dia1", "dev_dia0_utt0": "dev_dia0",
        "test_dia0_utt0": "test_dia0",
    }  # fmt: skip
    assert found["speaker"]["train_dia1_utt0"] == "Joey" and found["speaker"]["test_dia0_utt0"] == "Ross"
    assert "further" not in ClipSchema().to_dict()
    for wrong in (["a.b"], ["split"], ["x", "x"], "x"):
        with pytest.raises(ValueError):
            ClipSchema.from_dict({**ClipSchema().to_dict(), "further": wrong})


def _folder(tmp_path: Path, table: str) -> Path:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "labels.csv").write_text(table, "utf-8")
    return tmp_path / "labels.csv"


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        ("path;group;text", {}),
        ("filename;person;transcript", {}),
        ("File Name;Speaker ID;Sentence", {}),
        ("Path;Group;Text", {}),
        ("which;who;what", {"path": "which", "speaker": "who", "transcript": "what"}),
        ("video;person;what", {"text": "what"}),
    ],
)
def test_columns_are_found_by_what_people_call_them(head: str, fields: dict[str, str], tmp_path: Path) -> None:
    table = _folder(tmp_path, f"{head};emotion\na.mp4;p1;hello;glad\nb.mp4;p2;;sad\n")
    clips = read_clips("folder", tmp_path, table=table, fields=fields, labels=(LabelSpec.parse("emotion"),))
    assert [(clip.key, clip.group, clip.transcript) for clip in clips.clips] == [
        ("a", "p1", "hello"),
        ("b", "p2", None),
    ]
    assert clips.grouped and clips.labels == (Label("emotion", "class", ("glad", "sad")),)
    told = " ".join(clips.how)
    path = head.partition(";")[0]
    assert (f"path is its column {path!r}" in told) is (path != "path")


def test_two_columns_that_may_be_meant_are_not_guessed_between(tmp_path: Path) -> None:
    table = _folder(tmp_path, "video;filename;actor;speaker\na.mp4;a.mp4;1;2\n")
    with pytest.raises(ValueError, match=r"no column 'path' \(it has: video, filename.*--field path=COLUMN"):
        read_clips("folder", tmp_path, table=table)
    clips = read_clips("folder", tmp_path, table=table, fields={"path": "video"})
    assert not clips.grouped


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["glad", "sad"], "class"),
        (["0.5", "-1"], "continuous"),
        (["0.5", ""], "continuous"),
        (["1", "x"], "class"),
        (["1", "2"], None),
        (["1.0", ""], None),
    ],
)
def test_the_kind_of_a_label_is_what_its_values_say(values: list[str], kind: str | None, tmp_path: Path) -> None:
    rows = "".join(f"{name}.mp4,{value}\n" for name, value in zip("ab", values, strict=True))
    table = _folder(tmp_path, f"path,feel\n{rows}")
    labels = (LabelSpec.parse("feel"),)
    if kind is None:
        with pytest.raises(ValueError, match="--label feel:class or --label feel:continuous"):
            read_clips("folder", tmp_path, table=table, labels=labels)
        return
    clips = read_clips("folder", tmp_path, table=table, labels=labels)
    assert [label.kind for label in clips.labels] == [kind]
    whole = read_clips("folder", tmp_path, table=table, labels=(LabelSpec.parse(f"feel:{kind}"),))
    assert repr([clip.labels for clip in clips.clips]) == repr([clip.labels for clip in whole.clips])
