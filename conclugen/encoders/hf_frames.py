"""Image and video models of Hugging Face on frames: ViT, DINOv2, the image sides of CLIP and SigLIP; VideoMAE and
TimeSformer on windows of as many frames as the model takes.

Frames come in the size to which the library's own image processor would resize them, and then go through it. A frame's
(or window's) vector is the class token, where the model has one, and else the mean over its patches; `@pool=mean` takes
the patches in any case, `@pool=meanstd` mean and deviation over time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conclugen.encoders import hub_models as hub
from conclugen.encoders import hugging_face as hf
from conclugen.encoders.encoder import (
    FRAMES,
    MEAN,
    Array,
    EncoderInfo,
    FrozenEncoder,
    Takes,
    check_frames,
)
from conclugen.encoders.resnet152 import split

_IMAGE_FPS, _VIDEO_FPS = 1.0, 8.0
_IMAGE_CHUNK, _VIDEO_CHUNK = 32, 4


@dataclass(frozen=True)
class Kind:
    """How one kind of model is used. network: of the whole model the part that sees; special: tokens before the
    patches, the class token first; video: whether it sees several frames at once."""

    special: int
    network: Callable[[Any], Any] = lambda model: model
    video: bool = False


KINDS = {
    "vit": Kind(1),
    "dinov2": Kind(1),
    "clip": Kind(1, lambda model: model.vision_model),
    "siglip": Kind(0, lambda model: model.vision_model),
    "videomae": Kind(0, video=True),
    "timesformer": Kind(1, video=True),
}


def create_image(model: str, given: str | None, mirror: str | None, device: str) -> FramesEncoder:
    """model: what follows `hf-image:`. Raises as `hub_models.create`."""
    return hub.create("hf-image", model, given, mirror, lambda found: _load(found, device))


def create_video(model: str, given: str | None, mirror: str | None, device: str) -> FramesEncoder:
    """model: what follows `hf-video:`. Raises as `hub_models.create`."""
    return hub.create("hf-video", model, given, mirror, lambda found: _load(found, device))


def _load(found: hub.Found, device: str) -> FramesEncoder:
    from transformers import AutoConfig, AutoImageProcessor

    config = AutoConfig.from_pretrained(found.folder, **hub.LOCAL)
    kind = KINDS[hf.kind_of(found, config)]
    hf.check_options(found, config, bool(kind.special), frames=True)
    processor = AutoImageProcessor.from_pretrained(found.folder, **hub.LOCAL)
    network = kind.network(hf.whole_model(found)).eval()
    length = int(network.config.num_frames) if kind.video else 1
    size = _size(processor, network.config)
    eyes = _Eyes(found, kind, network, processor)
    with torch.inference_mode():
        vector = eyes(np.zeros((1, length, *size, 3), np.uint8))
    token = "class token" if eyes.takes_class_token else "mean over patches"
    seen = f"windows of {length} frames, the last one ending with the clip" if kind.video else "each frame"
    info = hf.described(
        found,
        network,
        hf.settings(processor),
        modality="video",
        steps_width=vector.shape[1],
        takes=Takes(FRAMES, found.fps or (_VIDEO_FPS if kind.video else _IMAGE_FPS), size),
        preprocessing=f"{type(processor).__name__}; {seen}; {token}",
    )
    return FramesEncoder(info, eyes, length, device)


def _size(processor: Any, config: Any) -> tuple[int, int]:
    """(height, width) to which a processor resizes, or else crops, or else what the network takes."""
    for does, name in (("do_resize", "size"), ("do_center_crop", "crop_size")):
        size = getattr(processor, name, None)
        if getattr(processor, does, False) and size is not None:
            sides = {side: size[side] for side in ("height", "width", "shortest_edge") if _has(size, side)}
            if "shortest_edge" in sides:
                return int(sides["shortest_edge"]), int(sides["shortest_edge"])
            if len(sides) == 2:
                return int(sides["height"]), int(sides["width"])
    side = config.image_size
    return (int(side), int(side)) if isinstance(side, int) else (int(side[0]), int(side[1]))


def _has(size: Any, side: str) -> bool:
    try:
        return size[side] is not None
    except (KeyError, TypeError):
        return False


class _Eyes:
    """Windows of frames through processor and network, on the device where the network is."""

    def __init__(self, found: hub.Found, kind: Kind, network: Any, processor: Any) -> None:
        self.found, self.kind, self.network, self.processor = found, kind, network, processor

    @property
    def takes_class_token(self) -> bool:
        return bool(self.kind.special) and self.found.pool != MEAN

    def __call__(self, windows: Array) -> Tensor:
        """(n, length, H, W, 3) uint8 -> (n, width)."""
        first = next(self.network.parameters())
        frames = list(windows.reshape(-1, *windows.shape[2:]))
        pixels = self.processor(
            [frames] if self.kind.video else frames, return_tensors="pt", input_data_format="channels_last"
        )["pixel_values"].to(first.device, first.dtype)
        if self.kind.video:
            pixels = pixels.reshape(len(windows), -1, *pixels.shape[2:])
        hidden = hf.hidden_of(self.found, self.network, pixel_values=pixels)
        return hidden[:, 0] if self.takes_class_token else hidden[:, self.kind.special :].mean(1)


class FramesEncoder(FrozenEncoder):
    """(T, H, W, 3) uint8 -> (T, width) of images, (ceil(T / length), width) of videos. A window that would lack frames
    begins earlier; a clip of fewer frames than a window shows each of them for longer."""

    def __init__(self, info: EncoderInfo, eyes: _Eyes, length: int, device: str) -> None:
        chunk = _VIDEO_CHUNK if eyes.kind.video else _IMAGE_CHUNK
        super().__init__(info, hf.cast(eyes.network, eyes.found), device, chunk)
        self._eyes, self._length = eyes, length

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        clips = check_frames(batch, self.info.takes)
        pieces = [(clip, part) for clip, frames in enumerate(clips) for part in windows(len(frames), self._length)]
        vectors = self.in_chunks(
            pieces, lambda chosen: self._eyes(np.stack([clips[clip][part] for clip, part in chosen]))
        )
        return split(vectors, [len(windows(len(frames), self._length)) for frames in clips])


def windows(count: int, length: int) -> list[Array]:
    """The frames of each window over `count` frames."""
    if count <= length:
        return [np.arange(length) * count // length]
    starts = [min(start, count - length) for start in range(0, count, length)]
    return [np.arange(start, start + length) for start in starts]
