"""A picture of what the encoders will see: cropped faces of a few clips of each class, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conclugen.common.atomic import write_bytes
from conclugen.common.names import did_you_mean
from shards.clips.decode import decode_clip
from shards.clips.reader import ClipManifest, ClipReader
from shards.media.libraries import cv2

_SIDE, _MARGIN, _LINE = 112, 4, 18


def face_sheet(manifest: ClipManifest, label: str, path: Path, each: int = 6) -> int:
    """Write a PNG: a row for each class of `label`, in it the face (the whole frame where none was found) in the middle
    of up to `each` clips, of different groups as far as there are. Returns how many faces are shown.

    Raises ValueError for a label that is not a class label of the shards, ShardError and MediaError for damaged clips.
    """
    classes = {item.name: item.classes for item in manifest.schema.labels if item.kind == "class"}
    if label not in classes:
        raise ValueError(f"label {label!r} is not a class label of {manifest.folder}, {did_you_mean(label, classes)}")
    reader = ClipReader(manifest)
    chosen = _choose(reader, label, len(classes[label]), each)
    height = (_SIDE + _MARGIN + _LINE) * len(classes[label]) + _MARGIN
    sheet = np.full((height, (_SIDE + _MARGIN) * each + _MARGIN, 3), 255, np.uint8)
    for number, (name, places) in enumerate(zip(classes[label], chosen, strict=True)):
        top = number * (_SIDE + _MARGIN + _LINE)
        cv2.putText(sheet, name, (_MARGIN, top + _LINE - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        for column, (shard, row) in enumerate(places):
            left = _MARGIN + column * (_SIDE + _MARGIN)
            sheet[top + _LINE : top + _LINE + _SIDE, left : left + _SIDE] = _middle(reader, shard, row)
    _, data = cv2.imencode(".png", sheet[:, :, ::-1])
    write_bytes(path, data.tobytes())
    return sum(len(places) for places in chosen)


def _choose(reader: ClipReader, label: str, classes: int, each: int) -> list[list[tuple[int, int]]]:
    """For each class, (shard, row) of its clips: of groups that are not shown yet first."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(classes)]
    spare: list[list[tuple[int, int]]] = [[] for _ in range(classes)]
    groups: list[set[str | None]] = [set() for _ in range(classes)]
    names = next(item.classes for item in reader.manifest.schema.labels if item.name == label)
    for shard in range(len(reader.manifest)):
        table = reader.table(shard)
        values, of = table[f"label.{label}"].to_pylist(), table["group"].to_pylist()
        for row, (value, group) in enumerate(zip(values, of, strict=True)):
            if value is None or value == -1:
                continue
            c = names.index(value) if isinstance(value, str) else int(value)
            new = group not in groups[c]
            groups[c].add(group)
            (found if new else spare)[c].append((shard, row))
    return [(first + rest)[:each] for first, rest in zip(found, spare, strict=True)]


def _middle(reader: ClipReader, shard: int, row: int) -> np.ndarray:
    frames = decode_clip(reader.read(shard, row), (4,), (_SIDE, _SIDE), whole_frames=False)
    pixels = frames.frames[4].pixels
    middle: np.ndarray = pixels[len(pixels) // 2]
    return middle
