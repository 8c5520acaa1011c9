"""Adapters on small folders laid out as the sets are distributed, with the traps they are known for."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import adapters
from shards.adapters import ADAPTERS, IncompleteError, caer, grid, meld, mosei, ravdess, read_clips, voxceleb2
from shards.adapters.grid import sentence
from shards.adapters.meld import repair_text
from shards.adapters.ravdess import all_names
from shards.packing.labels import LabelSpec
from tests.shards.adapters import layouts
from tests.shards.adapters.layouts import touch


def by_key(adapter: str, root: Path, **options: object) -> dict:
    clips = read_clips(adapter, root, allow_incomplete=True, **options)
    return {clip.key: clip for clip in clips.clips}


def test_voxceleb2_pairs_pictures_with_sound(tmp_path: Path) -> None:
    touch(
        tmp_path,
        [
            "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4",
            "dev/aac/id00012/21Uxsk56VDQ/00001.m4a",
            "dev/mp4/id00012/-_a_b/00002.mp4",
            "dev/aac/id00012/-_a_b/00002.m4a",
            "dev/mp4/id00015/x/00003.mp4",
            "dev/aac/id00017/y/00004.m4a",
            "dev/mp4/readme.mp4",
        ],
    )
    found = read_clips("voxceleb2", tmp_path, allow_incomplete=True)
    first, second = found.clips
    assert (first.key, first.group, first.audio) == (
        "id00012_-_a_b_00002",
        "id00012",
        "dev/aac/id00012/-_a_b/00002.m4a",
    )
    assert second.video == "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4" and second.split == "dev"
    assert first.labels == {} and first.transcript is None
    assert found.left_out == {"dev/mp4/readme.mp4": "not ID/VIDEO/NNNNN"}
    with pytest.raises(IncompleteError) as caught:
        read_clips("voxceleb2", tmp_path)
    assert "expected 549,984, found 2" in str(caught.value)
    assert "mp4/id00015/x/00003.mp4" in str(caught.value) and "aac/id00017/y/00004.m4a" in str(caught.value)
    assert "--allow-incomplete" in str(caught.value)


def test_mosei_intervals_labels_folds_and_traps(tmp_path: Path) -> None:
    root = layouts.mosei(
        tmp_path,
        {
            "-abc": [(0.0, 2.5, [-1.0, 0, 0.33, 0, 0, 0, 0]), (2.5, 7.25, [2.0, 1, 0, 0, 0, 0, 0.66])],
            "9cxlcpbmrH0": [(float(i), float(i + 1), [0.0] * 7) for i in range(8)],
            "zz": [(1.0, 2.0, [0.0, 0, 0, 3, 0, 0, 0])],
            "2cwNG0YuwtQ": [(float(i), float(i + 1), [0.0] * 7) for i in range(7)],
        },
    )
    (root / "Raw/Videos/Full/Combined/unlabelled.mp4").touch()
    found = read_clips("mosei", root, allow_incomplete=True)
    clips = {clip.key: clip for clip in found.clips}
    assert len(clips) == 2 + 7 + 1 + 6 and "9cxlcpbmrH0_6" not in clips and "9cxlcpbmrH0_7" in clips
    assert found.left_out == {
        "2cwNG0YuwtQ_6": "known to be broken",
        "9cxlcpbmrH0_6": "known to be broken",
        "Raw/Videos/Full/Combined/unlabelled.mp4": "no labels",
    }
    second = clips["-abc_1"]
    assert (second.start, second.end, second.group, second.split) == (2.5, 7.25, "-abc", "train")
    assert second.video == "Raw/Videos/Full/Combined/-abc.mp4" and second.transcript == "sentence 1 of it"
    assert second.labels["emotion"] == [1, 0, 0, 0, 0, 1]  # happy and fear: the SDK's order
    assert second.labels["sentiment"] == 2.0
    assert clips["zz_0"].labels["emotion"] == [0, 0, 1, 0, 0, 0] and clips["zz_0"].split is None
    assert clips["2cwNG0YuwtQ_0"].split == "valid" and clips["9cxlcpbmrH0_0"].split is None
    emotion = next(label for label in found.labels if label.name == "emotion")
    assert emotion.classes == ("happy", "sad", "anger", "surprise", "disgust", "fear")
    lines = "\n".join(found.report())
    assert "expected 22,860, found 18" in lines and "fold train: expected 2,249, found 1" in lines
    (root / "Raw/Videos/Full/Combined/zz.mp4").unlink()
    assert "zz.mp4" in "\n".join(read_clips("mosei", root, allow_incomplete=True).report())


def test_mosei_folds_from_json_and_wrong_files(tmp_path: Path) -> None:
    root = layouts.mosei(tmp_path / "set", {"a": [(0.0, 1.0, [0.0] * 7)]})
    folds = tmp_path / "folds.json"
    folds.write_text(json.dumps({"test": ["a"]}))
    assert by_key("mosei", root, folds=folds)["a_0"].split == "test"
    folds.write_text("[1, 2")
    with pytest.raises(ValueError, match=r"folds.json cannot be read as folds"):
        read_clips("mosei", root, allow_incomplete=True, folds=folds)
    (root / "CMU_MOSEI_Labels.csd").write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match=r"CMU_MOSEI_Labels.csd cannot be read"):
        read_clips("mosei", root, allow_incomplete=True)


def test_meld_tables_traps_and_bytes(tmp_path: Path) -> None:
    found = read_clips("meld", layouts.meld(tmp_path), allow_incomplete=True)
    clips = {clip.key: clip for clip in found.clips}
    assert set(clips) == {"train_dia0_utt0", "train_dia1_utt0", "dev_dia0_utt0", "test_dia0_utt0"}
    assert clips["train_dia0_utt0"].transcript == "It\u2019s fine"
    assert clips["train_dia1_utt0"].transcript == "Joey\u2019s here"
    assert clips["train_dia0_utt0"].group == "Chandler" and clips["test_dia0_utt0"].split == "test"
    assert clips["train_dia1_utt0"].labels == {"emotion": "joy", "sentiment": "positive"}
    assert clips["test_dia0_utt0"].video == "test/output_repeated_splits_test/dia0_utt0.mp4"
    broken = {name for name, reason in found.left_out.items() if reason == "known to be broken"}
    assert broken == {"train/dia125_utt3", "train/dia110_utt7", "dev/dia110_utt7"}
    assert found.left_out["test/output_repeated_splits_test/final_videos_testdia0_utt0.mp4"].startswith("a leftover")
    assert any("._dia0_utt0" in name for name in found.left_out)
    emotion = found.labels[0]
    assert [emotion.encode(x) for x in ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")] == [
        *range(7)
    ]
    (tmp_path / "train/train_splits/dia1_utt0.mp4").unlink()
    with pytest.raises(IncompleteError, match=r"train_splits/dia1_utt0.mp4"):
        read_clips("meld", tmp_path)


def test_meld_table_without_a_column(tmp_path: Path) -> None:
    layouts.meld(tmp_path)
    (tmp_path / "dev_sent_emo.csv").write_text("Utterance,Speaker\n")
    with pytest.raises(ValueError, match=r"dev_sent_emo.csv has no column 'Emotion'"):
        read_clips("meld", tmp_path, allow_incomplete=True)


def test_windows_bytes_become_what_they_mean() -> None:
    assert repair_text(b"a\x92b") == repair_text("a\u0092b".encode()) == repair_text("a\u2019b".encode()) == "a\u2019b"
    assert repair_text("caf\u00e9 \u2013".encode()) == "caf\u00e9 \u2013"


def test_caer_splits_and_classes(tmp_path: Path) -> None:
    touch(tmp_path, ["CAER/train/Anger/0001.avi", "CAER/test/Anger/0001.avi", "CAER/train/Joy/0002.avi"])
    found = read_clips("caer", tmp_path, allow_incomplete=True)
    assert [clip.key for clip in found.clips] == ["train_Anger_0001", "test_Anger_0001"]
    assert found.clips[0].labels == {"emotion": "Anger"} and not found.grouped
    assert found.labels[0].classes == ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
    assert "CAER/train/Joy/0002.avi" in found.left_out
    report = "\n".join(found.report())
    assert "expected 13,175, found 2" in report and "missing: validation" in report and "test/Fear" in report


def test_ravdess_names_sound_and_traps(tmp_path: Path) -> None:
    touch(
        tmp_path,
        [
            "Video_Speech_Actor_01/Actor_01/01-01-03-02-02-01-01.mp4",
            "Video_Speech_Actor_01/Actor_01/02-01-03-02-02-01-01.mp4",
            "Audio_Speech_Actors_01-24/Actor_01/03-01-03-02-02-01-01.wav",
            "Video_Speech_Actor_02/Actor_02/01-01-08-01-01-02-02.mp4",
            "Video_Song_Actor_02/Actor_02/01-02-04-01-01-02-02.mp4",
            "Video_Speech_Actor_02/Actor_02/notes.mp4",
        ],
    )
    found = read_clips("ravdess", tmp_path, allow_incomplete=True)
    clips = {clip.key: clip for clip in found.clips}
    first = clips["01-01-03-02-02-01-01"]
    assert first.audio == "Audio_Speech_Actors_01-24/Actor_01/03-01-03-02-02-01-01.wav"
    assert first.labels == {"emotion": 2, "intensity": 1} and first.group == "01"
    assert first.transcript == "Dogs are sitting by the door"
    assert found.labels[0].classes[2] == "happy"
    second = clips["01-01-08-01-01-02-02"]
    assert second.audio is None and second.transcript == "Kids are talking by the door"
    assert sorted(found.left_out.values()) == ["not a name of this set", "song", "without sound"]
    report = "\n".join(found.report())
    assert "expected 1,440, found 2" in report and "missing: 03-01-08-01-01-02-02.wav" in report
    assert len(all_names()) == len(set(all_names())) == 1440


def test_whole_ravdess_is_complete(tmp_path: Path) -> None:
    touch(tmp_path, [f"Actor_{name[-2:]}/{name}.mp4" for name in all_names()])
    touch(tmp_path, [f"Actor_{name[-2:]}/03{name[2:]}.wav" for name in all_names()])
    found = read_clips("ravdess", tmp_path)
    assert len(found.clips) == 1440 and all(clip.audio for clip in found.clips)


def test_grid_names_spell_sentences(tmp_path: Path) -> None:
    touch(tmp_path, ["s1/bbaf2n.mpg", "s1/video/mpg_6000/bbaf2n.mpg", "s34/swiz9s.mpg", "s2/align.mpg", "x/bbaf2n.mpg"])
    found = read_clips("grid", tmp_path, allow_incomplete=True)
    clips = {clip.key: clip for clip in found.clips}
    assert set(clips) == {"s1_bbaf2n", "s34_swiz9s"}
    assert clips["s1_bbaf2n"].video == "s1/video/mpg_6000/bbaf2n.mpg"
    assert clips["s1_bbaf2n"].transcript == "bin blue at f two now" and clips["s34_swiz9s"].group == "s34"
    assert clips["s34_swiz9s"].labels["digit"] == "nine" and clips["s34_swiz9s"].labels["adverb"] == "soon"
    assert found.left_out["s1/bbaf2n.mpg"] == "the same in a smaller size"
    assert "speakers: expected 33, found 2" in "\n".join(found.report())
    with pytest.raises(ValueError, match="not a sentence of GRID"):
        sentence("bbaw2n")


def test_real_grid_clips(real_data: Path, tmp_path: Path) -> None:
    for path in (real_data / "clips").glob("grid_*.mpg"):
        (tmp_path / "s1").mkdir(exist_ok=True)
        (tmp_path / "s1" / path.name.removeprefix("grid_")).symlink_to(path)
    clips = by_key("grid", tmp_path)
    assert len(clips) == 11 and clips["s1_lwbsza"].transcript == "lay white by s zero again"


def test_folder_without_a_table(tmp_path: Path) -> None:
    touch(tmp_path, ["a.mp4", "deep/er/b.MKV", "c.txt", ".hidden.mp4", "deep/weird name (1).webm"])
    (tmp_path / "a.txt").write_text("hello there\n")
    clips = by_key("folder", tmp_path)
    assert set(clips) == {"a", "deep_er_b", "deep_weird name (1)"}
    assert clips["a"].transcript == "hello there" and clips["deep_er_b"].transcript is None


def test_what_may_not_be_read_is_rejected_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, and a transcript; told by a stand-in for the system, since the superuser may read everything."""
    touch(tmp_path, ["a.mp4", "locked/b.mp4", "c.mp4", "d.mp4"])
    (tmp_path / "c.txt").write_text("secret")
    (tmp_path / "d.txt").write_bytes(bytes((1 << 20) + 1))
    scandir, read_bytes = os.scandir, Path.read_bytes

    def refusing(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    def refuse(path: Path) -> bytes:
        if path.name == "c.txt":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(os, "scandir", refusing)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    found = read_clips("folder", tmp_path)
    assert [clip.key for clip in found.clips] == ["a"]
    assert {(item.name, item.reason) for item in found.rejected} == {
        ("locked", "unreadable"),
        ("c.mp4", "unreadable"),
        ("d.mp4", "unreadable"),
    }
    messages = " ".join(item.message for item in found.rejected)
    assert messages.count("Permission denied") == 2 and "d.txt has more than 1048576 bytes" in messages


ROWS: list[dict[str, object]] = [
    {"path": "a.mp4", "mood": "calm", "start": 0.5, "end": 1.5, "group": "anna", "split": "train", "text": "hi"},
    {"path": "sub/b.mp4", "mood": "angry", "start": None, "end": None, "group": "bert", "split": "test", "text": None},
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_folder_with_any_table(kind: str, tmp_path: Path) -> None:
    touch(tmp_path, ["a.mp4", "sub/b.mp4"])
    table = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), table)
    elif kind == "jsonl":
        table.write_text("\n".join(json.dumps(row) for row in ROWS))
    else:
        separator = "," if kind == "csv" else "\t"
        lines = [ROWS[0].keys(), *[["" if v is None else str(v) for v in row.values()] for row in ROWS]]
        table.write_text("\n".join(separator.join(line) for line in lines))
    found = read_clips("folder", tmp_path, table=table, labels=(LabelSpec.parse("mood:class:calm,angry"),))
    first, second = found.clips
    assert (first.key, first.start, first.end) == ("a_0p5_1p5", 0.5, 1.5)
    assert (first.group, first.split, first.transcript, first.labels) == ("anna", "train", "hi", {"mood": 0})
    assert (second.key, second.start, second.transcript, second.labels) == ("sub_b", None, None, {"mood": 1})
    assert found.grouped and found.labels[0].classes == ("calm", "angry")


