"""Paths that users give, as every working folder finds them: workers and submitted jobs have other ones."""

from __future__ import annotations

import os
from pathlib import Path


def absolute(place: str | Path, field: str) -> Path:
    """The absolute path of a file or folder, its `~` replaced; nothing need be there.

    field: who gave it, which begins a message. Raises ValueError for a path that names nothing: an empty one, a home
    folder of somebody whom this machine does not know, or text that no file system takes.
    """
    text = os.fspath(place)
    if not text or "\0" in text:
        raise ValueError(f"{field}: must name a file or folder, got {text!r}")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        home = Path(text).parts[0]
        raise ValueError(f"{field}: {text!r}: there is no home folder {home}; write the whole path") from None
