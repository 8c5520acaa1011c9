"""Audio models of Hugging Face: wav2vec 2.0, HuBERT, WavLM, Whisper's encoder, the Audio Spectrogram Transformer, CLAP.

A clip goes through the library's own feature extractor and network by itself, in windows of at most 30 s (or what the
extractor takes), so that its vector depends on nothing else. Steps of padding are left out: Whisper and AST
pad to their full length and know no mask. A sequence has a vector for each step of time; CLAP's has one for each
region of its last spectrogram.
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
from conclugen.encoders.encoder import WAVE, Array, EncoderInfo, FrozenEncoder, Takes, check_wave

_SECONDS = 30  # of a window, where the extractor sets no limit
_SHORTEST = 400  # samples that one step of these networks hears


@dataclass(frozen=True)
class Kind:
    """How one kind of model is used.

    Attributes:
        network: Of the whole model the part that encodes sound.
        window: Samples that the extractor takes at once.
        steps: (hidden (tokens, width), samples, extractor, configuration) -> (class token or None, (steps, width)).
        has_class_token: Whether there is one.
    """

    network: Callable[[Any], Any]
    window: Callable[[Any], int]
    steps: Callable[[Tensor, int, Any, Any], tuple[Tensor | None, Tensor]]
    has_class_token: bool = False


def _all_steps(hidden: Tensor, samples: int, extractor: Any, config: Any) -> tuple[None, Tensor]:
    return None, hidden


def _whisper_steps(hidden: Tensor, samples: int, extractor: Any, config: Any) -> tuple[None, Tensor]:
    """Two frames of the spectrogram are a step."""
    return None, hidden[: max(1, -(-samples // (2 * extractor.hop_length)))]


def _ast_steps(hidden: Tensor, samples: int, extractor: Any, config: Any) -> tuple[Tensor, Tensor]:
    """Behind two special tokens the patches, time fastest: the mean over bands, for patches that begin in the sound."""
    bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    patches = hidden[2:].reshape(bands, -1, hidden.shape[-1]).mean(0)
    hop = extractor.sampling_rate // 100
    frames = 1 + max(0, samples - extractor.sampling_rate // 40) // hop
    return hidden[0], patches[: max(1, -(-frames // config.time_stride))]


_WAVE = Kind(lambda model: model, lambda extractor: _SECONDS * extractor.sampling_rate, _all_steps)
KINDS = {
    "wav2vec2": _WAVE,
    "hubert": _WAVE,
    "wavlm": _WAVE,
    "whisper": Kind(lambda model: model.get_encoder(), lambda extractor: extractor.n_samples, _whisper_steps),
    "audio-spectrogram-transformer": Kind(
        lambda model: model,
        lambda extractor: (extractor.max_length - 1) * (extractor.sampling_rate // 100) + extractor.sampling_rate // 40,
        _ast_steps,
        has_class_token=True,
    ),
    "clap": Kind(lambda model: model.audio_model, lambda extractor: extractor.nb_max_samples, _all_steps),
}


def create(model: str, given: str | None, mirror: str | None, device: str) -> AudioEncoder:
    """model: what follows `hf-audio:`. Raises as `hub_models.create`."""
    return hub.create("hf-audio", model, given, mirror, lambda found: _load(found, device))


def _load(found: hub.Found, device: str) -> AudioEncoder:
    from transformers import AutoConfig, AutoFeatureExtractor

    config = AutoConfig.from_pretrained(found.folder, **hub.LOCAL)
    kind = KINDS[hf.kind_of(found, config)]
    hf.check_options(found, config, kind.has_class_token, frames=False)
    extractor = AutoFeatureExtractor.from_pretrained(found.folder, **hub.LOCAL)
    network = kind.network(hf.whole_model(found)).eval()
    part = _Part(found, kind, network, extractor)
    with torch.inference_mode():
        _, steps = part(np.zeros(part.rate, np.float32))
    kept = "class token of each window" if found.pool == hub.FIRST else "steps of time without padding"
    info = hf.described(
        found,
        network,
        hf.settings(extractor),
        modality="audio",
        steps_width=steps.shape[1],
        takes=Takes(WAVE, part.rate),
        preprocessing=f"{type(extractor).__name__}; windows of {part.window} samples; {kept}",
    )
    return AudioEncoder(info, part, device)


class _Part:
    """One window of sound through extractor and network, on the device where the network is."""

    def __init__(self, found: hub.Found, kind: Kind, network: Any, extractor: Any) -> None:
        self.found, self.kind, self.network, self.extractor = found, kind, network, extractor
        self.rate, self.window = int(extractor.sampling_rate), int(kind.window(extractor))

    def __call__(self, samples: Array) -> tuple[Tensor | None, Tensor]:
        """(class token, where there is one; (steps, width))."""
        heard = np.pad(samples, (0, max(0, _SHORTEST - len(samples))))
        inputs = self.extractor(heard, sampling_rate=self.rate, return_tensors="pt")
        first = next(self.network.parameters())
        # One clip, unpadded, needs no mask; and a mask of ones says what some of these networks are trained without.
        tensors = {
            name: x.to(first.device, first.dtype if x.is_floating_point() else None)
            for name, x in inputs.items()
            if name != "attention_mask"
        }
        hidden = hf.hidden_of(self.found, self.network, **tensors)[0]
        hidden = hidden.flatten(1).T if hidden.ndim == 3 else hidden  # of CLAP: (width, bands, time)
        return self.kind.steps(hidden, len(samples), self.extractor, self.network.config)


class AudioEncoder(FrozenEncoder):
    """(N,) at the extractor's rate -> (steps, width)."""

    def __init__(self, info: EncoderInfo, part: _Part, device: str) -> None:
        super().__init__(info, hf.cast(part.network, part.found), device, 1)
        self._part = part

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        return [self._clip(samples) for samples in check_wave(batch)]

    def _clip(self, samples: Array) -> Array:
        part, steps = self._part, []
        with torch.inference_mode():
            for start in range(0, len(samples), part.window):
                token, own = part(samples[start : start + part.window])
                steps.append(token[None] if part.found.pool == hub.FIRST and token is not None else own)
            vectors: Array = torch.cat(steps).float().cpu().numpy()
        return vectors
