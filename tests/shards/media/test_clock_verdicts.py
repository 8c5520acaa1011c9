"""A large recording is read for its clock once for a whole build, whoever asks, and with an alarm of its own."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from shards.adapters import read_clips
from shards.clips.build import build_shard
from shards.clips.plan import CLOCKS, BuildOptions, BuildPlan
from shards.media import clock_verdicts
from shards.media.clock_verdicts import ClockVerdicts
from shards.media.isolated import IsolatedPreparer
from shards.media.limits import MediaError
from shards.media.prepare import Request
from tests.shards.media.timed_media import Recipe, make, steady


class Scan:
    """Counts how often a file was read, and finds what it is told to."""

    def __init__(self, found: MediaError | None = None, reads: bool = True) -> None:
        self.found, self.reads, self.times, self.seconds = found, reads, 0, 0.0

    def __call__(self, seconds: float) -> bool:
        self.times, self.seconds = self.times + 1, seconds
        if self.found is not None:
            raise self.found
        return self.reads


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(clock_verdicts, "_LARGE", 8)
    (tmp_path / "a.ts").write_bytes(bytes(10))
    return str(tmp_path / "a.ts")


def asked(verdicts: ClockVerdicts, path: str, scan: Scan) -> str | None:
    try:
        verdicts.check(path, 1.0, scan)
    except MediaError as error:
        return f"{error.reason}: {error}"
    return None


@pytest.mark.parametrize("found", [None, MediaError("clock_jumps", "back")])
def test_one_reading_for_all_processes(found: MediaError | None, path: str, tmp_path: Path) -> None:
    scan, folder = Scan(found), tmp_path / "clocks"
    answers = {asked(ClockVerdicts(folder), path, scan) for _ in range(3)}
    assert answers == {None if found is None else "clock_jumps: back"} and scan.times == 1
    (kept,) = folder.iterdir()  # no lock stays
    assert kept.suffix == ".json" and str(tmp_path) not in kept.read_text()
    # Of another time, of another size, and spoilt: read anew.
    os.utime(path, (1, 1))
    asked(ClockVerdicts(folder), path, scan)
    Path(path).write_bytes(bytes(11))
    asked(ClockVerdicts(folder), path, scan)
    for number, spoilt in enumerate(("reason", "message", "tries", "seconds", None), 4):
        (file,) = folder.iterdir()
        file.write_text('{"size"' if spoilt is None else json.dumps({**json.loads(file.read_text()), spoilt: [1]}))
        assert asked(ClockVerdicts(folder), path, scan) in answers and scan.times == number


@pytest.mark.parametrize("found", [None, MediaError("clock_jumps", "back"), MediaError("timeout", "not ready")])
def test_verdicts_of_another_rule_are_not_believed(
    found: MediaError | None, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one from before rules had a number; nor do its tries count."""
    scan, folder = Scan(found), tmp_path / "clocks"
    for _ in range(2):
        asked(ClockVerdicts(folder), path, scan)
    scan.found, times = None, scan.times
    with monkeypatch.context() as patched:
        patched.setattr(clock_verdicts, "RULE", clock_verdicts.RULE + 1)
        assert asked(ClockVerdicts(folder), path, scan) is None and scan.times == times + 1
        assert asked(ClockVerdicts(folder), path, scan) is None and scan.times == times + 1
    assert asked(ClockVerdicts(folder), path, scan) is None and scan.times == times + 2
    (file,) = folder.iterdir()
    file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "rule"}))
    assert asked(ClockVerdicts(folder), path, scan) is None and scan.times == times + 3


def test_who_comes_meanwhile_waits(path: str, tmp_path: Path) -> None:
    reads, going, go_on = Scan(), threading.Event(), threading.Event()

    def slow(seconds: float) -> bool:
        going.set()
        assert go_on.wait(10)
        return reads(seconds)

    first = threading.Thread(target=ClockVerdicts(tmp_path / "clocks").check, args=(path, 10.0, slow))
    first.start()
    assert going.wait(10)
    second = threading.Thread(target=ClockVerdicts(tmp_path / "clocks").check, args=(path, 10.0, reads))
    second.start()
    second.join(0.2)
    assert second.is_alive() and not reads.times
    go_on.set()
    first.join(10)
    second.join(10)
    assert reads.times == 1


@pytest.mark.parametrize("reason", ["timeout", "crashed", "too_many_bytes"])
def test_a_reading_that_does_not_end_is_tried_twice_in_a_build(reason: str, path: str, tmp_path: Path) -> None:
    """Not again for the next interval; once more for the next shard; then by one that has more seconds alone."""
    scan, folder = Scan(MediaError(reason, "as it was")), tmp_path / "clocks"
    told = f"{reason}: the reading of its clock did not end: as it was (tried %d of 2 times)"
    for shard, tries in enumerate((1, 2, 2, 2)):
        verdicts = ClockVerdicts(folder)
        assert {asked(verdicts, path, scan) for _ in range(3)} == {told % tries}, shard
        assert scan.times == tries and [file.suffix for file in folder.iterdir()] == [".json"]
    scan.found = None
    assert asked(ClockVerdicts(folder), path, scan) == told % 2  # with no more time than before
    ClockVerdicts(folder).check(path, 1.5, scan)
    assert scan.times == 3 and scan.seconds == pytest.approx(1.5, abs=1e-5)
    assert asked(ClockVerdicts(folder), path, scan) is None and scan.times == 3


def test_a_second_reading_that_ends_is_the_verdict(path: str, tmp_path: Path) -> None:
    scan, folder = Scan(MediaError("timeout", "not ready")), tmp_path / "clocks"
    assert asked(ClockVerdicts(folder), path, scan) is not None
    scan.found = MediaError("clock_jumps", "back")
    assert {asked(ClockVerdicts(folder), path, scan) for _ in range(3)} == {"clock_jumps: back"} and scan.times == 2


def test_other_refusals_are_found_anew_by_each_process(path: str, tmp_path: Path) -> None:
    """They come at once, and may pass: a recording whose disk was away."""
    scan, folder = Scan(MediaError("unreadable", "away")), tmp_path / "clocks"
    assert {asked(ClockVerdicts(folder), path, scan) for _ in range(3)} == {"unreadable: away"}
    assert scan.times == 3 and not list(folder.iterdir())


