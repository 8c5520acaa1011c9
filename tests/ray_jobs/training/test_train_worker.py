"""What ranks decide together, and how a rank's failure is told: without a cluster."""

import itertools
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch

from conclugen.training.nan_guard import NonFiniteLossError
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal
from ray_jobs.training import failures
from ray_jobs.training.failures import Heartbeat, is_fatal
from ray_jobs.training.pretraining import progress
from ray_jobs.training.rank_meeting import RankMeeting
from ray_jobs.training.worker import Watch
from shards import CorruptSample, ShardError
from shards.errors import UNREADABLE, CorruptionError

REPOSITORY = Path(__file__).resolve().parents[3]


def watch(tmp_path: Path, rows: int = 1000, share: float = 0.003, restored: tuple[int, ...] = ()) -> Watch:
    def still_corrupt(samples: list[CorruptSample]) -> list[CorruptSample]:
        return [sample for sample in samples if sample.row not in restored]

    source: Any = SimpleNamespace(view=SimpleNamespace(rows=rows), reader=SimpleNamespace(still_corrupt=still_corrupt))
    job: Any = SimpleNamespace(
        data=SimpleNamespace(max_corrupt_share=share), pretrain=SimpleNamespace(global_batch=100)
    )
    return Watch(source, job, RunFolder(tmp_path))


def notes(*ranks: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {"corrupt": [asdict(CorruptSample("s", f"k{row}", row, "torn")) for row in rows], "leaving": []}
        for rows in ranks
    ]


def test_the_allowed_damage_is_a_share_of_the_whole_not_of_each_rank(tmp_path: Path) -> None:
    """3 of 1000 are borne: two ranks that met two each have met too many, unless two are the same."""
    seen = watch(tmp_path)
    assert not seen.judge(1, notes((1, 2), (2, 3)))
    assert not seen.judge(2, notes((), (1,)))
    with pytest.raises(
        CorruptionError, match=r"shard 's', sample 'k4': torn; 4 corrupt samples exceed the share 0.003 of"
    ):
        seen.judge(3, notes((), (4,)))


def test_damage_that_earlier_starts_met_counts(tmp_path: Path) -> None:
    for row in (1, 2, 3):
        RunFolder(tmp_path).quarantine(0).note(CorruptSample("s", f"k{row}", row, "torn"))
    assert not watch(tmp_path).judge(1, notes((1, 2, 3))), "met again they are not new"
    with pytest.raises(CorruptionError, match="4 corrupt samples"):
        watch(tmp_path).judge(1, notes((9,)))
    assert not watch(tmp_path, restored=(2,)).judge(1, notes((9,)))


def test_a_run_that_stopped_for_damage_stops_again_unless_it_is_restored(tmp_path: Path) -> None:
    """Also where what is left of the run would not meet these samples again."""
    for row in (1, 2, 3, 4):
        RunFolder(tmp_path).quarantine(row % 2).note(CorruptSample("s", f"k{row}", row, "torn"))
    with pytest.raises(CorruptionError, match="4 corrupt samples exceed"):
        watch(tmp_path).judge(1, notes((), ()))
    assert not watch(tmp_path, restored=(2, 4)).judge(1, notes((), ()))


def test_a_notice_wants_one_checkpoint_for_each_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(tmp_path)
    leaving = SimpleNamespace(preempted_node_ids=["a"])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    assert not seen.judge(1, [seen.note([])] * 2)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: leaving)
    assert seen.judge(2, [seen.note([])] * 2) and seen.leaving
    assert not seen.judge(3, [seen.note([])] * 2) and not seen.leaving
    leaving.preempted_node_ids = ["a", "b"]
    assert seen.judge(4, [seen.note([])] * 2)


