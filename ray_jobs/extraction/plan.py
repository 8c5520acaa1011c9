"""What an extraction makes of which clips, decided once, so that it can be killed and continue.

Feature shards map one to one to clip shards, under the same names: a shard is done when its report is there, and its
report is written after its tar and its index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conclugen.common import machine
from conclugen.common.names import did_you_mean
from conclugen.encoders import Encoder, EncoderInfo, registry
from conclugen.encoders.encoder import MEAN_STD, differences
from conclugen.encoders.views import STRENGTHS
from conclugen.evaluation.solvers import LayerBlock
from shards import Manifest
from shards.clips.reader import ClipManifest
from shards.format.schema import Column, Schema
from shards.media.face_track import CROPS
from shards.output_folder import Ownership, digest_of
from shards.quarantine import FILE_NAME, SUMMARY_NAME

FORMAT = 1
PLAN_NAME = "extraction.json"
REPORTS, SEQUENCES = "reports", "sequences"
DTYPES = ("float32", "float16")
OWNERSHIP = Ownership(
    "extraction",
    PLAN_NAME,
    (
        *("*.tar", "*.index.parquet", f"{SEQUENCES}/*.tar", f"{REPORTS}/*.json", "views/*.parquet"),
        *(FILE_NAME, SUMMARY_NAME),
    ),
)


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder and where its weights come from, as `conclugen.encoders.create` takes them. plugin: the module that
    has it, where the user named one."""

    name: str
    weights: str | None = None
    mirror: str | None = None
    plugin: str | None = None

    @property
    def provider(self) -> str:
        """Who has the encoder, in this process."""
        return registry.provider(self.name)

    def create(self, device: str) -> Encoder:
        """Raises WeightsError for weights that are not available, ValueError for an encoder that this process lacks."""
        if self.plugin is not None:
            registry.plug(self.plugin)
        return registry.create(self.name, self.weights, self.mirror, device)


@dataclass(frozen=True)
class Decoding:
    """How clips become arrays. crop: `follow` the face, the `union` of its boxes, or `none`; low_confidence: whether
    transcripts that are marked so are used; whole_frames: whether whole frames stand in where a clip's face is not
    seen, instead of leaving such frames out."""

    crop: str = "follow"
    low_confidence: bool = False
    whole_frames: bool = False

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"--crop {self.crop!r} is unknown, {did_you_mean(self.crop, CROPS)}")


@dataclass(frozen=True)
class Augmentation:
    """count: augmented views of every clip beside the clean one; strength: `mild` or `strong`; seed: of all draws."""

    count: int = 0
    strength: str = "mild"
    seed: int = 127

    def __post_init__(self) -> None:
        if not 0 <= self.count <= 99:
            raise ValueError(f"--views {self.count}, expected 0 to 99")
        if self.strength not in STRENGTHS:
            raise ValueError(f"--view-strength {self.strength!r} is unknown, {did_you_mean(self.strength, STRENGTHS)}")

    @property
    def numbers(self) -> range:
        """Of the views; 0 is the clean one."""
        return range(self.count + 1)


def view_name(name: str, view: int) -> str:
    """Name of a column or modality in a view: its own for the clean one, `<name>_v1` and so on for the others."""
    return name if not view else f"{name}_v{view}"


@dataclass(frozen=True)
class Extraction:
    """choices and infos: of each encoder, in one order; sequences: whether vectors before their mean over time are
    kept beside the features; identity: JSON-able, what must agree to continue it."""

    clips: ClipManifest
    out: Path
    choices: tuple[EncoderChoice, ...]
    infos: tuple[EncoderInfo, ...]
    decoding: Decoding = field(default_factory=Decoding)
    augmentation: Augmentation = field(default_factory=Augmentation)
    dtype: str = "float32"
    sequences: bool = False

    @classmethod
    def make(cls, clips: ClipManifest, out: Path, choices: Sequence[EncoderChoice], **options: Any) -> Extraction:
        """Create every encoder once on this machine, so that what is missing is said before any work is done.

        Raises ValueError for two encoders of one column, and WeightsError for weights that are not available.
        """
        machine.return_freed_memory()  # of models that are let go again
        infos = tuple(choice.create("cpu").info for choice in choices)
        columns = [info.column for info in infos]
        for info in infos:
            if columns.count(info.column) > 1:
                same = sum(other.name == info.name for other in infos) > 1
                remedy = "rename one model's folder, which names the column" if same else "leave one of them out"
                raise ValueError(f"two of the encoders write the column {info.column!r}; {remedy}")
        return cls(clips, out, tuple(choices), infos, **options)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype {self.dtype!r} is unknown, {did_you_mean(self.dtype, DTYPES)}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the feature shards: every encoder's, clean ones first."""
        return tuple(view_name(info.column, view) for view in self.augmentation.numbers for info in self.infos)

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        """Modality -> columns: the encoders of a modality make it together, in their order; `video_v1` and so on are
        those of augmented views."""
        composed: dict[str, tuple[str, ...]] = {}
        for view in self.augmentation.numbers:
            for info in self.infos:
                name = view_name(info.modality, view)
                composed[name] = (*composed.get(name, ()), view_name(info.column, view))
        return composed

    @property
    def schema(self) -> Schema:
        """Of the feature shards: labels, groups, text and strings are the clips' own."""
        widths = {info.column: info.width for info in self.infos}
        columns = tuple(
            Column(view_name(info.column, view), widths[info.column], self.dtype)
            for view in self.augmentation.numbers
            for info in self.infos
        )
        own = self.clips.schema
        return Schema(columns, self.modalities, own.labels, own.grouped, own.meta)

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for shards to be of one extraction."""
        plain = {
            "format": FORMAT,
            "clips": self.clips.digest,
            "encoders": [info.identity() for info in self.infos],
            "crop": self.decoding.crop,
            "low_confidence": self.decoding.low_confidence,
            "whole_frames": self.decoding.whole_frames,
            "views": self.augmentation.count,
            "dtype": self.dtype,
        }
        if self.sequences:
            # Steps of such encoders are half as wide as their vectors; earlier versions stored them glued in pairs.
            halved = {info.column: info.step_width for info in self.infos if info.pooling == MEAN_STD}
            plain["sequences"] = halved or True
        if self.augmentation.count:
            plain |= {"view_strength": self.augmentation.strength, "view_seed": self.augmentation.seed}
        read_back: dict[str, Any] = json.loads(json.dumps(plain))
        return read_back

    @property
    def digest(self) -> str:
        """Of the identity."""
        return digest_of(self.identity)

    @property
    def info(self) -> dict[str, Any]:
        """What the feature shards' manifest says of how they were made; `recipe_of` reads it back."""
        encoders = [
            info.to_dict() | {"provider": choice.provider}
            for info, choice in zip(self.infos, self.choices, strict=True)
        ]
        features = self.identity | {"encoders": encoders}
        said = {name: self.clips.info[name] for name in ("rendered",) if name in self.clips.info}
        return {"features": features, "set": self.clips.info.get("set"), **said}

    def acquire(self, overwrite: bool = False) -> None:
        """Make the folder this extraction's, or resume the same one: see `shards.output_folder.Ownership.acquire`."""
        OWNERSHIP.acquire(self.out, self.identity, overwrite)
        for name in (REPORTS, SEQUENCES)[: 1 + self.sequences]:
            (self.out / name).mkdir(exist_ok=True)


