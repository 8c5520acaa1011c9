"""Reading files that may come from somebody else: JSON documents and lines, without believing anything of them.

A name may be a pipe, which waits for ever, a device, which has no end, or a link; a file may be huge, sparse, nested so
deep that a parser gives up, in another encoding, or hold numbers and text that JSON allows and nothing else can write
again. Each of these is one ValueError with the file's name.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

LARGEST_DOCUMENT = 64 << 20
LARGEST_LINES = 16 << 30  # of a file of lines, which is never whole in memory
LONGEST_LINE = 16 << 20
_DEEPEST = 100


class UnreadableError(ValueError):
    """A file that is not what it should be; the message begins with its name."""


def open_regular(path: str | Path, most: int) -> BinaryIO:
    """A regular file of at most so many bytes, open for reading.

    Raises UnreadableError for anything else that is there, and OSError where nothing is or it may not be read.
    """
    # O_NONBLOCK: opening a named pipe must fail the check below, not wait for somebody to write into it.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP, errno.EISDIR):
            raise UnreadableError(f"{path}: not a regular file") from None
        raise
    about = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(about.st_mode):
        problem = "not a regular file"
    elif about.st_size > most:
        problem = f"has {about.st_size} bytes, expected at most {most}"
    if problem:
        os.close(descriptor)
        raise UnreadableError(f"{path}: {problem}")
    return os.fdopen(descriptor, "rb")


def read_json(path: str | Path, most: int = LARGEST_DOCUMENT, nan: bool = False) -> Any:
    """A JSON document; nan: NaN and the infinities are allowed, as Python writes them.

    Raises UnreadableError for a file that holds none, and OSError where it is missing or may not be read.
    """
    with open_regular(path, most) as file:
        data = file.read(most + 1)
    try:
        if len(data) > most:
            raise ValueError(f"has more than {most} bytes")
        return parse_json(data, nan)
    except ValueError as error:
        raise UnreadableError(f"{path}: is not a JSON document ({error})") from None


def read_mapping(path: str | Path, most: int = LARGEST_DOCUMENT) -> dict[str, Any]:
    """As `read_json`, of a document that is a mapping."""
    content = read_json(path, most)
    if not isinstance(content, dict):
        raise UnreadableError(f"{path}: must hold a mapping, got {type(content).__name__}")
    return content


def parse_json(data: bytes | str, nan: bool = False) -> Any:
    """JSON as the standard has it (NaN only where it is asked for), of moderate depth, whose text can be written in
    UTF-8. Raises ValueError."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        content = json.loads(text, parse_constant=float if nan else _no_constant)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair
    except UnicodeError:
        raise ValueError("text that is not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if _depth(content) > _DEEPEST:
        raise ValueError(f"nested deeper than {_DEEPEST} levels")
    return content


def read_lines(path: str | Path, offset: int = 0, longest: int = LONGEST_LINE) -> Iterator[tuple[bytes | None, int]]:
    """(line, offset of the next one) from a byte offset to the end; the last line may lack its newline, and None stands
    for a line that is longer than allowed. Raises as `open_regular`."""
    with open_regular(path, LARGEST_LINES) as file:
        file.seek(offset)
        while line := file.readline(longest + 1):
            whole: bytes | None = line
            offset += len(line)
            while len(line) > longest and not line.endswith(b"\n"):
                whole = None
                line = file.readline(longest + 1)
                offset += len(line)
            if whole is not None and len(whole) > longest:
                whole = None
            yield whole, offset


def inside(folder: str | Path, name: str | Path) -> Path:
    """The path of a name in a folder. Raises UnreadableError where it leads out of it: absolute, by `..`, by a link."""
    home = Path(folder).resolve()
    path = home / name
    try:
        within = path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # links that lead in a circle
        within = False
    if not within:
        raise UnreadableError(f"{Path(folder) / name}: leads out of {folder}; remove it")
    return path


def _depth(content: Any) -> int:
    """Levels of lists and mappings in each other, without recursion."""
    deepest, level = 0, [content]
    while level:
        inner = [v for c in level if isinstance(c, dict | list) for v in (c.values() if isinstance(c, dict) else c)]
        if not any(isinstance(c, dict | list) for c in level) or deepest > _DEEPEST:
            return deepest
        deepest, level = deepest + 1, inner
    return deepest


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
