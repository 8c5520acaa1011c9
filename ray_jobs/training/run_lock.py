"""One job at a time works in a run's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from conclugen.common.locks import folder_held


@contextlib.contextmanager
def held(folder: Path, doing: str = "the run is being trained", name: str = "run.name") -> Iterator[None]:
    """Hold a run's folder (made if it is not there) for one job.

    Args:
        folder: of a run, a sweep or an ablation.
        doing: what the holder does, for the message.
        name: field by which the user would choose another folder.

    Raises:
        FolderInUseError: it is held; says by which process, on which host, since when.
    """
    with folder_held(folder, doing, f"another {name}", keep=True):
        yield
