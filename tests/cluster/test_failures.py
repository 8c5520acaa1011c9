"""Faults injected into runs on a Ray with exactly enough CPUs; and how runs end that cannot continue.

`python -m tests.campaigns.faults` injects them many times.
"""

import os
import random
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from conclugen.common.locks import folder_held
from ray_jobs import pretrain as pretrain_job
from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.pretrain import pretrain
from ray_jobs.run_config import PretrainJob
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import metric_history, read_records
from ray_jobs.training import pretraining
from ray_jobs.training.failures import RunFailedError
from ray_jobs.training.pretraining import PretrainResult
from shards import Manifest, View
from tests.campaigns.faults import (
    FAULTS,
    ON_NODES,
    PAYLOADS,
    Bench,
    Nodes,
    Payload,
    kill_controller,
    one_after_another,
    start,
)
from tests.cluster import trace
from tests.cluster.runs import small_job, with_run
from tests.cluster.trace import Plan

# No test here is of use without the run that nothing disturbs.
pytestmark = pytest.mark.usefixtures("reference")


@pytest.mark.timeout(900)
def test_a_run_meets_one_fault_after_another(bench: Bench) -> None:
    """The same samples in the same steps, the same weights bit for bit, one tracked run without holes or repeats.

    A worker's SIGKILL; a full disk; the Train controller's SIGKILL, with a checkpoint half written in its place;
    storage that fails two times of three; the job's SIGKILL in the middle of a checkpoint's write; a rank that hangs.
    """
    run = bench.run_of("night")
    plans = [
        Plan("kill", step=9, rank=1, pace_s=0.05),
        Plan("full", step=11, until=16),
        Plan("torn", step=18, waits=True),
        Plan("flaky", step=24),
        Plan("cut", step=25, waits=True),
        Plan("hang", step=38, rank=1, stall_s=3.0),  # beyond 35, where the write that stands still is waited for
    ]
    torn, cut = 2, 4
    trace.give(run, *plans)
    first = start(bench, "night")
    bench.met("night", torn, first)
    kill_controller()
    met = bench.met("night", cut, first)
    first.kill()
    first.wait()
    pretrain(bench.job("night"), trace.train)

    assert all(trace.inflicted(run, number).is_file() for number in range(len(plans)))
    seen = trace.compare(run, bench.run_of("reference"), met)
    assert (seen.lost, seen.doubled) == (0, 0) and seen.starts == 5
    assert bench.difference(run) == 0 and bench.is_tracked(run)


@pytest.mark.timeout(900)
def test_a_run_loses_one_node_after_another(bench: Bench, nodes: Nodes) -> None:
    """Taken away after a notice, with another in its place; dead for good, and one worker continues: the same samples
    in the same steps, weights to 1e-8, one tracked run without holes or repeats.

    The one that was announced is not counted as a failure.
    """
    run = bench.run_of("nodes")
    acts = [
        (5, lambda: nodes.take_away(5, trace.node_of(run, 1))),
        (20, lambda: nodes.lose(trace.node_of(run, 0))),
    ]
    plans = [Plan(until=14, pace_s=1.0), Plan(pace_s=0.1)]  # steps of the first 5 s of notice, and of the others
    job = {"min_workers": 1, "cpus_per_worker": nodes.cpus, "checkpoint_every": 15, "max_failures": 1}
    met = one_after_another(bench, "nodes", acts, plans, **job)

    seen = trace.compare(run, bench.run_of("reference"), met[0])
    assert (seen.lost, seen.doubled) == (0, 0)
    starts = trace.starts(run)
    assert [start.world for start in starts] == [2, 2, 1]
    noticed = starts[1].first - 1
    assert met[0][1] <= noticed < 15, "the notice led to a checkpoint, before the next one was due"
    assert noticed <= starts[2].first - 1
    assert bench.difference(run) <= 1e-8 and bench.is_tracked(run)


@pytest.fixture
def nodes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Two nodes for the workers, each of which wants three CPUs where the shared Ray's own node has two; and one more
    that takes the place of the first that goes."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    nodes = Nodes(cpus=3, count=3)
    yield nodes
    nodes.close()


