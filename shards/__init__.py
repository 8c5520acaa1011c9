"""The data plane: WebDataset shards with an index and a manifest, written once and read by row range.

Importing this package imports nothing else: each public name is loaded when it is first used (PEP 562), so that command
lines need neither numpy nor Arrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from conclugen.common import extras

extras.require("the data plane", "pyarrow", "xxhash", "fsspec", "psutil")

if TYPE_CHECKING:
    from shards.errors import CorruptionError, CorruptionLog, CorruptSample, ManifestError, ShardError
    from shards.format.index import group_id
    from shards.format.manifest import Manifest, ShardEntry
    from shards.format.schema import Column, Label, Sample, Schema
    from shards.format.writer import ShardWriter, shuffled_order, write_shard
    from shards.planning.plan import Cursor, EpochPlan, Range
    from shards.planning.view import View
    from shards.reading.reader import Reader
    from shards.reading.rows import Rows

__all__ = [
    "Column",
    "CorruptSample",
    "CorruptionError",
    "CorruptionLog",
    "Cursor",
    "EpochPlan",
    "Label",
    "Manifest",
    "ManifestError",
    "Range",
    "Reader",
    "Rows",
    "Sample",
    "Schema",
    "ShardEntry",
    "ShardError",
    "ShardWriter",
    "View",
    "group_id",
    "shuffled_order",
    "write_shard",
]

_MODULES = {
    "errors": ("CorruptSample", "CorruptionError", "CorruptionLog", "ManifestError", "ShardError"),
    "format.manifest": ("Manifest", "ShardEntry"),
    "planning.plan": ("Cursor", "EpochPlan", "Range"),
    "reading.reader": ("Reader",),
    "format.index": ("group_id",),
    "reading.rows": ("Rows",),
    "format.schema": ("Column", "Label", "Sample", "Schema"),
    "planning.view": ("View",),
    "format.writer": ("ShardWriter", "shuffled_order", "write_shard"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_WAS = {"Damage": "CorruptSample", "DamageError": "CorruptionError", "DamageLog": "CorruptionLog"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        today = f"; it is called {_WAS[name]} now" if name in _WAS else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{today}")
    value = getattr(importlib.import_module(f"shards.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
