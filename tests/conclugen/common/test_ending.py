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
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
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
    with ending.resumable(lambda: "1 of 2 are done; the same command continues"):
        with ending.resumable(lambda: "outer"):
            pass
        try:
            print("ready", flush=True)
            time.sleep(job.upto)
        finally:
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
    assert error == f"\n{how}: 1 of 2 are done; the same command continues\n"
    assert job.returncode == status


def test_three_signals_end_a_job_at_once() -> None:
    script = (
        "import os, signal, time\nfrom conclugen.common import ending\nending.GRACE_S = 60\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\nwith ending.stoppable():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        print('ready', flush=True)\n        time.sleep(60)\n"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    )
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    _, error = job.communicate(timeout=60)
    assert job.returncode == 130 and error == "\nstopped at once: the third signal\n"


_DEAF = """
import ctypes, os, signal, threading
from conclugen.common import ending
signal.signal(signal.SIGINT, signal.default_int_handler)
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with ending.stoppable():
    threading.Timer(1.0, print, ("ready",), {"flush": True}).start()
    lock(mutex), lock(mutex)  # for ever, and no signal ends it
"""


def test_a_job_that_waits_in_a_library_s_code_says_that_it_was_told_and_ends_at_the_third() -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", _DEAF], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    )
    assert job.stdout is not None and job.stderr is not None and job.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        assert job.poll() is None
        job.send_signal(number)
        if number == signal.SIGINT:
            assert job.stderr.readline() == "\n"
            assert job.stderr.readline() == (
                "stopping as soon as what is under way returns; the third signal ends it at once\n"
            )
        time.sleep(0.2)
    assert job.communicate(timeout=60)[1] == "\nstopped at once: the third signal\n"
    assert job.returncode == 130


_FULL = """
import os, signal, sys
from dataclasses import dataclass
from conclugen.common import ending
from conclugen.common.options import Command, JobFailedError

@dataclass(frozen=True)
class Job:
    '''Count.'''

def words():
    if sys.argv[1] == "words":
        raise OSError(28, "No space left on device", "words")
    return "1 of 2 are done"

def work(job):
    with ending.resumable(words):
        try:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                if sys.argv[1] == "pipe":
                    sys.stdin.readline()  # the reader is gone
                    print("x" * 100_000, flush=True)
                elif sys.argv[1] == "disk":
                    raise OSError(28, "No space left on device", "journal")
        except OSError as error:
            raise JobFailedError("another") from error
    return 0

sys.exit(Command("job", Job, work).main([]))
"""


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("none", "terminated: 1 of 2 are done"),
        ("disk", "terminated: 1 of 2 are done (on the way out: JobFailedError: another)"),
        ("words", "terminated: nothing was finished; the same command starts over"),
        ("pipe", "terminated: 1 of 2 are done (on the way out: JobFailedError: another)"),
    ],
)
def test_an_error_on_the_way_out_hides_neither_status_nor_words(trouble: str, said: str) -> None:
    """As where `tee`, which read the output, was stopped by the same Ctrl-C."""
    job = subprocess.Popen(
        [sys.executable, "-c", _FULL, trouble],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    assert job.stdin is not None and job.stdout is not None and job.stderr is not None
    if trouble == "pipe":
        job.stdout.close()
    job.stdin.close()
    assert job.stderr.read() == f"\n{said}\n"
    job.stderr.close()
    assert job.wait(timeout=60) == 143


def test_whoever_reads_neither_output_nor_errors_still_gets_the_status() -> None:
    read, write = os.pipe()
    os.close(read)
    job = subprocess.Popen(
        [sys.executable, "-c", _FULL, "pipe"], stdin=subprocess.DEVNULL, stdout=write, stderr=write, env=_environment()
    )
    os.close(write)
    assert job.wait(timeout=60) == 143


def test_outside_of_a_job_and_where_a_signal_is_ignored_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that connects to Ray keeps its own interrupt."""
    before = [signal.getsignal(number) for number in ending.SIGNALS]
    ending.retake()
    assert [signal.getsignal(number) for number in ending.SIGNALS] == before
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending.stoppable():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
            ending.retake()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == ending._stop
        ending.retake()
        assert signal.getsignal(signal.SIGTERM) == before[1]
    finally:
        signal.signal(signal.SIGINT, ignored)


def test_a_signal_counts_again_where_the_first_was_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with ending.stoppable():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        now[0] += ending.GRACE_S + 0.1
        with pytest.raises(KeyboardInterrupt), ending.stoppable():  # of a job within: it knows what came
            signal.raise_signal(signal.SIGTERM)
        assert ending.stopped() and ending.status() == 143
    with ending.stoppable():
        assert not ending.stopped()
        with pytest.raises(ValueError, match=r"^as it is$"), ending.resumable(lambda: "never said"):
            raise ValueError("as it is")


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
