"""The data plane: WebDataset shards with an index and a manifest, written once and read by row range."""

from conclugen.common import extras

extras.require("the data plane", "pyarrow", "xxhash", "fsspec", "psutil")

from shards.damage import Damage, DamageError, DamageLog, ManifestError, ShardError
from shards.manifest import Manifest, ShardEntry
from shards.plan import Cursor, EpochPlan, Range
from shards.reader import Reader
from shards.rows import Rows, group_id
from shards.schema import Column, Label, Sample, Schema
from shards.view import View
from shards.writer import ShardWriter, shuffled_order, write_shard

__all__ = [
    "Column",
    "Cursor",
    "Damage",
    "DamageError",
    "DamageLog",
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
