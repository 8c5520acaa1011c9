"""A run has one job at a time; a job that dies, however, leaves no lock behind (more: tests/conclugen/common)."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conclugen.common.locks import FolderInUseError
from ray_jobs.training import run_lock

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
        pytest.raises(
            FolderInUseError,
            match=rf"run: the run is being trained by process {child.pid} on {socket.gethostname()} since \S+ \S+; "
            "wait for its end, stop it, or choose another run.name",
        ),
        run_lock.held(tmp_path / "run"),
    ):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    with run_lock.held(tmp_path / "run"), pytest.raises(FolderInUseError), run_lock.held(tmp_path / "run"):
        pass
    with run_lock.held(tmp_path / "run"):
        pass
