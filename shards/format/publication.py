"""Several files that belong together appear in a folder together, also where their writer is killed in between.

Everything is written into the hidden folder `.staging` first. Then `publish.json` is written beside it: from then on
the new files are the ones that count, and whoever holds the folder's lock finishes what it lists, as often as it takes
(`finish`): the old manifest goes, files move to their places, what the new ones replace is removed, the manifest comes
last. Before that file is there, what was staged is nothing, and the next writer removes it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conclugen.common.atomic import sync_file, sync_folder, write_json
from conclugen.common.ending import resumable
from conclugen.common.locks import folder_held, is_of_lock
from shards.files import read_whole

STAGING = ".staging"
_PLAN = "publish.json"
_MANIFEST, _VIEWS = "manifest.parquet", "views"
_INDEX = ".index.parquet"
_REPLACED = ("*.tar", f"*{_INDEX}", f"{_VIEWS}/*.parquet")  # what a data set consists of, but for its manifest
# Names that a plan may have: a folder may come from somebody else, and its plan must not reach beyond it.
_NAME = re.compile(rf"({_VIEWS}/)?[A-Za-z0-9_+=@,~-][A-Za-z0-9_.+=@,~-]*(\.tar|\.parquet)")


class UnfinishedError(ValueError):
    """A folder whose files were being replaced when their writer was stopped."""


@dataclass(frozen=True)
class Publication:
    """What is being published. names: of files below `.staging`, in the order in which they move; replaces: whether
    all other shards and views of the folder go; of: by which the same work is known again (JSON-able); digest: of the
    manifest that comes with it, if one does."""

    names: tuple[str, ...]
    replaces: bool
    of: Any = None
    digest: str | None = None

    @property
    def words(self) -> str:
        if self.digest is None:
            return f"{len(self.names)} views"
        return f"a data set of {sum(name.endswith(_INDEX) for name in self.names)} shards"


def publish(folder: Path, publication: Publication) -> None:
    """Put what lies staged, whole, in its places. The caller holds the folder's lock.

    Raises what `commit` does before anything is changed, and what `finish` does.
    """

    def words() -> str:
        if pending(folder) is not None:
            return f"publishing {publication.words}; the same command finishes that"
        if any((folder / STAGING / name).is_file() for name in publication.names):
            return "nothing was published; the same command starts over"
        return f"published {publication.words}"

    with resumable(words):
        commit(folder, publication)
        finish(folder)


def commit(folder: Path, publication: Publication) -> None:
    """Make what lies staged, whole, the content that counts; `finish` must follow, now or by whoever comes next.

    Raises, before anything is changed, ValueError for names that `finish` would refuse and for views behind a link,
    IsADirectoryError for a folder in a file's place, NotADirectoryError for a file in a folder's.
    """
    staging = folder / STAGING
    fault = _fault(publication.names)
    if fault is not None:
        raise ValueError(f"{folder}: can't be published to: {fault}")
    _refuse_links(folder, publication)
    for name in publication.names:
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
        above = (folder / name).parent
        if above.exists() and not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        sync_file(staging / name)
    for inner in {(staging / name).parent for name in publication.names}:
        sync_folder(inner)
    write_json(
        staging / _PLAN,
        {
            "names": list(publication.names),
            "replaces": publication.replaces,
            "of": publication.of,
            "digest": publication.digest,
        },
    )


def pending(folder: str | Path) -> Publication | None:
    """What was being published when the folder's writer was stopped, None where nothing was.

    Raises UnfinishedError for a plan that can't be read or that names anything but shards, indexes, views and the
    manifest.
    """
    staging = Path(folder) / STAGING
    path = staging / _PLAN
    if not path.is_file():
        return None
    try:
        if staging.is_symlink():
            raise ValueError(f"{STAGING} is a link")
        plan = json.loads(read_whole(path))
        names = tuple(plan["names"])
        fault = _fault(names)
        if fault is not None:
            raise ValueError(fault)
        digest = plan["digest"]
        if not (digest is None or isinstance(digest, str)):
            raise ValueError("its digest is not text")
        return Publication(names, bool(plan["replaces"]), plan["of"], digest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnfinishedError(
            f"{path}: cannot be followed ({error}); remove {staging} if what it holds is not wanted"
        ) from None


def finish(folder: str | Path) -> Publication | None:
    """Put everything where it belongs; returns what was published, None where nothing was pending. The caller holds
    the folder's lock. Stopped anywhere, it can be called again.

    Raises UnfinishedError where a file of it is neither staged nor in its place, ValueError for views behind a link.
    """
    folder = Path(folder)
    publication = pending(folder)
    if publication is None:
        return None
    _refuse_links(folder, publication)
    staging = folder / STAGING
    lost = [name for name in publication.names if not (staging / name).is_file() and not (folder / name).is_file()]
    if lost:
        raise UnfinishedError(
            f"{folder}: {publication.words} were being published, and {lost[0]} of them is gone; write them again with "
            f"--overwrite, or remove {staging} and see what `conclugen verify --repair` can keep"
        )
    if (staging / _MANIFEST).is_file():
        # No manifest may promise shards that are not there, or that are others.
        (folder / _MANIFEST).unlink(missing_ok=True)
        sync_folder(folder)
    for name in publication.names:
        if name == _MANIFEST:
            _remove_others(folder, publication)
            sync_folder(folder)  # a power cut must not leave a manifest that promises missing shards
        if (staging / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            (staging / name).replace(folder / name)
    for inner in {(folder / name).parent for name in publication.names}:
        sync_folder(inner)
    (staging / _PLAN).unlink()
    shutil.rmtree(staging, ignore_errors=True)
    return publication


def _remove_others(folder: Path, publication: Publication) -> None:
    if not publication.replaces:
        return
    for pattern in _REPLACED:
        for path in folder.glob(pattern):
            # A folder named like a shard is somebody else's.
            if not path.is_dir() and path.relative_to(folder).as_posix() not in publication.names:
                path.unlink()


def _fault(names: Sequence[Any]) -> str | None:
    """Why a plan of these names can't be followed. The pattern lets none leave the folder: at most one slash, and no
    part that begins with a dot."""
    if not names:
        return "it names nothing"
    wrong = [name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)]
    return f"it names {wrong[0]!r:.80}" if wrong else None


def _refuse_links(folder: Path, publication: Publication) -> None:
    if publication.replaces or any(name.startswith(f"{_VIEWS}/") for name in publication.names):
        refuse_linked_views(folder)
        refuse_linked_views(folder / STAGING)


def refuse_linked_views(folder: Path) -> None:
    """Raise ValueError where the folder's views lie behind a link: what is written or removed there is elsewhere."""
    if (folder / _VIEWS).is_symlink():
        raise ValueError(
            f"{folder / _VIEWS}: is a link, and views are written in the data set's own folder; put a folder there"
        )