_BY_THEMSELVES = [fault for fault in FAULTS if fault not in ON_NODES]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fault", "payload"),
    [
        pytest.param(*case, marks=() if 1 <= number < len(PAYLOADS) else pytest.mark.campaign)
        for number, case in enumerate(zip(_BY_THEMSELVES, cycle(PAYLOADS), strict=False))
    ],
)
def test_a_run_ends_as_if_nothing_had_happened(bench: Bench, fault: str, payload: Payload) -> None:
    """Each fault by itself, at a step that its name decides; rows come in each way to two of the runs. In the slow run
    one of each way that the first test, which meets all of these faults, does not have."""
    outcome = bench.inject(fault, random.Random(fault), payload)
    assert outcome.survived, outcome


def statuses(folder: RunFolder) -> list[str]:
    return [record["status"] for record, _ in read_records(folder.journal) if record["kind"] == "status"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_error_that_would_come_back_ends_a_run_at_once_and_another_number_of_workers_goes_on(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """In mid-epoch with two workers, then with one: the samples of the run without fault, weights to 1e-8."""
    run = bench.run_of("another")
    job = bench.job("another", keep_checkpoints=1, keep_by="validation/effective_rank/video", keep_order="min")
    folder = RunFolder(run)
    Plan("invalid", step=31, rank=1).give(run)
    with pytest.raises(RunFailedError, match=r"^rank 1 of 2, after step 30: ValueError: a fault that would come back$"):
        pretrain(job, trace.train)
    assert len({record["attempt"] for record in trace.read_trace(run)}) == 1, "no second attempt"
    assert trace.last_step(run) <= 32, "the other rank waited for a step at most"
    assert folder.store(job.run).steps()[0] == 28, "the last good checkpoint stays"
    assert statuses(folder) == ["RUNNING", "FAILED"]
    Plan().give(run)
    pretrain(with_run(job, workers=1), trace.train)
    seen = trace.compare(run, bench.run_of("reference"), (time.time(), 31))
    assert (seen.lost, seen.doubled, seen.starts) == (0, 0, 2)
    assert bench.difference(run) <= 1e-8 and bench.is_tracked(run)
    out = capsys.readouterr().out
    assert f"step {bench.steps}/{bench.steps}" in out and f"validation at step {bench.steps}" in out
    check_kept_are_the_best_and_the_newest(folder, job, range(7, bench.steps + 1, 7))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_single_precision_another_number_of_workers_makes_the_same_steps(bench: Bench) -> None:
    """Weights drift apart there, for AdamW divides rounding noise by its own size: the same samples, and every step's
    loss within 1e-4 of that of the run that nothing ended."""

    def job(name: str, workers: int) -> PretrainJob:
        made = with_run(bench.job(name), workers=workers)
        return replace(made, pretrain=replace(made.pretrain, precision="float32"))

    pretrain(job("single", 2), trace.train)
    run = bench.run_of("single-another")
    Plan("invalid", step=31, rank=1).give(run)
    with pytest.raises(RunFailedError, match="after step 30"):
        pretrain(job("single-another", 2), trace.train)
    Plan().give(run)
    pretrain(job("single-another", 1), trace.train)

    seen = trace.compare(run, bench.run_of("single"), (time.time(), 31))
    assert (seen.lost, seen.doubled, seen.starts) == (0, 0, 2)
    here, there = (np.array(metric_history(r / "journal.jsonl")["loss"]) for r in (run, bench.run_of("single")))
    assert np.array_equal(here[:, 0], there[:, 0]) and len(here) == bench.steps
    assert np.abs(here[:, 1] / there[:, 1] - 1).max() <= 1e-4
    assert not np.array_equal(here[:, 1], there[:, 1]), "another order of sums"


def check_kept_are_the_best_and_the_newest(folder: RunFolder, job: PretrainJob, made: Sequence[int]) -> None:
    """`keep_checkpoints` is 1 and `keep_order` "min": over all attempts, and with another number of workers.

    made: steps of the checkpoints there were to choose from.
    """
    assert job.run.keep_by is not None
    measure = job.run.keep_by.removeprefix("validation/")
    history = [r for r, _ in read_records(folder.journal) if r["kind"] == "metrics" and r["series"] == "validation"]
    values = {record["step"]: record["values"][measure] for record in history}
    assert sorted(values) == [0, *range(7, made[-1] + 1, 7)]  # before the first step, and at each checkpoint
    assert folder.store(job.run).steps() == sorted({made[-1], min(made, key=values.__getitem__)}, reverse=True)


def test_the_newest_three_checkpoints_are_kept(bench: Bench) -> None:
    steps = CheckpointStore(bench.run_of("reference") / "checkpoints").steps()
    assert steps == [bench.steps, bench.steps - 7, bench.steps - 14]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_uneven_data_ends_with_rank_and_step(bench: Bench) -> None:
    """Whoever still waits for the rank whose data ended is not waited for."""
    job = with_run(bench.job("uneven"), stall_timeout_s=3600.0)
    Plan("end", step=9, rank=1).give(bench.run_of("uneven"))
    with pytest.raises(RunFailedError, match=r"^rank 1 of 2, after step 9: ValueError: the data ended after step 9 of"):
        pretrain(job, trace.train)


def test_a_stopped_job_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which signal, and with which status, is `tests/conclugen/common/test_ending.py`'s."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining.trainer, "fit", stopped)
    with pytest.raises(KeyboardInterrupt) as stop:
        pretrain(bench.job("stopped"))
    assert statuses(RunFolder(bench.run_of("stopped"))) == ["RUNNING", "KILLED"]
    (said,) = stop.value.__notes__
    assert re.fullmatch(
        r"run stopped: 0 of \d+ steps were made, and no checkpoint yet; the same command resumes there", said
    )


def test_a_second_job_under_the_name_is_refused_while_the_first_trains(bench: Bench) -> None:
    run = bench.run_of("reference")
    before = (run / "journal.jsonl").read_bytes()
    with (
        folder_held(run, "it is being tested", "another folder"),
        pytest.raises(ValueError, match=rf"being trained by process {os.getpid()} on"),
    ):
        pretrain(bench.job("reference"))
    assert (run / "journal.jsonl").read_bytes() == before


def test_a_finished_run_is_left_alone(bench: Bench, reference: PretrainResult) -> None:
    before = metric_history(reference.folder.journal)
    again = pretrain(bench.job("reference"))
    assert (again.step, again.mlflow_run_id) == (reference.step, reference.mlflow_run_id)
    assert metric_history(again.folder.journal) == before


def test_another_run_of_the_name_is_refused_and_leaves_the_run_as_it_is(bench: Bench) -> None:
    run, job = bench.run_of("reference"), bench.job("reference")
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*")) if path.name != ".lock"}
    with pytest.raises(ValueError, match=rf"is already at step {bench.steps}, but pretrain.epochs=1 ends at step 21"):
        pretrain(replace(job, pretrain=replace(job.pretrain, epochs=1)))
    with pytest.raises(ValueError, match="seed: 127 then, 128 now"):
        pretrain(replace(job, pretrain=replace(job.pretrain, seed=128)))
    after = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*")) if path.name != ".lock"}
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "told"),
    [("hang", r"rank 1 of 2, .*no step.*it is in trace\.py:\d+ inflict"), ("stop", r"rank 1 gave no sign")],
)
def test_a_worker_that_says_nothing_ends_the_run_in_time(bench: Bench, action: str, told: str) -> None:
    job = with_run(bench.job(action), stall_timeout_s=30.0, max_failures=0)
    Plan(action, step=9, rank=1).give(bench.run_of(action))
    with pytest.raises(RunFailedError, match=told):
        pretrain(job, trace.train)


def damage(shards: Path, rows: list[int]) -> None:
    """Flip a bit in the payload of these samples."""
    manifest = Manifest.open(str(shards))
    for row in rows:
        shard = int(np.searchsorted(manifest.rows_before, row, side="right")) - 1
        entry = manifest.entry(shard)
        with (shards / f"{entry.name}.tar").open("r+b") as file:
            at = (row - int(manifest.rows_before[shard])) * entry.stride + 645
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))


def training_rows(shards: Path) -> list[int]:
    manifest = Manifest.open(str(shards))
    view = View.open(manifest, "train")
    starts = [int(before) for before in manifest.rows_before]
    return [starts[shard] + int(i) for shard in range(len(view.counts)) for i in view.indices(shard)]


def with_share(job: PretrainJob, share: float) -> PretrainJob:
    return replace(job, data=replace(job.data, max_corrupt_share=share))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_longer_run_leaves_damage_out_by_name_and_too_much_ends_it_at_once(
    bench: Bench, reference: PretrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run continues for an epoch, on data that were damaged since, as a disk does it: with two workers, whom
    too much damage ends, as any error does that would come back; then with one, without the corrupt samples.

    One tracked run, each step once; kept are the best checkpoint and the newest, over all attempts.
    """
    mine = tmp_path / "shards"
    shutil.copytree(bench.shards, mine)
    rows = training_rows(mine)
    broken = rows[:: len(rows) // 4][:4]
    damage(mine, broken)
    job = small_job(mine, tmp_path, "reference", workers=2, epochs=3)
    job = with_run(
        job,
        max_failures=3,
        tracking_uri=bench.tracking_uri,
        keep_checkpoints=1,
        keep_by="validation/effective_rank/video",
        keep_order="min",
    )
    folder = RunFolder(tmp_path / "reference")
    shutil.copytree(reference.folder.path, folder.path)
    kept = folder.store(job.run).steps()

    with pytest.raises(
        RunFailedError, match=r"CorruptionError: shard '.*', sample '.*'.*4 corrupt samples exceed"
    ) as told:
        pretrain(with_share(job, 3 / len(rows)), trace.train)
    assert len({record["attempt"] for record in trace.read_trace(folder.path)}) == 1, "no second attempt"
    assert bench.steps <= folder.store(job.run).steps()[0] <= 56, "no checkpoint at the end"
    assert statuses(folder)[-2:] == ["RUNNING", "FAILED"]

    result = pretrain(with_run(with_share(job, 4 / len(rows)), workers=1), trace.train)
    assert (result.step, result.mlflow_run_id) == (63, reference.mlflow_run_id)
    assert [step for step, _ in metric_history(folder.journal)["loss"]] == list(range(1, 64))
    out = capsys.readouterr().out
    assert "step 63/63" in out and "validation at step 63" in out
    check_kept_are_the_best_and_the_newest(folder, job, sorted({*kept, *range(bench.steps, 64, 7)}))

    found = folder.quarantined()
    assert [sample.row for sample in found] == broken and all("checksum" in sample.reason for sample in found)
    manifest = Manifest.open(str(mine))
    for sample in found:
        shard = int(np.searchsorted(manifest.rows_before, sample.row, side="right")) - 1
        assert manifest.entry(shard).name == sample.shard
    assert any(repr(sample.key) in str(told.value) for sample in found)
    absent = {row for record in trace.read_trace(folder.path) for row in record["absent"]}
    assert absent - {-1} <= set(broken) and absent & set(broken), "kept out, and only they"


def test_the_job_says_how_a_run_failed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(job: PretrainJob) -> None:
        raise RunFailedError("rank 1 of 2, after step 9: it broke")

    monkeypatch.setattr(pretrain_job, "pretrain", fails)
    assert pretrain_job.main(["--data", "/nowhere", "--run", "x"]) == 1
    assert capsys.readouterr().err == "error: rank 1 of 2, after step 9: it broke\n"


def test_progress_is_told_with_the_time_left() -> None:
    from ray_jobs.training.progress import training_line

    values = {"loss": 2.5, "loss/contrastive": 2.0, "step_seconds": 30.0, "samples_per_second": 1234.0}
    line = training_line(40, 200, {**values, "data_wait_share": 0.02})
    assert "step  40/200" in line and "loss 2.5" in line and "contrastive 2" in line and "1,234 samples/s" in line
    assert "left 01:20:00" in line, "160 steps of 30 s"
    assert "left 00:00:00" in training_line(200, 200, {**values, "data_wait_share": 0.02})
    assert "left 27:46:40" in training_line(0, 100_000, {**values, "step_seconds": 1.0, "data_wait_share": 0.02})
