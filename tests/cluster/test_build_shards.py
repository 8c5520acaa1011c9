"""The job that builds clip shards, on a real local Ray: counts, quarantine, exit status, and going on after a kill."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import webdataset

from ray_jobs.build_shards import main
from shards.clips.reader import ClipManifest, ClipReader
from shards.corpus.writing import CorpusConfig, write_corpus
from tests.campaigns.media_matrix import read_wav
from tests.shards.adapters import layouts
from tests.shards.media.make_media import make_sound, make_video, sine
from tests.shards.media.timed_media import RATE, Recipe, make, shown, sound, steady, time_heard


@pytest.fixture(scope="module")
def ravdess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two actors of RAVDESS with sound in files of its own; one video is cut short, one sound is too long."""
    root = tmp_path_factory.mktemp("ravdess")
    for actor in (1, 2):
        for emotion in range(1, 7):
            name = f"01-{emotion:02}-01-01-01-{actor:02}"
            folder, sounds = root / f"Actor_{actor:02}", root / f"Audio/Actor_{actor:02}"
            folder.mkdir(exist_ok=True)
            sounds.mkdir(parents=True, exist_ok=True)
            make_video(folder / f"01-{name}.mp4", 20)
            seconds = 3.0 if (actor, emotion) == (2, 3) else 0.8
            make_sound(sounds / f"03-{name}.wav", sine(seconds, 48_000, 2), 48_000)
    broken = root / "Actor_01/01-01-02-01-01-01-01.mp4"
    broken.write_bytes(broken.read_bytes()[:900])
    return root


def arguments(source: Path, out: Path) -> list[str]:
    return ["--adapter", "ravdess", "--source", str(source), "--out", str(out), "--clips-per-shard", "3"]


