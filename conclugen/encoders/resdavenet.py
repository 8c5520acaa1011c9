"""ResDAVEnet's speech network (Hsu, Harwath & Glass 2019) on mel spectrograms: the published audio stream.

A kernel over 40 bands, then four stages of residual blocks with kernels of 9 steps over time, each stage with stride 2
over bands and time. Made for 40 bands, it is fed 128: of the 89 rows that the first kernel leaves, 6 remain. The
sequence is the mean over those rows; the network's input batch norm exists in the weights and is not applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conclugen.encoders import weights
from conclugen.encoders.encoder import MEL, Array, EncoderInfo, FrozenEncoder, InputError, Takes

NAME, WIDTH = "resdavenet", 1024
BANDS = 128
TAKES = Takes(MEL)
BIBTEX = {
    NAME: """@inproceedings{harwath2020resdavenetvq,
  title = {Learning Hierarchical Discrete Linguistic Units from Visually-Grounded Speech},
  author = {Harwath, David and Hsu, Wei-Ning and Glass, James},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2020},
  eprint = {1911.09602},
  archiveprefix = {arXiv},
}
@inproceedings{hsu2019resdavenet,
  title = {Transfer Learning from Audio-Visual Grounding to Speech Recognition},
  author = {Hsu, Wei-Ning and Harwath, David and Glass, James},
  booktitle = {Interspeech},
  pages = {3242--3246},
  year = {2019},
}"""
}
_KERNEL_BANDS, _KERNEL_STEPS = 40, 9
_WIDTHS = (128, 256, 256, 512, 1024)
_PUBLISHED = weights.Published(
    NAME, "davenet.pth", "https://github.com/wnhsu/ResDAVEnet-VQ (model RDVQ_00000, file models/best_audio_model.pth)"
)


class Block(nn.Module):
    """Two convolutions over time with batch norms, and a shortcut."""

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        kernel, padding = (1, _KERNEL_STEPS), (0, _KERNEL_STEPS // 2)
        self.conv1 = nn.Conv2d(inplanes, planes, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel, 1, padding, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        shortcut = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
        self.downsample = shortcut if stride != 1 or inplanes != planes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        return (y + shortcut).relu()


class ResDavenet(nn.Module):
    """(n, bands, T) -> (n, 1024, ceil(T / 16)), the mean over rows. Names of the tensors are those of the published
    weights."""

    def __init__(self) -> None:
        super().__init__()
        self.batchnorm1 = nn.BatchNorm2d(1)  # in the weights, never applied
        self.conv1 = nn.Conv2d(1, _WIDTHS[0], (_KERNEL_BANDS, 1), bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(Block(before, after, 2), Block(after, after, 1)) for before, after in pairwise(_WIDTHS)
        )

    def forward(self, mel: Tensor) -> Tensor:
        x = self.bn1(self.conv1(mel.unsqueeze(1))).relu()
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=2)


def create(given: str | None, mirror: str | None, device: str) -> ResDavenetEncoder:
    """given: weight file or None; see `weights.find`. Raises WeightsError."""
    path = weights.find(_PUBLISHED, given, mirror)
    network = weights.filled(ResDavenet, path)
    return ResDavenetEncoder(_info(weights.file_digest(path)), network, device, chunk=1)


def _info(digest: str) -> EncoderInfo:
    return EncoderInfo(
        name=NAME,
        modality="audio",
        column="audio_davenet",
        width=WIDTH,
        takes=TAKES,
        preprocessing="mean over the rows that 128 bands leave",
        source=_PUBLISHED.where,
        licence="as its repository states; trained on Places audio captions",
        digest=digest,
    )


class ResDavenetEncoder(FrozenEncoder):
    """(128, T) float32 in [0, 1) -> (ceil(T / 16), 1024). Each clip on its own: padding would change its end."""

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        sequences = []
        for position, item in enumerate(batch):
            mel = np.array(item, np.float32)  # a copy: what comes out of a block may not be written to
            if mel.ndim != 2 or mel.shape[0] != BANDS or not mel.shape[1] or not np.isfinite(mel).all():
                raise InputError(
                    position, f"the spectrogram has shape {mel.shape}, expected ({BANDS}, T) finite numbers"
                )
            sequences.append(self._one(mel))
        return sequences

    def _one(self, mel: Array) -> Array:
        assert self.network is not None
        with torch.inference_mode():
            x = torch.from_numpy(mel).to(self.device, self.dtype).unsqueeze(0)
            vectors: Array = self.network(x)[0].T.float().cpu().numpy()
        return vectors
