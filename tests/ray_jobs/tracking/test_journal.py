"""The journal: what is written is read back, once, through crashes, restarts and several writers."""

import errno
import fcntl
import json
import logging
import math
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_jobs.tracking.journal import (
    Journal,
    JournalError,
    flatten,
    metric_history,
    read_identity,
    read_records,
)


def open_journal(folder: Path, **kwargs: str) -> Journal:
    return Journal(folder / "journal.jsonl", experiment="exp", name="run", **kwargs)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]


def test_records_carry_consecutive_numbers_and_fixed_times(tmp_path):
    with open_journal(tmp_path, parent="p") as journal:
        journal.params({"model": {"width": 4}, "lr": 0.1})
        journal.metrics(1, {"loss": 2.5})
        journal.status("FINISHED")
    written = lines(tmp_path)
    assert [record["seq"] for record in written] == [0, 1, 2, 3]
    assert [record["kind"] for record in written] == ["run", "params", "metrics", "status"]
    assert written[0]["parent"] == "p" and len(written[0]["run_id"]) == 32
    assert written[1]["values"] == {"model.width": 4, "lr": 0.1}
    assert all(1_600_000_000_000 < record["time"] < 4_000_000_000_000 for record in written), "milliseconds since 1970"


def test_identity_survives_restarts_and_another_run_is_refused(tmp_path):
    with open_journal(tmp_path) as journal:
        identity = journal.identity
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.identity == identity == read_identity(journal.path)
    with pytest.raises(JournalError, match="journal of run 'run' in experiment 'exp', not of 'other'"):
        Journal(tmp_path / "journal.jsonl", experiment="exp", name="other")
    with pytest.raises(JournalError, match="no journal here yet"):
        Journal(tmp_path / "elsewhere" / "journal.jsonl")
    assert not (tmp_path / "elsewhere").exists()


def test_repeated_steps_are_written_once_per_series(tmp_path):
    with open_journal(tmp_path) as journal:
        assert [journal.metrics(step, {"loss": step}) for step in (0, 1, 2, 3)] == [True] * 4
        assert journal.metrics(3, {"loss": 0.0}, series="validation")
    with open_journal(tmp_path) as journal:  # resumed from a checkpoint at step 1
        assert journal.mark() == 3 and journal.mark("validation") == 3 and journal.mark("none") == -1
        assert [journal.metrics(step, {"loss": -1.0}) for step in (2, 3, 4)] == [False, False, True]
        assert not journal.metrics(3, {"loss": 9.0}, series="validation")
    assert metric_history(tmp_path / "journal.jsonl") == {
        "loss": [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, -1.0)],
        "validation/loss": [(3, 0.0)],
    }


def test_what_is_measured_again_in_another_way_is_written_and_repetitions_are_not(tmp_path):
    series = "evaluation/voices/emotion"
    with open_journal(tmp_path) as journal:
        assert journal.metrics(8, {"f1": 0.5, "best": float("nan")}, series, remeasured=True)
        assert not journal.metrics(8, {"f1": 0.5, "best": float("nan")}, series, remeasured=True)
        assert not journal.metrics(8, {"f1": 0.6}, series)
    with open_journal(tmp_path) as journal:
        assert not journal.metrics(8, {"f1": 0.5, "best": float("nan")}, series, remeasured=True)
        assert journal.metrics(8, {"f1": 0.6}, series, remeasured=True)
    assert metric_history(tmp_path / "journal.jsonl")[f"{series}/f1"] == [(8, 0.5), (8, 0.6)]


@pytest.mark.parametrize("keep", [0, 1, 20])
def test_a_line_torn_by_a_crash_is_cut_and_logged(tmp_path, caplog, keep):
    with open_journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
        whole = journal.path.read_bytes()
        journal.metrics(2, {"loss": 2.0})
        torn = journal.path.read_bytes()[: len(whole) + keep]
        journal.path.write_bytes(torn)
    with caplog.at_level(logging.WARNING), open_journal(tmp_path) as journal:
        assert journal.path.read_bytes() == whole
        assert journal.metrics(2, {"loss": 3.0}), "the torn step was never written, so it is new"
    assert ("cut" in caplog.text) == (keep > 0)
    assert [record["seq"] for record in lines(tmp_path)] == [0, 1, 2]


def test_a_torn_line_longer_than_the_repair_block_is_cut(tmp_path):
    with open_journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
        whole = journal.path.read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(whole + b"\0" * 200_000)
    open_journal(tmp_path).close()
    assert (tmp_path / "journal.jsonl").read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_skipped_with_its_place(tmp_path, caplog):
    with open_journal(tmp_path) as journal:
        start = journal.path.stat().st_size
        journal.metrics(1, {"loss": 1.0})
        journal.metrics(2, {"loss": 2.0})
    data = bytearray((tmp_path / "journal.jsonl").read_bytes())
    data[start] = 0
    (tmp_path / "journal.jsonl").write_bytes(data)
    assert [record["kind"] for record, _ in read_records(tmp_path / "journal.jsonl")] == ["run", "metrics"]
    assert f"byte {start}" in caplog.text


