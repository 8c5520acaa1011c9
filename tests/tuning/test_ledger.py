"""The ledger survives what kills its writers, loses and mixes nothing of several, and names each result by what
decided it."""

import json
import math
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.ledger import Ledger, LedgerError, Record, record_key

_WRITER = """
import sys
from tuning.ledger import Ledger, Record
ledger = Ledger.open(sys.argv[1])
for number in range(int(sys.argv[3])):
    ledger.append(Record(f"{sys.argv[2]}-{number}", "trial", "finished", tags={"pad": "y" * 3000}))
    print(number, flush=True)
"""


def test_a_record_comes_back_as_it_was(tmp_path):
    ledger = Ledger.open(tmp_path)
    written = Record(
        "a1",
        "cell",
        "finished",
        configuration={"tasks": {"contrastive": None}, "modalities": ["video", "audio"], "lr": 2e-3},
        tags={"tasks": ["contrastive"], "seed": 1},
        metrics={"accuracy@0.03": 0.5, "loss": math.nan, "worst": -math.inf, "count": float(np.float32(0.25))},
        groups={"accuracy@0.03": {"7": 0.1, "ä ö": 0.9}},
        cost={"seconds": 1.5},
    )
    ledger.append(written)
    (found,) = Ledger.open(tmp_path).records()
    assert found.time > 1e9
    assert math.isnan(found.metrics["loss"]) and found.metrics["worst"] == -math.inf and found.metrics["count"] == 0.25
    assert found.metrics["accuracy@0.03"] == 0.5
    for name in ("key", "kind", "status", "configuration", "tags", "groups", "cost", "reason", "arrays"):
        assert getattr(found, name) == getattr(written, name)


@pytest.mark.parametrize("jump", [-3600.0, -1e9, 3600.0])
def test_the_later_record_counts_whatever_the_clock_does(tmp_path, monkeypatch, jump):
    """A cell that is run again after the clock was set back, by another process and by the same one."""
    clock = [1.8e9]
    monkeypatch.setattr("tuning.ledger.time.time", lambda: clock[0])
    first = Ledger.open(tmp_path)
    first.append(Record("a", "cell", "finished", metrics={"x": 1.0}))
    clock[0] += jump
    with Ledger.open(tmp_path) as second:
        second.append(Record("a", "cell", "finished", metrics={"x": 2.0}))
    (found,) = Ledger.open(tmp_path).records()
    assert found.metrics == {"x": 2.0}
    first.append(Record("b", "cell", "finished", metrics={"x": 1.0}))
    clock[0] += jump
    first.append(Record("b", "cell", "finished", metrics={"x": 2.0}))
    assert {record.key: record.metrics["x"] for record in Ledger.open(tmp_path).records()} == {"a": 2.0, "b": 2.0}
    assert [record.key for record in Ledger.open(tmp_path).history()].count("b") == 2


def test_a_torn_last_line_and_a_damaged_one_are_left_out_and_the_rest_is_read(tmp_path, caplog):
    with Ledger.open(tmp_path) as ledger:
        for number in range(3):
            ledger.append(Record(f"k{number}", "cell", "finished"))
    (path,) = (tmp_path / "ledger").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"key": 3}\n' + b"\x00\xff\n" + b"[]\n" + lines[1] + lines[2][: len(lines[2]) // 2])
    assert [record.key for record in Ledger.open(tmp_path).records()] == ["k0", "k1"]
    assert caplog.text.count("left out line") == 4
    # Whoever continues after the crash writes elsewhere: nothing is glued to the torn line.
    Ledger.open(tmp_path).append(Record("k2", "cell", "finished"))
    assert [record.key for record in Ledger.open(tmp_path).records()] == ["k0", "k1", "k2"]


def test_a_killed_writer_loses_nothing_it_had_reported(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path), "k", "100000"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    reported = -1
    while reported < 40:
        reported = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().splitlines()
    process.wait()
    complete = [int(line) for line in rest[:-1]] or [reported]
    keys = [record.key for record in Ledger.open(tmp_path).records()]
    assert keys[: complete[-1] + 1] == [f"k-{number}" for number in range(complete[-1] + 1)]