def test_hostile_rows_are_rejected_by_name(tmp_path: Path) -> None:
    touch(tmp_path, ["a.mp4"])
    rows = [
        {"path": "a.mp4", "key": "good"},
        {"path": "../../etc/passwd"},
        {"path": "/etc/passwd"},
        {"path": "a.mp4", "audio": "../x.wav"},
        {"path": "a\nb.mp4"},
        {"path": "a.mp4", "start": "soon", "end": "later"},
        {"path": "a.mp4", "start": 1},
        {"path": "a.mp4", "start": "nan", "end": 2},
        {"path": 7},
        {"key": "no path"},
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    found = read_clips("folder", tmp_path, table=table)
    assert [clip.key for clip in found.clips] == ["good"]
    reasons = [item.reason for item in found.rejected]
    assert reasons == ["bad_name"] * 4 + ["bad_interval"] * 3 + ["bad_name"] * 2
    assert found.rejected[0].name == "row 2: ../../etc/passwd"


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, ["a.mp4"])
    wrong = {
        "a.csv": (b"path,key\na.mp4\n", "row 2: 1 fields, the head has 2"),
        "b.csv": (b"path,path\na.mp4,b\n", "same name"),
        "c.csv": (b"path\n\xff\n", "cannot be read"),
        "d.jsonl": (b'{"path": "a.mp4"}\n[1]\n', "line 2: expected an object"),
        "e.jsonl": (b"{", "line 1 is not JSON"),
        "f.parquet": (b"PAR1", "cannot be read"),
        "g.csv": (b"which\na.mp4\n", "has no column 'path'"),
        "h.xlsx": (b"", "expected a file ending in"),
        "i.csv": (b"path\n", "has no rows"),
    }
    for name, (content, message) in wrong.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_clips("folder", tmp_path, table=tmp_path / name)
    (tmp_path / "j.csv").write_text("path\nb.mp4\na.mp4\n")
    with pytest.raises(IncompleteError, match=r"expected 2, found 1; missing: b.mp4"):
        read_clips("folder", tmp_path, table=tmp_path / "j.csv")


