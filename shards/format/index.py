"""The index beside each shard: key, offset, checksum, presence and labels of every sample, as one Parquet file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from shards.errors import ShardError
from shards.format.layout import LayoutError, SampleLayout, archive_bytes
from shards.format.parquet import read_parquet
from shards.format.record import Record
from shards.format.schema import Label, Schema

FORMAT = 1
INDEX_SUFFIX = ".index.parquet"
GROUP = "group"  # the column whose values are groups (speakers) where no other is named
NO_GROUP = -1
_METADATA_KEY = b"conclugen.index"
_REBUILD = "Restore the file, or rebuild it with `conclugen verify FOLDER --repair`"


def group_id(name: str | None) -> int:
    """Stable 63-bit number of a group's name, the same in every process and on every machine; -1 for no group."""
    return NO_GROUP if name is None else xxhash.xxh3_64_intdigest(name.encode()) & 0x7FFF_FFFF_FFFF_FFFF


def label_type(label: Label) -> pa.DataType:
    """Arrow type of a label: int64 class, float64, or a fixed-size list of float64."""
    if label.kind == "class":
        return pa.int64()
    return pa.list_(pa.float64(), label.width) if label.shape else pa.float64()


def arrow_schema(schema: Schema, members: bool) -> pa.Schema:
    """Columns of an index; `members` adds where each member of an imported shard lies."""
    fields = [("key", pa.string()), ("offset", pa.int64()), ("checksum", pa.uint64())]
    fields += [(f"present.{name}", pa.bool_()) for name in schema.column_names]
    fields += [(f"label.{label.name}", label_type(label)) for label in schema.labels]
    fields += [("group", pa.string()), ("text", pa.string())]
    fields += [(f"meta.{name}", pa.string()) for name in schema.meta]
    if members:
        for name in schema.column_names:
            fields += [(f"member.{name}.offset", pa.int64()), (f"member.{name}.size", pa.int64())]
    return pa.schema(fields)


@dataclass(frozen=True)
class IndexRows:
    """What an index says of n samples, in shard order. `members` (n, C, 2) offset and size, -1 where there is none."""

    keys: Sequence[str]
    offsets: np.ndarray
    checksums: np.ndarray
    present: np.ndarray
    labels: Mapping[str, Sequence[Any]]
    groups: Sequence[str | None]
    texts: Sequence[str | None]
    meta: Mapping[str, Sequence[str | None]]
    members: np.ndarray | None = None

    @classmethod
    def of_records(cls, schema: Schema, records: Sequence[Record], stride: int, checksums: np.ndarray) -> IndexRows:
        """Rows of a fixed-stride shard that holds the records in this order."""
        return cls(
            keys=[record.key for record in records],
            offsets=np.arange(len(records), dtype=np.int64) * stride,
            checksums=checksums,
            present=np.array([record.present for record in records], bool),
            labels={label.name: [record.labels[label.name] for record in records] for label in schema.labels},
            groups=[record.group for record in records],
            texts=[record.text for record in records],
            meta={name: [record.meta[name] for record in records] for name in schema.meta},
        )


def content_digest(layout: Mapping[str, Any], checksums: np.ndarray) -> bytes:
    """128-bit digest of a shard's content: its layout and the checksums of all its samples, which cover all bytes read.

    It does not depend on how the index file is encoded, so a rebuilt index gives the same digest.
    """
    digest = xxhash.xxh3_128(json.dumps(layout, sort_keys=True, separators=(",", ":")).encode())
    digest.update(np.ascontiguousarray(checksums, "<u8").data)
    return digest.digest()


