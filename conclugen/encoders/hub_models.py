"""Which model of Hugging Face an encoder is of, and where its files are: names with options, folders, the hub, mirrors.

    hf-audio:facebook/wav2vec2-base@revision=main@layer=9
    hf-text:/models/roberta@layers=6-12@pool=meanstd

A model is a name on the hub, a folder, or a name below a mirror (`--mirror FOLDER` holds `OWNER/MODEL` or `MODEL`).
`@layer=N` takes `hidden_states[N]` of the library (0: the embeddings) instead of the last output, `@layers=N-M` the
mean of several, `@layers=all` every one of them, side by side. Weights are read from safetensors alone, and no code of
a model's repository is run. What a model computes: `conclugen.encoders.hugging_face`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from conclugen.common import paths, uris
from conclugen.encoders.encoder import MEAN, MEAN_STD
from conclugen.encoders.weights import WeightsError, not_installed

FIRST = "first"
POOLS = (MEAN, MEAN_STD, FIRST)
HALF = "bfloat16"
_EVERY = "all"
_OPTIONS = ("revision", "layer", "layers", "pool", "fps", "dtype")
_OPTION = re.compile(r"@([a-z]+)=([^@]*)$")
_REVISION = re.compile(r"(?!.*\.\.)\w[\w.+/-]*")  # also a folder's name in the hub's cache: nothing that climbs
_LAYERS = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?")
_CARD, _WHOLE, _SAFE = "README.md", "model.safetensors", ".safetensors"
_SETTINGS = (".json", ".txt", ".model", ".codes", ".spm")  # configurations, and what tokenizers are made of
_TIMEOUT = 20.0  # seconds that the hub has for its first answer
_LONGEST_COLUMN = 36
_UNSTATED = "as its model card states"

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What follows `hf-audio:`. model: hub name or folder; layers: of `hidden_states`, none: the last output;
    every_layer: all of them, side by side; pool: one of `POOLS`, or what suits the model; fps: frames a second; dtype:
    `HALF`, or none for float32."""

    family: str
    model: str
    revision: str | None = None
    layers: tuple[int, ...] = ()
    pool: str | None = None
    fps: float | None = None
    dtype: str | None = None
    every_layer: bool = False

    @classmethod
    def parse(cls, family: str, text: str) -> Request:
        """Raises ValueError naming the option, the value and what is allowed."""
        given: dict[str, str] = {}
        rest = text
        while found := _OPTION.search(rest):
            name, value = found.groups()
            if name not in _OPTIONS or name in given:
                problem = "is given twice" if name in given else f"is unknown, allowed: {', '.join(_OPTIONS)}"
                raise ValueError(f"encoder {family}:{text}: the option @{name} {problem}")
            given[name], rest = value, rest[: found.start()]
        place = f"encoder {family}:{text}"
        if not rest:
            raise ValueError(f"{place}: names no model; give {family}:NAME of the hub, or {family}:FOLDER")
        if "layer" in given and "layers" in given:
            raise ValueError(f"{place}: @layer and @layers are both given; give one of them")
        layers = _layers(place, given["layer"], False) if "layer" in given else ()
        every_layer = given.get("layers") == _EVERY
        layers = _layers(place, given["layers"], True) if "layers" in given and not every_layer else layers
        pool = given.get("pool")
        pools = [one for one in POOLS if one != MEAN_STD] if every_layer else POOLS
        if pool is not None and pool not in pools:
            of = f" with @layers={_EVERY}" if every_layer else ""
            raise ValueError(f"{place}: @pool is {pool!r}, allowed{of}: {', '.join(pools)}")
        dtype = given.get("dtype")
        if dtype not in (None, HALF):
            raise ValueError(
                f"{place}: @dtype is {dtype!r}, allowed: {HALF}; without it the network computes in float32"
            )
        if "revision" in given and is_path(rest):
            raise ValueError(f"{place}: @revision is of a hub's models, and {rest} is a folder; leave it out")
        revision = given.get("revision")
        if revision is not None and not _REVISION.fullmatch(revision):
            raise ValueError(f"{place}: @revision is {revision!r}, expected a branch, tag or commit of a hub")
        fps = _fps(place, given.get("fps"))
        return cls(family, rest, revision, layers, pool, fps, dtype, every_layer)

    @property
    def name(self) -> str:
        """As features and models name the encoder: without the place of a folder, which differs between machines."""
        model = Path(absolute(self.model)).name if is_path(self.model) else self.model
        options = [f"@{name}={value}" for name, value in self._chosen().items()]
        return f"{self.family}:{model}{''.join(options)}"

    @property
    def asked(self) -> str:
        """As `--weights` names the encoder; `text` is not a family, and chooses its model by that."""
        return f"{self.family}:{self.model}" if self.family.startswith("hf-") else self.family

    def _chosen(self) -> dict[str, str]:
        first, *others = self.layers or (None,)
        layers = {} if first is None else {"layers": f"{first}-{others[-1]}"} if others else {"layer": str(first)}
        layers = {"layers": _EVERY} if self.every_layer else layers
        fps = {} if self.fps is None else {"fps": f"{self.fps:g}"}
        pool = {} if self.pool is None else {"pool": self.pool}
        dtype = {} if self.dtype is None else {"dtype": self.dtype}
        return ({"revision": self.revision} if self.revision else {}) | layers | pool | fps | dtype

    @property
    def shown_layers(self) -> str:
        """As they were asked for; empty: the last output."""
        return self._chosen().get("layer") or self._chosen().get("layers") or ""

    def column(self, modality: str) -> str:
        """A name of at most 36 characters, another one for every other name of an encoder."""
        model = re.sub(r"[^A-Za-z0-9]+", "_", self.name.partition(":")[2].partition("@")[0].rpartition("/")[2])
        mark = hashlib.sha256(self.name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        kept = _LONGEST_COLUMN - len(modality) - len(mark) - 2
        return f"{modality}_{model.strip('_')[:kept]}_{mark}"


def _layers(place: str, value: str, several: bool) -> tuple[int, ...]:
    found = _LAYERS.fullmatch(value)
    if found is None or (found[2] is not None) != several or (several and int(found[2]) <= int(found[1])):
        expected = f"two numbers, the lower first, such as 6-12, or {_EVERY}" if several else "a number, such as 9"
        raise ValueError(f"{place}: @layer{'s' * several} is {value!r}, expected {expected}")
    return tuple(range(int(found[1]), int(found[2]) + 1)) if several else (int(found[1]),)


def _fps(place: str, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        fps = float(value)
    except ValueError:
        fps = 0.0
    if not 0 < fps <= 60:
        raise ValueError(f"{place}: @fps is {value!r}, expected frames a second, above 0 and at most 60")
    return fps


# ---------------------------------------------------------------------------------------------------------- finding


@dataclass(frozen=True)
class Found(Request):
    """A request whose model has a place: a folder, or a name on the hub. folder: where its files are, on this machine;
    commit: of the hub, which they are of; both known when it is read."""

    place: str = ""
    folder: str = ""
    commit: str = ""

    @property
    def source(self) -> str:
        """For the recipe: an address, or the folder's name."""
        if is_path(self.place):
            return f"folder {Path(self.place).name}"
        return f"https://huggingface.co/{self.place}"


def find(request: Request, given: str | None, mirror: str | None) -> Found:
    """given: the model's copy of `--weights`; mirror: a folder that holds models under their names. Raises ValueError
    for a mirror that is none."""
    if given is not None:
        place = absolute(given, f"weights of {request.asked}")
    else:
        place = absolute(request.model) if is_path(request.model) else request.model
    if not is_path(place) and mirror is not None:
        if "://" not in mirror:
            place = _copy(place, mirror) or place
        elif given is None:
            option = f"--weights {request.asked}"
            raise ValueError(
                f"mirror: {uris.public(mirror)} is a URL, and the files of {place} are read from a folder; copy them, "
                f"and name the copy with {option}=FOLDER, or take the hub's with {option}={place}"
            )
    values = {field.name: getattr(request, field.name) for field in dataclasses.fields(Request)}
    return Found(**values, place=place)


def _copy(model: str, mirror: str) -> str | None:
    """The folder of a model below a mirror, by its whole name or without its owner."""
    copies = [paths.absolute(mirror, "mirror") / name for name in (model, model.rpartition("/")[2])]
    return next((absolute(str(copy)) for copy in copies if copy.is_dir()), None)


def _cached(model: str, revision: str | None) -> Path | None:
    """The folder of what was downloaded of a hub's model before, whole or not; it is named by the commit."""
    try:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except (ImportError, ValueError):  # no name that a hub has
        return None
    return Path(config).parent if isinstance(config, str) else None


def place_of_data(name: str, given: str | None, mirror: str | None) -> str | None:
    """Where the model is that the name of an encoder means, when data give that name: what the user gave, a copy below
    the mirror, or what was downloaded before. None for an encoder of no family.

    Data choose no folders, and start no downloads: ValueError for a path, and for a model that is at none of these.
    """
    family, colon, model = bare(name).partition(":")
    if not colon:
        return given
    parts = model.split("/")
    if len(parts) > 2 or not {"", ".", ".."}.isdisjoint(parts) or model.startswith("~"):
        raise ValueError(f"encoder {name!r}: what features are made with has a name, and no path; refused")
    revision = Request.parse(family, name.partition(":")[2]).revision
    place = given
    if place is None and not is_path(model):
        copy = _copy(model, mirror) if mirror is not None and "://" not in mirror else None
        cached = _cached(model, revision) if copy is None else None
        place = copy if cached is None else str(cached)
    if place is None:
        asked = f"; --weights {bare(name)}={model} takes it from the hub" if not is_path(model) else ""
        raise ValueError(
            f"encoder {name!r}: data name this model, so it is not fetched unasked; say where it is with --weights "
            f"{bare(name)}=FOLDER, or --mirror FOLDER{asked}"
        )
    return place


def is_path(place: str) -> bool:
    """Whether a model is meant to be a folder, and no name on the hub: as it is written, not as the disk has it."""
    return place.startswith(("/", ".", "~"))


def absolute(place: str, field: str = "the model") -> str:
    """A folder or file as every working folder finds it: one that is written as a path, or is there. Anything else (a
    hub's name, a URL) as it is. Raises ValueError for a path that names nothing."""
    if "://" in place or (place and not (is_path(place) or Path(place).exists())):
        return place
    path = paths.absolute(place, field)
    return str(path.resolve() if ".." in path.parts else path)


def located(name: str) -> str:
    """The name of an encoder of a family, its model `absolute`."""
    plain = bare(name)
    family, colon, model = plain.partition(":")
    return f"{family}:{absolute(model)}{name[len(plain) :]}" if colon and model else name


LOCAL: Mapping[str, Any] = {"trust_remote_code": False, "local_files_only": True}
"""Options of everything that the library loads."""


def create(family: str, model: str, given: str | None, mirror: str | None, load: Callable[[Found], T]) -> T:
    """What `load` makes of the model that follows `hf-audio:` or another family's name. Raises ValueError for a wrong
    request or kind of model, WeightsError."""
    found = find(Request.parse(family, model), given, mirror)
    return read(found.name, found, load)


def read(name: str, found: Found, load: Callable[[Found], T]) -> T:
    """`load` of a model whose folder is known: what was downloaded before is used as it is.

    name: of the encoder, for messages. Raises WeightsError for a model that is not available: why, and the option that
    takes a copy.
    """
    try:
        from safetensors import SafetensorError
        from transformers.utils import logging
    except ImportError:
        raise not_installed(name, "transformers") from None
    logging.set_verbosity_error()  # a classifier's own head is not loaded, and is not missed
    logging.disable_progress_bar()
    try:
        if is_path(found.place):
            return load(_within(found, Path(found.place)))
        cached = _cached(found.place, found.revision)
        if cached is not None:
            try:
                return load(_within(found, cached, cached.name))
            except WrongModelError:
                raise
            except (OSError, ValueError):  # not whole
                pass
        fetched = _fetched(found.place, found.revision)
        return load(_within(found, fetched, fetched.name))
    except WrongModelError as error:
        raise ValueError(f"encoder {name}: {error}") from None
    except _PickledError as error:
        raise WeightsError(f"encoder {name}: the model {found.place}: {error} --weights {bare(name)}=FOLDER") from None
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        first = uris.scrub(str(error) or repr(error)).splitlines()[0][:300]
        raise WeightsError(f"encoder {name}: {_unusable(name, found, first)}. Weights must be safetensors") from None


class WrongModelError(ValueError):
    """A model that was read and does not serve: of another kind, or without what was asked for."""


class _PickledError(OSError):
    """A model whose weights are pickles alone."""

    def __init__(self, file: str) -> None:
        super().__init__(
            f"its weights are {file}, a pickle, which is never loaded; convert it where you trust it: "
            "model.save_pretrained(FOLDER) of the library writes safetensors; name that folder with"
        )


def _within(found: Found, folder: Path, commit: str = "") -> Found:
    if folder.is_dir():
        _refuse_pickles([path.name for path in folder.iterdir()])
    return dataclasses.replace(found, folder=str(folder), commit=commit)


def _refuse_pickles(files: Sequence[str]) -> None:
    pickles = sorted(name for name in files if name.endswith(".bin"))
    if pickles and not any(name.endswith(_SAFE) for name in files):
        raise _PickledError(pickles[0])


def _fetched(model: str, revision: str | None) -> Path:
    """The folder with what is read of a hub's model, and its card, downloaded; named by the commit."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        # One question first: where the hub is blocked, a loader asks six times, half a minute each.
        about = HfApi().model_info(model, revision=revision, timeout=_TIMEOUT)
        files = [file.rfilename for file in about.siblings or () if "/" not in file.rfilename]
        _refuse_pickles(files)
        weights = [_WHOLE] if _WHOLE in files else [name for name in files if name.endswith(_SAFE)]
        read = [name for name in files if name == _CARD or name.endswith(_SETTINGS)]
        return Path(snapshot_download(model, revision=revision, allow_patterns=[*weights, *read]))
    except _PickledError:
        raise
    except Exception as error:  # also those of its HTTP library
        raise OSError(f"the hub does not give it: {error or repr(error)}") from None


def _unusable(name: str, found: Found, why: str) -> str:
    place = found.place
    if not is_path(place):
        return (
            f"the model {place!r} cannot be loaded: {why}. Download it where there is a network (hf download {place} "
            f"--local-dir FOLDER), and name the folder with --weights {bare(name)}=FOLDER, or the one that holds it "
            f"as {place} with --mirror FOLDER"
        )
    if not Path(place).is_dir():
        return f"the folder {place} does not exist; --weights {bare(name)}=FOLDER names one that holds a model"
    return (
        f"the folder {place} has no model that can be loaded ({why}); it needs config.json, what goes before the "
        "network (preprocessor or tokenizer) and weights"
    )


def bare(name: str) -> str:
    """An encoder's name without its options, as `--weights` takes it."""
    family, colon, model = name.partition(":")
    while found := _OPTION.search(model):
        model = model[: found.start()]
    return f"{family}{colon}{model}"


def licence(found: Found) -> str:
    """The licence in the head of the model's card, where the card is at hand."""
    try:
        text = (Path(found.folder) / _CARD).read_text("utf-8", errors="replace")[:20_000]
    except OSError:
        return _UNSTATED
    head = re.match(r"---[ \t]*\r?\n(.*?)(?:^---|\Z)", text, re.DOTALL | re.MULTILINE)
    stated = head and re.search(r"^license:[ \t]*([^\s#][^\r\n]*)", head[1], re.MULTILINE)
    return stated[1].strip().strip("'\"")[:80] if stated else _UNSTATED
