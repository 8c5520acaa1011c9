"""Prepares clips in a process of its own, so that no file can hang, crash or fill the memory of the job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

from shards.media.child import read_message, write_message
from shards.media.limits import MediaError
from shards.media.prepare import Prepared, Request

DEFAULT_TIMEOUT = 300.0
DEFAULT_MEMORY = 6 << 30


class IsolatedPreparer:
    """Context manager; `prepare` as `shards.media.prepare.prepare`, in a child process that serves many clips.

    timeout: seconds for one clip, after which an alarm ends the child (MediaError `timeout`). memory: bytes of address
    space that the child may take, 0 for no limit (MediaError `too_many_bytes`). A child that dies is `crashed`, and the
    next clip gets a new one. RuntimeError where no child can be started at all.
    """

    def __init__(self, timeout: float = DEFAULT_TIMEOUT, memory: int = DEFAULT_MEMORY):
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout!r}, expected a positive number of seconds")
        self._timeout, self._memory = timeout, memory
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
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            write_message(child.stdin, {"request": request.to_dict(), "timeout": self._timeout})  # type: ignore[arg-type]
            header, parts = read_message(child.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError):
            raise self._died() from None
        except BaseException:
            self._stop()  # half an answer may be under way
            raise
        if "reason" in header:
            raise MediaError(header["reason"], header["message"])
        return Prepared(parts[0], parts[1] if len(parts) > 1 else None, header["details"])

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

    def _died(self) -> MediaError:
        assert self._child is not None
        code = self._child.wait()
        words = self._last_words()
        self._stop()
        if code == -signal.SIGALRM:
            return MediaError("timeout", f"not ready after {self._timeout:g} s")
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
