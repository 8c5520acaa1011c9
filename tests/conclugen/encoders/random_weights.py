"""RANDOM weights for the paper's encoders: `python -m tests.conclugen.encoders.random_weights FOLDER`.

Features made with them mean nothing. They cost what features of the published weights cost, so speed and memory can be
measured where the published ones can't be had. Prints the options of `ray_jobs.extract_features` that take them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from conclugen.encoders import resdavenet, resnet3d

# Of `j-hartmann/emotion-english-distilroberta-base`, as its model card and configuration state.
_TEXT = {"vocab_size": 50_265, "hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12}


def write(folder: Path) -> dict[str, Path]:
    """Encoder -> its file (text: folder) of random weights, under names that begin with `random_`."""
    from torchvision.models import resnet152

    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    with torch.device("meta"):
        networks = {"resnet152": resnet152(), "resnet3d101": resnet3d.ResNet3D(), "resdavenet": resdavenet.ResDavenet()}
    for name, network in networks.items():
        made[name] = folder / f"random_{name}.safetensors"
        save_file(drawn(network), made[name])
    made["text"] = folder / "random_text"
    _write_text(made["text"])
    return made


def drawn(network: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of a network: kernels and matrices by fan-in, gains and variances 1, all else 0."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, x in network.state_dict().items():
        if x.dim() > 1:
            fan = math.prod(x.shape[1:])
            tensors[name] = torch.randn(x.shape, generator=generator) * (2 / fan) ** 0.5
        else:
            one = name.endswith(("weight", "running_var"))
            tensors[name] = torch.full(x.shape, 1 if one else 0, dtype=x.dtype)
    return tensors


def _write_text(folder: Path) -> None:
    """A RoBERTa of the published size whose vocabulary is the letters: a word has as many tokens as letters."""
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    folder.mkdir(exist_ok=True)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "\u0120", *(chr(code) for code in range(33, 127))]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = RobertaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = RobertaConfig(**_TEXT, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    with torch.device("meta"):
        network = RobertaModel(config)
    network.to_empty(device="cpu").load_state_dict(drawn(network))
    network.save_pretrained(folder, safe_serialization=True)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.conclugen.encoders.random_weights", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    made = write(parser.parse_args().folder)
    print("--encoders paper " + " ".join(f"--weights {name}={path}" for name, path in made.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