def values_digest(
    keys: Sequence[str],
    labels: Mapping[str, Sequence[Any]],
    groups: Sequence[str | None],
    texts: Sequence[str | None],
    meta: Mapping[str, Sequence[str | None]],
) -> str:
    """128-bit digest of what an imported shard's index says beside arrays, which no checksum of a sample covers."""
    text = json.dumps([list(keys), dict(labels), list(groups), list(texts), dict(meta)], sort_keys=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def encode_index(schema: Schema, layout: Mapping[str, Any], rows: IndexRows) -> bytes:
    """The index file. `layout`: `SampleLayout.to_dict()`, or of an imported shard a mapping whose kind is "members"."""
    arrays: list[Any] = [pa.array(rows.keys, pa.string()), pa.array(rows.offsets), pa.array(rows.checksums)]
    arrays += [pa.array(rows.present[:, i]) for i in range(len(schema.columns))]
    arrays += [pa.array(rows.labels[label.name], label_type(label)) for label in schema.labels]
    arrays += [pa.array(rows.groups, pa.string()), pa.array(rows.texts, pa.string())]
    arrays += [pa.array(rows.meta[name], pa.string()) for name in schema.meta]
    if rows.members is not None:
        for i in range(len(schema.columns)):
            arrays += [pa.array(rows.members[:, i, 0]), pa.array(rows.members[:, i, 1])]
    metadata = {
        "format": FORMAT,
        "schema": schema.to_dict(),
        "layout": dict(layout),
        "digest": content_digest(layout, rows.checksums).hex(),
    }
    types = arrow_schema(schema, rows.members is not None).with_metadata(
        {_METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    )
    sink = pa.BufferOutputStream()
    strings = [name for name in types.names if types.field(name).type == pa.string() and name != "key"]
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=types),
        sink,
        compression="zstd",
        use_dictionary=strings or False,
        write_page_checksum=True,
        store_schema=True,
    )
    return sink.getvalue().to_pybytes()


@dataclass(frozen=True)
class ShardIndex:
    """The numbers of one index that reading needs; strings stay in the file.

    checksums (n,) uint64; present (n, C) bool; labels as in `Rows`; group (n,) int64 or None; members (n, C, 2) int64
    for an imported shard, for which `layout` is None.
    """

    layout: SampleLayout | None
    layout_dict: dict[str, Any]
    schema: Schema
    checksums: np.ndarray
    present: np.ndarray
    labels: dict[str, np.ndarray]
    group: np.ndarray | None
    members: np.ndarray | None

    def __len__(self) -> int:
        return len(self.checksums)

    @property
    def nbytes(self) -> int:
        """Memory held, for a bounded cache."""
        arrays = [self.checksums, self.present, *self.labels.values(), self.group, self.members]
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def digest(self) -> bytes:
        return content_digest(self.layout_dict, self.checksums)

    @property
    def stride(self) -> int:
        """Bytes of a sample; 0 for an imported shard."""
        return 0 if self.layout is None else self.layout.stride


