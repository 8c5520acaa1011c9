"""Clip shards: written, read by range and by the `webdataset` package, damaged, and built from good and bad clips."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards.adapters import read_clips
from shards.adapters.clip_set import Clip, ClipSet
from shards.clips.build import build_shard, load_report
from shards.clips.decode import decode_clip
from shards.clips.plan import BuildOptions, BuildPlan
from shards.clips.reader import ClipManifest, ClipReader, ClipSchema
from shards.clips.summary import BuildSummary, finish
from shards.clips.writer import NewClip, write_clip_shard
from shards.errors import ShardError
from shards.format.manifest import Manifest
from shards.format.schema import Column, Label, Sample, Schema
from shards.format.writer import ShardWriter
from shards.output_folder import OwnershipLostError
from shards.transcripts.recogniser import Transcript
from tests.shards.media.make_media import make_video, sine
from tests.shards.media.timed_media import Recipe, make, steady

SCHEMA = ClipSchema("flac", (Label("mood", "class", ("calm", "angry")),), grouped=True)


def new_clip(number: int, **changes: object) -> NewClip:
    rng = np.random.default_rng(number)
    fields = {
        "key": f"clip{number}",
        "video": rng.bytes(1000 + 37 * number),
        "sound": rng.bytes(700) if number % 3 else None,
        "text": f"words {number} \u00e9" if number % 2 else None,
        "labels": {"mood": number % 2},
        "group": f"speaker{number % 2}",
        "meta": {"split": "train", "source": f"{number}.mp4", "seconds": "1.000"},
        "details": {"video": {"seconds": 1.0}, "transcript": None, "face": None},
    }
    return NewClip(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    entries = []
    for shard in range(2):
        entry = write_clip_shard(tmp_path, f"clips-{shard}", SCHEMA, [new_clip(5 * shard + i) for i in range(5)])
        assert entry is not None
        entries.append(entry)
    ClipManifest.assemble(tmp_path, entries)
    return tmp_path


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    manifest = ClipManifest.open(folder)
    assert manifest.schema == SCHEMA and manifest.rows == 10 and list(manifest.counts) == [5, 5]
    reader = pickle.loads(pickle.dumps(ClipReader(manifest)))  # noqa: S301 - our own object, as Ray sends it
    for shard in range(2):
        for row, clip in enumerate(reader.clips(shard)):
            expected = new_clip(5 * shard + row)
            assert (clip.key, clip.row, clip.video) == (expected.key, 5 * shard + row, expected.video)
            assert (clip.sound, clip.text) == (expected.sound, expected.text)
            assert clip.info["labels"] == {"mood": ("calm", "angry")[(5 * shard + row) % 2]}
    table = reader.table(1)
    assert table["group"].to_pylist() == [f"speaker{n % 2}" for n in range(5, 10)]
    assert table["meta.split"].to_pylist() == ["train"] * 5
    assert list(reader.index(1).labels["mood"]) == [n % 2 for n in range(5, 10)]


def test_webdataset_and_tar_read_them(folder: Path) -> None:
    samples = list(webdataset.WebDataset(str(folder / "clips-0.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"clip{i}" for i in range(5)]
    for number, sample in enumerate(samples):
        expected = new_clip(number)
        assert sample["mp4"] == expected.video and sample.get("flac") == expected.sound
        assert sample.get("txt") == (None if expected.text is None else expected.text.encode())
        assert json.loads(sample["json"])["group"] == expected.group
    with tarfile.open(folder / "clips-1.tar") as archive:
        assert len(archive.getmembers()) == sum(2 + bool(n % 3) + n % 2 for n in range(5, 10))


def test_same_clips_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    write_clip_shard(again, "clips-0", SCHEMA, [new_clip(i) for i in range(5)])
    for name in ("clips-0.tar", "clips-0.index.parquet"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_clips_are_read_by_range_from_a_remote_store(folder: Path) -> None:
    """One range for each clip, whatever its shard's size."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/clips/{path.name}", path.read_bytes())
    here, there = (ClipReader(ClipManifest.open(place)) for place in (folder, "memory://clips"))
    size = (folder / "clips-1.tar").stat().st_size
    memory.pipe("/clips/clips-1.tar", (folder / "clips-1.tar").read_bytes()[: size // 2] + bytes(size - size // 2))
    assert there.read(1, 1) == here.read(1, 1) and there.read(0, 4) == here.read(0, 4)
    with pytest.raises(ShardError, match="clip9"):
        there.read(1, 4)
    memory.rm("/clips", recursive=True)


def test_damage_is_named(folder: Path) -> None:
    path = folder / "clips-1.tar"
    data = bytearray(path.read_bytes())
    reader = ClipReader(ClipManifest.open(folder))
    offset = int(reader.index(1).members[2, 0, 0])  # type: ignore[index]
    data[offset + 500] ^= 1
    path.write_bytes(data)
    assert reader.read(1, 1).key == "clip6" and reader.read(1, 3).key == "clip8"
    with pytest.raises(ShardError, match=r"'clips-1', sample 'clip7': checksum differs"):
        reader.read(1, 2)
    path.write_bytes(data[:-512])
    with pytest.raises(ShardError, match="size"):
        ClipReader(ClipManifest.open(folder)).read(1, 0)
    with pytest.raises(IndexError):
        reader.read(0, 5)


def test_features_and_clips_are_told_apart(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected features, found clips"):
        Manifest.open(folder)
    with ShardWriter(tmp_path / "features", Schema((Column("a", 2),))) as writer:
        writer.append(Sample("x", {"a": np.zeros(2)}))
    with pytest.raises(ValueError, match="expected clips, found features"):
        ClipManifest.open(tmp_path / "features")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"labels": {"mood": "happy"}}, "'happy' is unknown"), ({"text": "\ud800"}, "text"), ({"key": "clip0"}, "twice")],
)
def test_what_the_writer_refuses(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_clip_shard(tmp_path, "clips-0", SCHEMA, [new_clip(0), new_clip(1, **changes)])
    assert not list(tmp_path.iterdir())


def test_no_clips_no_files_and_odd_keys(tmp_path: Path) -> None:
    assert write_clip_shard(tmp_path, "none", SCHEMA, []) is None and not list(tmp_path.iterdir())
    entry = write_clip_shard(tmp_path, "odd", SCHEMA, [new_clip(1, key="-a b.c/\u00e9" + "x" * 200)])
    assert entry is not None
    clip = ClipReader(ClipManifest.assemble(tmp_path, [entry])).read(0, 0)
    assert len(clip.key) <= 64 and "." not in clip.key and clip.info["original"].startswith("-a b.c/\u00e9")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good clips, and one of most kinds of bad ones."""
    root = tmp_path_factory.mktemp("source")
    for number in range(6):
        make_video(root / f"good{number}.mp4", 20, sound=None if number == 3 else sine(0.8, 44_100, 1))
    (root / "good1.txt").write_text("said in the file")
    (root / "zero.mp4").touch()
    (root / "text.mp4").write_text("text")
    (root / "cut.mp4").write_bytes((root / "good0.mp4").read_bytes()[:2000])
    (root / "d").mkdir()
    for name in ("d/e.mp4", "d_e.mp4"):
        (root / name).write_bytes((root / "good0.mp4").read_bytes())
    return root


def run(source: Path, out: Path, isolated: bool = False, **options: object) -> BuildSummary:
    plan = BuildPlan.make(read_clips("folder", source), out, BuildOptions(clips_per_shard=4, **options))  # type: ignore[arg-type]
    plan.acquire()
    return finish(plan, [load_report(task) or build_shard(task, isolated=isolated) for task in plan.tasks])


def test_build_accounts_for_every_clip(source: Path, tmp_path: Path) -> None:
    summary = run(source, tmp_path / "out", isolated=True)
    assert (summary.found, summary.written, summary.exit_status) == (11, 6, 3)
    assert summary.quarantined == {"duplicate_key": 2, "empty": 1, "not_media": 2}
    assert summary.counts["with sound"] == 5 and summary.counts["without sound"] == 1
    assert summary.counts["no face, whole frames"] == 6 and summary.counts["transcript of the set"] == 1
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert {entry["source"] for entry in listed} == {"zero.mp4", "text.mp4", "cut.mp4", "d/e.mp4", "d_e.mp4"}
    assert all(entry["message"] for entry in listed)
    reader = ClipReader(ClipManifest.open(tmp_path / "out"))
    clips = {clip.key: clip for shard in range(len(reader.manifest)) for clip in reader.clips(shard)}
    assert set(clips) == {f"good{n}" for n in range(6)} and clips["good1"].text == "said in the file"
    decoded = decode_clip(clips["good0"], (1, 16), (30, 40))
    assert decoded.frames[16].pixels.shape == (13, 30, 40, 3) and decoded.samples is not None
    assert decode_clip(clips["good3"], ()).samples is None
    assert any("11 clips found = 6 written + 5 quarantined" in line for line in summary.lines(tmp_path))


def test_clips_keep_their_order_unless_they_are_shuffled(tmp_path: Path) -> None:
    clips = ClipSet("made", tmp_path, (), tuple(Clip(f"c{number:02d}", f"{number}.mp4") for number in range(20)))

    def order(seed: int | None) -> list[str]:
        options = BuildOptions(clips_per_shard=8, shuffle_seed=seed)
        plan = BuildPlan.make(clips, tmp_path / "out", options)
        assert [len(task.clips) for task in plan.tasks] == [8, 8, 4]
        return [clip.key for task in plan.tasks for clip in task.clips]

    keys = [clip.key for clip in clips.clips]
    assert order(None) == keys
    first, second = order(0), order(1)
    assert sorted(first) == sorted(second) == keys and first != second != keys != first
    assert order(1) == second


def test_a_clip_without_a_key_is_quarantined_by_name(tmp_path: Path) -> None:
    clips = [Clip("", "nameless.mp4"), Clip("a", "a.mp4"), Clip("b", "b.mp4", group="\ud800")]
    plan = BuildPlan.make(ClipSet("made", tmp_path, (), clips), tmp_path / "out", BuildOptions())
    assert [(entry.name, entry.reason) for entry in plan.rejected] == [
        ("nameless.mp4", "bad_name"),
        ("b.mp4", "bad_name"),
    ]
    assert "the key is empty" in plan.rejected[0].message and "not valid Unicode" in plan.rejected[1].message
    assert [clip.key for task in plan.tasks for clip in task.clips] == ["a"]


def test_what_was_done_to_sound_and_picture_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, sounds in {
        "short": [(0.0, 1.0)],
        "long": [(0.0, 3.0)],
        "hole": [(0.0, 0.5), (1.2, 0.8)],
        "right": [(0.0, 2.0)],
    }.items():
        make(source / f"{name}.mkv", Recipe(steady(50), sounds, sound_codec="pcm_s16le"))
    held = [time for time in steady(50) if not 0.5 < time < 1.2]
    make(source / "held.mkv", Recipe(held, [(0.0, 2.0)], sound_codec="pcm_s16le"))
    frozen = [time for time in steady(75) if not 0.5 < time < 2.2]
    make(source / "frozen.mkv", Recipe(frozen, [(0.0, 3.0)], sound_codec="pcm_s16le"))
    always = {"holes in the sound filled with silence": 1, "a picture that stays for more than 0.25 s": 1}
    expected = {
        "refuse": always,
        "pad": {
            **always,
            "sound padded with silence to the picture's end": 1,
            "sound cut at the picture's end": 1,
        },
        "cut": {
            **always,
            "picture cut at the sound's end": 1,
            "sound cut at the picture's end": 1,
        },
    }
    for mode, counts in expected.items():
        summary = run(source, tmp_path / mode, audio_length=mode, faces="off")
        assert summary.found == 6 == summary.written + sum(summary.quarantined.values())
        assert summary.quarantined == {"picture_gap": 1, **({"audio_length": 2} if mode == "refuse" else {})}
        words = (" at the ", " with silence", " stays ")
        told = {name: count for name, count in summary.counts.items() if any(word in name for word in words)}
        assert told == counts
        reader = ClipReader(ClipManifest.open(tmp_path / mode))
        for shard in range(len(reader.manifest)):
            for clip in reader.clips(shard):
                assert clip.info["audio"]["seconds"] == pytest.approx(clip.info["video"]["seconds"], abs=1e-3)
                assert clip.info["taken"]["audio"]["codec"] == "pcm_s16le"


def test_build_goes_on_after_a_kill_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "whole")
    plan = BuildPlan.make(read_clips("folder", source), tmp_path / "killed", BuildOptions(clips_per_shard=4))
    plan.acquire()
    build_shard(plan.tasks[0], isolated=False)
    before = (tmp_path / "killed/clips-000000.tar").stat().st_mtime_ns

    class Killed(Exception):  # noqa: N818
        pass

    def kill(report: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        build_shard(plan.tasks[1], kill, isolated=False)
    assert load_report(plan.tasks[0]) is not None and load_report(plan.tasks[1]) is None
    run(source, tmp_path / "killed")
    assert (tmp_path / "killed/clips-000000.tar").stat().st_mtime_ns == before
    assert ClipManifest.open(tmp_path / "killed").digest == ClipManifest.open(tmp_path / "whole").digest
    for path in (tmp_path / "whole").glob("clips-*"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_another_build_is_not_mixed_in(source: Path, tmp_path: Path) -> None:
    clips = read_clips("folder", source)
    BuildPlan.make(clips, tmp_path, BuildOptions()).acquire()
    with pytest.raises(ValueError, match=r'differs in schema.sound \(there "flac", here "wav"\), sound \('):
        BuildPlan.make(clips, tmp_path, BuildOptions(sound="wav")).acquire()
    BuildPlan.make(clips, tmp_path, BuildOptions(sound="wav")).acquire(overwrite=True)
    (tmp_path / "build.json").unlink()
    with pytest.raises(ValueError, match="is not empty and has no build in it"):
        BuildPlan.make(clips, tmp_path, BuildOptions()).acquire()


def test_clips_without_a_face_can_be_dropped(source: Path, tmp_path: Path) -> None:
    summary = run(source, tmp_path / "out", faces="drop")
    assert summary.written == 0 and summary.quarantined["no_face"] == 6
    assert not (tmp_path / "out/manifest.parquet").exists()


def test_low_confidence_transcripts_are_marked_and_not_handed_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Guess:
        name = "guess"

        def __call__(self, samples: np.ndarray) -> Transcript:
            return Transcript("maybe this", self.name, 0.1, True)

    monkeypatch.setattr("shards.clips.build._recogniser", lambda *_: Guess())
    summary = run(source, tmp_path / "out", recogniser="pocketsphinx")
    assert summary.counts["transcript by guess (low confidence)"] == 4  # one has its own, one has no sound
    reader = ClipReader(ClipManifest.open(tmp_path / "out"))
    clips = {clip.key: clip for shard in range(len(reader.manifest)) for clip in reader.clips(shard)}
    assert clips["good0"].low_confidence and not clips["good1"].low_confidence
    assert decode_clip(clips["good0"], ()).text is None
    assert decode_clip(clips["good0"], (), low_confidence=True).text == "maybe this"


@pytest.mark.parametrize(
    "wrong",
    [{"faces": "maybe"}, {"audio_length": "stretch"}, {"clips_per_shard": 0}, {"audio_rate": 3}, {"grammar": "grid"}],
)
def test_options_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(ValueError, match="--"):
        BuildOptions(**wrong)


def test_what_a_build_left_behind_does_not_reach_the_next_one(source: Path, tmp_path: Path) -> None:
    """Job A is killed, its tasks live on; job B takes the folder with --overwrite, at another rate. Before, shards of A
    stood in B's data set, which said that all was B's."""
    clips, out = read_clips("folder", source), tmp_path / "out"
    first = BuildPlan.make(clips, out, BuildOptions(clips_per_shard=4))
    first.acquire()
    build_shard(first.tasks[0], isolated=False)
    second = BuildPlan.make(clips, out, BuildOptions(clips_per_shard=4, audio_rate=8000))
    second.acquire(overwrite=True)
    reports = [build_shard(task, isolated=False) for task in second.tasks]
    before = {path.name: path.read_bytes() for path in out.glob("clips-*")}
    with pytest.raises(OwnershipLostError, match="belongs to another build by now"):
        build_shard(first.tasks[1], isolated=False)
    assert {path.name: path.read_bytes() for path in out.glob("clips-*")} == before
    # Even a shard that got through in between two looks is found in the end.
    stranger = BuildPlan.make(clips, tmp_path / "other", BuildOptions(clips_per_shard=4))
    stranger.acquire()
    build_shard(stranger.tasks[0], isolated=False)
    for path in (tmp_path / "other").glob("clips-000000.*"):
        path.replace(out / path.name)
    with pytest.raises(ShardError, match="is not the shard that this job wrote"):
        finish(second, reports)
    assert not (out / "manifest.parquet").exists()
    with pytest.raises(OwnershipLostError):
        finish(first, reports)


def test_what_is_missing_and_may_be_is_listed_beside_what_is_quarantined(source: Path, tmp_path: Path) -> None:
    """By the name that the table gives it, with what is there instead; it is neither found nor quarantined."""
    table = tmp_path / "t.csv"
    table.write_text("path\ngood0.mp4\n(1) gone.mp4\nGood1.mp4\nzero.mp4\n")
    clips = read_clips("folder", source, True, table=table)
    plan = BuildPlan.make(clips, tmp_path / "out", BuildOptions(faces="off"))
    plan.acquire()
    summary = finish(plan, [build_shard(task, isolated=False) for task in plan.tasks])
    assert (summary.found, summary.written, summary.missing) == (2, 1, 2) and summary.quarantined == {"empty": 1}
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["reason"]) for entry in listed] == [
        ("zero.mp4", "empty"),
        ("(1) gone.mp4", "missing"),
        ("Good1.mp4", "missing"),
    ]
    assert "there is good1.mp4" in listed[2]["message"] and "there is" not in listed[1]["message"]
    assert json.loads((tmp_path / "out/summary.json").read_text())["missing"] == 2
    assert any("2 missing, as --allow-incomplete allows" in line for line in summary.lines(tmp_path / "out"))
    whole = run(source, tmp_path / "whole")
    assert whole.missing == 0 and not any("--allow-incomplete" in line for line in whole.lines(tmp_path))


def test_what_may_be_missing_does_not_fail_a_build(source: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\ngood0.mp4\ngone.mp4\n")
    clips = read_clips("folder", source, True, table=tmp_path / "t.csv")
    plan = BuildPlan.make(clips, tmp_path / "out", BuildOptions(faces="off"))
    plan.acquire()
    assert finish(plan, [build_shard(task, isolated=False) for task in plan.tasks]).exit_status == 0
