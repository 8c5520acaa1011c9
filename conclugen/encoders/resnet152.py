"""ResNet-152 on single frames (He et al. 2016), ImageNet weights of torchvision: the published 2D video stream.

Frames of 180 x 180 in [0, 1]; here ImageNet's mean and deviation are each in their own place (the published
configuration had them exchanged). The vector of a frame is the mean over the last 6 x 6 positions: 2048.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conclugen.common.extras import require
from conclugen.encoders import weights
from conclugen.encoders.encoder import FRAMES, Array, EncoderInfo, FrozenEncoder, Takes, check_frames, to_pixels

NAME, WIDTH = "resnet152", 2048
TAKES = Takes(FRAMES, 1.0, (180, 180))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BIBTEX = {
    NAME: """@inproceedings{he2016resnet,
  title = {Deep Residual Learning for Image Recognition},
  author = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {770--778},
  year = {2016},
}"""
}
_CHUNK = 32


def create(given: str | None, mirror: str | None, device: str) -> ResNet152:
    """given: weight file or None; see `weights.find`. Raises WeightsError."""
    require("encoder resnet152", "torchvision")
    from torchvision.models import ResNet152_Weights, resnet152  # seconds to import

    url = str(ResNet152_Weights.IMAGENET1K_V2.url)
    published = weights.Published(NAME, url.rpartition("/")[2], url, url)
    path = weights.find(published, given, mirror)
    network = weights.filled(lambda: resnet152(weights=None), path)
    network.fc = torch.nn.Identity()
    info = EncoderInfo(
        name=NAME,
        modality="video",
        column="video_2d",
        width=WIDTH,
        takes=TAKES,
        preprocessing="frames / 255, ImageNet mean and deviation",
        source=url,
        licence="BSD-3-Clause (torchvision); trained on ImageNet, whose terms are for research",
        digest=weights.file_digest(path),
    )
    return ResNet152(info, network, device, _CHUNK)


class ResNet152(FrozenEncoder):
    """(T, 180, 180, 3) uint8 -> (T, 2048)."""

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        return each_frame(self, check_frames(batch, self.info.takes), self._pixels)

    def _pixels(self, frames: Array) -> Tensor:
        return to_pixels(frames, self.device, self.dtype, MEAN, STD)


def each_frame(encoder: FrozenEncoder, clips: Sequence[Array], pixels: Any) -> list[Array]:
    """One vector for each frame of each clip; frames of several clips share chunks. pixels: frames -> network input."""
    network = encoder.network
    assert network is not None
    places = [(clip, frame) for clip, frames in enumerate(clips) for frame in range(len(frames))]

    def compute(part: Sequence[tuple[int, int]]) -> Tensor:
        result: Tensor = network(pixels(np.stack([clips[clip][frame] for clip, frame in part])))
        return result

    vectors = encoder.in_chunks(places, compute)
    return split(vectors, [len(frames) for frames in clips])


def split(vectors: Array, lengths: Sequence[int]) -> list[Array]:
    """(sum of lengths, width) cut into one array for each length."""
    parts, start = [], 0
    for length in lengths:
        parts.append(vectors[start : start + length])
        start += length
    return parts
