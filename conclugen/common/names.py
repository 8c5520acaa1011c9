"""Words about a name that is not known, and names of files for names of any kind."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable

_CUTOFF = 0.5  # of difflib's ratio: 'contrastiv' and 'vidoe' find theirs, unrelated words find nothing
_MOST_LISTED = 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_+=][A-Za-z0-9_+=.-]{0,79}")
_MARKED = re.compile(r"-[0-9a-f]{10}$")
_CORPUS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}")


def closest(name: object, allowed: Iterable[object]) -> str | None:
    """The allowed name closest to `name` (upper and lower case are alike), or None where none is close."""
    by_lower: dict[str, str] = {}
    for item in allowed:
        by_lower.setdefault(str(item).lower(), str(item))
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=_CUTOFF)
    return by_lower[close[0]] if close else None


def nearest(name: object, allowed: Iterable[object]) -> str:
    """` (did you mean 'x'?)`, to follow the unknown name, or nothing."""
    close = closest(name, allowed)
    return f" (did you mean {close!r}?)" if close else ""


def did_you_mean(name: object, allowed: Iterable[object]) -> str:
    """`allowed: a, b; did you mean 'a'?`, for messages about an unknown name; of many names, the first 20."""
    names = [str(item) for item in allowed]
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    listed = ", ".join(names[:_MOST_LISTED]) or "none"
    close = closest(name, names)
    return f"allowed: {listed}{more}" + (f"; did you mean {close!r}?" if close else "")


def file_name(name: str) -> str:
    """A file's name for any text, another one for each other text: never a path, at most 91 ASCII characters.

    Letters, digits and `_+=.-` stay. Where anything else had to be replaced a digest of the whole text follows, which
    also marks texts that look as if they had one. Upper and lower case may be one on the file system: that is kept.
    """
    if _FILE_NAME.fullmatch(name) and not _MARKED.search(name):
        return name
    kept = re.sub(r"[^A-Za-z0-9_+=.-]", "_", name)[:80].lstrip(".-")
    return f"{kept or '_'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def check_corpus(name: str, where: str, remedy: str = "") -> str:
    """The name of one of several corpora, as metrics and shards carry it. Raises ValueError, which begins with `where`
    and ends with the remedy, for text that is none."""
    if not _CORPUS.fullmatch(name):
        rest = f"; {remedy}" if remedy else ""
        raise ValueError(f"{where}: expected a name of 1 to 40 letters, digits, - and _, no - first{rest}")
    return name
