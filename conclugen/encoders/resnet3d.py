"""3D ResNet-101 on windows of 16 frames (Hara et al. 2018), Kinetics-400: the published 3D video stream.

All kernels of a ResNet-101 inflated to three dimensions: 7x7x7 first, 3x3x3 within the bottlenecks, shortcut type B.
The first convolution keeps the time resolution; the pooling after it and three of four stages halve it: 16 frames
become 1. Windows of 16 frames at 16 frames a second, stride 16; the last one is shorter where frames are left over,
and a clip of under 16 frames is one shorter window. The vector of a window is the mean over all positions: 2048.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from conclugen.encoders import weights
from conclugen.encoders.encoder import FRAMES, Array, EncoderInfo, FrozenEncoder, Takes, check_frames, to_pixels
from conclugen.encoders.resnet152 import split

NAME, WIDTH = "resnet3d101", 2048
TAKES = Takes(FRAMES, 16.0, (180, 180))
WINDOW = 16
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
BIBTEX = {
    NAME: """@inproceedings{hara2018resnet3d,
  title = {Can Spatiotemporal {3D} {CNN}s Retrace the History of {2D} {CNN}s and {ImageNet}?},
  author = {Hara, Kensho and Kataoka, Hirokatsu and Satoh, Yutaka},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {6546--6555},
  year = {2018},
}"""
}
_CHUNK = 8
_PUBLISHED = weights.Published(
    NAME,
    "resnet3d101_kinetics-8d4c9d63.pth",
    "http://pretorched-x.csail.mit.edu/models/resnet3d101_kinetics-8d4c9d63.pth",
)


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3, 1x1x1 with batch norms; the output has four times `planes` channels."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        out = 4 * planes
        self.conv1 = nn.Conv3d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out)
        self.relu = nn.ReLU(inplace=True)
        changes = stride != 1 or inplanes != out
        shortcut = nn.Sequential(nn.Conv3d(inplanes, out, 1, stride, bias=False), nn.BatchNorm3d(out))
        self.downsample = shortcut if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        return self.relu(y + shortcut)


class ResNet3D(nn.Module):
    """(n, 3, T, H, W) -> (n, 512 * 4). layers: blocks of each stage; (3, 4, 23, 3) is ResNet-101. Names of the tensors
    are those of the published weights."""

    def __init__(self, layers: Sequence[int] = (3, 4, 23, 3)) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        inplanes = 64
        for number, blocks in enumerate(layers):
            planes = 64 << number
            stage = []
            for block in range(blocks):
                stage.append(Bottleneck(inplanes, planes, 2 if number and not block else 1))
                inplanes = 4 * planes
            setattr(self, f"layer{number + 1}", nn.Sequential(*stage))
        self._stages = [f"layer{number + 1}" for number in range(len(layers))]

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self._stages:
            x = getattr(self, name)(x)
        return x.mean(dim=(2, 3, 4))


def create(given: str | None, mirror: str | None, device: str) -> ResNet3D101:
    """given: weight file or None; see `weights.find`. Raises WeightsError."""
    path = weights.find(_PUBLISHED, given, mirror)
    network = weights.filled(ResNet3D, path, unused=("fc.", "last_linear."))
    return ResNet3D101(_info(weights.file_digest(path)), network, device, _CHUNK)


def _info(digest: str) -> EncoderInfo:
    return EncoderInfo(
        name=NAME,
        modality="video",
        column="video_3d",
        width=WIDTH,
        takes=TAKES,
        preprocessing="frames / 255, Kinetics mean and deviation; windows of 16 within a shot, stride 16, the last one "
        "shorter",
        source=_PUBLISHED.where,
        licence="not stated with the weights; trained on Kinetics-400",
        digest=digest,
    )


def windows(count: int, length: int = WINDOW) -> list[tuple[int, int]]:
    """[start, stop) of windows over `count` steps; the last one may be shorter."""
    return [(start, min(start + length, count)) for start in range(0, count, length)]


class ResNet3D101(FrozenEncoder):
    """(T, 180, 180, 3) uint8 -> (ceil(T / 16), 2048)."""

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        clips = check_frames(batch, self.info.takes)
        network = self.network
        assert network is not None
        pieces = [(clip, *window) for clip, frames in enumerate(clips) for window in windows(len(frames))]
        vectors = np.empty((len(pieces), self.info.width), np.float32)

        def compute(part: Sequence[int]) -> Tensor:
            stacked = np.stack([clips[pieces[i][0]][pieces[i][1] : pieces[i][2]] for i in part])
            pixels = to_pixels(stacked.reshape(-1, *stacked.shape[2:]), self.device, self.dtype, MEAN, STD)
            x = pixels.reshape(len(part), stacked.shape[1], *pixels.shape[1:]).transpose(1, 2)
            result: Tensor = network(x)
            return result

        # Windows of one length go through together.
        for length in sorted({stop - start for _, start, stop in pieces}):
            chosen = [i for i, (_, start, stop) in enumerate(pieces) if stop - start == length]
            vectors[chosen] = self.in_chunks(chosen, compute)
        return split(vectors, [len(windows(len(frames))) for frames in clips])
