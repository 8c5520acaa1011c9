"""Runs tests of one tree in a child of this process, which has the large libraries in memory already."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.campaigns.mutation.recording import TestRun

# Third parties only: the packages under test are imported by each child anew.
_LIBRARIES = ("pytest", "numpy", "torch", "scipy.stats", "sklearn.linear_model", "pyarrow.parquet", "pandas")
_LIBRARIES += ("hypothesis", "safetensors.torch", "h5py", "av", "cv2", "ray", "mlflow", "matplotlib", "optuna")


_OF_TREE = ("conclugen", "shards", "ray_jobs", "tuning")
# Imports all modules of the packages, and prints whatever else has been imported by then.
_LISTING = """
import contextlib, importlib, pathlib, sys
for path in sorted(path for package in sys.argv[1:] for path in pathlib.Path(package).rglob("*.py")):
    if path.stem != "__main__":
        with contextlib.suppress(Exception):
            importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
print(*(name for name in list(sys.modules) if name.split(".", 1)[0] not in sys.argv[1:]))
"""


def preload(tree: Path) -> None:
    """Import what takes longest, once: these, and all libraries that the packages of `tree` import. One thread each: a
    pool of threads would not be there in a child."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", _LISTING, *_OF_TREE]
    listed = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    for name in (*_LIBRARIES, *(name for name in listed.split() if name.split(".", 1)[0] not in ("__main__", "tests"))):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()


class _Reporter:
    """A pytest plugin: one line for each test as soon as it has ended. skipped: tests that are not run."""

    def __init__(self, path: Path, skipped: Collection[str]) -> None:
        self._path, self._state, self._skipped = path, {}, skipped  # type: ignore[var-annotated]

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid not in self._skipped]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._state = {"test": nodeid, "passed": True, "begin": time_now(), "call": 0.0, "cpu": _cpu()}

    def pytest_runtest_logreport(self, report: Any) -> None:
        state = self._state
        if report.when == "setup":
            state["call"] = time_now()
        state["passed"] &= not report.failed
        state["skipped"] = state.get("skipped", False) or report.skipped

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        state = self._state
        if state["skipped"]:
            return
        run = TestRun(nodeid, state["passed"], _cpu() - state["cpu"], state["begin"], state["call"], time_now())
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(run)) + "\n")


time_now = time.time  # tests replace the functions of `time`


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_tests(
    tree: Path, arguments: Sequence[str], *, work: Path, cpu_s: float, wall_s: float, skipped: Collection[str] = ()
) -> tuple[str, list[TestRun]]:
    """Runs pytest in `tree` and returns how it ended, "passed", "failed" or "timeout", and the tests that ended.

    Args:
        cpu_s: What one process may use; it does not depend on what else the machine does.
        wall_s: The end of a run that waits for something.
    """
    report = work / "report.jsonl"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = _child(tree, arguments, _Reporter(report, skipped), work / "output.txt", cpu_s)
        finally:
            os._exit(status)
    deadline = time.monotonic() + wall_s
    status = None
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        if status is None:
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    runs = []
    if report.exists():
        runs = [TestRun(**json.loads(line)) for line in report.read_text(encoding="utf-8").splitlines()]
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return "timeout", runs
    return ("passed" if os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 5) else "failed"), runs


def _child(tree: Path, arguments: Sequence[str], reporter: _Reporter, output: Path, cpu_s: float) -> int:
    import pytest

    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s) + 1, int(cpu_s) + 30))
    os.chdir(tree)
    here = str(Path(__file__).resolve().parents[3])
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", here))]
    os.environ["PYTHONPATH"] = str(tree)
    for name in [n for n in sys.modules if n.split(".", 1)[0] == "tests"]:
        del sys.modules[name]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(tree), "-m", "not slow"]
    return int(pytest.main([*options, *arguments], plugins=[reporter]))
