"""What a frozen encoder is: which data it belongs to, what it takes, what it gives.

An encoder maps one clip's input of one kind to a sequence of vectors, one for each step of time (a frame, a window, a
token); the clip's feature is their mean (as the method has it), unless its info says another pooling. Encoders know no
files of video and no cluster: a job decodes, and hands them arrays.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FRAMES, WAVE, MEL, TEXT = "frames", "wave", "mel", "text"
KINDS = (FRAMES, WAVE, MEL, TEXT)
MEAN, MEAN_STD = "mean", "meanstd"
POOLINGS = (MEAN, MEAN_STD)

IDENTITY = {
    **dict.fromkeys(("name", "column", "width", "takes", "preprocessing", "digest")),
    **{"pooling": MEAN, "layers": "", "stored_layers": 0},
}
"""What must agree for two sets of features to be comparable -> what an encoder is that does not state it."""

_MODALITY = re.compile(r"[a-z][a-z0-9]{0,19}")
_COLUMN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,35}")  # shards allow 40, of which a view's mark takes four
_DIGEST = re.compile(r"[0-9a-f]{64}")

_ARITHMETIC = "; computed in "

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

    def __post_init__(self) -> None:
        if self.size is not None and (not isinstance(self.size, tuple) or len(self.size) != 2):
            raise ValueError(f"takes.size: must be (height, width), such as (64, 64), got {self.size!r}")

    @property
    def key(self) -> str:
        """Equal for encoders that can share one input."""
        size = "" if self.size is None else f"_{self.size[0]}x{self.size[1]}"
        return f"{self.kind}_{self.rate:g}{size}" if self.rate else self.kind


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What an encoder is, as it is stored with features and models.

    Attributes:
        name: As it is asked for.
        modality: video, audio or text.
        column: Where features of it are stored.
        width: Of a clip's vector.
        takes: Input of one clip.
        preprocessing: What the encoder itself does to its input.
        source: Where the weights come from.
        licence: Of the weights, as their publisher states it.
        digest: SHA-256 of the weights that are in use.
        pooling: How a clip's vector comes from its sequence, one of `POOLINGS`.
        revision: Of the weights on a hub, where they come from one.
        layers: Whose output the sequence is, where that can be chosen.
        stored_layers: How many of them lie side by side in a vector, which then is a (stored_layers, width /
            stored_layers) block, the first layer first; 0: it is of one layer, or a mean.
    """

    name: str
    modality: str
    column: str
    width: int
    takes: Takes
    preprocessing: str
    source: str
    licence: str
    digest: str
    pooling: str = MEAN
    revision: str = ""
    layers: str = ""
    stored_layers: int = 0

    @property
    def step_width(self) -> int:
        """Of each vector of a sequence."""
        return self.width // 2 if self.pooling == MEAN_STD else self.width

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        plain = asdict(self)
        plain["takes"]["size"] = None if self.takes.size is None else list(self.takes.size)
        return plain

    def identity(self) -> dict[str, Any]:
        """What must agree for two sets of features to be comparable."""
        plain = self.to_dict()
        # What has a default is left out where nothing was chosen: so it was before there was a choice.
        return {name: plain[name] for name, default in IDENTITY.items() if plain[name] != default}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(entry, found, wanted) for each entry of two encoders' identities that differs, whichever states it. Both as
    `EncoderInfo.identity` or `to_dict` gives them, or read from JSON."""
    found, wanted = stated(found), stated(wanted)
    entries = [(name, found.get(name, default), wanted.get(name, default)) for name, default in IDENTITY.items()]
    return [(name, mine, theirs) for name, mine, theirs in entries if mine != theirs]


def stated(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder's entries as they are stated today.

    Text models of Hugging Face did not name their arithmetic at first, which was what their name says, or float32: on
    GPUs too, unlike that of the other families. Of those it cannot be told, and nothing is added.
    """
    name, preprocessing = str(identity.get("name", "")), identity.get("preprocessing")
    if name.startswith("hf-text:") and isinstance(preprocessing, str) and _ARITHMETIC not in preprocessing:
        dtype = "bfloat16" if "@dtype=bfloat16" in name else "float32"
        return {**identity, "preprocessing": f"{preprocessing}{_ARITHMETIC}{dtype}"}
    return dict(identity)


class Encoder(Protocol):
    """A frozen encoder. The same input gives the same output, whatever else is in the batch, up to the rounding of
    sums."""

    @property
    def info(self) -> EncoderInfo: ...

    def encode(self, batch: Sequence[Any]) -> Array:
        """(B, width) float32: each clip's sequence, pooled as the encoder's info says."""
        ...

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        """One (T_i, step width) float32 array for each clip, T_i >= 1. Raises InputError for an input that is not what
        the encoder takes, naming its position in the batch."""
        ...


