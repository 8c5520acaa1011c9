"""Archives that other tools write, and archives that nobody should."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=False)
    return file.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def plain_members(count: int = 4, width: int = 3) -> list[tuple[str, bytes]]:
    """k0.a.npy, k0.cls, k1.a.npy, ..."""
    members = []
    for i in range(count):
        members += [(f"k{i}.a.npy", npy(np.full(width, i, np.float32))), (f"k{i}.cls", str(i % 2).encode())]
    return members
