"""Folders that a program makes its own: marked by a record, so that nothing else gets mixed in or removed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from conclugen.common.atomic import is_remnant, write_json
from conclugen.common.locks import is_of_lock
from shards.manifest import MANIFEST_NAME


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
        raise ValueError(f"{folder} is not empty and holds no {what}; name an empty or a new folder")
    return False


def digest_of(identity: Mapping[str, Any]) -> str:
    """Of what makes a job the same job: what its tasks know it by."""
    return xxhash.xxh3_128_hexdigest(json.dumps(identity, sort_keys=True).encode())


def differing_in(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Names of the entries that differ; within lists of as many mappings those of the mappings, such as
    `encoders[0].digest`."""
    found = []
    for name in sorted({*identity, *stored}):
        theirs, mine = stored.get(name), identity.get(name)
        if theirs == mine:
            continue
        lists = [value for value in (theirs, mine) if isinstance(value, list)]
        as_many = len(lists) == 2 and len(lists[0]) == len(lists[1])
        if as_many and all(isinstance(item, dict) for items in lists for item in items):
            pairs = enumerate(zip(*lists, strict=True))
            found += [f"{name}[{at}].{own}" for at, (a, b) in pairs for own in differing_in(a, b)]
        else:
            found.append(name)
    return found


class ClaimLostError(ValueError):
    """The folder has become another job's while this one, or a task that it left behind, was at work."""


@dataclass(frozen=True)
class Claim:
    """A kind of job that can be killed and go on. what: for messages, such as "build"; record: the file in its folder
    that keeps what the content depends on; written: patterns of all else that it writes there, but for the manifest."""

    what: str
    record: str
    written: tuple[str, ...]

    def take(self, folder: Path, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        """Make the folder this job's, or go on where one of the same identity (JSON-able) left off.

        overwrite: remove what a differing job of this kind has written there, and nothing else. Raises ValueError where
        the folder holds anything else, naming what differs, and OSError where it can't be written.
        """
        path = folder / self.record
        if owned(folder, self.record, self.what):
            problem = self._problem(folder, path, json.loads(json.dumps(identity)))
            if problem is None:
                return
            if not overwrite:
                raise ValueError(f"{problem}; choose another folder, or replace it with --overwrite")
            self._remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, identity, indent=1)

    def check(self, folder: Path, digest: str) -> None:
        """Raise ClaimLostError unless the folder is still the job's whose identity has this digest. Whoever writes into
        it asks before anything gets its final name: tasks outlive a job that was killed, and locks end with it."""
        path = folder / self.record
        try:
            found = digest_of(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ClaimLostError(
                f"{path} can't be read any more ({error}), so the folder may be another's; nothing was written"
            ) from None
        if found != digest:
            raise ClaimLostError(
                f"{folder} belongs to another {self.what} by now, which was started with --overwrite; this one writes "
                "nothing more there. Choose another folder for one of them"
            )

    def _problem(self, folder: Path, path: Path, identity: dict[str, Any]) -> str | None:
        """Why the job that is there can't be gone on with."""
        try:
            stored = json.loads(path.read_bytes())
            differing = differing_in(stored, identity)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            return f"{path} cannot be read ({error})"
        return f"{folder} holds a {self.what} that differs in {', '.join(differing)}" if differing else None

    def _remove(self, folder: Path) -> None:
        """The manifest first: it must never promise shards that are gone. The record stays, to be replaced: a folder
        without one, after a kill, would be nobody's, and never be taken again."""
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        for pattern in self.written:
            for path in sorted(folder.glob(pattern)):
                path.unlink()