def test_job(shared_ray: None, ravdess: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(ravdess, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "speech clips: expected 1,440, found 12" in error and "--allow-incomplete" in error
    assert not (tmp_path / "out").exists()

    assert main([*arguments(ravdess, tmp_path / "out"), "--allow-incomplete"]) == 3
    printed = capsys.readouterr().out
    assert "12 clips found = 10 written + 2 quarantined" in printed and "clips/s" in printed
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert sorted((entry["key"], entry["reason"]) for entry in listed if entry["reason"] != "missing") == [
        ("01-01-02-01-01-01-01", "not_media"),
        ("01-01-03-01-01-01-02", "audio_length"),
    ]
    missing = {entry["source"]: entry["key"] for entry in listed if entry["reason"] == "missing"}
    assert len(missing) == 1440 - 12 and set(missing.values()) == {None}
    assert "01-01-02-01-01-01-03" in missing and "01-01-02-01-01-01-01" not in missing
    manifest = ClipManifest.open(tmp_path / "out")
    assert manifest.rows == 10 and manifest.schema.labels[0].name == "emotion"
    reader = ClipReader(manifest)
    for shard in range(len(manifest)):
        for clip in reader.clips(shard):
            assert clip.text == "Kids are talking by the door" and clip.sound is not None
            assert clip.info["group"] == clip.key[-2:]

    # Again: nothing is built, the same is said.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("clips-*")}
    assert main([*arguments(ravdess, tmp_path / "out"), "--allow-incomplete"]) == 3
    assert "4 from an earlier run" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("clips-*")}
    assert main([*arguments(ravdess, tmp_path / "out"), "--allow-incomplete", "--sound", "wav"]) == 2
    assert 'differs in schema.sound (there "flac", here "wav"), sound (' in capsys.readouterr().err


@pytest.mark.slow
def test_killed_job_goes_on(shared_ray: None, ravdess: Path, tmp_path: Path, short_folder: str) -> None:
    """The driver is killed with its Ray once a shard is there; the next run builds the rest, to the same digest."""
    main([*arguments(ravdess, tmp_path / "whole"), "--allow-incomplete", "--quiet"])
    program = "import sys; from ray_jobs.build_shards import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "RAY_TMPDIR": short_folder, "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    environment.pop("RAY_ADDRESS", None)
    out = tmp_path / "killed"
    # One task takes all CPUs that the job tells a local Ray of: shards are built one after another.
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments(ravdess, out), "--allow-incomplete", "--cpus", "5"],
        env=environment,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600  # a busy machine may start Ray at the third try
    while not list(out.glob("reports/*.json")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = len(list(out.glob("reports/*.json")))
    assert 0 < done < 4 and not (out / "manifest.parquet").exists()
    assert main([*arguments(ravdess, out), "--allow-incomplete", "--quiet"]) == 3
    assert ClipManifest.open(out).digest == ClipManifest.open(tmp_path / "whole").digest
    assert json.loads((out / "summary.json").read_text())["resumed"] == done


# ---- every layout, and real pictures ------------------------------------------------------------------------------

PICTURES = 60  # of a made video: 2.4 s at 25 a second, its sound telling the time


def film(path: Path, **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return make(path, Recipe(steady(PICTURES), [(0.0, PICTURES / 25)], **changes))  # type: ignore[arg-type]


def voxceleb2(root: Path) -> list[str]:
    for part, name in (("dev/", "id00012/21Uxsk56VDQ/00001"), ("test/", "id00017/01dfn2spqyE/00001")):
        film(root / f"{part}mp4/{name}.mp4")
        sound_file = root / f"{part}aac/{name}.wav"
        sound_file.parent.mkdir(parents=True)
        make_sound(sound_file, sound(0.0, PICTURES / 25)[None], RATE)
        sound_file.rename(sound_file.with_suffix(".m4a"))
    return ["--allow-incomplete"]


def mosei(root: Path) -> list[str]:
    layouts.mosei(root, {"v": [(-0.4, 1.0, [1.0] * 7), (1.0, 2.2, [0.0] * 7)]})
    film(root / "Raw/Videos/Full/Combined/v.mp4")
    return ["--allow-incomplete"]


def meld(root: Path) -> list[str]:
    layouts.meld(root)
    for path in root.rglob("*.mp4"):
        film(path, sound_codec="ac3")
    return ["--allow-incomplete"]


def caer(root: Path) -> list[str]:
    for name in ("train/Anger/0001.avi", "validation/Happy/0001.avi", "test/Surprise/0001.avi"):
        film(root / "CAER" / name, codec="mpeg4", sound_codec="pcm_s16le")
    return ["--allow-incomplete"]


def archives(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with webdataset.TarWriter(str(root / name)) as writer:
            for key in range(2):
                data = film(root.parent / "film.mp4").read_bytes()
                meta = {"mood": "ab"[key], "who": f"s{number}"}
                writer.write({"__key__": f"{number}{key:04}", "mp4": data, "txt": f"says {key}", "json": meta})


def tars(root: Path) -> list[str]:
    archives(root, "00000.tar", "00001.tar.gz")
    return ["--unpack", str(root.parent / "unpacked"), "--label", "mood=json.mood:class"]


def hugging_face(root: Path) -> list[str]:
    archives(root, "train/00000.tar", "test/00000.tar")
    return ["--unpack", str(root.parent / "unpacked"), "--label", "mood=json.mood:class", "--field", "group=json.who"]


def table(root: Path) -> list[str]:
    """Semicolons, UTF-16, intervals of one file, a row twice, one interval outside of the file."""
    film(root / "cafe\u0301.ts", gop=50, sound_codec="mp2")  # as a Mac writes the name
    rows = ["path;start;end;emotion;group", "caf\u00e9.ts;0.4;1.2;happy;1.0", "caf\u00e9.ts;1.2;2.0;sad;1.0"]
    rows += [rows[1], "caf\u00e9.ts;5;7;sad;2.0"]
    (root / "rows.csv").write_bytes("\r\n".join(rows).encode("utf-16"))
    return ["--table", str(root / "rows.csv"), "--label", "emotion:class"]


LAYOUTS = {
    "voxceleb2": ("voxceleb2", voxceleb2, 2, 0),
    "mosei": ("mosei", mosei, 2, 0),
    "meld": ("meld", meld, 4, 0),
    "caer": ("caer", caer, 3, 0),
    "archives": ("webdataset", tars, 4, 0),
    "Hugging Face": ("webdataset", hugging_face, 4, 0),
    "table": ("folder", table, 3, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_through_the_job(
    name: str, shared_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts add up; each stored clip begins with the picture of its interval, and with the sound that was heard with
    it; the check came first."""
    adapter, lay_out, found, bad = LAYOUTS[name]
    options = lay_out(tmp_path / "set")
    command = ["--adapter", adapter, "--source", str(tmp_path / "set"), "--output", str(tmp_path / "out"), *options]
    assert main([*command, "--sound", "wav", "--audio-length", "pad", "--faces", "keep"]) == (3 if bad else 0)
    told = capsys.readouterr().out
    assert told.index("clips") < told.index("clips/s")  # the set as understood, before any work
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["found"] == found and summary["written"] == found - bad
    assert summary["found"] == summary["written"] + sum(summary["quarantined"].values())
    manifest = ClipManifest.open(tmp_path / "out")
    assert manifest.rows == found - bad
    reader = ClipReader(manifest)
    for shard in range(len(manifest)):
        for clip in reader.clips(shard):
            interval = clip.info["source"]["interval"] or (0.0, PICTURES / 25)
            numbers = [number for _, number in shown(clip.video)]
            assert numbers == list(range(math.ceil(interval[0] * 25 - 1e-6), math.ceil(interval[1] * 25 - 1e-6)))
            assert clip.sound is not None and isinstance(clip.info["video"]["cuts"], list)
            samples, rate = read_wav(clip.sound)
            assert len(samples) / rate == pytest.approx(len(numbers) / 25, abs=0.021)
            for at in (0.1, 0.5):
                assert time_heard(samples, rate, at) == pytest.approx(numbers[0] / 25 + at, abs=0.03)


@pytest.mark.slow
def test_real_clips_and_a_rendered_corpus(shared_ray: None, real_data: Path, tmp_path: Path) -> None:
    """With faces; every clip that goes in comes out or is named, whatever the way with sound."""
    write_corpus(tmp_path / "corpus", CorpusConfig(speakers=3, takes=1))
    rendered = len(list((tmp_path / "corpus").rglob("*.mp4")))
    for source, count, table_of in (
        (real_data / "clips", 15, None),
        (tmp_path / "corpus", rendered, next((tmp_path / "corpus").glob("*.csv"), None)),
    ):
        for length in ("refuse", "pad", "cut"):
            out = tmp_path / f"{source.name}-{length}"
            command = ["--adapter", "folder", "--source", str(source), "--output", str(out), "--audio-length", length]
            assert main([*command, *([] if table_of is None else ["--table", str(table_of)]), "--quiet"]) == 0
            summary = json.loads((out / "summary.json").read_text())
            assert (summary["found"], summary["written"], summary["quarantined"]) == (count, count, {})
            assert summary["counts"]["with a face"] + summary["counts"].get("no face, whole frames", 0) == count