def read_table(name: str, data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Decode an index file whose digest has been checked; ShardError where it is no Parquet file."""
    try:
        return read_parquet(data, columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(name, f"index cannot be read: {error}", remedy=_REBUILD) from None


def decode_index(
    name: str,
    data: bytes,
    shard_bytes: int | None = None,
    schema_type: type[Any] = Schema,
    group: str = GROUP,
) -> ShardIndex:
    """Decode and check an index file; ShardError where its own claims don't fit together.

    shard_bytes: size of the shard, against which every offset is checked (None: not known yet). schema_type: `Schema`,
    or another class with what is used of it here, as `ClipSchema` has. group: column of `ShardIndex.group`.
    """
    table = read_table(name, data)
    try:
        metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        if metadata["format"] != FORMAT:
            raise ShardError(name, "index has another format version", expected=FORMAT, found=metadata["format"])
        schema = schema_type.from_dict(metadata["schema"])
        layout_dict = dict(metadata["layout"])
        imported = layout_dict.get("kind") == "members"
        layout = None if imported else SampleLayout.from_dict(schema.columns, layout_dict)
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ShardError(name, f"index has no usable description of itself ({error!r})", remedy=_REBUILD) from None
    except (LayoutError, ValueError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(name, f"index: {error}", remedy=_REBUILD) from None
    expected = arrow_schema(schema, imported)
    if not table.schema.remove_metadata().equals(expected):
        found = ", ".join(f"{f.name}: {f.type}" for f in table.schema)
        wanted = ", ".join(f"{f.name}: {f.type}" for f in expected)
        raise ShardError(name, "index columns differ", expected=wanted, found=found, remedy=_REBUILD)
    required = [n for n in table.column_names if n not in ("group", "text") and not n.startswith(("meta.", "label."))]
    if any(table[column].null_count for column in required):
        raise ShardError(name, "index has empty fields", remedy=_REBUILD)
    index = ShardIndex(
        layout=layout,
        layout_dict=layout_dict,
        schema=schema,
        checksums=table["checksum"].to_numpy(),
        present=np.stack([table[f"present.{c}"].to_numpy() for c in schema.column_names], axis=1),
        labels={label.name: _label_array(name, label, table[f"label.{label.name}"]) for label in schema.labels},
        group=_group_array(table[group]) if schema.grouped or group != GROUP else None,
        members=_member_array(schema, table) if imported else None,
    )
    _check_offsets(name, index, table["offset"].to_numpy(), shard_bytes)
    if metadata.get("digest") != index.digest.hex():
        raise ShardError(name, "index disagrees with its own digest", remedy=_REBUILD)
    return index


def _label_array(name: str, label: Label, column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count:
        raise ShardError(name, f"index has empty fields in label {label.name!r}", remedy=_REBUILD)
    if label.shape:
        return pc.list_flatten(column).to_numpy().reshape(-1, label.width)
    values = column.to_numpy()
    if label.kind == "class" and len(values) and not (values.min() >= -1 and values.max() < len(label.classes)):
        raise ShardError(
            name,
            f"index: label {label.name!r} is out of range",
            expected=f"-1..{len(label.classes) - 1}",
            found=f"{values.min()}..{values.max()}",
            remedy=_REBUILD,
        )
    return values


def _group_array(column: pa.ChunkedArray) -> np.ndarray:
    encoded = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], pa.string()).dictionary_encode()
    ids = np.array([group_id(item) for item in encoded.dictionary.to_pylist()], np.int64)
    return ids[encoded.indices.to_numpy(zero_copy_only=False)] if len(ids) else np.empty(0, np.int64)


def _member_array(schema: Schema, table: pa.Table) -> np.ndarray:
    pairs = [
        np.stack([table[f"member.{name}.{part}"].to_numpy() for part in ("offset", "size")], axis=1)
        for name in schema.column_names
    ]
    return np.stack(pairs, axis=1)


def _check_offsets(name: str, index: ShardIndex, offsets: np.ndarray, shard_bytes: int | None) -> None:
    """Nothing that lies outside the shard may be believed, whoever wrote the index."""
    if index.members is None:
        if not np.array_equal(offsets, np.arange(len(index), dtype=np.int64) * index.stride):
            raise ShardError(name, f"index offsets are not multiples of its stride {index.stride}", remedy=_REBUILD)
        if shard_bytes is not None and archive_bytes(len(index), index.stride) != shard_bytes:
            raise ShardError(
                name,
                f"{len(index)} samples of {index.stride} bytes do not make the shard's size",
                expected=archive_bytes(len(index), index.stride),
                found=shard_bytes,
                remedy=_REBUILD,
            )
        return
    start, size = index.members[..., 0], index.members[..., 1]
    missing = (start == -1) & (size == -1)
    limit = np.iinfo(np.int64).max if shard_bytes is None else shard_bytes
    # `limit - size` cannot overflow where `start + size` could.
    inside = (start >= 0) & (size >= 0) & (size <= limit) & (start <= limit - size)
    if not (missing | inside).all():
        row = int(np.flatnonzero(~(missing | inside).all(axis=1))[0])
        raise ShardError(
            name,
            f"index: a member of sample number {row} lies outside the shard of {shard_bytes} bytes",
            remedy=_REBUILD,
        )
    # Members of clips are files of any length; arrays are at least as long as their numbers.
    smallest = np.array([getattr(column, "nbytes", 0) for column in index.schema.columns])
    if (~missing & (size < smallest)).any():
        row = int(np.flatnonzero((~missing & (size < smallest)).any(axis=1))[0])
        raise ShardError(name, f"index: a member of sample number {row} is too short for its column", remedy=_REBUILD)
    if (missing & index.present).any():
        raise ShardError(name, "index: a column is present without a member", remedy=_REBUILD)
