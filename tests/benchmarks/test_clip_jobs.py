"""The bench of build and extraction: the loop does the jobs' work, the meter sees children, the table has all."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import clip_jobs as bench
from ray_jobs.extraction.plan import EncoderChoice, Extraction
from shards.clips.reader import ClipManifest, ClipReader
from tests.ray_jobs.extraction.extraction_loop import RANDOM, make_clips, make_plan, run_loop
from tests.shards.media.make_media import make_video


def test_the_plain_loop_gives_the_features_of_the_job(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 1, 4, pictures=25)
    run_loop(make_plan(clips, tmp_path / "job"))
    plan = Extraction.make(clips, tmp_path / "loop", [EncoderChoice(name) for name in RANDOM])
    plan.acquire()
    bench.loop_extract(plan)
    assert bench.largest_difference(tmp_path / "job", tmp_path / "loop") == 0
    other = make_clips(tmp_path / "others", 1, 3, pictures=25)
    run_loop(make_plan(other, tmp_path / "fewer"))
    with pytest.raises(ValueError, match="same clips"):
        bench.largest_difference(tmp_path / "job", tmp_path / "fewer")


def test_repeated_videos_are_clips_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "videos" / name, 10)
    assert bench.repeated(tmp_path / "videos", tmp_path / "many", 3) == 6
    bench.loop_build(bench.plan_build(tmp_path / "many", tmp_path / "clips", "what is said"))
    manifest = ClipManifest.open(tmp_path / "clips")
    assert manifest.rows == 6
    assert [clip.text for clip in ClipReader(manifest).clips(0)] == ["what is said"] * 6


def cpu_seconds() -> float:
    """Of this process and its children that have ended, as the kernel counts them."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def test_the_meter_counts_children_and_what_they_hold() -> None:
    program = "import time; x = bytearray(b'x') * (120 << 20); t = time.process_time()\n"
    program += "while time.process_time() - t < 0.7: pass\ntime.sleep(0.8)"
    before = cpu_seconds()
    with bench.Meter() as used:
        subprocess.run([sys.executable, "-c", program], check=True)
        began = time.process_time()
        while time.process_time() - began < 0.3:
            hashlib.sha256(bytes(1 << 16)).digest()
    assert used.seconds >= 1.8 and 1.0 <= used.cpu_seconds <= cpu_seconds() - before + 0.05, "each process once"
    assert used.peak_bytes > 120 << 20
    told = used.to_dict(10)
    assert told["clips_per_cpu_second"] == pytest.approx(10 / used.cpu_seconds)


def figures(**changed: float) -> dict[str, dict[str, dict[str, float]]]:
    rates = {"clips_per_second": 5.0, "clips_per_second_and_core": 1.25, "clips_per_cpu_second": 2.5}
    one = {"seconds": 2.0, "cpu_seconds": 4.0, "peak_mib": 1234.5, **rates, **changed}
    return {way: dict.fromkeys(bench.STAGES, one) for way in bench.WAYS}


def test_the_table_has_a_row_for_each_stage_and_way() -> None:
    lines = bench.table({bench.HERE: [figures()]}).splitlines()
    assert len(lines) == 2 + 4 and lines[2] == "| build | loop | 2.0 | 5.00 | 1.25 | 4.0 | 2.50 | 1,234 |"


def test_of_several_runs_medians_are_told_and_ratios_are_taken_within_a_round() -> None:
    ours = [figures(clips_per_second=rate, peak_mib=400) for rate in (3.0, 6.0, 30.0)]
    older = [figures(clips_per_second=rate, peak_mib=1000) for rate in (2.0, 3.0, 10.0)]
    runs = {bench.HERE: ours, "c21322d": older}
    lines = bench.table(runs).splitlines()
    assert len(lines) == 2 + 8 and "| 6.00 (3.00 to 30.00) |" in lines[2] and "| loop, c21322d |" in lines[4]
    said = bench.ratios(runs, "extract")
    assert said[0].startswith("extract, jobs beside the loop: 1.00 (1.00 to 1.00) of its clips/s")
    assert said[1].startswith("extract, jobs beside the loop of c21322d: 2.00 (1.50 to 3.00) of its clips/s")
    assert said[2].startswith("extract, jobs beside the jobs of c21322d: 0.40 (0.40 to 0.40) of their peak memory")


def test_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert bench.main([str(tmp_path), "--encoders", "randm"]) == 2
    assert "did you mean 'random'" in capsys.readouterr().err
    make_video(tmp_path / "a.mp4", 10)
    assert bench.main([str(tmp_path), "--encoders", "random", "--rounds", "0"]) == 2
    assert "rounds must be at least 1, got 0" in capsys.readouterr().err
    assert bench.main([str(tmp_path), "--encoders", "random", "--beside", "no-such-commit"]) == 2
    assert "--beside no-such-commit" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_ways_do_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole bench: the loop and the jobs in processes of their own, features compared."""
    (tmp_path / "videos").mkdir()
    for number in range(3):
        make_video(tmp_path / f"videos/{number}.mp4", 20)
    assert bench.main([str(tmp_path / "videos"), "--repeat", "4", "--encoders", "random", "--text", "a b"]) == 0
    said = capsys.readouterr().out
    assert "12 clips" in said and "between the two: 0.0e+00" in said and "extract, jobs beside the loop" in said
    assert said.count("| build |") == said.count("| extract |") == 2
