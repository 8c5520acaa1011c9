"""A run has one job at a time; a job that dies, however, leaves no lock behind."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.training import run_lock
from ray_jobs.training.run_lock import RunInUseError

REPOSITORY = Path(__file__).resolve().parents[3]
HOLD = "import sys, time; from pathlib import Path; from ray_jobs.training import run_lock\n"
HOLD += "with run_lock.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


def hold(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_a_second_job_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    child = hold(tmp_path / "run")
    with (
        pytest.raises(RunInUseError, match=rf"trained by process {child.pid} on {socket.gethostname()} since"),
        run_lock.held(tmp_path / "run"),
    ):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    with run_lock.held(tmp_path / "run"), pytest.raises(RunInUseError), run_lock.held(tmp_path / "run"):
        pass
    with run_lock.held(tmp_path / "run"):
        pass


def test_without_locks_the_note_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    child = hold(tmp_path)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(RunInUseError, match=f"process {child.pid}"), run_lock.held(tmp_path):
        pass
    child.kill()
    child.wait()
    with run_lock.held(tmp_path):
        pass
    note = {"host": "elsewhere", "pid": 1, "started": 0.0, "at": 0.0}
    (tmp_path / ".lock").write_text(json.dumps(note))
    with pytest.raises(RunInUseError, match=r"on elsewhere .*if that process is gone, remove .*\.lock"):
        run_lock.held(tmp_path).__enter__()
