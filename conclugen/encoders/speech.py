"""A speech encoder whose weights come in a Python package: the front of Distill-MOS (Stahl & Gamper 2025).

The network was distilled from XLS-R to judge the quality of speech: convolutions over a complex spectrogram, then
seven transformer layers. Its last layers keep what quality needs; what the face goes with lies before them. Read
linearly from 20 ms steps of clips held out (15 clips of three sources): energy R2 0.87 and log pitch 0.66 after the
first transformer layer, 0.57 and 0.59 after the last. So the sequence is the output of the first layer: 200 numbers
every 20 ms.

The network hears 7.68 s at once, most clips are shorter, and what follows them is silence. What its convolutions make
of silence does not depend on the clip, beyond the few steps that they reach: so only the clip's part is computed. On a
CPU ONNX Runtime computes the convolutions where it is installed, to the rounding of sums.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen.encoders import onnx_network, weights
from conclugen.encoders.encoder import WAVE, Array, EncoderInfo, FrozenEncoder, Takes, check_wave
from conclugen.encoders.resnet152 import split

NAME, WIDTH = "distillmos", 200
RATE = 16_000
TAKES = Takes(WAVE, RATE)
BIBTEX = {
    NAME: """@inproceedings{stahl2025distillmos,
  title = {Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality Assessment},
  author = {Stahl, Benjamin and Gamper, Hannes},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year = {2025},
  eprint = {2502.05356},
  archiveprefix = {arXiv},
}"""
}
WINDOW = 122_880  # samples that the network hears at once: 7.68 s, as many as it has positions for
STEP = 320
_CHUNK = 1
_REACH = 6  # steps; the convolutions and the spectrum before them reach less than 5


def create(given: str | None, mirror: str | None, device: str) -> SpeechEncoder:
    """given: another weight file, or None for the package's. Raises WeightsError where the package is not installed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from distillmos import sqa
    except ImportError:
        raise weights.not_installed(NAME, "distillmos") from None
    path = Path(sqa.DEFAULT_WEIGHTS_CHKPT) if given is None else Path(given)
    network = weights.filled(lambda: sqa.ConvTransformerSQAModel(load_weights=False), path)
    if onnx_network.available(device):
        layers = network.cnn.cnn
        graph = onnx_network.Graph()
        network.cnn.cnn = onnx_network.OnnxNetwork(graph, graph.sequence(layers), layers[0].in_channels)
    info = EncoderInfo(
        name=NAME,
        modality="audio",
        column="audio_speech",
        width=WIDTH,
        takes=TAKES,
        preprocessing="loudest sample 1; windows of 7.68 s; first transformer layer, every 20 ms",
        source="package distillmos",
        licence="MIT",
        digest=weights.file_digest(path),
    )
    return SpeechEncoder(info, Front(network), device, _CHUNK)


class Front(nn.Module):
    """(n, N) -> (n, steps, 200): convolutions, projection, positions, first transformer layer of N samples and silence
    up to 122880; of the first `steps` of 384. N is a whole number of steps, of which the last `2 * _REACH` are silent,
    or 122880. Every step attends to all 384, and is computed where it is asked for."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        body = network.transformer_pool_attn
        self.convolutions = network.cnn
        self.norm_input, self.norm = body.norm_input, body.transformer.norm
        self.project, self.positions = body.transformer.linear_proj, body.transformer.position_encoding
        self.layer = body.transformer.transformer_encoder.layers[0]
        self.silence: Tensor
        with torch.no_grad():
            self.register_buffer("silence", self.eval()._silence(), persistent=False)

    def forward(self, samples: Tensor, steps: int = WINDOW // STEP) -> Tensor:
        x = self._projected(samples)
        if samples.shape[1] < WINDOW:
            known = samples.shape[1] // STEP - _REACH  # beyond them the end of `samples` would be heard
            x = torch.cat([x[:, :known], self.silence[:, known:].expand(len(x), -1, -1)], dim=1)
        return self._transformed(self.positions(x), steps)

    def _silence(self) -> Tensor:
        """A whole window of it, (1, 384, 200): every step is the same, but for those that hear an end."""
        short = self._projected(torch.zeros(1, 4 * _REACH * STEP))
        middle = short[:, 2 * _REACH :][:, :1].expand(-1, WINDOW // STEP - short.shape[1], -1)
        return torch.cat([short[:, : 2 * _REACH], middle, short[:, 2 * _REACH :]], dim=1)

    def _projected(self, samples: Tensor) -> Tensor:
        """(n, steps, 200) of each step by itself, once the convolutions have heard what is around it."""
        x = self.norm(self.norm_input(self.convolutions(samples)))
        projected: Tensor = self.project(x.transpose(1, 2))
        return projected

    def _transformed(self, x: Tensor, steps: int) -> Tensor:
        """`self.layer`, which normalises behind its parts, of the first steps alone."""
        layer, own = self.layer, x[:, :steps]
        attended, _ = layer.self_attn(own, x, x, need_weights=False)
        own = layer.norm1(own + attended)
        result: Tensor = layer.norm2(own + layer.linear2(layer.activation(layer.linear1(own))))
        return result


class SpeechEncoder(FrozenEncoder):
    """(N,) at 16 kHz -> (ceil(N / 320), 200). What is longer than a window is cut into windows; the last one is padded
    with silence, whose steps are left out."""

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        clips = check_wave(batch)
        pieces, counts = [], []
        for samples in clips:
            scaled = samples / max(float(np.abs(samples).max()), 1e-8)
            starts = range(0, len(samples), WINDOW)
            pieces += [scaled[start : start + WINDOW] for start in starts]
            counts.append(-(-len(samples) // STEP))
        network = self.network
        assert network is not None

        def compute(part: Sequence[Array]) -> Tensor:
            steps = -(-max(len(piece) for piece in part) // STEP)
            length = min((steps + 2 * _REACH) * STEP, WINDOW)
            padded = np.stack([np.pad(piece, (0, length - len(piece))) for piece in part])
            found: Tensor = network(torch.from_numpy(padded).to(self.device, self.dtype), steps)
            return functional.pad(found, (0, 0, 0, WINDOW // STEP - steps))  # chunks differ in their longest piece

        vectors = self.in_chunks(pieces, compute)
        kept = [vector[: -(-len(piece) // STEP)] for vector, piece in zip(vectors, pieces, strict=True)]
        return split(np.concatenate(kept), counts)
