"""Folders of safetensors and JSON: written whole or not at all, read back verified by digests."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, uint8

from conclugen.common.atomic import atomic_folder

_SEAL = "seal"
_LONGEST_DOCUMENT = 64 << 20


def write_folder(
    folder: str | Path, tensors: Mapping[str, Tensor], documents: Mapping[str, str], tensor_file: str
) -> None:
    """Write `tensors` and text `documents` (file name -> content) as `folder`, atomically, over one of that name."""
    with atomic_folder(folder) as temporary:
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, temporary / tensor_file)
        for name, text in documents.items():
            (temporary / name).write_text(text, encoding="utf-8")


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(uint8).numpy().data if x.numel() else b"")
    return digest.hexdigest()


def document_text(document: Mapping[str, Any]) -> str:
    """A document as JSON, sealed with a digest of all that it says: with one bit flipped JSON is often still JSON, of
    another step or another setting."""
    plain = json.loads(json.dumps(document, allow_nan=False))
    return json.dumps({**plain, _SEAL: _seal(plain)}, indent=1)


def _seal(plain: Mapping[str, Any]) -> str:
    said = {name: value for name, value in plain.items() if name != _SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_tensors(path: Path, expected_digest: str, error: type[ValueError]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, verified; raises `error` naming the file when it is missing, broken or
    changed."""
    _check_file(path, error, "take another checkpoint or export it again")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as cause:
        raise error(f"{path}: can't be read ({cause}); take another checkpoint or export it again") from cause
    found = tensors_digest(tensors)
    if found != expected_digest:
        raise error(
            f"{path}: digest is {found[:16]}..., expected {str(expected_digest)[:16]}...; "
            "the file is damaged or was changed"
        )
    return tensors


def read_document(
    path: Path,
    schema: str,
    version: int,
    required: tuple[str, ...],
    error: type[ValueError],
    other_version: type[ValueError] | None = None,
) -> dict[str, Any]:
    """What `document_text` wrote, of the given schema and version; raises `error` naming the file and what is wrong
    with it, `other_version` (`error`, where it is None) for another version."""
    _check_file(path, error, f"is {path.parent} a complete folder?", _LONGEST_DOCUMENT)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        seal = _seal(document) if isinstance(document, dict) else None
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path}: can't be read ({cause}); is {path.parent} a complete folder?") from cause
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise error(
            f"{path}: schema is {document.get('schema') if isinstance(document, dict) else None!r}, expected {schema!r}"
        )
    if _SEAL in document and document[_SEAL] != seal:
        raise error(f"{path}: says something else than what was sealed; the file is damaged or was changed")
    if document.get("version") != version:
        raise (other_version or error)(
            f"{path}: version is {document.get('version')!r}, expected {version}; "
            "it was written by another version of conclugen"
        )
    for name in (*required, _SEAL):
        if name not in document:
            raise error(f"{path}: field {name!r} is missing")
    return document


def _check_file(path: Path, error: type[ValueError], remedy: str, most: int | None = None) -> None:
    """Raise `error` for what is missing, is a pipe (which would be waited for) or a device (which may have no end)."""
    try:
        regular = path.is_file()
    except OSError:  # a folder that nobody may look into
        regular = False
    if not regular:
        raise error(f"{path}: can't be read (missing, or no regular file); {remedy}")
    if most is not None and path.stat().st_size > most:
        raise error(f"{path}: can't be read (more than {most} bytes); {remedy}")
