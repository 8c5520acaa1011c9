"""The data plane: WebDataset shards with an index and a manifest, written once and read by row range."""

from shards.damage import Damage, DamageError, DamageLog, ManifestError, ShardError
from shards.manifest import Manifest, ShardEntry
from shards.reader import Reader
from shards.rows import Rows, group_id
from shards.schema import Column, Label, Sample, Schema
from shards.writer import ShardWriter, shuffled_order, write_shard

__all__ = [
    "Column",
    "Damage",
    "DamageError",
    "DamageLog",
    "Label",
    "Manifest",
    "ManifestError",
    "Reader",
    "Rows",
    "Sample",
    "Schema",
    "ShardEntry",
    "ShardError",
    "ShardWriter",
    "group_id",
    "shuffled_order",
    "write_shard",
]
