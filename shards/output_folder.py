"""Output folders owned by one job: marked by a record, so that nothing else gets mixed in or removed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from conclugen.common.atomic import is_remnant, write_json
from conclugen.common.locks import is_of_lock
from shards.format.manifest import MANIFEST_NAME

_MOST_LISTED = 5  # differences in a message
_LONGEST = 80  # characters of a value there


def owned(folder: Path, record: str, what: str) -> bool:
    """Whether a folder holds the record (the name of a file) of what is made there; False for a new or an empty one.

    what: for the message, such as "build". Raises ValueError for a folder that holds anything else, or that is none.
    """
    if (folder / record).is_file():
        return True
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(
        not is_remnant(entry.name, record) and not is_of_lock(entry.name) for entry in folder.iterdir()
    ):
        raise ValueError(f"{folder} is not empty and has no {what} in it; name an empty or a new folder")
    return False


def digest_of(identity: Mapping[str, Any]) -> str:
    """Digest of what makes a job the same job. Two are equal where `Ownership.acquire` finds no difference."""
    return xxhash.xxh3_128_hexdigest(json.dumps(_canonical(identity), sort_keys=True).encode())


def describe_differences(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """For a message: what of a stored identity (JSON) differs from a job's, by names as deep as they lie, with both
    values; empty where they are the same job's. None counts as absent, and whole floats as ints."""
    found = [
        f"{name} (there {theirs}, here {mine})"
        for name, theirs, mine in _differing(_canonical(stored), _canonical(identity))
    ]
    more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
    return ", ".join(found[:_MOST_LISTED]) + more


class OwnershipLostError(ValueError):
    """Another job took over the folder while this one, or a task that it left behind, was running."""


@dataclass(frozen=True)
class Ownership:
    """How a kind of resumable job marks its output folder.

    what: its name in messages, such as "build"; record: the file that holds what the content depends on; written:
    patterns of all other files that it writes, except the manifest."""

    what: str
    record: str
    written: tuple[str, ...]

    def acquire(self, folder: Path, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        """Make the folder this job's, or resume one of the same identity (JSON-able). None counts as absent, so that a
        new option which is not used does not make older folders differ.

        overwrite: remove what a differing job of this kind has written there, and nothing else. Raises ValueError where
        the folder holds anything else (it names what differs), and OSError where it cannot be written.
        """
        path = folder / self.record
        if owned(folder, self.record, self.what):
            problem = self._problem(folder, path, identity)
            if problem is None:
                return
            if not overwrite:
                raise ValueError(f"{problem}, or choose another folder, or replace it with --overwrite")
            self._remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, identity, indent=1)

    def check(self, folder: Path, digest: str) -> None:
        """Raise OwnershipLostError unless the folder still belongs to the job whose identity has this digest.

        Every writer checks before a file gets its final name: tasks outlive a killed job, while its locks do not."""
        path = folder / self.record
        try:
            found = digest_of(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise OwnershipLostError(
                f"{path} can't be read any more ({error}), so the folder may be another's; nothing was written"
            ) from None
        if found != digest:
            raise OwnershipLostError(
                f"{folder} belongs to another {self.what} by now, which was started with --overwrite; this one writes "
                "nothing more there. Choose another folder for one of them"
            )

    def _problem(self, folder: Path, path: Path, identity: Mapping[str, Any]) -> str | None:
        """Why the job in the folder cannot be resumed, and what to do; None: it can."""
        try:
            stored = json.loads(path.read_bytes())
            if not isinstance(stored, dict):
                raise ValueError(f"expected a JSON object, found {_short(stored)}")
            differing = describe_differences(stored, identity)
        except (OSError, ValueError, RecursionError) as error:
            return f"{path} cannot be read ({error}): restore it"
        if not differing:
            return None
        return (
            f"{folder} holds a {self.what} that differs in {differing}; "
            "resume it with the options and the version that it was started with"
        )

    def _remove(self, folder: Path) -> None:
        """The manifest first: it must never list shards that are gone. The record stays until it is replaced: after a
        kill, a folder without one would have no owner and could never be acquired again."""
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        for pattern in self.written:
            for path in sorted(folder.glob(pattern)):
                path.unlink()


def _canonical(value: Any) -> Any:
    """As JSON gives it back, with one form for all that means the same: no None in mappings, whole floats as ints."""
    if isinstance(value, Mapping):
        return {str(name): _canonical(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _differing(found: Any, wanted: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(name, found, wanted) of what differs in JSON values, as deep as both are alike: `limits.max_seconds`,
    `encoders[1].width`. Values as texts, of canonical ones."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from _differing(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            yield from _differing(one, other, f"{name}[{number}]")
    elif json.dumps(found, sort_keys=True) != json.dumps(wanted, sort_keys=True):  # True is not 1
        yield name, _short(found), _short(wanted)


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, sort_keys=True)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