@pytest.mark.parametrize("found", [None, MediaError("clock_jumps", "back")])
@pytest.mark.parametrize("fault", ["a file in its place", "a folder in the lock's place", "read-only", "full"])
def test_a_folder_that_cannot_be_used_is_gone_without(
    fault: str, found: MediaError | None, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Told once for all shards; each reads the recording once."""
    folder, scan = tmp_path / "clocks", Scan(found)

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def read_only(*given: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    if fault == "a file in its place":
        folder.write_text("mine")
    elif fault == "full":
        monkeypatch.setattr(clock_verdicts, "write_json", full)
    elif fault == "read-only":
        folder.mkdir()
        monkeypatch.setattr(clock_verdicts.Lock, "acquire", read_only)
    else:
        asked(ClockVerdicts(folder), path, Scan())
        (file,) = folder.iterdir()
        file.unlink()
        file.with_suffix(".lock").mkdir()
    expected = None if found is None else "clock_jumps: back"
    for shard in (1, 2):
        verdicts = ClockVerdicts(folder)
        assert {asked(verdicts, path, scan) for _ in range(3)} == {expected} and scan.times == shard
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith(f"{folder}: ") and "each shard reads large ones again" in told


def test_small_files_leave_nothing(tmp_path: Path) -> None:
    scan, file = Scan(), tmp_path / "a.ts"
    file.write_bytes(b"x")
    verdicts = ClockVerdicts(tmp_path / "clocks")
    assert {asked(verdicts, str(file), scan) for _ in range(3)} == {None}
    assert scan.times == 1 and not (tmp_path / "clocks").exists()


def test_a_format_that_leaves_nothing_to_read_leaves_nothing(path: str, tmp_path: Path) -> None:
    """However large: it is opened once for a shard, and no verdict on it is kept."""
    scan, folder = Scan(reads=False), tmp_path / "clocks"
    for shard in (1, 2):
        verdicts = ClockVerdicts(folder)
        assert {asked(verdicts, path, scan) for _ in range(3)} == {None} and scan.times == shard
    assert not list(folder.iterdir())


def test_the_alarm_grows_with_the_file_and_is_not_the_clip_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 GB at 4 MB a second on top of a clip's time; the clip keeps its own."""
    with (tmp_path / "a.ts").open("wb") as file:
        file.truncate(20_000_000_000)
    questions: list[tuple[str, float]] = []

    def answer(self: IsolatedPreparer, question: dict[str, Any], timeout: float) -> tuple[dict[str, Any], list[bytes]]:
        if "request" in question:
            assert question["request"]["clocks_checked"]
        questions.append((next(iter(question)), timeout))
        return {"details": {"read": True}}, [b"video"]

    monkeypatch.setattr(IsolatedPreparer, "_ask", answer)
    with IsolatedPreparer(timeout=300) as preparer:
        for start in (1.0, 2.0):
            preparer.prepare(Request(str(tmp_path / "a.ts"), None, start, start + 1))
    assert questions == [("clock", 5300.0), ("request", 300), ("request", 300)]


def test_a_build_keeps_verdicts_on_what_it_had_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By real readings: of a transport stream and a live Matroska one, not of files whose index comes first."""
    monkeypatch.setattr(clock_verdicts, "_LARGE", 1)
    kept: dict[str, int] = {}
    muxers: dict[str, dict[str, str]] = {"a.ts": {}, "a.mp4": {}, "a.mkv": {}, "live.mkv": {"live": "1"}}
    for number, (name, muxer) in enumerate(muxers.items()):
        make(tmp_path / name, Recipe(steady(25), codec="mpeg2video", muxer=muxer))
        with IsolatedPreparer(verdicts=tmp_path / f"clocks-{number}") as preparer:
            assert preparer.prepare(Request(str(tmp_path / name), faces=False)).video
        kept[name] = len(list((tmp_path / f"clocks-{number}").iterdir()))
    assert kept == {"a.ts": 1, "a.mp4": 0, "a.mkv": 0, "live.mkv": 1}


def test_a_build_reads_a_recording_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards of one joined recording: the second goes by what the first one found."""
    monkeypatch.setattr(clock_verdicts, "_LARGE", 1)
    source = tmp_path / "source"
    source.mkdir()
    make(source / "a.ts", Recipe(steady(75), codec="mpeg2video"))
    (source / "a.ts").write_bytes((source / "a.ts").read_bytes() * 2)
    table = source / "clips.csv"
    table.write_text("path,start,end\na.ts,0,1\na.ts,1,2\n")
    plan = BuildPlan.make(
        read_clips("folder", source, table=table), tmp_path / "out", BuildOptions(clips_per_shard=1, faces="off")
    )
    plan.acquire()
    first = build_shard(plan.tasks[0])
    assert [item["reason"] for item in first.quarantined] == ["clock_jumps"]
    (kept,) = (tmp_path / "out" / CLOCKS).iterdir()
    verdict = json.loads(kept.read_text())
    assert verdict["message"] == first.quarantined[0]["message"]
    kept.write_text(json.dumps({**verdict, "message": "as the first shard found"}))
    second = build_shard(plan.tasks[1])
    assert [item["message"] for item in second.quarantined] == ["as the first shard found"]
    plan.acquire()
    other = BuildPlan.make(read_clips("folder", source, table=table), tmp_path / "out", BuildOptions(faces="off"))
    for left in ("0a.lock", "0a.lock.marker", ".0a.json.00000000000000ff.partial"):  # by a build that was killed
        (tmp_path / "out" / CLOCKS / left).touch()
    other.acquire(overwrite=True)
    assert not list((tmp_path / "out" / CLOCKS).iterdir())