class InputError(ValueError):
    """An input that an encoder can't take. `position`: in the batch."""

    def __init__(self, position: int, message: str):
        super().__init__(message)
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.position, str(self)))


class EncoderError(ValueError):
    """An encoder that does not do what its info says: a fault of the encoder, whatever the clip."""


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
        """(B, width) float32: each clip's sequence, pooled as the encoder's info says."""
        vectors = [pool(sequence, self.info.pooling) for sequence in sequences_of(self, batch)]
        return np.stack(vectors) if vectors else np.zeros((0, self.info.width), np.float32)

    @abstractmethod
    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        """One (T_i, step width) float32 array for each clip."""

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


def pool(sequence: Array, pooling: str = MEAN) -> Array:
    """(T, width) to (width,) float32 of a clip, summed in float64: the mean over time, or mean and standard deviation
    (of the population; twice the width)."""
    mean = sequence.mean(axis=0, dtype=np.float64)
    if pooling == MEAN_STD:
        mean = np.concatenate([mean, sequence.std(axis=0, dtype=np.float64)])
    vector: Array = mean.astype(np.float32)
    return vector


def sequences_of(encoder: Encoder, batch: Sequence[Any]) -> list[Array]:
    """`encoder.encode_sequence` as float32, its result checked: EncoderError where it is not what the encoder's info
    says."""
    info, sequences = encoder.info, encoder.encode_sequence(batch)
    if len(sequences) != len(batch):
        raise EncoderError(f"encoder {info.name}: gave {len(sequences)} sequences for {len(batch)} clips; fix it")
    for sequence in sequences:
        shape = np.shape(sequence)
        if len(shape) != 2 or not shape[0] or shape[1] != info.step_width:
            raise EncoderError(
                f"encoder {info.name}: gave vectors of shape {shape}, its info says (steps, {info.step_width}); fix "
                "it, or leave it out of --encoders"
            )
    return [np.asarray(sequence, np.float32) for sequence in sequences]  # bytes of another type would be misread


def check_encoder(encoder: Any, name: str) -> None:
    """Raise ValueError where an encoder of another package is not what the protocol says."""
    info = getattr(encoder, "info", None)
    if not isinstance(info, EncoderInfo):
        raise ValueError(f"its info is {info!r}, expected an EncoderInfo")
    takes = info.takes
    timed, sized = takes.kind in (FRAMES, WAVE), takes.kind == FRAMES
    for field, value, good, expected in (
        ("name", info.name, info.name == name, f"{name!r}, as it is registered"),
        ("modality", info.modality, _fits(_MODALITY, info.modality), "small letters and digits, such as 'video'"),
        ("column", info.column, _fits(_COLUMN, info.column), "at most 36 letters, digits, _ and -"),
        ("width", info.width, type(info.width) is int and info.width > 0, "a number above 0"),
        ("pooling", info.pooling, info.pooling in POOLINGS, f"one of {', '.join(POOLINGS)}"),
        ("width", info.width, info.pooling != MEAN_STD or not info.width % 2, "an even number: mean and deviation"),
        ("stored_layers", info.stored_layers, _splits(info), "0, or layers that are equally wide, pooled by mean"),
        ("takes.kind", takes.kind, takes.kind in KINDS, f"one of {', '.join(KINDS)}"),
        ("takes.rate", takes.rate, takes.rate > 0 or not timed, "frames or samples a second, above 0"),
        ("takes.rate", takes.rate, takes.kind != WAVE or takes.rate == int(takes.rate), "a whole number of samples"),
        ("takes.size", takes.size, takes.size is not None or not sized, "(height, width) of the frames"),
        ("digest", info.digest, _fits(_DIGEST, info.digest), "SHA-256 of its weights (or its formula), as hex"),
    ):
        if not good:
            raise ValueError(f"{field}: found {value!r}, expected {expected}")
    for method in ("encode", "encode_sequence"):
        if not callable(getattr(encoder, method, None)):
            raise ValueError(f"it has no method {method!r}; derive it from FrozenEncoder, which has `encode`")


def _splits(info: EncoderInfo) -> bool:
    layers = info.stored_layers
    if type(layers) is not int or not layers:
        return layers == 0 and type(layers) is int
    return layers > 0 and not info.width % layers and info.pooling == MEAN


def _fits(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


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
    """The texts of a batch; InputError for what is not a string or has no word."""
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