METRICS = b'{"seq":1,"time":5,"kind":"metrics","series":"train","step":1,"values":{"loss":1.0}}'


@pytest.mark.parametrize(
    "line",
    [
        METRICS.replace(b"series", b"serier"),
        METRICS.replace(b"values", b"valuer"),
        METRICS.replace(b'"step":1', b'"step":"1"'),
        METRICS.replace(b"1.0", b'"1,0"'),
        METRICS.replace(b"1.0", b"1" * 400),
        METRICS.replace(b"1.0", b"[1.0]"),
        METRICS.replace(b'{"loss":1.0}', b"7"),
        METRICS.replace(b'"train"', b"[]"),
        METRICS.replace(b"time", b"tile"),
        b'{"seq":1,"time":5,"kind":"status","statur":"FINISHED"}',
        b'{"seq":1,"time":5,"kind":["status"]}',
        b"[1]",
        b"[" * 100_000,
    ],
)
def test_a_damaged_record_that_is_still_json_is_skipped_too(tmp_path, caplog, line):
    """One flipped bit of a name does it; the run continues, and its other numbers are read."""
    with open_journal(tmp_path) as journal:
        start = journal.path.stat().st_size
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with open_journal(tmp_path) as journal:
        assert journal.metrics(2, {"loss": 2.0})
    assert metric_history(tmp_path / "journal.jsonl") == {"loss": [(2, 2.0)]}
    assert f"byte {start}" in caplog.text


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"seq": 0, "time": 1, "kind": "tags", "values": {}}\n')
    with pytest.raises(JournalError, match="not 'run'"):
        open_journal(tmp_path)


def test_a_journal_that_is_not_there_is_named(tmp_path):
    with pytest.raises(JournalError, match=r"nothing/journal.jsonl: no journal here yet"):
        read_identity(tmp_path / "nothing" / "journal.jsonl")


def test_a_journal_is_closed_behind_its_block_also_by_an_error(tmp_path):
    with pytest.raises(RuntimeError), open_journal(tmp_path) as journal:
        raise RuntimeError
    with pytest.raises(JournalError, match="the journal is closed"):
        journal.tags({"a": "b"})


def test_non_finite_numbers_stay_valid_json(tmp_path):
    values = {
        "nan": math.nan,
        "inf": math.inf,
        "minus": -math.inf,
        "torch": torch.tensor(1.5),
        "numpy": np.float32(0.25),
    }
    with open_journal(tmp_path) as journal:
        journal.metrics(1, values)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in (tmp_path / "journal.jsonl").read_bytes().splitlines():
        json.loads(line, parse_constant=refuse)
    [read] = [record["values"] for record, _ in read_records(tmp_path / "journal.jsonl") if record["kind"] == "metrics"]
    assert math.isnan(read["nan"])
    assert (read["inf"], read["minus"], read["torch"], read["numpy"]) == (math.inf, -math.inf, 1.5, 0.25)


def test_reader_tails_from_an_offset_and_leaves_incomplete_lines(tmp_path):
    with open_journal(tmp_path) as journal:
        offset = [next_offset for _, next_offset in read_records(journal.path)][-1]
        journal.metrics(1, {"loss": 1.0})
        with journal.path.open("ab") as file:
            file.write(b'{"seq": 2, "ti')
        tail = list(read_records(journal.path, offset))
        assert [record["step"] for record, _ in tail] == [1]
        assert list(read_records(journal.path, tail[-1][1])) == []


def test_unchanged_params_tags_and_status_are_not_repeated(tmp_path):
    for _ in range(2):
        with open_journal(tmp_path) as journal:
            journal.params({"a": 1, "deep": {"b": (1, 2)}, "nan": math.nan})
            journal.tags({"digest": "x"})
            journal.status("RUNNING")
    with open_journal(tmp_path) as journal:
        journal.params({"a": 1, "deep": {"b": (1, 3)}})
    kinds = [record["kind"] for record in lines(tmp_path)]
    assert kinds == ["run", "params", "tags", "status", "params"]
    assert lines(tmp_path)[-1]["values"] == {"deep.b": "[1, 3]"}


@pytest.mark.parametrize(("error", "ended"), [(KeyboardInterrupt(), "KILLED"), (ValueError("bad data"), "FAILED")])
def test_a_full_disk_does_not_hide_how_a_run_ended(tmp_path, monkeypatch, caplog, error, ended):
    tried = []

    def full(status):
        tried.append(status)
        raise OSError(28, "No space left on device")

    with open_journal(tmp_path) as journal:
        with pytest.raises(type(error)) as raised, journal.running():
            monkeypatch.setattr(journal, "status", full)
            raise error
        assert raised.value is error and tried == [ended]
        assert "the run's end could not be written ([Errno 28] No space left on device)" in caplog.text
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"), journal.running():  # finished, and not to be said
            monkeypatch.setattr(journal, "status", full)


