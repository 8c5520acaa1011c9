"""Speech-to-text models of Hugging Face `transformers`: Whisper, Speech2Text and the like."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common.extras import require
from shards.transcripts.recogniser import Transcript

DEFAULT_MODEL = "openai/whisper-base.en"
_RATE = 16_000
_WINDOW = 30 * _RATE  # what Whisper hears at once
# Mean log probability of a token below which Whisper's own decoder takes a transcript for failed.
_FAILED = -1.0
_TIMEOUT = 20.0  # seconds that the hub has for its first answer


def create(model: str | None, grammar: str | None, device: str) -> TransformersRecogniser:
    """model: a name on the hub, or a folder that holds the model's files. ValueError for a grammar, a missing package
    or a model that can't be loaded."""
    if grammar is not None:
        raise ValueError(f"--grammar {grammar}: only pocketsphinx takes one")
    return TransformersRecogniser(model or DEFAULT_MODEL, device)


class TransformersRecogniser:
    """Greedy decoding, 30 s at a time; the confidence is the geometric mean of the tokens' probabilities."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        self.name = f"whisper:{Path(model).name if Path(model).exists() else model}"
        self._device = device
        self._processor, self._model = _load(model, device)

    def __call__(self, samples: np.ndarray) -> Transcript:
        """(N,) float32 at 16 kHz to words."""
        texts, scores = [], []
        for start in range(0, len(samples), _WINDOW):
            text, log_probabilities = self._recognise(samples[start : start + _WINDOW])
            texts.append(text)
            scores.append(log_probabilities)
        text = " ".join(part for part in texts if part)
        tokens = np.concatenate(scores) if scores else np.empty(0)
        mean = float(tokens.mean()) if len(tokens) else -np.inf
        confidence = round(float(np.exp(mean)), 4)
        return Transcript(text or None, self.name, confidence, not text or mean < _FAILED)

    def _recognise(self, samples: np.ndarray) -> tuple[str, np.ndarray]:
        """Text, and the log probability of each of its tokens."""
        import torch

        inputs = self._processor(samples, sampling_rate=_RATE, return_tensors="pt", return_attention_mask=True)
        tensors = {name: value.to(self._device) for name, value in inputs.items()}
        with torch.inference_mode():
            made = self._model.generate(
                **tensors, num_beams=1, do_sample=False, return_dict_in_generate=True, output_scores=True
            )
            scores = self._model.compute_transition_scores(made.sequences, made.scores, normalize_logits=True)
        text = self._processor.batch_decode(made.sequences, skip_special_tokens=True)[0].strip()
        values = scores[0].float().cpu().numpy()
        return text, values[np.isfinite(values)]


def _load(model: str, device: str) -> tuple[Any, Any]:
    if find_spec("transformers") is None:
        raise ValueError("the recogniser `whisper` needs transformers: pip install transformers")
    try:
        processor, network = _read(model)
    except (OSError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(_unusable(model, why)) from None
    return processor, network.to(device).eval()


def _read(model: str) -> tuple[Any, Any]:
    """Processor and network of a folder, or of a name on the hub: what was downloaded before is used as it is."""
    require("speech recogniser hugging-face", "transformers")
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    def read(here: bool) -> tuple[Any, Any]:
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False, local_files_only=here)
        # Safetensors only: the older format of weights is a pickle.
        network = AutoModelForSpeechSeq2Seq.from_pretrained(
            model, trust_remote_code=False, local_files_only=here, use_safetensors=True
        )
        return processor, network

    try:
        return read(here=True)
    except (OSError, ValueError):
        if _is_path(model):
            raise
    from huggingface_hub import HfApi

    try:
        # One question first: where the hub is blocked, the loaders ask six times for every file, half a minute each.
        HfApi().model_info(model, timeout=_TIMEOUT)
    except Exception as error:  # also those of its HTTP library
        raise OSError(f"the hub does not give it: {error or repr(error)}") from None
    return read(here=False)


def _is_path(model: str) -> bool:
    """Whether a model is meant to be a folder, and no name on the hub."""
    return Path(model).exists() or model.startswith(("/", "."))


def _unusable(model: str, why: str) -> str:
    if not _is_path(model):
        return (
            f"the speech model {model!r} cannot be loaded: {why}. Download it where there is a network (hf download "
            f"{model} --local-dir FOLDER), copy the folder here, and name it with --speech-model FOLDER"
        )
    if not Path(model).is_dir():
        return f"--speech-model {model}: there is no such folder"
    return f"--speech-model {model}: no speech-to-text model that can be loaded ({why})"
