"""Models of Hugging Face as networks: read, checked, cast, described, their hidden states. How one is asked for and
found: `conclugen.encoders.hub_models`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from conclugen.encoders.encoder import MEAN, MEAN_STD, EncoderInfo, Takes
from conclugen.encoders.hub_models import FIRST, HALF, LOCAL, Found, WrongModelError, licence

KINDS: Mapping[str, tuple[str, ...]] = {
    "hf-audio": ("wav2vec2", "hubert", "wavlm", "whisper", "audio-spectrogram-transformer", "clap"),
    "hf-image": ("vit", "dinov2", "clip", "siglip"),
    "hf-video": ("videomae", "timesformer"),
}
"""Family -> `model_type` of the models that it takes, as their configurations say it."""
# Tensors that a checkpoint may lack: no output that is read here depends on them.
_UNUSED = re.compile(r"(^|\.)(pooler|masked_spec_embed|position_ids)(\.|$)")


def digest(network: Any, preprocessor: Any) -> str:
    """SHA-256 over tensors and what goes before them (a vocabulary, or a preprocessor's settings): files of the same
    model differ between releases of the library."""
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    sha.update(json.dumps(preprocessor, sort_keys=True, default=str).encode())
    return sha.hexdigest()


def settings(preprocessor: Any) -> dict[str, Any]:
    """What a preprocessor was told, without what a release of the library says of itself."""
    said = preprocessor.to_dict()
    own = ("_type", "_version", "_class", "_filters", "_filters_slaney")
    return {name: value for name, value in said.items() if value is not None and not name.endswith(own)}


def described(
    found: Found, network: Any, before: Any, *, modality: str, steps_width: int, takes: Takes, preprocessing: str
) -> EncoderInfo:
    """What an encoder is. before: what goes before the network, as `digest` takes it; steps_width: of each vector of a
    sequence; preprocessing: without the arithmetic."""
    pooling = MEAN_STD if found.pool == MEAN_STD else MEAN
    stored = steps_width // int(network.config.hidden_size) if found.every_layer else 0
    return EncoderInfo(
        name=found.name,
        modality=modality,
        column=found.column(modality),
        width=steps_width * (2 if pooling == MEAN_STD else 1),
        takes=takes,
        # Name float32 too: older folders name no precision, and a GPU computed theirs in bfloat16.
        preprocessing=f"{preprocessing}; computed in {found.dtype or 'float32'}",
        source=found.source,
        licence=licence(found),
        digest=digest(network, before),
        pooling=pooling,
        revision=found.commit,
        layers=f"0-{stored - 1}" if stored else found.shown_layers,
        stored_layers=stored,
    )


def whole_model(found: Found, **options: Any) -> Any:
    """A model with all its parts, in float32, from safetensors alone: the older format of weights is a pickle. Raises
    OSError for weights that lack a tensor which is used; the library would draw it at random."""
    from transformers import AutoModel

    model, told = AutoModel.from_pretrained(
        found.folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **LOCAL, **options
    )
    missing = [str(name) for name in told["missing_keys"] if not _UNUSED.search(str(name))]
    # Of these the encoder alone is used; in other models `decoder` is what the layers themselves are named.
    spared = ("decoder.",) if has_decoder(model) else ()
    absent = sorted(name for name in missing if not name.startswith(spared))
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise OSError(f"its weights lack the tensor {absent[0]}{more}: they are not whole, or another model's")
    return model


def has_decoder(model: Any) -> bool:
    """Whether a model is an encoder and a decoder, as it is built: configurations of encoders that were saved by
    themselves say either."""
    return all(isinstance(getattr(model, part, None), nn.Module) for part in ("encoder", "decoder"))


def cast(network: Any, found: Found) -> Any:
    """The network in the arithmetic that was asked for: the same on every device, for it is part of the features."""
    return network.to(torch.bfloat16) if found.dtype == HALF else network


def check_options(found: Found, config: Any, class_token: bool, frames: bool) -> None:
    """Raise WrongModelError for an option that a model does not have. class_token: whether it has one; frames: whether
    it sees any."""
    if found.pool == FIRST and not class_token:
        raise WrongModelError(f"@pool=first: a {config.model_type} has no class token, allowed: mean, meanstd")
    if found.fps is not None and not frames:
        raise WrongModelError("@fps is an option of hf-image and hf-video; leave it out")


def kind_of(found: Found, config: Any) -> str:
    """The kind of the model. Raises WrongModelError for one that another family takes, or none."""
    kind, allowed = str(config.model_type), KINDS[found.family]
    if kind not in allowed:
        other = next((family for family, kinds in KINDS.items() if kind in kinds), None)
        remedy = f"; give {other}:{found.model}" if other else ""
        raise WrongModelError(
            f"the model is of the kind {kind!r}, allowed for {found.family}: {', '.join(allowed)}{remedy}"
        )
    return kind


def refuse_other_families(found: Found, config: Any) -> None:
    """Raise WrongModelError for a model that takes no text."""
    family = next((family for family, kinds in KINDS.items() if config.model_type in kinds), None)
    if family is not None:
        raise WrongModelError(
            f"the model is of the kind {config.model_type!r}, expected one that takes text; give {family}:{found.model}"
        )


def hidden_of(found: Found, network: Any, **inputs: Tensor) -> Tensor:
    """(B, ...): the network's last output, one of its hidden states, the mean of several, or all of them side by side
    in the last dimension, as was asked for. Raises WrongModelError for layers that it does not have, or that differ in
    shape."""
    output = network(**inputs, output_hidden_states=bool(found.layers) or found.every_layer)
    states = output.hidden_states
    layers = tuple(range(len(states))) if found.every_layer else found.layers
    if not layers:
        last: Tensor = output.last_hidden_state
        return last
    if layers[-1] >= len(states):
        option = "@layer" if len(layers) == 1 else "@layers"
        raise WrongModelError(f"{option}: {layers[-1]} does not exist, the model has the layers 0 to {len(states) - 1}")
    shapes = {tuple(states[number].shape) for number in layers}
    if len(shapes) > 1:
        raise WrongModelError(f"@layers: these layers have the shapes {sorted(shapes)}, expected one; choose @layer=N")
    chosen = [states[number] for number in layers]
    return torch.cat(chosen, -1) if found.every_layer else torch.stack(chosen).mean(0)
