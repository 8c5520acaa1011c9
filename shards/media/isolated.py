"""Prepares clips in a process of its own, so that no file can hang, crash or fill the memory of the job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from shards.media.child import read_message, write_message
from shards.media.clock_verdicts import ClockVerdicts
from shards.media.limits import Limits, MediaError
from shards.media.prepare import Prepared, Request

DEFAULT_TIMEOUT = 300.0
DEFAULT_MEMORY = 6 << 30


class IsolatedPreparer:
    """Context manager; `prepare` as `shards.media.prepare.prepare`, in a child process that serves many clips.

    timeout: seconds for one clip, after which an alarm ends the child (MediaError `timeout`). memory: bytes of address
    space that the child may take, 0 for no limit (MediaError `too_many_bytes`). verdicts: a folder for what is found
    out about whole recordings, shared by all processes of a build (None: each finds out itself); reading them has an
    alarm of its own, by their size. A child that dies is `crashed`, and the next clip gets a new one. RuntimeError
    where no child can be started at all.
    """

    def __init__(self, timeout: float = DEFAULT_TIMEOUT, memory: int = DEFAULT_MEMORY, verdicts: Path | None = None):
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout!r}, expected a positive number of seconds")
        self._timeout, self._memory = timeout, memory
        self._clocks = ClockVerdicts(verdicts)
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def __enter__(self) -> IsolatedPreparer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def prepare(self, request: Request) -> Prepared:
        """The prepared clip; MediaError for one that can't be used."""
        for path in (request.audio, request.video):
            if path is not None:
                self._check_clock(path, request.limits)
        header, parts = self._ask({"request": replace(request, clocks_checked=True).to_dict()}, self._timeout)
        return Prepared(parts[0], parts[1] if len(parts) > 1 else None, header["details"])

    def look(self, path: str, sound_alone: bool, limits: Limits) -> dict[str, Any]:
        """What `shards.media.look.look` finds, as a mapping; MediaError for a file that can't be used."""
        header, _ = self._ask({"look": path, "sound_alone": sound_alone, "limits": limits.to_dict()}, self._timeout)
        details: dict[str, Any] = header["details"]
        return details

    def _check_clock(self, path: str, limits: Limits) -> None:
        def scan(seconds: float) -> bool:
            header, _ = self._ask({"clock": path, "limits": limits.to_dict()}, seconds)
            return bool(header["details"]["read"])

        self._clocks.check(path, self._timeout, scan)

    def _ask(self, question: dict[str, Any], timeout: float) -> tuple[dict[str, Any], list[bytes]]:
        """The child's answer within so many seconds."""
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            write_message(child.stdin, {**question, "timeout": timeout})  # type: ignore[arg-type]
            header, parts = read_message(child.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError):
            raise self._died(timeout) from None
        except BaseException:
            self._stop()  # half an answer may be under way
            raise
        if "reason" in header:
            raise MediaError(header["reason"], header["message"])
        return header, parts

    def _start(self) -> subprocess.Popen[bytes]:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        paths = [path for path in sys.path if path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *paths]), "OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(  # noqa: S603 - this interpreter, this package
            [sys.executable, "-m", "shards.media.child", str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self._child = child
        try:
            read_message(child.stdout)  # type: ignore[arg-type]
        except EOFError:
            child.wait()
            raise RuntimeError(f"the process that prepares clips does not start: {self._last_words()}") from None
        return child

    def _died(self, timeout: float) -> MediaError:
        assert self._child is not None
        code = self._child.wait()
        words = self._last_words()
        self._stop()
        if code == -signal.SIGALRM:
            return MediaError("timeout", f"not ready after {timeout:g} s")
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return MediaError("crashed", f"the decoding process ended with {how}{': ' + words if words else ''}")

    def _last_words(self) -> str:
        assert self._errors is not None
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2000))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _stop(self) -> None:
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            try:
                self._child.wait(1.0)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        if self._errors is not None:
            self._errors.close()
        self._child = self._errors = None
