"""Finding files of a data set, with names that may be hostile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shards.adapters.clip_set import Rejected

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".flv",
        ".wmv",
        ".3gp",
        ".ts",
        ".mts",
        ".m2ts",
        ".ogv",
        ".vob",
        ".dv",
    ]
)


def shown(name: str) -> str:
    """A name for messages and lists: bytes that are no UTF-8, and control characters, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name)


def refuse_name(name: str) -> str | None:
    """Why a relative path can't be used, or None: not UTF-8, control characters, absolute (also as Windows has it), or
    leading outside."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "the name is not valid UTF-8"
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        return "the name holds control characters"
    if re.match(r"[A-Za-z]:[/\\]", name):
        return "the path begins with a drive; give paths relative to the source folder"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return "the path leads outside the source folder"
    return None


@dataclass
class Files:
    """Files below a folder, as sorted relative paths; what can't be used is in `rejected`, hidden names are skipped."""

    root: Path
    rejected: list[Rejected] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    def find(self, suffixes: Iterable[str], below: str = "", depth: int = 12) -> list[str]:
        """Relative paths of all files with one of the suffixes (lower case), at most `depth` folders down.

        Links to folders are followed once. A folder that can't be read is rejected by name.
        """
        wanted = frozenset(suffixes)
        found = []
        for name in self._walk(self.root / below, depth, set()):
            if PurePosixPath(name).suffix.lower() not in wanted:
                continue
            if PurePosixPath(name).name.startswith("."):
                self.hidden.append(shown(name))
                continue
            problem = refuse_name(name)
            if problem is None:
                found.append(name)
            else:
                self.rejected.append(Rejected(shown(name), "bad_name", problem))
        return sorted(found)

    def _walk(self, folder: Path, depth: int, visited: set[tuple[int, int]]) -> Iterator[str]:
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            name = os.path.relpath(folder, self.root)
            self.rejected.append(Rejected(shown(name), "unreadable", f"the folder cannot be read: {error.strerror}"))
            return
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.is_dir():
                if depth > 0 and not entry.name.startswith("."):
                    yield from self._walk(Path(entry.path), depth - 1, visited)
            else:
                yield os.path.relpath(entry.path, self.root)


def folder_named(root: Path, name: str, depth: int = 3) -> Path | None:
    """The folder of that name at or below `root`, the least deep one; None if there is none."""
    level = [root]
    for _ in range(depth + 1):
        for folder in level:
            if folder.name == name or (folder / name).is_dir():
                return folder if folder.name == name else folder / name
        level = [child for folder in level for child in _folders(folder)]
    return None


def file_named(root: Path, name: str, depth: int = 4) -> Path | None:
    """The file of that name at or below `root`, the least deep one; None if there is none."""
    level = [root]
    for _ in range(depth + 1):
        for folder in level:
            if (folder / name).is_file():
                return folder / name
        level = [child for folder in level for child in _folders(folder)]
    return None


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(Path(e.path) for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []
