"""Data sets as they are distributed: each adapter finds the clips with interval, labels, group, split, transcript.

An adapter is a module with `read(source, **options) -> ClipSet` and `LAYOUT`, one line on what it reads; papers cite
what `BIBTEX` holds, where there is one. Another installed package adds one in its pyproject.toml:

    [project.entry-points."conclugen.adapters"]
    crema-d = "my_package.crema_d"
"""

from __future__ import annotations

import functools
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from conclugen.common import plugins
from conclugen.common.names import did_you_mean
from conclugen.common.plugins import Registry
from shards.adapters.clip_set import ClipSet, IncompleteError
from shards.corpus import is_rendered

GROUP = "conclugen.adapters"
_OPTION = {"labels": "label", "fields": "field"}  # of `read` -> of the command line


@dataclass(frozen=True)
class Adapter:
    """module: has `read(source, **options) -> ClipSet`. options: those that it takes. layout: one line, what it
    reads."""

    module: str
    layout: str
    options: tuple[str, ...] = ()

    @property
    def read(self) -> Callable[..., ClipSet]:
        """The function of the module."""
        found: Callable[..., ClipSet] = self._load().read
        return found

    @property
    def file(self) -> str:
        """The module's path."""
        return str(self._load().__file__)

    @property
    def bibtex(self) -> str | None:
        """What papers cite of the data set, where the module says it."""
        found = getattr(self._load(), "BIBTEX", None)
        return found if isinstance(found, str) else None

    def _load(self) -> Any:
        return importlib.import_module(self.module)


ADAPTERS: Mapping[str, Adapter] = {
    "voxceleb2": Adapter(
        "shards.adapters.voxceleb2",
        "dev/mp4/ID/VIDEO/NNNNN.mp4, dev/aac/ID/VIDEO/NNNNN.m4a; the test part, mp4 and aac",
    ),
    "mosei": Adapter(
        "shards.adapters.mosei", "CMU-MOSEI: Combined/*.mp4, CMU_MOSEI_Labels.csd, folds", ("folds", "encoding")
    ),
    "meld": Adapter("shards.adapters.meld", "{train,dev,test}_sent_emo.csv and the three folders of diaX_uttY.mp4"),
    "caer": Adapter("shards.adapters.caer", "{train,validation,test}/CLASS/NNNN.avi"),
    "ravdess": Adapter("shards.adapters.ravdess", "Actor_NN/MM-VV-EE-II-SS-RR-AA.mp4, sound in .wav with MM = 03"),
    "grid": Adapter("shards.adapters.grid", "GRID: sN/bbaf2n.mpg; the name spells the sentence"),
    "folder": Adapter(
        "shards.adapters.folder",
        "any videos, or a CSV, JSONL, Parquet table",
        ("table", "fields", "labels", "encoding"),
    ),
    "webdataset": Adapter(
        "shards.adapters.webdataset",
        "*.tar, *.tar.gz with KEY.mp4, KEY.txt, KEY.json, also in train/ and test/; unpacked into --unpack",
        ("unpack", "fields", "labels", "encoding"),
    ),
}
"""The project's own; `known` has those of other packages too."""


def known() -> Mapping[str, Adapter]:
    """Every adapter by name: the project's own, then those of other installed packages."""
    return _registry().entries


def listed() -> str:
    """Every adapter with what it reads, a line each, for `--help`."""
    lines = [f"  {name:<13} {adapter.layout}" for name, adapter in known().items()]
    return "\n".join(["adapters (--adapter NAME; docs/extending.md: how to add one):", *lines])


def read_clips(adapter: str, source: Path, allow_incomplete: bool = False, **options: Any) -> ClipSet:
    """The clips of a data set.

    Raises ValueError for an unknown adapter, options it does not take, or a source that is not laid out as it expects;
    IncompleteError where clips are missing, unless that is allowed.
    """
    if adapter not in known():
        problem = _registry().problems.get(adapter)
        raise ValueError(problem or f"adapter {adapter!r} is unknown, {did_you_mean(adapter, known())}")
    chosen = known()[adapter]
    given = {name: value for name, value in options.items() if value not in (None, {}, (), [])}
    for name in given:
        if name not in chosen.options:
            raise ValueError(f"adapter {adapter} takes no --{_OPTION.get(name, name)}; it reads {chosen.layout}")
    if not source.is_dir():
        raise ValueError(f"--source {source} is not a folder; {adapter} reads {chosen.layout}")
    clips = chosen.read(source, **given) if adapter in ADAPTERS else _read_by_another(adapter, chosen, source, given)
    clips.rendered = is_rendered(source)
    if not clips.clips and not clips.rejected:
        raise ValueError(f"{source} has no clips; {adapter} reads {chosen.layout}")
    if not allow_incomplete and not clips.complete:
        raise IncompleteError(clips)
    return clips


def _read_by_another(name: str, adapter: Adapter, source: Path, options: Mapping[str, Any]) -> ClipSet:
    """What an adapter of another package reads; its errors are ValueErrors with its name, and where it made them."""
    try:
        clips = adapter.read(source, **options)
    except Exception as cause:
        places = [frame for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == adapter.file]
        place = f"{places[-1].filename}:{places[-1].lineno}" if places else adapter.module
        raise ValueError(f"adapter {name} ({place}): {plugins.reason(cause)}") from cause
    if not isinstance(clips, ClipSet):
        raise ValueError(f"adapter {name} ({adapter.module}): read gave {type(clips).__name__}, expected a ClipSet")
    return clips


@functools.lru_cache(maxsize=1)
def _registry() -> Registry[Adapter]:
    return plugins.warned(plugins.collect("adapter", ADAPTERS, plugins.installed(GROUP), _take))


def _take(name: str, point: EntryPoint, others: Mapping[str, Adapter]) -> Adapter:
    """The adapter that an entry point names. Raises ValueError where the module is none."""
    module = point.load()
    read, layout = getattr(module, "read", None), getattr(module, "LAYOUT", None)
    if not callable(read):
        raise ValueError(f"{point.value} has no function read(source), expected a module with one")
    if not isinstance(layout, str) or not layout.strip():
        raise ValueError(f"{point.value}.LAYOUT is {layout!r}, expected one line on what the adapter reads")
    return Adapter(point.value, layout, tuple(inspect.signature(read).parameters)[1:])