def test_tables_as_people_write_them(tmp_path: Path) -> None:
    """Without the suffix, with a head in other letters; and what is said where that means nothing, or two things."""
    touch(tmp_path, ["one.mp4", "one/other.mp4", "sub/two.v1.MOV", "both.mp4", "both.avi"])
    table = tmp_path / "labels.csv"
    table.write_text("Filename; Speaker; Emotion\none; anna; sad\nsub/two.v1; bob; glad\none.mp4; anna; sad\n")
    label = LabelSpec.parse("emotion:class:sad,glad")
    found = read_clips("folder", tmp_path, table=table, labels=(label,), fields={"group": "speaker"})
    assert [(clip.video, clip.group, clip.labels["emotion"]) for clip in found.clips] == [
        ("one.mp4", "anna", 0),
        ("sub/two.v1.MOV", "bob", 1),
    ]
    assert any("paths without a suffix, taken as the file of that name: 2" in line for line in found.how)

    table.write_text("path\nboth\none\n")
    (rejected,) = read_clips("folder", tmp_path, table=table).rejected
    assert "both.avi, both.mp4" in str(rejected) and "write the suffix too" in str(rejected)
    table.write_text("path\nfirst\nOne\n")
    with pytest.raises(ValueError, match=r"labels\.csv: none of its 2 videos is in .*first, One \(there is.*5 videos"):
        read_clips("folder", tmp_path, table=table)
    with pytest.raises(ValueError, match=r"^group: .*labels\.csv has no column 'voice'"):
        read_clips("folder", tmp_path, table=table, fields={"group": "voice"})


