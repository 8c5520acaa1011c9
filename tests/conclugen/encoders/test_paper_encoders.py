"""The paper's encoders: shapes, preprocessing and pooling beside slow obvious versions; weights from files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from conclugen import encoders
from conclugen.encoders import resdavenet, resnet3d, resnet152, weights
from conclugen.encoders.encoder import EncoderInfo, Takes, to_pixels
from conclugen.encoders.weights import Published, WeightsError

Network = TypeVar("Network", bound=nn.Module)


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_pixels_are_torchvisions(empty_hub: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    for mean, std in ((resnet152.MEAN, resnet152.STD), (resnet3d.MEAN, resnet3d.STD)):
        theirs = torch.stack([Compose([ToTensor(), Normalize(mean, std)])(frame) for frame in frames])
        torch.testing.assert_close(to_pixels(frames, torch.device("cpu"), torch.float32, mean, std), theirs)


def test_statistics_are_the_weights_own() -> None:
    from torchvision.models import ResNet152_Weights
    from torchvision.models.video import R3D_18_Weights

    image = ResNet152_Weights.IMAGENET1K_V2.transforms()
    assert (tuple(image.mean), tuple(image.std)) == (resnet152.MEAN, resnet152.STD)
    video = R3D_18_Weights.KINETICS400_V1.transforms()
    assert (tuple(video.mean), tuple(video.std)) == (resnet3d.MEAN, resnet3d.STD)


def _drawn(network: Network) -> Network:
    """Weights drawn by fan-in, so that no signal dies on the way."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            fan = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan) ** 0.5
    return network


def test_windows_of_16_the_last_one_shorter() -> None:
    assert resnet3d.windows(40) == [(0, 16), (16, 32), (32, 40)]
    assert resnet3d.windows(5) == [(0, 5)] and resnet3d.windows(16) == [(0, 16)]


