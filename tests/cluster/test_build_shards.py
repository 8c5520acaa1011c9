"""The job that builds clip shards, on a real local Ray: counts, quarantine, exit status, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_jobs.build_shards import main
from shards.clips.reader import ClipManifest, ClipReader
from tests.shards.media.make_media import make_sound, make_video, sine


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
    assert {(entry["key"], entry["reason"]) for entry in listed} == {
        ("01-01-02-01-01-01-01", "not_media"),
        ("01-01-03-01-01-01-02", "audio_length"),
    }
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
    assert "differs in schema, sound" in capsys.readouterr().err


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
    deadline = time.monotonic() + 120
    while not list(out.glob("reports/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = len(list(out.glob("reports/*.json")))
    assert 0 < done < 4 and not (out / "manifest.parquet").exists()
    assert main([*arguments(ravdess, out), "--allow-incomplete", "--quiet"]) == 3
    assert ClipManifest.open(out).digest == ClipManifest.open(tmp_path / "whole").digest
    assert json.loads((out / "summary.json").read_text())["resumed"] == done