def test_names_that_are_no_text_are_rejected(tmp_path: Path) -> None:
    touch(tmp_path, ["good.mp4"])
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.mp4")).touch()
    (tmp_path / "line\nbreak.mp4").touch()
    found = read_clips("folder", tmp_path)
    assert [clip.key for clip in found.clips] == ["good"]
    assert sorted(item.name for item in found.rejected) == ["bad\\udcff.mp4", "line\\nbreak.mp4"]
    assert {item.reason for item in found.rejected} == {"bad_name"}


def test_folders_that_link_to_themselves_end(tmp_path: Path) -> None:
    touch(tmp_path, ["a/b.mp4"])
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert set(by_key("folder", tmp_path)) == {"a_b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "adapter_module has no function read"),
        ("def read(source): ...", "adapter_module.LAYOUT is None, expected one line on what the adapter reads"),
        ("def read(source): ...\nLAYOUT = ' '", "LAYOUT is ' '"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_an_adapter_of_another_package_that_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    """It is left out whole; its name says why, and the project's own stay."""
    (tmp_path / "adapter_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "adapter_module", raising=False)
    points = (
        EntryPoint("crema-d", "adapter_module", adapters.GROUP),
        EntryPoint("caer", "adapter_module", adapters.GROUP),
    )
    monkeypatch.setattr(adapters.plugins, "installed", lambda group: points if group == adapters.GROUP else ())
    adapters._registry.cache_clear()
    try:
        assert adapters.known() == ADAPTERS
        with pytest.raises(ValueError, match=f"adapter 'crema-d' of .*{words}"):
            read_clips("crema-d", tmp_path)
    finally:
        adapters._registry.cache_clear()
        sys.modules.pop("adapter_module", None)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_wrong_source(adapter: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        read_clips(adapter, tmp_path / "none")
    with pytest.raises(ValueError):
        read_clips(adapter, tmp_path, allow_incomplete=True)


def test_expected_counts_are_the_published_ones() -> None:
    """As the sets' own papers and pages state them."""
    assert (voxceleb2.EXPECTED, caer.EXPECTED) == (549_984, 13_175)
    assert (mosei.VIDEOS, mosei.CLIPS, mosei.FOLD_SIZES) == (3837, 22_860, {"train": 2249, "valid": 300, "test": 678})
    assert meld.ROWS == {"train": 9989, "dev": 1109, "test": 2610}
    assert meld.EMOTIONS == ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
    assert ravdess.EMOTIONS == ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
    assert len(grid.SPEAKERS) == 33 and grid.SENTENCES == 1000


def test_unknown_adapter_and_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'ravdess'"):
        read_clips("ravdes", tmp_path)
    with pytest.raises(ValueError, match="takes no --folds"):
        read_clips("ravdess", tmp_path, folds="x")
    with pytest.raises(ValueError, match="takes no --label;"):
        read_clips("ravdess", tmp_path, labels=("x",))