def test_3d_features_are_the_mean_over_windows_of_the_network() -> None:
    """Beside one pass for each window; a small network of the same blocks, for time."""
    network = _drawn(resnet3d.ResNet3D((1, 1)))
    takes = Takes("frames", 16.0, (24, 24))
    about = {"preprocessing": "", "source": "", "licence": "", "digest": ""}
    info = EncoderInfo(name="small", modality="video", column="video_3d", width=512, takes=takes, **about)
    encoder = resnet3d.ResNet3D101(info, network, "cpu", chunk=2)
    rng = np.random.default_rng(1)
    clips = [rng.integers(0, 256, (n, 24, 24, 3), dtype=np.uint8) for n in (40, 5, 16)]
    sequences = encoder.encode_sequence(clips)
    assert [len(sequence) for sequence in sequences] == [3, 1, 1]
    mean, std = torch.tensor(resnet3d.MEAN), torch.tensor(resnet3d.STD)
    for clip, sequence, pooled in zip(clips, sequences, encoder.encode(clips), strict=True):
        slow = []
        for start in range(0, len(clip), 16):
            x = (torch.from_numpy(clip[start : start + 16]) / 255 - mean) / std
            with torch.inference_mode():
                slow.append(network(x.permute(3, 0, 1, 2)[None])[0].numpy())
        np.testing.assert_allclose(sequence, np.stack(slow), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(pooled, np.mean(slow, axis=0), rtol=1e-4, atol=1e-5)


def test_the_3d_network_is_resnet_101_inflated() -> None:
    """Tensor by tensor the shapes of torchvision's ResNet-101, kernels repeated over time; 85.2 M parameters with its
    classifier of 400 (Hara et al. 2018)."""
    from torchvision.models import resnet101

    with torch.device("meta"):
        flat, solid = resnet101().state_dict(), resnet3d.ResNet3D().state_dict()
    flat = {name: tuple(x.shape) for name, x in flat.items() if not name.startswith("fc.")}
    assert set(flat) == set(solid)
    for name, shape in flat.items():
        assert tuple(solid[name].shape) == (shape if len(shape) != 4 else (*shape[:2], shape[2], *shape[2:])), name
    with torch.device("meta"):
        count = sum(x.numel() for x in resnet3d.ResNet3D().parameters()) + 2048 * 400 + 400
    assert 85.0e6 < count < 86.5e6


def test_16_frames_become_one_step() -> None:
    with torch.device("meta"):
        network = resnet3d.ResNet3D()
        x = network.maxpool(network.conv1(torch.empty(1, 3, 16, 180, 180)))
        assert x.shape == (1, 64, 8, 45, 45)
        for name, shape in (("layer1", (8, 45)), ("layer2", (4, 23)), ("layer3", (2, 12)), ("layer4", (1, 6))):
            x = getattr(network, name)(x)
            assert x.shape[2:4] == shape, name
        assert network(torch.empty(2, 3, 5, 180, 180)).shape == (2, 2048)


def test_davenet_leaves_six_rows_and_averages_them() -> None:
    network = _drawn(resdavenet.ResDavenet()).eval()
    encoder = resdavenet.ResDavenetEncoder(resdavenet._info(""), network, "cpu", 1)
    mel = np.random.default_rng(2).uniform(0, 1, (128, 101)).astype(np.float32)
    with torch.inference_mode():
        x = network.bn1(network.conv1(torch.from_numpy(mel)[None, None])).relu()
        x = network.layer4(network.layer3(network.layer2(network.layer1(x))))
    assert x.shape == (1, 1024, 6, 7)  # as published: 128 bands leave 6 rows; 101 steps through four strides of 2
    (sequence,) = encoder.encode_sequence([mel])
    np.testing.assert_allclose(sequence, x[0].mean(dim=1).T.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.encode([mel])[0], x.mean(dim=(2, 3))[0].numpy(), rtol=1e-4, atol=1e-5)
    network.batchnorm1.weight.data.fill_(100.0)  # exists, is never applied
    np.testing.assert_array_equal(encoder.encode_sequence([mel])[0], sequence)
    for bad in (mel[:40], mel[:, :0], np.full_like(mel, np.nan)):
        with pytest.raises(encoders.InputError, match="expected"):
            encoder.encode([bad])


def test_weights_from_a_file_and_from_a_mirror(empty_hub: Path) -> None:
    network = _drawn(resdavenet.ResDavenet())
    tensors = {f"module.{name}": x for name, x in network.state_dict().items() if "num_batches" not in name}
    torch.save(tensors, empty_hub / "davenet.pth")
    save_file(dict(network.state_dict()), empty_hub / "davenet.safetensors")
    given = encoders.create("resdavenet", weights=str(empty_hub / "davenet.safetensors"))
    mirrored = encoders.create("resdavenet", mirror=str(empty_hub))
    mel = np.random.default_rng(3).uniform(0, 1, (128, 60)).astype(np.float32)
    np.testing.assert_array_equal(given.encode([mel]), mirrored.encode([mel]))
    assert mirrored.info.digest == hashlib.sha256((empty_hub / "davenet.pth").read_bytes()).hexdigest()
    assert given.info.digest != mirrored.info.digest


def test_weights_by_url_are_cached_and_checked(empty_hub: Path) -> None:
    content = b"weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    import fsspec

    fsspec.filesystem("memory").pipe(f"/mirror/{name}", content)
    published = Published("net", name, "its authors")
    path = weights.find(published, None, "memory://mirror")
    assert path.read_bytes() == content and path.parent == empty_hub / "torch/hub/checkpoints"
    fsspec.filesystem("memory").pipe("/mirror/net-00000000.pth", content)
    with pytest.raises(WeightsError, match="expected 00000000"):
        weights.find(Published("net", "net-00000000.pth", "its authors"), None, "memory://mirror")
    assert [item.name for item in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", ["resnet3d101", "resdavenet"])
def test_missing_weights_say_which_where_and_how(empty_hub: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=rf"encoder {name}: .*http.*--weights {name}=FILE.*--mirror"):
        encoders.create(name)
    with pytest.raises(WeightsError, match=r"nowhere\.pth does not exist"):
        encoders.create(name, weights=str(empty_hub / "nowhere.pth"))
    with pytest.raises(WeightsError, match=f"the mirror {empty_hub} has no"):
        encoders.create(name, mirror=str(empty_hub))


def test_a_blocked_hub_says_which_where_and_how(empty_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocked(*args: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", blocked)
    with pytest.raises(
        WeightsError, match=r"resnet152-f82ba261.pth cannot be fetched .*unreachable.*--weights resnet152=FILE"
    ):
        encoders.create("resnet152")
    pytest.importorskip("transformers", reason="the extra `offline` is not installed")
    asked = []

    def refused(self: object, name: str, **options: object) -> None:
        asked.append(name)
        raise RuntimeError("connection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refused)
    with pytest.raises(
        WeightsError,
        match=r"nobody/nothing' cannot be loaded: the hub .*: connection refused.*--weights text=FOLDER.*--mirror",
    ):
        encoders.create("text", weights="nobody/nothing")
    assert asked == ["nobody/nothing"]  # once, and by nobody else: the loaders would try for minutes
    with pytest.raises(WeightsError, match=r"nowhere does not exist; --weights text=FOLDER"):
        encoders.create("text", weights=str(empty_hub / "nowhere"))
    with pytest.raises(WeightsError, match=r"has no model that can be loaded .*config.json"):
        encoders.create("text", weights=str(empty_hub))
    assert len(asked) == 1


def test_a_file_that_would_execute_something_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"conv1.weight": Harmful()}, tmp_path / "evil.pth")
    for content in (None, b"", b"\x80\x04text", b"PK\x03\x04"):
        if content is not None:
            (tmp_path / "evil.pth").write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as tensors alone"):
            weights.read(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match="no readable safetensors"):
        weights.read(tmp_path / "x.safetensors")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    good = dict(network.state_dict())
    for change, message in (
        ({"0.weight": torch.zeros(3, 9)}, r"0.weight has shape \(3, 9\), expected \(3, 2\)"),
        ({"extra": torch.zeros(1)}, "extra is unknown"),
    ):
        with pytest.raises(WeightsError, match=message):
            weights.fill(network, {**good, **change}, tmp_path)
    with pytest.raises(WeightsError, match=r"0.bias is missing; and 1 more"):
        weights.fill(network, {n: x for n, x in good.items() if n not in ("0.bias", "1.weight")}, tmp_path)
    filled = {"head.weight": torch.zeros(1), **{name: x + 1 for name, x in good.items() if "batches" not in name}}
    weights.fill(network, filled, tmp_path, unused=("head.",))
    torch.testing.assert_close(network.state_dict()["0.weight"], good["0.weight"] * 0 + filled["0.weight"])


def test_names_and_sets() -> None:
    assert encoders.resolve(["paper", "prosody", "text"]) == (
        "resnet152",
        "resnet3d101",
        "resdavenet",
        "text",
        "prosody",
    )
    with pytest.raises(ValueError, match="did you mean 'resnet152'"):
        encoders.resolve(["resnet15"])
    with pytest.raises(ValueError, match="is a set of encoders"):
        encoders.create("offline")
    with pytest.raises(ValueError, match="no encoder is named"):
        encoders.resolve([])


@pytest.mark.slow  # a process of its own
def test_the_core_imports_no_encoder_library() -> None:
    import subprocess
    import sys

    libraries = "{'torchvision', 'transformers', 'torchaudio'}"
    code = f"import sys, conclugen, conclugen.encoders; print({libraries} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
