"""Benchmarks that make network namespaces leave none, nor a process in one, however they end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.beside import ROOT
from benchmarks.namespaces import Namespaces

# The benchmark as it is, but for what it does while its namespaces are up: it starts a process in one, tells of it, and
# waits. A shell that runs tests in the background has SIGINT ignored, and its children too.
_BENCHMARK = """
import contextlib, signal, subprocess, sys, time
from benchmarks import placement

signal.signal(signal.SIGINT, signal.default_int_handler)

@contextlib.contextmanager
def cluster(machines, folder, tree):
    command = machines.command(1, ["sleep", "600"])
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not subprocess.run(["ip", "netns", "pids", machines._machine(1)], capture_output=True).stdout.strip():
        time.sleep(0.01)
    print(machines._name, started.pid, flush=True)
    time.sleep(600)
    yield {}

placement.cluster = cluster
placement.write_shards = lambda *arguments: None
sys.exit(placement.main(["--rows", "512"]))
"""


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    """Skips where namespaces can't be made: they need root, `ip`, and a system that lets root make them."""
    try:
        with Namespaces(1):
            pass
    except OSError as refused:
        pytest.skip(f"no network namespaces here: {refused}")


def left(name: str) -> list[str]:
    """Namespaces and interfaces that bear this name."""
    listed = [["ip", "netns", "list"], ["ip", "-o", "link", "show"]]
    lines = [line for words in listed for line in subprocess.check_output(words, text=True).splitlines()]
    return [line for line in lines if f"{name}-" in line or f"{name}v" in line or f" {name}:" in line]


@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_a_benchmark_that_is_told_to_stop_takes_its_namespaces_back(number: signal.Signals, told: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _BENCHMARK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if len(words) != 2:
        pytest.fail(process.communicate(timeout=60)[1])
    name, inside = words
    try:
        assert len(left(name)) >= 7, "three namespaces, three cables and the bridge are up"
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 128 + number and f"benchmarks.placement: {told}" in error
        assert left(name) == []
        state = Path(f"/proc/{inside}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    finally:
        process.kill()
        process.communicate()
        machines = Namespaces(3)
        machines._name = name
        machines._remove()


def test_what_still_runs_in_a_namespace_ends_with_it() -> None:
    """Else it lives on without its name, and its cable with it, until that process ends."""
    with Namespaces(1) as machines:
        process = subprocess.Popen([*machines.command(0, ["sleep", "600"])], start_new_session=True)
        named = machines._machine(0)
        while str(process.pid) not in subprocess.check_output(["ip", "netns", "pids", named], text=True).split():
            assert process.poll() is None
    assert process.wait(60) == -signal.SIGKILL
