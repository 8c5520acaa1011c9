"""`python -m shards check` and what jobs say before they start: counts beside counts made here by hand, each doubt
where it belongs and nowhere else, and nothing written."""

from __future__ import annotations

import json
import random
import re
import shlex
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conclugen.__main__ import main as conclugen
from conclugen.common import extras
from ray_jobs.build_shards import COMMAND
from ray_jobs.building import plan_of
from shards import Column, Label, Manifest, Sample, Schema, ShardWriter
from shards.__main__ import main
from shards.adapters import read_clips
from shards.adapters.clip_set import Clip, ClipSet
from shards.doubts import Samples, classes_of, of_groups
from shards.packing.labels import LabelSpec
from shards.tools.check_clips import describe_clips
from tests.shards.media.make_media import make_sound, make_video, sine
from tests.shards.webdataset_import.plain_tars import npy, write_tar
from tuning.run.__main__ import COMMAND as RUN

EMOTIONS = ("happy", "neutral", "sad")


def study(folder: Path, rows: list[dict[str, str]], separator: str = ",", encoding: str = "utf-8") -> Path:
    """A folder of (empty) videos and a table of them; the table."""
    head = list(rows[0])
    for row in rows:
        path = folder / row["path"].strip().replace("\\", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    lines = [separator.join(head), *(separator.join(row[name] for name in head) for row in rows)]
    table = folder / "labels.csv"
    table.write_bytes("\r\n".join(lines).encode(encoding))
    return table


def rows_of(speakers: int, clips: int) -> list[dict[str, str]]:
    """Speakers who say `clips` clips each, classes in turn; the last third of the speakers are the test part."""
    return [
        {
            "path": f"s{speaker:02}/{clip}.mp4",
            "emotion": EMOTIONS[clip % 3],
            "group": f"s{speaker:02}",
            "split": "test" if speaker >= speakers * 2 / 3 else "train",
        }
        for speaker in range(speakers)
        for clip in range(clips)
    ]


UNOPENED = ("--look", 0)  # where the videos of a set are empty files


def check(*arguments: object) -> int:
    return main(["check", *map(str, arguments)])


def test_a_good_table_is_described_and_not_doubted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(18, 6)
    table = study(tmp_path, rows, ";", "utf-16")
    before = sorted(tmp_path.rglob("*"))
    assert check(tmp_path, "--table", table, "--label", "emotion:class", *UNOPENED) == 0
    out = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    counts = Counter(row["emotion"] for row in rows)
    for line in (
        "108 clips of 108 videos",
        "labels.csv: 108 rows, utf-16, separator semicolon",
        "label emotion (class): " + ", ".join(f"{name} {counts[name]}" for name in EMOTIONS),
        "speakers: 18 (s00 6,",
        "part train: 72 of 12 speakers",
        "part test: 36 of 6 speakers",
        "checked as clips; warnings: 0; nothing was written",
    ):
        assert line in out, out
    assert "warning: " not in out


def spoil(rows: list[dict[str, str]], what: str) -> tuple[str, list[dict[str, str]]]:
    """One fault put into a good table, and how it is told."""
    if what == "case":
        rows[0]["emotion"] = "Happy"
        return "classes 'happy' (35 rows) and 'Happy' (1 row) differ in case, spaces or hyphens only", rows
    if what == "spaces":
        for row in rows:
            row["emotion"] = {"sad": "very sad", "happy": "happy "}.get(row["emotion"], row["emotion"])
        rows[2]["emotion"] = "very_sad"
        return "classes 'very sad' (35 rows) and 'very_sad' (1 row) differ", rows
    if what == "handful":
        rows[0]["emotion"], rows[6]["emotion"] = "fear", "fear"
        return "too few rows to learn or to judge by: fear 2", rows
    if what == "part without a class":
        for row in rows:
            if row["split"] == "test" and row["emotion"] == "sad":
                row["emotion"] = "happy"
        return "part 'test' has no row of emotion 'sad'", rows
    if what == "three test speakers":
        for row in rows:
            row["split"] = "test" if row["group"] in ("s00", "s01", "s02") else "train"
        return "part 'test' has 3 speakers: over so few no difference between systems can be significant", rows
    if what == "shared speaker":
        rows[0]["split"] = "test"
        return "1 of 18 groups are in more than one part, such as speaker 's00' in ", rows
    if what == "speakers alike":
        rows[0]["group"] = "S00"
        return "speakers 's00' (5 rows) and 'S00' (1 row) differ", rows
    if what == "written as text":
        for row in rows[:6]:
            row["group"] = "nan"
        return "speakers: 'nan' (6 rows) looks like a missing value", rows
    if what == "gaps":
        for row in rows[:6]:
            row["group"] = ""
        return "without a speaker: 6 of 108 rows", rows
    if what == "parts alike":
        rows[0]["split"] = "Train"
        return "parts 'train' (71 rows) and 'Train' (1 row) differ", rows
    if what == "twice":
        return "rows given again, identically, and counted once: 1", [*rows, rows[3]]
    assert what == "numbers from 1"
    for row in rows:
        row["emotion"] = str(EMOTIONS.index(row["emotion"]) + 1)
    return "no row of '0' (classes that are numbers count from 0", rows


SPOILT = ["case", "spaces", "handful", "part without a class", "three test speakers", "shared speaker",
          "speakers alike", "written as text", "gaps", "parts alike", "twice", "numbers from 1"]  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_each_fault_is_told_by_check_and_by_the_job(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, rows = spoil(rows_of(18, 6), what)
    table = study(tmp_path, rows)
    status = check(tmp_path, "--table", table, "--label", "emotion:class", *UNOPENED)
    checked = capsys.readouterr().out
    assert told in checked and status == (0 if what == "twice" else 1), checked
    job = ["--adapter", "folder", "--source", str(tmp_path), "--table", str(table), "--label", "emotion:class"]
    plan_of(COMMAND.parse([*job, "--output", str(tmp_path / "out")]))
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert warned == [line for line in checked.splitlines() if line.startswith("warning: ")]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", [w for w in SPOILT if w not in ("twice", "shared speaker")])
def test_pack_and_split_warn_of_the_same(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, rows = spoil(rows_of(18, 6), what)
    table = study(tmp_path / "in", rows)
    np.savez(tmp_path / "f.npz", v=np.ones((len(rows), 2), np.float32), id=np.array([row["path"] for row in rows]))
    joined = ["--table", str(table), "--key", "id", "--table-key", "path", "--label", "emotion:class",
              "--group", "group", "--meta", "split"]  # fmt: skip
    assert check(tmp_path / "f.npz", *joined) == 1
    assert told in capsys.readouterr().out
    packed = ["pack", "--source", str(tmp_path / "f.npz"), "--column", "v", *joined, "--output", str(tmp_path / "out")]
    assert main([*packed, "--allow-empty-class", "--quiet"]) == 0
    assert f"warning: {told}" in capsys.readouterr().out.replace("warning: label emotion: ", "warning: ")
    if ("part" in what and "alike" not in what) or what == "three test speakers":
        assert main(["split", str(tmp_path / "out"), "--by", "meta.split"]) == 0
        assert told.replace("part ", "view ", 1) in capsys.readouterr().out


def test_what_an_adapter_read_is_built_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` reads folders of videos alone: by its advice the labels that the adapter found would be lost."""
    source = tmp_path / "caer set"
    for number, emotion in enumerate(("Anger", "Happy", "Sad")):
        path = source / "train" / emotion / f"{number:04}.avi"
        path.parent.mkdir(parents=True)
        path.touch()
    assert main(["check", str(source), "--adapter", "caer", *map(str, UNOPENED)]) == 1
    (told,) = re.findall(r"^next: .* build (.*)", capsys.readouterr().out, re.MULTILINE)
    job = COMMAND.parse(shlex.split(told))
    assert (job.source, job.adapter, job.allow_incomplete) == (source, "caer", True)


def test_archives_are_checked_before_they_are_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = []
    for i in range(12):
        document = {"who": "Anna" if i == 7 else "anna", "mood": "calm" if i % 2 else "Calm", "split": "a"}
        members += [(f"k{i}.v.npy", npy(np.ones(2, np.float32))), (f"k{i}.json", json.dumps(document).encode())]
    write_tar(tmp_path / "t.tar", members)
    options = ["--label", "mood=json#mood:class", "--group", "json#who", "--meta", "split=json#split"]
    assert check(tmp_path, *options) == 1
    out = capsys.readouterr().out
    assert "1 shards, 12 samples" in out and "label mood (class): Calm 6, calm 6" in out
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar"]
    warnings = [line for line in out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 3 and "'anna' (11 rows) and 'Anna' (1 row)" in out
    assert main(["index", str(tmp_path), *options]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")] == warnings
    assert Manifest.open(tmp_path).rows == 12


def test_files_that_do_not_match_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = study(tmp_path, rows_of(2, 6))
    (tmp_path / "s00/5.mp4").rename(tmp_path / "s00/five.MP4")
    (tmp_path / "s01/5.mp4").rename(tmp_path / "s01/5.MP4")
    assert check(tmp_path, "--table", table, *UNOPENED) == 1
    out = capsys.readouterr().out
    assert "expected 12, found 10; missing: s00/5.mp4, s01/5.mp4 (there is s01/5.MP4)" in out
    assert "warning: videos of the folder without a row in labels.csv: 2 (s00/five.MP4, s01/5.MP4)" in out
    np.savez(tmp_path / "f.npz", v=np.ones((2, 2)), id=np.array(["s00/0.mp4", "s01/0.mp4"]))
    assert check(tmp_path / "f.npz", "--key", "id", "--table", table, "--table-key", "path") == 1
    assert "rows of labels.csv that belong to no sample: 10 (row 3: s00/1.mp4, row 4" in capsys.readouterr().out


def test_sound_of_files_of_their_own_and_texts_are_counted() -> None:
    """Two of three clips have a sound file, one a transcript; of three without a sound file nothing is said."""
    clips = [
        Clip(f"{n}", f"{n}.mp4", audio=f"{n}.wav" if n else None, transcript="a" if n == 2 else None) for n in range(3)
    ]
    lines = describe_clips(ClipSet("made", Path(), (), clips, grouped=False))
    assert "sound from files of their own: 2 of 3 clips" in lines and "transcripts: 1 of 3" in lines
    silent = ClipSet("made", Path(), (), [Clip(f"{n}", f"{n}.mp4") for n in range(3)], grouped=False)
    assert not any("sound" in line for line in describe_clips(silent))


def test_the_same_words_refuse_what_must_be_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = study(tmp_path, rows_of(2, 6))
    table.write_bytes(table.read_bytes() + b"\r\ns00/0.mp4,happy,s00\r\n")
    job = COMMAND.parse(
        ["--adapter", "folder", "--source", str(tmp_path), "--table", str(table), "--output", str(tmp_path / "o")]
    )
    with pytest.raises(ValueError) as refused:
        plan_of(job)
    assert "row 14: 3 fields, the head has 4" in str(refused.value)
    assert check(tmp_path, "--table", table) == 2
    assert capsys.readouterr().err == f"error: {refused.value}\n".replace("--table", "--labels")
    assert check(table) == 2 and check(tmp_path / "none") == 2
    assert check(tmp_path, "--key", "x") == 2
    assert "--key says nothing of clips" in capsys.readouterr().err


def test_sequences_are_checked_as_they_would_be_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "f.npz", x=np.ones((6, 5, 3), np.float32), y=np.array(["a", "b"] * 3))
    command = ["--column", "x", "--label", "y:class"]
    packing = ["pack", "--source", str(tmp_path / "f.npz"), "--output", str(tmp_path / "out"), *command]
    assert check(tmp_path / "f.npz", *command) == 2 == main(packing)
    first, second = capsys.readouterr().err.split("error: ")[1:]
    assert first == second and "--pool" in first
    assert check(tmp_path / "f.npz", *command, "--pool", "mean-std", "--zero-padding") == 1
    assert "6" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert check(tmp_path / "f.npz", "--pool", "mode") == 2
    assert check(tmp_path, "--kind", "clips", "--pool", "mean") == 2
    assert "--pool says nothing of clips" in capsys.readouterr().err


def test_the_files_of_clips_are_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of file that no clip can be made of is named with its reason; `--labels`, `--group` are as in `run`."""
    make_video(tmp_path / "good.mp4", 50, (48, 64), sound=sine(2, 16_000, 1), sound_rate=16_000)
    make_video(tmp_path / "wide.avi", 25, (32, 128), codec="mpeg4")
    whole = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video\n")
    (tmp_path / "empty.mov").touch()
    make_sound(tmp_path / "sound.mkv", sine(1, 16_000, 1), 16_000)
    rows = ["File,Speaker,emotion,start,end", "good,ann,sad,0,1.5", "good,ann,happy,1,2", "wide,bob,sad,,"]
    rows += [f"{name},bob,happy,," for name in ("cut", "text", "empty", "sound")] + ["good,ann,sad,5,6"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    before = sorted(tmp_path.iterdir())
    named = ("--labels", tmp_path / "labels.csv", "--label", "emotion", "--group", "speaker")
    assert check(tmp_path, *named) == 1
    out = capsys.readouterr().out
    assert "files: looked into 6 videos of 6: " in out and "h264 1" in out and "mpeg4 1" in out
    assert "64 x 48 to 128 x 32 pixels; 1.0 to 2.0 s, 3.0 s in all; with sound 1 of 2" in out
    assert "5 clips can't be used for what their files are, and will be quarantined:" in out
    for line in ("cut.mp4: not_media: ", "text.mp4: not_media: ", "empty.mov: empty: the file has 0 bytes"):
        assert f"  {line}" in out, out
    assert "  sound.mkv: no_video: " in out
    assert "  good.mp4: bad_interval: the interval 5 to 6 s leaves the video of 2.00 s" in out
    assert "such as good.mp4: 0 to 1.5 s, emotion sad, speaker ann" in out
    assert "clips that will be quarantined: 5" in out and "speakers: 2 (bob 5, ann 3)" in out
    assert f"run {tmp_path} --labels {tmp_path}/labels.csv --label emotion --group speaker" in out
    assert sorted(tmp_path.iterdir()) == before
    assert check(tmp_path, *named, "--look", "2") == 1
    assert "looked into 2 videos of 6, spread over all (--look none: all)" in capsys.readouterr().out
    assert check(tmp_path, *named, "--look", "-1") == 2
    assert "--look: must be at least 0, or none, got -1" in capsys.readouterr().err


def test_what_is_wrong_with_a_table_is_told_at_once_and_by_the_options_that_were_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = study(tmp_path, rows_of(2, 6))
    wrong = ("--label", "emoton", "--group", "gruop")
    for front in (check, lambda *rest: RUN.main([*map(str, rest)])):
        assert front(tmp_path, "--labels", table, *wrong) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: --group: ") and said.count("\n") == 1, said
        for typed, meant in (("gruop", "group"), ("emoton", "emotion")):
            assert f"no column '{typed}', allowed: path, emotion, group, split; did you mean '{meant}'?" in said
        assert front(tmp_path, "--labels", tmp_path / "labls.csv") == 2
        assert f"error: --labels {tmp_path / 'labls.csv'} does not exist" in capsys.readouterr().err
    assert check(tmp_path, "--group", "group", *UNOPENED) == 2
    assert "give --labels as well" in capsys.readouterr().err


def test_without_the_libraries_of_media_no_file_is_opened_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study(tmp_path, rows_of(2, 6))
    monkeypatch.setattr(extras, "absent", lambda extra: ["av"] if extra == "media" else [])
    check(tmp_path)
    assert 'files: none was opened, which takes av: pip install "conclugen[media]"' in capsys.readouterr().out


def test_a_table_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(4, 6)
    rows[0]["emotion"] = "Happy"
    table = study(tmp_path, [*rows, rows[5]])
    assert check(table, "--label", "emotion:class") == 1
    out = capsys.readouterr().out
    assert "column group: 25 of 25 rows, 4 different: s00 7, s01 6, s02 6, s03 6" in out
    assert "column emotion: 'happy' (7 rows) and 'Happy' (1 row) differ" in out
    assert "rows given again, identically: 1" in out and "label emotion (class): Happy 1, happy 7" in out


def test_rows_of_one_key(tmp_path: Path) -> None:
    """Identical ones count once, also where only the way of writing them differs; others are named by their numbers."""
    rows = [
        {"path": path, "start": start, "end": end, "emotion": emotion}
        for path, start, end, emotion in [
            ("a.mp4", "0.5", "1.50", "sad"), ("./a.mp4", "0.50", "1.5", "sad"), ("b.mp4", "", "", "sad"),
            ("b.mp4", "", "", "happy"), ("a.mp4", "0.1", "0.30000000000000004", "happy"),
            ("a.mp4", "0.1", "0.3", "sad"),
            ("c.mp4", "-0.4776", "2", "sad"), ("c.mp4", "2", "2", "sad"), ("c.mp4", "1,5", "2", "sad"),
        ]
    ]  # fmt: skip
    found = read_clips("folder", tmp_path, table=study(tmp_path, rows, ";"), labels=[LabelSpec.parse("emotion:class")])
    assert {clip.key: (clip.start, clip.end, clip.labels["emotion"]) for clip in found.clips} == {
        "a_0p5_1p5": (0.5, 1.5, 1),
        "a_0p1_0p30000000000000004": (0.1, 0.1 + 0.2, 0),
        "a_0p1_0p3": (0.1, 0.3, 1),
        "c_0_2": (0.0, 2.0, 1),
    }
    assert {item.name: (item.reason, item.message.split(";")[0]) for item in found.rejected} == {
        "row 4: b.mp4": ("duplicate_key", "the key 'b' is also that of row 5, which differs"),
        "row 5: b.mp4": ("duplicate_key", "the key 'b' is also that of row 4, which differs"),
        "row 9: c.mp4": ("bad_interval", "the interval is 2 to 2, which is empty"),
        "row 10: c.mp4": ("bad_interval", "start is '1,5', expected a number"),
    }
    assert "intervals that begin before 0, and are taken from 0 on: 1" in found.how
    long = "x" * 90 + "\u00e9"
    (tmp_path / f"{long}.mp4").touch()
    table = study(tmp_path, [{"path": f"{long}.mp4", "start": "0.1", "end": e} for e in ("0.3", "0.30000000000000004")])
    keys = [clip.key for clip in read_clips("folder", tmp_path, table=table).clips]
    assert len(set(keys)) == 2 and all(key.isascii() and len(key) <= 64 and "." not in key for key in keys)
    assert [key.rpartition("_0p1_")[2] for key in keys] == ["0p3", "0p30000000000000004"]


def test_how_few_speakers_are_too_few() -> None:
    """A sign-flip test over n speakers has 2**n outcomes; two of them are as extreme as the most extreme one."""
    for speakers in range(1, 12):
        outcomes = 2**speakers
        told = bool(of_groups({"test": {str(i) for i in range(speakers)}}))
        assert told == (2 / outcomes > 0.05)


def test_counts_of_drawn_samples() -> None:
    """Classes of each part, of single and of several labels, beside a plain loop."""
    drawn = random.Random(7)
    single, several = Label("a", "class", ("x", "y", "z")), Label("b", "multilabel", ("p", "q"))
    for _ in range(30):
        count = drawn.randint(1, 60)
        numbers = [drawn.choice([-1, 0, 0, 1, 1, 2]) for _ in range(count)]
        flags = [[float(drawn.random() < 0.3), float(drawn.random() < 0.1)] for _ in range(count)]
        parts = [drawn.choice(["train", "test", None]) for _ in range(count)]
        groups = [f"g{drawn.randint(0, 20)}" for _ in range(count)]
        classes = {"a": classes_of(single, numbers), "b": classes_of(several, flags)}
        doubts = Samples(count, (single, several), classes, groups, parts).doubts()
        for part in {part for part in parts if part is not None}:
            own = [n for n, p in zip(numbers, parts, strict=True) if p == part]
            there = [name for number, name in enumerate("xyz") if number in numbers and
                     any(n == number and p is not None for n, p in zip(numbers, parts, strict=True))]  # fmt: skip
            absent = [name for name in there if "xyz".index(name) not in own]
            expected = bool(absent) and len(absent) < len(there)
            assert any(d.startswith(f"part {part!r} has no row of a ") for d in doubts) == expected
        unknown = sum(number < 0 for number in numbers)
        assert any(d.startswith(f"without a label a: {unknown} of {count} row") for d in doubts) == (unknown > 0)


def test_a_folder_of_archives_and_videos_is_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "old.tar", "w"):
        pass
    (tmp_path / "a.mp4").touch()
    assert check(tmp_path, *UNOPENED) == 0 and "checked as clips" in capsys.readouterr().out
    assert check(tmp_path, "--kind", "archives") == 2


def test_shards_are_described_and_doubted_by_their_indexes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over several shards; a multilabel and a number beside the class are passed over."""
    labels = (Label("emotion", "class", EMOTIONS), Label("size", "continuous"))
    schema = Schema((Column("v", 4),), labels=labels, grouped=True, meta=("split",))
    rows = [row for row in rows_of(18, 6) if row["split"] == "train" or row["emotion"] != "sad"]
    with ShardWriter(tmp_path / "data", schema, max_shard_bytes=20_000) as writer:
        for number, row in enumerate(rows):
            values = {"emotion": None if number == 5 else EMOTIONS.index(row["emotion"]), "size": 1.0}
            meta = {"split": row["split"]}
            writer.append(Sample(f"k{number:03}", {"v": np.ones(4)}, values, row["group"], meta=meta))
    before = sorted(tmp_path.rglob("*"))
    assert check(tmp_path / "data") == 1
    said = capsys.readouterr().out
    counts = Counter(row["emotion"] for number, row in enumerate(rows) if number != 5)
    assert f"{tmp_path / 'data'}: 96 rows in {len(Manifest.open(tmp_path / 'data'))} shards\n" in said
    assert "label emotion (class): " + ", ".join(f"{e} {counts[e]}" for e in EMOTIONS) + "; 1 without\n" in said
    assert "speakers: 18 " in said and "part train: 72 of 12 speakers\npart test: 24 of 6 speakers\n" in said
    assert said.count("warning: ") == 2 and "sad" in said.split("warning: ")[1]
    assert "warning: without a label emotion: 1 of 96 rows\n" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_build_that_goes_on_without_clips_warns_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = study(tmp_path, rows_of(2, 6))
    (tmp_path / "s01/5.mp4").unlink()
    job = ["--source", str(tmp_path), "--table", str(table), "--output", str(tmp_path / "out"), "--allow-incomplete"]
    plan = plan_of(COMMAND.parse(job))
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert [line for line in warned if "expected 12, found 11; missing: s01/5.mp4" in line]
    assert [(item.name, item.reason) for item in plan.missing] == [("s01/5.mp4", "missing")]


def test_help_lists_the_adapters_as_build_does(capsys: pytest.CaptureFixture[str]) -> None:
    from shards import adapters

    for command in ("check", "build"):
        with pytest.raises(SystemExit):
            conclugen([command, "--help"])
        out = capsys.readouterr().out
        for name, adapter in adapters.known().items():
            assert re.search(rf"^  {re.escape(name)} +{re.escape(adapter.layout)}$", out, re.M), (command, name)
