"""Commands of the project, stopped by a real signal at a chosen point of their work.

    with Stops(folder) as stops:
        whole = stops.run("pack", arguments)                              # whole.renames: how many files it renames
        ended = stops.run("pack", arguments, signal.SIGKILL, "rename", 3)  # before its third rename
        again = stops.run("pack", arguments)

Points: `work`: the command line is read, the work begins; `rename`, `remove`: before the n-th time that the main thread
renames (or removes) anything, which is where a job's files change; a path: before the main thread renames anything to
it. One process imports what commands need and forks for each of them, so a case costs its own work only.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

# What shards' commands import only when they work, and what Arrow does with its first array: half a second each time.
_OF_SHARDS = (
    "pandas",
    "shards.commands",
    "shards.packing.command",
    "shards.webdataset_import.command",
    "shards.webdataset_import.convert_pickle",
    "shards.verification.command",
    "shards.tools.check",
    "shards.tools.stats",
    "shards.planning.split",
)
_EVENTS = {"os.rename": "rename", "os.remove": "remove"}
_LETTERS = {"rename": b"n", "remove": b"d"}
_DRAWN = re.compile(r"[0-9a-f]{16}(?=\.(?:partial|replaced)$)|(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_REPOSITORY = Path(__file__).parents[1]


def plain(path: str | bytes | os.PathLike[str]) -> str:
    """A path without what is drawn anew for every temporary name, and on one line."""
    return _DRAWN.sub("*", str(Path(os.fsdecode(path)).absolute())).replace("\n", "?")


@dataclass(frozen=True)
class Ended:
    """How a command ended. status: of the process, negative for the signal that killed it; renames, removes: how many
    of them its main thread came to; targets: what it renamed to, in order."""

    status: int
    out: str
    error: str
    renames: int
    removes: int
    targets: tuple[str, ...] = ()


class Stops:
    """Args: folder: where the output of commands is kept; they run in it. environment: over this process's own.
    imports: modules beside those of shards' commands that are imported once for all commands."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, imports: Sequence[str] = ()) -> None:
        self._folder, self._imports = folder, imports
        self._environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY), **(environment or {})}

    def __enter__(self) -> Stops:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.stops", str(self._folder), *self._imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
            env=self._environment,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)

    def run(
        self,
        command: str,
        arguments: Sequence[object],
        number: signal.Signals | None = None,
        point: str = "",
        place: int = 1,
    ) -> Ended:
        """Run a command of `tests.jobs`; number: of the signal that it gets at a point."""
        assert self._server.stdin is not None and self._server.stdout is not None
        case = {"command": command, "arguments": [str(argument) for argument in arguments]}
        case |= {"signal": None if number is None else int(number), "point": point, "place": place}
        self._server.stdin.write(json.dumps(case) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        out, error, targets = (
            (self._folder / name).read_text(errors="replace") for name in ("stdout", "stderr", "targets")
        )
        return Ended(answer["status"], out, error, *answer["counts"], targets=tuple(targets.splitlines()))


def _serve(folder: Path, imports: Sequence[str]) -> None:
    for module in ("tests.jobs", *_OF_SHARDS, *imports):
        importlib.import_module(module)
    if "mlflow" in imports:
        from tests.mlflow_stores import copied

        stores = copied(folder / "store.db")
        next(stores)  # for all commands, as they are forked
    for line in sys.stdin:
        case = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _run(case, folder, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            data = pipe.read()
        _, state = os.waitpid(child, 0)
        counted = Counter(bytes([byte]).decode() for byte in data)
        answer = {"status": os.waitstatus_to_exitcode(state), "counts": [counted["n"], counted["d"]]}
        print(json.dumps(answer), flush=True)


def _run(case: Mapping[str, Any], folder: Path, counts: int) -> None:
    """In the child: never returns."""
    status = 70
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
            os.close(file)
        targets = os.open(folder / "targets", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.chdir(folder)
        from tests import jobs

        command = jobs.load(case["command"])
        seen: Counter[str] = Counter()

        def reached(point: str) -> None:
            seen[point] += 1
            if (point, seen[point]) == (case["point"], case["place"]) and case["signal"] is not None:
                os.kill(os.getpid(), case["signal"])

        def hook(event: str, given: tuple[Any, ...]) -> None:
            point = _EVENTS.get(event)
            if point is not None and threading.current_thread() is threading.main_thread():
                os.write(counts, _LETTERS[point])
                reached(point)
                if point == "rename":
                    target = plain(given[1])
                    os.write(targets, f"{target}\n".encode())
                    reached(target)

        work = command.work

        def begun(job: Any) -> int:
            reached("work")
            return work(job)

        object.__setattr__(command, "work", begun)
        sys.addaudithook(hook)
        status = command.main(case["arguments"])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 71
    finally:
        case = {**case, "signal": None}  # the command is over
        import atexit

        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2:])
