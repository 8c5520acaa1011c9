"""How jobs end that are told to stop: by real signals to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conclugen.common import ending

_JOB = """
import os, signal, sys, time
from dataclasses import dataclass
from conclugen.common import ending
from conclugen.common.options import Command

@dataclass(frozen=True)
class Job:
    '''Count.

    Attributes:
        upto: How far.
    '''
    upto: int = 600

def work(job):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does
    ending.retake()
    with ending.resumable(lambda: "1 of 2 are done; the same command goes on"):
        with ending.resumable(lambda: "outer"):
            pass
        try:
            print("ready", flush=True)
            time.sleep(job.upto)
        finally:
            began = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)  # a second signal leaves the end alone
            print(f"waits {ending.patience(60.0):g}, stopped {ending.stopped()}", flush=True)
    return 0

sys.exit(Command("job", Job, work).main())
"""


@pytest.mark.parametrize(
    ("number", "status", "how"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_job_in_words_and_status(number: signal.Signals, status: int, how: str) -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", _JOB], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    )
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    job.send_signal(number)
    out, error = job.communicate(timeout=60)
    assert out == f"waits {ending.GRACE_S:g}, stopped True\n"
    assert error == f"\n{how}: 1 of 2 are done; the same command goes on\n"
    assert job.returncode == status


def test_three_signals_end_a_job_at_once() -> None:
    script = (
        "import os, signal, time\nfrom conclugen.common import ending\nwith ending.stoppable():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        print('ready', flush=True)\n        time.sleep(60)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=_environment())
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 130


def test_handlers_are_given_back_and_what_was_ignored_stays_so() -> None:
    before = [signal.getsignal(number) for number in ending.SIGNALS]
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending.stoppable():
            os.kill(os.getpid(), signal.SIGINT)  # as a shell starts jobs in the background
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            assert ending.status() == 143
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert [signal.getsignal(number) for number in ending.SIGNALS] == before


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