def test_several_processes_and_threads_lose_nothing(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), f"p{n}", "60"], stdout=subprocess.DEVNULL)
        for n in range(2)
    ]
    ledger = Ledger.open(tmp_path)

    def write(name: int) -> None:
        for number in range(60):
            ledger.append(Record(f"t{name}-{number}", "cell", "finished", tags={"pad": "z" * 3000}))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [writer.wait() for writer in writers] == [0, 0]
    expected = {f"{who}-{number}" for who in ("p0", "p1", "t0", "t1", "t2") for number in range(60)}
    assert {record.key for record in Ledger.open(tmp_path).records()} == expected
    assert len(list(Ledger.open(tmp_path).history())) == len(expected)


def test_a_finished_record_counts_whatever_failed_before_or_after(tmp_path):
    ledger = Ledger.open(tmp_path)
    ledger.append(Record("a", "cell", "failed", reason="first"))
    ledger.append(Record("b", "cell", "failed", reason="first"))
    ledger.append(Record("a", "cell", "finished", metrics={"x": 1}))
    ledger.append(Record("b", "cell", "failed", reason="second"))
    ledger.append(Record("a", "cell", "failed", reason="later"))
    assert [(r.key, r.status, r.reason) for r in ledger.records()] == [("a", "finished", ""), ("b", "failed", "second")]
    assert list(ledger.finished()) == ["a"]


def test_a_forked_process_writes_a_file_of_its_own(tmp_path):
    ledger = Ledger.open(tmp_path)
    ledger.append(Record("parent", "cell", "finished"))
    child = os.fork()
    if child == 0:
        ledger.append(Record("child", "cell", "finished"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    ledger.append(Record("parent2", "cell", "finished"))
    assert len(list((tmp_path / "ledger").iterdir())) == 2
    assert {record.key for record in ledger.records()} == {"parent", "child", "parent2"}


def test_arrays_lie_beside_and_stay_inside(tmp_path):
    ledger = Ledger.open(tmp_path)
    name = ledger.put_arrays("k", {"predicted/0.03": np.arange(6).reshape(2, 3)})
    record = Record("k", "cell", "finished", arrays=name)
    np.testing.assert_array_equal(ledger.arrays(record)["predicted/0.03"], [[0, 1, 2], [3, 4, 5]])
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["k.npz"]
    np.savez(tmp_path.parent / "outside.npz", x=np.zeros(1))
    for stray in ("../outside.npz", "predictions/none.npz"):
        with pytest.raises(LedgerError, match="not in this folder"):
            ledger.arrays(Record("k", "cell", "finished", arrays=stray))


def test_keys_follow_what_decides_a_result():
    base = {"lr": 0.001, "tasks": {"a": 1.0, "b": None}, "modalities": ["x", "y"]}
    key = record_key(base, dataset="d", seed=1, protocol="p")
    reordered = {"modalities": ("x", "y"), "tasks": {"b": None, "a": 1}, "lr": 1e-3}
    assert record_key(reordered, dataset="d", seed=1, protocol="p") == key
    others = [
        record_key(base | {"lr": 0.002}, dataset="d", seed=1, protocol="p"),
        record_key(base | {"modalities": ["y", "x"]}, dataset="d", seed=1, protocol="p"),
        record_key(base, dataset="e", seed=1, protocol="p"),
        record_key(base, dataset="d", seed=2, protocol="p"),
        record_key(base, dataset="d", seed=1, protocol="q"),
    ]
    assert len({key, *others}) == 6


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_any_plain_value_survives(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("any")
    Ledger.open(folder).append(Record("k", "cell", "finished", tags={"value": value}))
    (record,) = Ledger.open(folder).records()
    assert record.tags["value"] == value
    (line,) = next((folder / "ledger").iterdir()).read_text("utf-8").splitlines()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))


def test_refusals_say_what_to_change(tmp_path):
    with pytest.raises(LedgerError, match="output folder of an ablation or a sweep"):
        Ledger.open(tmp_path / "none", must_exist=True)
    assert Ledger.open(tmp_path / "none").records() == []
    with pytest.raises(ValueError, match=r"record.status: unknown value 'finishd' \(did you mean 'finished'\?\)"):
        Record("a", "cell", "finishd")
    with pytest.raises(LedgerError, match="without a reason"):
        Record("a", "cell", "failed")
    with pytest.raises(LedgerError, match="letters, digits"):
        Record("../a", "cell", "finished")


def test_arrays_behind_a_link_to_itself_are_not_there(tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "k.npz").symlink_to("k.npz")
    with pytest.raises(LedgerError, match=r"arrays 'predictions/k\.npz' of record k are not in this folder"):
        Ledger.open(tmp_path).arrays(Record("k", "cell", "finished", arrays="predictions/k.npz"))
