"""Measuring two states of the project in one run: an older one out of its repository, and processes that take orders.

A process stays and waits while others are measured, so that every round measures all of them in turns, and a change of
the machine's load meets each.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = "this code"  # its name in tables
_ENDS_WITHIN_S = 20.0


@contextlib.contextmanager
def older(commit: str | None) -> Iterator[Path | None]:
    """The files of that commit, in a folder that goes when the block ends; None for none."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="older-") as folder:
        tree = Path(folder) / "tree"
        environment = os.environ | {"GIT_INDEX_FILE": f"{folder}/index"}  # not the repository's own
        for words in (("read-tree", "--", commit), ("checkout-index", "--all", f"--prefix={tree}/")):
            command = ["git", "-C", str(ROOT), *words]
            done = subprocess.run(  # noqa: S603 - of this repository
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise ValueError(f"--beside {commit}: {done.stderr.strip()}")
        yield tree


class Child:
    """A process that runs a file with the code of `tree`, with one thread: it is asked with a line, and answers with
    one of JSON. The file imports of the project what both states have.

    about: for messages. before: makes the command that runs the words, elsewhere for instance.
    """

    def __init__(
        self,
        about: str,
        tree: Path,
        file: Path,
        told: Any,
        environment: Mapping[str, str] | None = None,
        before: Callable[[Sequence[str]], list[str]] = list,
    ) -> None:
        self._about = about
        words = [sys.executable, "-P", str(file), json.dumps(told)]
        own = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", **(environment or {})}
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, files of this package
            before(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | own, cwd=tree
        )

    def ask(self, line: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """OSError where the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"{self._about} ended with status {self._process.wait()}; its error is above")
        return json.loads(line)

    def close(self) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=_ENDS_WITHIN_S)
        self._process.kill()
        self._process.wait()
