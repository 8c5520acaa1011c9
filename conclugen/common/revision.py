"""Which state of a git clone a folder's files are of, asked of git itself."""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import tomllib
from pathlib import Path

from conclugen.common.plugins import OWN

CLONE = Path(__file__).resolve().parents[2] / "pyproject.toml"
"""Of the project, where this is a clone of it."""
_WITHIN_S = 20.0


def revision_of(folder: str | Path) -> str | None:
    """`<commit>`, or `<commit>-dirty` where tracked files differ from it; None where the folder is in no clone that
    tracks it (site-packages inside somebody's clone is not of that clone), or there is no git."""
    try:
        if not _git(folder, "ls-files", "--", ".").strip():
            return None
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no").strip() else commit
    except (OSError, subprocess.SubprocessError):
        return None


def running_revision() -> str:
    """Of the code that runs: that of its clone, or else the installed version."""
    return revision_of(Path(__file__).parent) or f"{OWN} {version()}"


def version() -> str:
    """Of the installed project, or of the clone."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(OWN)
    return str(tomllib.loads(CLONE.read_text("utf-8"))["project"]["version"])


def _git(folder: str | Path, *arguments: str) -> str:
    # Nothing that the clone's configuration names is run: no hooks, no file monitor.
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S, check=True)  # noqa: S603
    return done.stdout
