"""Frozen encoders of video, audio and text behind one small protocol; libraries and weights are loaded where used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conclugen.common.names import did_you_mean

if TYPE_CHECKING:
    from conclugen.backbones.encoder import Encoder, EncoderInfo, InputError, Takes
    from conclugen.backbones.weights import WeightsError

__all__ = ["ENCODERS", "SETS", "Encoder", "EncoderInfo", "InputError", "Takes", "WeightsError", "create", "resolve"]

# Name -> (module, factory(weights, mirror, device) -> Encoder, one line).
ENCODERS: Mapping[str, tuple[str, str, str]] = {
    "resnet152": ("resnet152", "create", "paper: ResNet-152, ImageNet, frames at 1 fps; needs weights"),
    "resnet3d101": ("resnet3d", "create", "paper: 3D ResNet-101, Kinetics-400, 16 frames at 16 fps; needs weights"),
    "resdavenet": ("resdavenet", "create", "paper: ResDAVEnet on 128 mel bands; needs weights"),
    "text": ("text", "create", "paper: any text model of Hugging Face (--weights text=NAME|FOLDER)"),
    "efficientnet-lite0": ("efficientnet_lite", "create", "offline: EfficientNet-Lite0, ImageNet, frames at 1 fps"),
    "distillmos": ("speech", "create", "offline: the speech network of Distill-MOS"),
    "prosody": ("prosody", "create", "offline: loudness, pitch and spectrum, computed"),
    "minilm-l6": ("text", "create_sentence", "offline: the sentence encoder all-MiniLM-L6-v2"),
    "random-image": ("random_projection", "create_image", "for tests only: a random projection"),
    "random-video": ("random_projection", "create_video", "for tests only: a random projection of frames at 16 fps"),
    "random-audio": ("random_projection", "create_audio", "for tests only: a random projection"),
    "random-text": ("random_projection", "create_text", "for tests only: a random projection"),
}
SETS: Mapping[str, tuple[str, ...]] = {
    "paper": ("resnet152", "resnet3d101", "resdavenet", "text"),
    "offline": ("efficientnet-lite0", "distillmos", "prosody", "minilm-l6"),
    "random": ("random-image", "random-audio", "random-text"),
}


def __getattr__(name: str) -> Any:  # torch, which the names of the encoders need not wait for
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "weights" if name == "WeightsError" else "encoder"
    value = getattr(importlib.import_module(f"conclugen.backbones.{module}"), name)
    globals()[name] = value
    return value


def resolve(names: Sequence[str]) -> tuple[str, ...]:
    """Names of encoders, sets replaced by their members, each once. ValueError for an unknown name or for none."""
    found: dict[str, None] = {}
    for name in names:
        if name not in SETS and name not in ENCODERS:
            raise ValueError(f"encoder {name!r} is unknown, {did_you_mean(name, [*SETS, *ENCODERS])}")
        found.update(dict.fromkeys(SETS.get(name, (name,))))
    if not found:
        raise ValueError(f"no encoder is named, allowed: {', '.join([*SETS, *ENCODERS])}")
    return tuple(found)


def create(name: str, weights: str | None = None, mirror: str | None = None, device: str = "cpu") -> Encoder:
    """The encoder of that name, its weights loaded and verified.

    weights: a local copy (file, folder, or a model's name on a hub, as the encoder takes it); mirror: a folder or
    fsspec URL that holds published files. Raises ValueError for an unknown name, WeightsError for weights that can't be
    had: which file, where to get it, and the option that takes a copy.
    """
    (known,) = resolve([name]) if name not in SETS else (None,)
    if known is None:
        raise ValueError(f"{name!r} is a set of encoders: {', '.join(SETS[name])}; create them one by one")
    module, factory, _ = ENCODERS[known]
    made: Any = getattr(importlib.import_module(f"conclugen.backbones.{module}"), factory)(weights, mirror, device)
    encoder: Encoder = made
    return encoder
