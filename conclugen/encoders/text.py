"""Text encoders of Hugging Face: any model that gives hidden states for tokens.

The feature of a text is the mean of the last hidden state over all its tokens, special ones included (as published,
with `j-hartmann/emotion-english-distilroberta-base`), unless another layer or pooling is asked for
(`conclugen.encoders.hub_models`); the first line of a transcript counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conclugen.common.extras import require
from conclugen.encoders import hub_models as hub
from conclugen.encoders import hugging_face as hf
from conclugen.encoders.encoder import (
    TEXT,
    Array,
    EncoderInfo,
    FrozenEncoder,
    InputError,
    Takes,
    check_text,
)

NAME = "text"
DEFAULT_MODEL = "j-hartmann/emotion-english-distilroberta-base"
BIBTEX = {
    f"hf-text:{DEFAULT_MODEL}": r"""@misc{hartmann2022emotionenglish,
  title = {Emotion English {DistilRoBERTa}-base},
  author = {Hartmann, Jochen},
  year = {2022},
  howpublished = {\url{https://huggingface.co/j-hartmann/emotion-english-distilroberta-base}},
}""",
}
TAKES = Takes(TEXT)
_LONGEST = 512
_CHUNK = 32


def create(given: str | None, mirror: str | None, device: str) -> TextEncoder:
    """given: a model's name on the hub, or a folder with its files; mirror: a folder that holds such folders under
    their names (`OWNER/MODEL`, or `MODEL`). Raises WeightsError for one that is not available."""
    model = DEFAULT_MODEL if given is None else hub.absolute(given, f"weights of {NAME}")
    found = hub.find(hub.Request(NAME, model), given, mirror)
    source = f"https://huggingface.co/{model}" if not hub.is_path(model) else Path(model).name
    return read(NAME, "text_hidden", found, source, "as its model card states", device, _LONGEST)


def create_named(model: str, given: str | None, mirror: str | None, device: str) -> TextEncoder:
    """model: what follows `hf-text:`. Raises as `hub_models.create`."""
    return hub.create("hf-text", model, given, mirror, lambda found: _load(found, device, _LONGEST))


def read(name: str, column: str, found: hub.Found, source: str, licence: str, device: str, longest: int) -> TextEncoder:
    """One of the encoders that had a name of their own before there were families; they compute in float32 alone."""
    require("encoders of text", "transformers")
    encoder = hub.read(name, found, lambda found: _load(found, device, longest))
    said = encoder.info.preprocessing.rpartition("; ")[0]
    encoder.info = replace(encoder.info, name=name, column=column, source=source, licence=licence, preprocessing=said)
    return encoder


def _load(found: hub.Found, device: str, longest: int) -> TextEncoder:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(found.folder, **hub.LOCAL)
    hf.refuse_other_families(found, config)
    tokenizer = AutoTokenizer.from_pretrained(found.folder, **hub.LOCAL)
    hf.check_options(found, config, tokenizer.cls_token_id is not None, frames=False)
    network = hf.whole_model(found, attn_implementation="eager")
    if hf.has_decoder(network):
        network = network.get_encoder()  # a decoder says what comes next, not what was read
    positions = int(getattr(network.config, "max_position_embeddings", None) or 0)
    limits = (longest, int(tokenizer.model_max_length), positions)
    most = min(limit for limit in limits if limit > 0)  # -1: as many as one likes
    ids = tokenizer("one", truncation=True, max_length=most)["input_ids"]
    if found.pool == hub.FIRST and ids[0] != tokenizer.cls_token_id:
        raise hub.WrongModelError("@pool=first: its class token is not the first one, allowed: mean, meanstd")
    with torch.inference_mode():
        tokens = torch.tensor([ids])
        hidden = hf.hidden_of(found, network, input_ids=tokens, attention_mask=torch.ones_like(tokens))
    class_alone = found.pool == hub.FIRST
    info = hf.described(
        found,
        network,
        sorted(tokenizer.get_vocab().items()),
        modality="text",
        steps_width=hidden.shape[-1],
        takes=TAKES,
        preprocessing=preprocessing(most, "class token alone" if class_alone else "special ones included"),
    )
    network = hf.cast(network, found)

    def hidden_state(ids: Tensor) -> Tensor:
        hidden = hf.hidden_of(found, network, input_ids=ids, attention_mask=torch.ones_like(ids))
        return hidden[:, :1] if class_alone else hidden

    def token_numbers(line: str) -> list[int]:
        ids: list[int] = tokenizer(line, truncation=True, max_length=most)["input_ids"]
        return ids

    return TextEncoder(info, network, hidden_state, token_numbers, device)


def preprocessing(most: int, kept: str = "special ones included") -> str:
    """As an encoder's info says it. most: tokens; kept: which of them count."""
    return f"first line, at most {most} tokens, {kept}"


class TextEncoder(FrozenEncoder):
    """A string -> (tokens, width).

    hidden_state: (n, T) token numbers of n texts, none of which is padding, to (n, T, width); token_numbers: of a line.
    """

    def __init__(
        self,
        info: EncoderInfo,
        network: nn.Module,
        hidden_state: Callable[[Tensor], Tensor],
        token_numbers: Callable[[str], list[int]],
        device: str,
    ) -> None:
        super().__init__(info, network, device, _CHUNK)
        self._hidden_state, self._token_numbers = hidden_state, token_numbers

    def encode_sequence(self, batch: Sequence[Any]) -> list[Array]:
        tokens = [self._tokens(position, text) for position, text in enumerate(check_text(batch))]
        sequences: list[Array | None] = [None] * len(tokens)

        def compute(part: Sequence[int]) -> Tensor:
            return self._hidden_state(torch.tensor([tokens[i] for i in part], device=self.device))

        # Texts of one length go through together, so that none is padded.
        for length in sorted({len(ids) for ids in tokens}):
            chosen = [i for i, ids in enumerate(tokens) if len(ids) == length]
            for i, sequence in zip(chosen, self.in_chunks(chosen, compute), strict=True):
                sequences[i] = sequence
        assert all(sequence is not None for sequence in sequences)
        return [sequence for sequence in sequences if sequence is not None]

    def _tokens(self, position: int, text: str) -> list[int]:
        line = text.strip().splitlines()[0]
        ids = self._token_numbers(line)
        if not ids:
            raise InputError(position, f"the text {line[:40]!r} has no tokens")
        return ids