def test_a_record_that_the_disk_took_half_of_is_taken_back(tmp_path, monkeypatch, caplog):
    """At once, so that no reader waits for its end, and what comes next is not cut as the trace of a crash."""
    with open_journal(tmp_path) as journal:
        journal.metrics(0, {"loss": 1.0})
        before, write = journal.path.read_bytes(), os.write

        def half(file, data):
            monkeypatch.setattr(os, "write", full)
            return write(file, data[: len(data) // 2])

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left"):
            journal.metrics(1, {"loss": 0.5})
        assert journal.path.read_bytes() == before
        monkeypatch.undo()
        journal.metrics(1, {"loss": 0.25})
    assert [record["values"] for record in lines(tmp_path)[-2:]] == [{"loss": 1.0}, {"loss": 0.25}]
    assert [record["seq"] for record in lines(tmp_path)] == list(range(len(lines(tmp_path)))) and not caplog.text


def test_unknown_status_names_the_allowed_ones(tmp_path):
    with (
        open_journal(tmp_path) as journal,
        pytest.raises(ValueError, match="RUNNING, FINISHED, FAILED, KILLED"),
    ):
        journal.status("DONE")


def test_artifacts_are_named_inside_the_run_s_folder_and_refused_outside(tmp_path):
    with open_journal(tmp_path / "run") as journal:
        journal.artifact(tmp_path / "run" / "plots", "plots")
        with pytest.raises(JournalError, match=r"outside.txt lies outside the run's folder .*copy it there"):
            journal.artifact(tmp_path / "outside.txt")
        (tmp_path / "run" / "link").symlink_to(tmp_path / "outside.txt")
        with pytest.raises(JournalError, match="lies outside"):
            journal.model(tmp_path / "run" / "link")
        journal.model(tmp_path / "run" / "m", registered_name="n")
    assert [record["path"] for record in lines(tmp_path / "run")[1:]] == ["plots", "m"]


@pytest.mark.parametrize("field", ["run_id", "parent"])
@pytest.mark.parametrize("value", ["a' OR tags.`x` != '", "../up", "", 7, ["a"], "a" * 65])
def test_an_id_that_could_be_part_of_a_query_is_refused(tmp_path, field, value):
    record = {"seq": 0, "time": 1, "kind": "run", "run_id": "ab", "experiment": "e", "name": "n", "parent": None}
    (tmp_path / "journal.jsonl").write_text(json.dumps(record | {field: value}) + "\n")
    with pytest.raises(JournalError):
        read_identity(tmp_path / "journal.jsonl")


def test_flatten_keeps_scalars_and_names_the_rest():
    assert flatten({"a": {"b": {"c": None}}, "l": [1, "x"], "t": True, "e": {}, "p": Path("/x")}) == {
        "a.b.c": None,
        "l": '[1, "x"]',
        "t": True,
        "e": "{}",
        "p": '"/x"',
    }


def write_steps(path: str, first: int) -> None:
    with Journal(path) as journal:
        for step in range(first, 200, 2):
            journal.metrics(step, {f"loss{first}": step}, series=f"writer{first}")
            journal.metrics(step, {"shared": first}, series="shared")


def test_two_processes_write_without_loss_or_repetition(tmp_path):
    open_journal(tmp_path).close()
    path = str(tmp_path / "journal.jsonl")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_steps, args=(path, first)) for first in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    written = lines(tmp_path)
    assert [record["seq"] for record in written] == list(range(len(written)))
    for first in (0, 1):
        assert [r["step"] for r in written if r.get("series") == f"writer{first}"] == list(range(first, 200, 2))
    shared = [record["step"] for record in written if record.get("series") == "shared"]
    assert shared == sorted(set(shared)) and shared[-1] >= 198


def test_a_writer_waits_while_another_process_is_at_the_file(tmp_path, monkeypatch):
    """Another process writes step 5 while ours is about to: ours waits for its end, reads, and leaves step 5 out. The
    other one's lock is a shared one here: only an exclusive lock waits for it."""
    waiting, flock = threading.Event(), fcntl.flock

    def watched(file, operation):
        if operation != fcntl.LOCK_UN:
            waiting.set()
        flock(file, operation)

    with open_journal(tmp_path) as journal, ThreadPoolExecutor(1) as pool, journal.path.open("ab") as other:
        flock(other, fcntl.LOCK_SH)
        monkeypatch.setattr(fcntl, "flock", watched)
        ours = pool.submit(journal.metrics, 5, {"loss": 1.0})
        while not (waiting.wait(0.01) or ours.done()):
            pass
        record = {"seq": 1, "time": 1_700_000_000_000, "kind": "metrics", "series": "train", "step": 5}
        other.write(json.dumps({**record, "values": {"loss": 2.0}}).encode() + b"\n")
        other.flush()
        flock(other, fcntl.LOCK_UN)
        assert ours.result() is False, "the step is in the journal already"
        assert journal.metrics(6, {"loss": 3.0})
    written = lines(tmp_path)
    assert [record["seq"] for record in written] == [0, 1, 2]
    assert metric_history(tmp_path / "journal.jsonl") == {"loss": [(5, 2.0), (6, 3.0)]}


def test_a_closed_journal_refuses_records(tmp_path):
    journal = open_journal(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.metrics(1, {"loss": 1.0})
