"""One holder at a time, known by name; a holder that dies, however, leaves no lock; without kernel locks as well."""

import errno
import fcntl
import json
import logging
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from conclugen.common import locks
from conclugen.common.locks import Lock, LockHeldError, Owner

REPOSITORY = Path(__file__).resolve().parents[3]
HOLD = """
import errno, fcntl, sys, time
if len(sys.argv) > 2:
    def no_locks(*_):
        raise OSError(int(sys.argv[2]), 'no locks')
    fcntl.flock = no_locks
from conclugen.common.locks import Lock
with Lock(sys.argv[1]).held():
    print('held', flush=True)
    time.sleep(600)
"""


def hold(path: Path, *error: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", HOLD, str(path), *map(str, error)]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_told", set())


def test_the_second_is_refused_with_the_owner_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    before = time.time()
    child = hold(path)
    said = (
        rf"\.lock: held by process {child.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d; wait"
    )
    with pytest.raises(LockHeldError, match=said) as caught:
        Lock(path).acquire()
    owner = caught.value.owner
    assert owner is not None and owner.pid == child.pid and before - 1 < owner.since < time.time() + 1
    assert not owner.is_gone()
    end(child)
    assert owner.is_gone()
    first = Lock(path)
    with first.held():
        assert first.owner() is not None
        with pytest.raises(LockHeldError, match=f"process {os.getpid()} "):
            Lock(path).acquire()
    assert first.owner() is None
    first.release()
    with Lock(path).held():
        pass


def test_a_patient_second_waits_and_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_QUIET_S", 0.1)
    child = hold(tmp_path / "l")
    timer = threading.Timer(0.5, child.kill)
    timer.start()
    lock = Lock(tmp_path / "l")
    lock.acquire(math.inf)
    lock.release()
    timer.join()
    child.wait()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'l'}: waiting for process {child.pid} on {socket.gethostname()} since "
        + caplog.records[0].getMessage().rpartition("since ")[2]
    ]


def test_a_note_that_says_nothing_is_no_error(tmp_path: Path) -> None:
    child = hold(tmp_path / "l")
    for note in ("", "{}", "[" * 5000, '{"host": 1, "pid": null}', "\xff"):
        (tmp_path / "l").write_text(note)
        with pytest.raises(LockHeldError, match="held by another process; wait"):
            Lock(tmp_path / "l").acquire()
    end(child)


def test_a_lock_that_cannot_be_made_names_its_file(tmp_path: Path) -> None:
    with Lock(tmp_path / "new/folder/l").held():
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Lock(tmp_path / "file/l").acquire()


@pytest.mark.usefixtures("no_locks")
def test_without_kernel_locks_the_note_of_one_that_has_them_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".lock"
    child = hold(path)
    for _ in range(2):
        with pytest.raises(LockHeldError, match=rf"process {child.pid} .*if that process is gone, remove .*\.lock and"):
            Lock(path).acquire()
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1 and "this file system has no locks (No locks available)" in told[0].getMessage()
    end(child)
    with Lock(path).held(), pytest.raises(LockHeldError):
        Lock(path).acquire()
    with Lock(path).held():
        pass
    note = {"host": "elsewhere", "pid": 1, "began": "", "since": 0.0}
    path.write_text(json.dumps(note))
    with pytest.raises(LockHeldError, match=r"process 1 on elsewhere since 19\d\d-.*if that process is gone, remove"):
        Lock(path).acquire()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_two_without_kernel_locks_exclude_each_other(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    child = hold(tmp_path / "l", number)
    with pytest.raises(LockHeldError, match=f"process {child.pid} "):
        Lock(tmp_path / "l").acquire()
    end(child)
    with Lock(tmp_path / "l").held():
        pass


def test_a_process_number_that_is_used_again_is_no_owner() -> None:
    here = Owner.here()
    assert not here.is_gone()
    assert Owner(**{**asdict(here), "began": "another boot:1"}).is_gone()
    assert not Owner(**{**asdict(here), "began": ""}).is_gone()
    assert not Owner(**{**asdict(here), "host": "elsewhere", "pid": 2**22 - 1}).is_gone()


def _add(path: Path, times: int) -> None:
    lock = Lock(path.with_name("l"))
    for _ in range(times):
        lock.acquire(math.inf)
        path.write_text(str(int(path.read_text()) + 1))
        lock.release()


def test_no_count_is_lost_between_processes_and_threads(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add, args=(path, 10)) for _ in range(2)]
    workers += [threading.Thread(target=_add, args=(path, 10))]  # type: ignore[list-item]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert path.read_text() == "30"


@pytest.mark.usefixtures("no_locks")
def test_a_descriptor_is_locked_or_the_lack_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (tmp_path / "f").open("w") as file:
        for _ in range(2):
            with locks.descriptor_locked(file.fileno(), tmp_path / "f"):
                pass
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'f'}: this file system has no locks (No locks available); only one process may write here"
    ]


def test_a_locked_descriptor_keeps_others_out(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as file, (tmp_path / "f").open("w") as other:
        with locks.descriptor_locked(file.fileno(), tmp_path / "f"), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