def test_one_rank_meets_itself_soon_and_then_every_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    meeting, met = RankMeeting(0, 1, 1.0), []
    for step in range(1, 200):
        clock[0] += 0.1
        if meeting.due(step):
            assert meeting.hold(step, {"step": step}) == [{"step": step}]
            met.append(step)
    assert met[:2] == [1, 2] and {later - earlier for earlier, later in itertools.pairwise(met[1:])} == {20}


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (NonFiniteLossError(3, ["loss/contrastive"]), True),
        (CorruptionError("s", "too much"), True),
        (ShardError("s", "file s.tar is missing"), True),
        (ShardError("s", f"{UNREADABLE}: input/output error"), False),
        (ValueError("width"), True),
        (KeyError("x"), True),
        (OSError("no route to host"), False),
        (RuntimeError("connection closed by peer"), False),
        (MemoryError(), False),
    ],
)
def test_only_what_would_come_back_ends_a_run_at_once(error: Exception, fatal: bool) -> None:
    assert is_fatal(error) is fatal


def test_a_failure_is_told_with_rank_step_and_cause(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    with pytest.raises(ValueError, match="width"), Heartbeat(path, "now", 1, 2, 60) as heartbeat:
        heartbeat.beat(7)
        raise ValueError("width 3,\n expected 4")
    with pytest.raises(RuntimeError), Heartbeat(path, "now", 0, 2, 60) as heartbeat:
        heartbeat.beat(9)
        raise RuntimeError("connection closed by peer")
    with path.open("a") as file:
        file.write('{"torn')
    found = failures.read(path, "now")
    assert [failure.fatal for failure in found] == [True, False] and failures.read(path, "then") == []
    told = failures.describe(found, Exception("what Ray says"), 8)
    assert told == "rank 1 of 2, after step 7: ValueError: width 3, expected 4"
    assert failures.describe([], RuntimeError("lost\nmore"), 3) == "after step 3: RuntimeError: lost more"
    died: Any = RuntimeError("x\nThe actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR")
    died.worker_failures = {1: died}
    assert failures.describe([], died, 3) == "rank 1, after step 3: the process died: its worker process has died"


def test_beginnings_are_forgotten_and_failures_and_what_cannot_be_read_stay(tmp_path: Path) -> None:
    path, begun = tmp_path / "failures.jsonl", '{"attempt": "a", "rank": 0, "begun": "g"}\n'
    failures.forget_beginnings(path)
    for kept in ('{"attempt": "a", "rank": 0, "error": "E"}\n', '{"torn', "\xff\n", "[1]\n", "5\n"):
        path.write_text(begun + kept)
        failures.forget_beginnings(path)
        assert path.read_text() == begun + kept
    path.write_text(begun + begun)
    failures.forget_beginnings(path)
    assert not path.exists()


def test_a_failure_that_cannot_be_written_down_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder stands in the file's place here; most often it is a full disk."""
    with pytest.raises(RuntimeError), Heartbeat(tmp_path, "now", 1, 2, 60) as heartbeat:
        heartbeat.beat(7)
        raise RuntimeError("it broke")
    began, failed = capsys.readouterr().out.splitlines()
    assert began.startswith(f"warning: {tmp_path}: ") and began.endswith("; rank 1 began")
    assert failed.startswith(f"warning: {tmp_path}: ")
    assert failed.endswith("; rank 1 of 2, after step 7: RuntimeError: it broke")


def test_what_ranks_left_that_ray_stopped_by_itself_does_not_count(tmp_path: Path) -> None:
    """Ray makes another placement group within one attempt, for more workers or fewer; that one may die silently."""
    record: dict[str, Any] = {"attempt": "now", "world": 2, "error": "E", "fatal": True, "waited": True, "trace": ""}
    places = [(1, 0, "a"), (0, 9, "b"), (1, 9, "b")]
    made = [
        failures.Failure(rank=rank, step=step, message="lost", time=float(i), group=group, **record)
        for i, (rank, step, group) in enumerate(places)
    ]
    path = tmp_path / "failures.jsonl"
    lines = [json.dumps(asdict(failure)) + "\n" for failure in made]
    path.write_text("".join(lines))
    assert failures.read(path, "now") == made[1:]
    begun = [
        json.dumps({"attempt": name, "rank": 0, "begun": group}) + "\n" for name, group in (("now", "b"), ("x", "c"))
    ]
    path.write_text(lines[0] + begun[1])
    assert failures.read(path, "now") == made[:1], "another attempt's"
    path.write_text(lines[0] + begun[0])
    assert failures.read(path, "now") == []
    path.write_text(lines[0] + begun[0] + lines[1] + begun[0] + lines[2])
    assert failures.read(path, "now") == made[1:]


@pytest.mark.parametrize(("announced", "waited", "expected"), [(1, 1, True), (1, 0, False), (0, 1, False)])
def test_only_the_loss_of_a_rank_whose_end_was_announced_counts_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: int, waited: int, expected: bool
) -> None:
    def lost(*_: Any, **__: Any) -> None:
        raise RuntimeError("connection reset by peer")

    monkeypatch.setattr(torch.distributed, "all_gather", lost)
    meeting = RankMeeting(0, 1, 1.0)
    meeting._world, meeting._group = 2, object()  # as if there were another rank
    path = tmp_path / "failures.jsonl"
    with pytest.raises(RuntimeError), Heartbeat(path, "now", 0, 2, 60) as heartbeat:
        heartbeat.announced = bool(announced)
        if waited:
            meeting.hold(3, {})
        raise RuntimeError("out of memory")
    (failure,) = failures.read(path, "now")
    assert failure.waited is bool(waited) and failure.was_announced is expected


