"""What a frozen encoder is: where it stands in the data, what it takes, what it gives.

An encoder maps one clip's input of one kind to a sequence of vectors, one for each step of time (a frame, a window, a
token); the clip's feature is their mean (DESIGN of the method: mean over time). Encoders know no files of video and no
cluster: a job decodes, and hands them arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FRAMES, WAVE, MEL, TEXT = "frames", "wave", "mel", "text"
KINDS = (FRAMES, WAVE, MEL, TEXT)

Array = NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Takes:
    """Input of one clip.

    kind `frames`: (T, H, W, 3) uint8 RGB at `rate` frames a second, each resized to `size` (H, W) without keeping its
    aspect; `wave`: (N,) float32 mono at `rate` Hz; `mel`: (128, T) float32 in [0, 1), a min-max normalised power
    spectrogram of 16 kHz sound in 128 mel bands, hop 160; `text`: a string.
    """

    kind: str
    rate: float = 0.0
    size: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """Equal for encoders that can share one input."""
        size = "" if self.size is None else f"_{self.size[0]}x{self.size[1]}"
        return f"{self.kind}_{self.rate:g}{size}" if self.rate else self.kind


@dataclass(frozen=True)
class EncoderInfo:
    """name: as it is asked for. modality: video, audio or text. column: where features of it are stored. width: of one
    vector. preprocessing: what the encoder itself does to its input. source: where the weights come from. licence: of
    the weights, as their publisher states it. digest: SHA-256 of the weights that are in use."""

    name: str
    modality: str
    column: str
    width: int
    takes: Takes
    preprocessing: str
    source: str
    licence: str
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        plain = asdict(self)
        plain["takes"]["size"] = None if self.takes.size is None else list(self.takes.size)
        return plain

    def identity(self) -> dict[str, Any]:
        """What must agree for two sets of features to be comparable."""
        plain = self.to_dict()
        return {name: plain[name] for name in ("name", "column", "width", "takes", "preprocessing", "digest")}


class Encoder(Protocol):
    """A frozen encoder. The same input gives the same output, whatever else is in the batch, up to the rounding of
    sums."""

    @property
    def info(self) -> EncoderInfo: ...

    def encode(self, batch: Sequence[Any]) -> Array:
        """(B, width) float32: the mean over each clip's sequence."""
        ...

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        """One (T_i, width) float32 array for each clip, T_i >= 1. Raises InputError for an input that is not what the
        encoder takes, naming its position in the batch."""
        ...


class InputError(ValueError):
    """An input that an encoder can't take. `position`: in the batch."""

    def __init__(self, position: int, message: str):
        super().__init__(message)
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.position, str(self)))


class FrozenEncoder(ABC):
    """An encoder around a network that never trains. `chunk`: steps computed at once; halved where a GPU's memory does
    not suffice."""

    def __init__(self, info: EncoderInfo, network: nn.Module | None, device: str | torch.device, chunk: int) -> None:
        self.info = info
        self.device = torch.device(device)
        self.chunk = chunk
        self.network = None if network is None else network.requires_grad_(False).eval().to(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's arithmetic."""
        return torch.float32 if self.network is None else next(self.network.parameters()).dtype

    def encode(self, batch: Sequence[Any]) -> Array:
        """(B, width) float32: the mean over each clip's sequence."""
        sequences = self.encode_sequence(batch)
        means = [time_mean(sequence) for sequence in sequences]
        return np.stack(means) if means else np.zeros((0, self.info.width), np.float32)

    @abstractmethod
    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        """One (T_i, width) float32 array for each clip."""

    def in_chunks(self, items: Sequence[T], compute: Callable[[Sequence[T]], Tensor]) -> Array:
        """`compute` (items -> (n, width)) over at most `chunk` items at a time; (len(items), width) float32."""
        parts, start = [], 0
        while start < len(items):
            try:
                with torch.inference_mode():
                    parts.append(compute(items[start : start + self.chunk]).float().cpu().numpy())
            except torch.cuda.OutOfMemoryError:
                if self.chunk == 1:
                    raise
                self.chunk //= 2
                torch.cuda.empty_cache()
                continue
            start += self.chunk
        return np.concatenate(parts)


def time_mean(sequence: Array) -> Array:
    """(T, width) to (width,) float32, summed in float64."""
    mean: Array = sequence.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def check_frames(batch: Sequence[Any], takes: Takes) -> list[Array]:
    """The frames of a batch; InputError for anything but (T, H, W, 3) uint8 of the size that is taken."""
    checked = []
    for position, frames in enumerate(batch):
        array = np.asarray(frames)
        if array.ndim != 4 or not len(array) or array.shape[3] != 3 or array.dtype != np.uint8:
            raise InputError(
                position, f"frames have shape {array.shape} and dtype {array.dtype}, expected (T, H, W, 3) uint8"
            )
        if takes.size is not None and array.shape[1:3] != takes.size:
            raise InputError(
                position, f"frames are {array.shape[1]} x {array.shape[2]}, expected {takes.size[0]} x {takes.size[1]}"
            )
        checked.append(array)
    return checked


def check_wave(batch: Sequence[Any]) -> list[Array]:
    """The sounds of a batch; InputError for anything but (N,) finite numbers, N >= 1."""
    checked = []
    for position, samples in enumerate(batch):
        array = np.asarray(samples, dtype=np.float32)
        if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
            raise InputError(position, f"samples have shape {array.shape}, expected (N,) finite numbers, N >= 1")
        checked.append(array)
    return checked


def check_text(batch: Sequence[Any]) -> list[str]:
    """The texts of a batch; InputError for what is no string or holds no word."""
    for position, text in enumerate(batch):
        if not isinstance(text, str) or not text.strip():
            raise InputError(position, f"the text is {text!r}, expected words")
    return list(batch)


def to_pixels(
    frames: Array, device: torch.device, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """(n, H, W, 3) uint8 to (n, 3, H, W): scaled to [0, 1], minus the mean, over the deviation, of each channel."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).to(torch.float32) / 255
    shift, scale = (torch.tensor(list(values), device=device).view(1, 3, 1, 1) for values in (mean, std))
    return ((x - shift) / scale).to(dtype)