def is_part(path: Path) -> bool:
    """Whether a file, given by its path below a folder, is one that publications into the folder write or work with."""
    if path.parts[0] == STAGING or is_of_lock(path.parts[0]):
        return True
    patterns = (*_REPLACED, _MANIFEST)
    return any(len(path.parts) == len(Path(pattern).parts) and path.match(pattern) for pattern in patterns)


def discard(folder: Path) -> Path:
    """Remove what a stopped writer has staged and not yet published; returns the empty folder to stage in. The caller
    holds the folder's lock, and has finished what was pending."""
    staging = folder / STAGING
    if staging.is_symlink():
        staging.unlink()
    elif staging.exists():
        shutil.rmtree(staging)
    staging.mkdir()
    return staging


def refuse_unfinished(folder: str | Path, doing: str) -> None:
    """Raise UnfinishedError where files of the folder belong to a publication that was stopped: what lies there is a
    part, or partly old. doing: what can't be done, such as "indexed"."""
    publication = pending(folder)
    if publication is not None:
        raise UnfinishedError(
            f"{folder}: {publication.words} were being published here when their writer was stopped, so what lies here "
            f"is not yet whole and can't be {doing}. The same command again finishes it, and so does "
            "`conclugen verify --repair`"
        )
    folder = Path(folder)
    # Left by a version that had no plan: the staged manifest says what there was to be.
    staging = folder / STAGING
    promised = (staging / _MANIFEST).is_file() and not (folder / _MANIFEST).is_file()
    tars = [path.name for path in folder.glob("*.tar") if path.is_file()] if promised else []
    # An index of shards in place stages no shards, and the index of each; they are whole.
    indexed = all((staging / f"{name.removesuffix('.tar')}{_INDEX}").is_file() for name in tars)
    moved = any(not (staging / name).exists() for name in tars)
    if moved and (any(staging.glob("*.tar")) or not indexed):
        raise UnfinishedError(
            f"{folder}: the shards here may be a part: {staging} holds the manifest of a data set that was "
            f"being published when its writer was stopped, and can't be {doing}. Pack it again with --overwrite, or "
            f"remove {staging} if what lies here is all that you want"
        )


def finish_same(folder: str | Path, of: Mapping[str, Any]) -> bool:
    """Finish what was being published, if anything was; whether it was this very work, which need not be done again.
    Raises FolderInUseError where another process works in the folder."""
    if pending(folder) is None:
        return False
    with folder_held(folder, "files are being published here", "another folder"):
        finished = finish(folder)
    return finished is not None and finished.of == json.loads(json.dumps(of))


def staged_names(staging: Path, first: Sequence[str] = ()) -> tuple[str, ...]:
    """Everything that lies staged, `first` before the rest and the manifest last."""
    found = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*.parquet"))
    rest = [name for name in found if name not in first and name != _MANIFEST]
    return (*first, *rest, *([_MANIFEST] if _MANIFEST in found else []))