def test_an_interrupted_run_tells_its_steps_without_reading_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    folder: Any = SimpleNamespace(name="r", store=lambda _: SimpleNamespace(is_local=True, steps=lambda: [2, 4]))
    job: Any = SimpleNamespace(run=None)
    with Journal(path, experiment="e", name="r") as journal, Journal(path) as workers:
        assert progress(journal, folder, job, 9).startswith("run r: 0 of 9 steps were made")
        with pytest.raises(KeyboardInterrupt), journal.running():
            for step in range(1, 8):
                workers.metrics(step, {"loss": 1.0})
            raise KeyboardInterrupt
        monkeypatch.setattr("ray_jobs.tracking.journal.read_records", lambda *_: pytest.fail("read again"))
        assert progress(journal, folder, job, 9) == (
            "run r: 7 of 9 steps were made, the newest checkpoint is of step 4; the same command resumes there"
        )


STALLED = """
import sys, time
from pathlib import Path
from ray_jobs.training.failures import Heartbeat
def a_call_that_never_returns():
    time.sleep(600)
with Heartbeat(Path(sys.argv[1]), "now", 0, 1, 0.5) as heartbeat:
    heartbeat.beat(4)
    a_call_that_never_returns()
"""


def test_a_process_that_gets_nowhere_ends_and_says_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    done = subprocess.run([sys.executable, "-c", STALLED, str(path)], cwd=REPOSITORY, timeout=120)
    assert done.returncode == 1, "it did not sleep on"
    (failure,) = failures.read(path, "now")
    assert not failure.fatal and not failure.waited and failure.step == 4
    assert "no step was finished within 0.5 s" in str(failure) and "a_call_that_never_returns" in str(failure)


def test_ranks_that_only_waited_are_not_blamed_and_silent_ones_are() -> None:
    record: dict[str, Any] = {"attempt": "a", "world": 3, "step": 5, "error": "Stalled", "fatal": False, "trace": ""}
    waited = [failures.Failure(rank=r, message="it waited", waited=True, time=1.0, **record) for r in (0, 2)]
    assert failures.describe(waited, Exception(), 8).startswith(
        "rank 1 gave no sign of life, and rank 0 of 3, after step 5"
    )