@dataclass(frozen=True)
class Recipe:
    """How a model's features were made, as their manifest tells it."""

    encoders: tuple[Mapping[str, Any], ...]
    decoding: Decoding

    @property
    def provided(self) -> dict[str, str]:
        """Encoder -> who had it."""
        return {item["name"]: str(item["provider"]) for item in self.encoders if "provider" in item}

    def check(self, infos: Sequence[EncoderInfo]) -> None:
        """Raise ValueError where other encoders, or other weights, would make the features."""
        mine = {info.column: info.identity() for info in infos}
        for wanted in self.encoders:
            found = mine.get(wanted["column"])
            if found is None:
                raise ValueError(
                    f"column {wanted['column']!r} was made by the encoder {wanted['name']}, which is missing"
                )
            for name, value, made_with in differences(found, wanted):
                remedy = (
                    f"Give the same weights with --weights {wanted['name']}=FILE"
                    if name == "digest"
                    else "Extract its features again, and pretrain on those"
                )
                raise ValueError(
                    f"encoder {wanted['name']}: {name} is {short(value, 200)}, but the model's features were made with "
                    f"{short(made_with, 200)}; others mean nothing to it. {remedy}"
                )


def recipe_of(info: Mapping[str, Any]) -> Recipe | None:
    """The recipe that a manifest's (or an exported model's) info holds; None for features of unknown origin."""
    features = info.get("features")
    if features is None:
        return None
    try:
        if not isinstance(features, Mapping) or not isinstance(features["encoders"], list):
            raise TypeError("expected a mapping with a list of encoders")
        whole = bool(features.get("whole_frames", False))
        decoding = Decoding(str(features["crop"]), bool(features["low_confidence"]), whole)
        encoders = tuple(dict(item) for item in features["encoders"])
        for number, item in enumerate(encoders):
            for name, kind in (("name", str), ("column", str), ("modality", str), ("width", int)):
                if not isinstance(item[name], kind):
                    raise TypeError(f"encoders[{number}].{name} is {short(item[name])}")
    except (KeyError, TypeError, ValueError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"the description of how the features were made cannot be read: {missing}") from None
    return Recipe(encoders, decoding)


def stored_layers(
    manifest: Manifest, composition: Mapping[str, Sequence[str]] | None, modalities: Sequence[str]
) -> dict[str, list[LayerBlock]]:
    """Modality -> those of its columns that an encoder made of all its layers, as the shards tell.

    composition: of modalities from columns; None: the shards' own. Raises ValueError where the shards do not say how
    many layers such a column holds.
    """
    composed = manifest.schema.resolve(composition)
    recipe = recipe_of(manifest.info)
    made = {} if recipe is None else {item["column"]: item for item in recipe.encoders if item.get("stored_layers")}
    found: dict[str, list[LayerBlock]] = {}
    for modality in modalities:
        start = 0
        for column in composed.get(modality, ()):  # of a mixture a corpus may lack some
            width = manifest.schema.column(column).width
            if column in made:
                layers = made[column]["stored_layers"]
                if type(layers) is not int or layers < 1 or width % layers:
                    raise ValueError(
                        f"{manifest.folder}: stored_layers of column {column!r} is {layers!r}, expected a divisor of "
                        f"its width {width}; extract its features again"
                    )
                found.setdefault(modality, []).append(LayerBlock(column, start, layers, width // layers))
            start += width
    return found


def short(value: Any, longest: int = 40) -> str:
    """For a message."""
    text = json.dumps(value)
    return text if len(text) <= longest else f"{text[: longest // 2]}..."
