"""What features are pooled from: archives of one (T, width) array for each clip and encoder, to pool otherwise.

Plain tar: `<key>.<column>.npy`, in the order of the feature shard of the same name; `webdataset` and `tar` read it. Its
lengths differ, so the readers of feature shards, which rely on a fixed layout, take no part in it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from conclugen.common.atomic import atomic_file
from shards.layout import BLOCK, RECORD, padded, tar_header


def write_sequences(path: Path, clips: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> int:
    """Write (key, column -> array) of each clip; the archive appears whole or not at all. Returns its size in bytes."""
    with atomic_file(path) as file:
        size = 0
        for key, arrays in clips:
            for column, array in arrays.items():
                data = io.BytesIO()
                np.save(data, array, allow_pickle=False)
                content = data.getvalue()
                file.write(tar_header(f"{key}.{column}.npy", len(content)))
                file.write(content + bytes(padded(len(content)) - len(content)))
                size += BLOCK + padded(len(content))
        total = padded(size + 2 * BLOCK, RECORD)
        file.write(bytes(total - size))
    return total
