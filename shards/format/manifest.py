"""The manifest above the shards: a row for each shard, the schema and a digest of the content, in one Parquet file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from conclugen.common.atomic import write_bytes
from shards.access import AccessError, is_url, reaching
from shards.errors import UNREADABLE, ManifestError, ShardError
from shards.files import read_whole
from shards.format import publication
from shards.format.index import INDEX_SUFFIX, decode_index, read_table
from shards.format.layout import BLOCK, RECORD
from shards.format.parquet import read_parquet
from shards.format.schema import Column, Label, Schema

FORMAT = 1
MANIFEST_NAME = "manifest.parquet"
OTHER_KIND = "the shards hold something else"  # the problem of a manifest of clips where one of features is expected
TAR_SUFFIX = ".tar"
_METADATA_KEY = b"conclugen.shards"
_SHARD_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+=@,~-]{0,199}$"
_TABLE = pa.schema(
    [
        ("name", pa.string()),
        ("count", pa.int64()),
        ("bytes", pa.int64()),
        ("stride", pa.int64()),
        ("digest", pa.binary(16)),
        ("index_bytes", pa.int64()),
        ("index_digest", pa.binary(16)),
    ]
)
# What decoding a damaged or hostile manifest raises; RecursionError is that of JSON nested without end.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_REBUILD = "Restore the manifest, or rebuild it with `conclugen verify FOLDER --repair`"


Digest = bytes  # 16 of them, xxh3_128; an alias because `ShardEntry.bytes` hides the builtin in its own body


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest lists it. stride: bytes of a sample, 0 for an imported shard. Digests are 16 bytes."""

    name: str
    count: int
    bytes: int
    stride: int
    digest: Digest
    index_bytes: int
    index_digest: Digest


class Manifest:
    """A data set of shards that lie in one folder (local, or any fsspec URL). Open it with `Manifest.open`."""

    schema_type: ClassVar[Any] = Schema  # what its shards hold: `ClipManifest` has another

    def __init__(
        self,
        folder: str,
        schema: Schema,
        shards: pa.Table,
        info: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.shards = shards
        self.info = plain_info(info or {})
        self.storage_options = dict(storage_options or {})
        self._check_table()
        self.digest = self._content_digest()

    # What is stored

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.schema.columns

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        return dict(self.schema.modalities)

    @property
    def labels(self) -> tuple[Label, ...]:
        return self.schema.labels

    @cached_property
    def counts(self) -> np.ndarray:
        """(S,) int64 samples of each shard."""
        return self.shards["count"].to_numpy()

    @cached_property
    def rows_before(self) -> np.ndarray:
        """(S + 1,) int64: global number of each shard's first row; the last entry is the number of all rows."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts, dtype=np.int64)])

    @property
    def rows(self) -> int:
        return int(self.rows_before[-1])

    def __len__(self) -> int:
        return self.shards.num_rows

    def entry(self, shard: int) -> ShardEntry:
        """Row `shard` of the table."""
        if not 0 <= shard < len(self):
            raise IndexError(f"shard number {shard}, expected 0..{len(self) - 1}")
        return ShardEntry(**{name: self._columns[name][shard].as_py() for name in _TABLE.names})

    @cached_property
    def _columns(self) -> dict[str, pa.Array]:
        # One chunk each: indexing a chunked array searches its chunks at every access.
        return {name: _one_chunk(self.shards[name]) for name in _TABLE.names}

    # Where it lies

    @property
    def is_local(self) -> bool:
        return not is_url(self.folder)

    @cached_property
    def filesystem(self) -> Any:
        """fsspec file system of the folder."""
        return fsspec.core.url_to_fs(self.folder, **self.storage_options)[0]

    def path(self, file_name: str) -> str:
        """Path (or URL) of a file in the folder."""
        return f"{self.folder.rstrip('/')}/{file_name}"

    def read_bytes(self, file_name: str) -> bytes:
        """A whole small file of the folder; raises OSError where it is missing, AccessError where it can't be
        reached."""
        path = self.path(file_name)
        with reaching(path, self.storage_options):
            return read_whole(Path(path)) if self.is_local else self.filesystem.cat_file(path)

    def __reduce__(self) -> tuple[Any, ...]:
        # A Ray task gets the path, not a table of a million rows, and opens it once for each process.
        return (_reopen, (type(self), self.folder, json.dumps(self.storage_options, sort_keys=True), self.digest))

    # Opening

    @classmethod
    def open(cls, path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Self:
        """Read and check a manifest, given its folder or itself (local path or fsspec URL).

        Raises ManifestError (a ValueError) for a corrupt file, another format version or contradicting numbers,
        FileNotFoundError where there is none, and AccessError where it can't be reached.
        """
        folder = os.fspath(path)
        if folder.endswith(".parquet"):
            folder, _, name = folder.rpartition("/")
            folder = folder or "."
            if name != MANIFEST_NAME:
                raise ValueError(f"{os.fspath(path)}: expected a folder or its {MANIFEST_NAME}")
        else:
            folder, name = folder.rstrip("/") or "/", MANIFEST_NAME
        if not is_url(folder):
            folder = str(Path(folder).absolute())
        where = f"{folder}/{name}"
        try:
            with reaching(where, storage_options):
                if is_url(folder):
                    filesystem, inner = fsspec.core.url_to_fs(where, **(storage_options or {}))
                    data = filesystem.cat_file(inner)
                else:
                    data = read_whole(Path(where))
        except AccessError:
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            if not is_url(folder):
                publication.refuse_unfinished(folder, "read")
            raise FileNotFoundError(
                f"no manifest at {where}; pack one with `conclugen pack`, or index WebDataset shards "
                "where they lie with `conclugen index`"
            ) from None
        except OSError as error:
            raise ManifestError(where, f"{UNREADABLE}: {error}", remedy=_REBUILD) from error
        return cls._decode(where, folder, data, storage_options)

    @classmethod
    def _decode(cls, where: str, folder: str, data: bytes, storage_options: Mapping[str, Any] | None) -> Self:
        try:
            table = read_parquet(data)
            metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
            version, check = metadata["format"], metadata.pop("check")
        except _UNREADABLE as error:
            raise ManifestError(where, f"not a readable manifest: {error!r}", remedy=_REBUILD) from None
        if version != FORMAT:
            raise ManifestError(
                where,
                "format version differs",
                expected=FORMAT,
                found=version,
                remedy="Read it with the version of this package that wrote it, and pack it again",
            )
        if check != _self_check(metadata):
            raise ManifestError(where, "its description of itself is damaged", remedy=_REBUILD)
        if not table.schema.remove_metadata().equals(_TABLE):
            found = ", ".join(f"{f.name}: {f.type}" for f in table.schema)
            raise ManifestError(
                where, "columns of the shard table differ", expected=_TABLE, found=found, remedy=_REBUILD
            )
        cls._check_kind(where, metadata.get("schema"))
        try:
            schema = cls.schema_type.from_dict(metadata["schema"])
            digest, info = metadata["digest"], dict(metadata["info"])
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(where, f"schema is not valid: {error}", remedy=_REBUILD) from None
        manifest = cls(folder, schema, table.replace_schema_metadata(None), info, storage_options)
        if manifest.digest != digest:
            raise ManifestError(where, "digest differs", expected=digest, found=manifest.digest, remedy=_REBUILD)
        return manifest

    @classmethod
    def _check_kind(cls, where: str, schema: Any) -> None:
        kind = schema.get("kind", Schema.kind) if isinstance(schema, dict) else Schema.kind
        if kind != cls.schema_type.kind:
            raise ManifestError(
                where,
                OTHER_KIND,
                expected=cls.schema_type.kind,
                found=kind,
                remedy="Clips are made into features by `conclugen features`",
            )

    def _check_table(self) -> None:
        table, where = self.shards, self.path(MANIFEST_NAME)

        def fault(problem: str, row: int | None = None) -> None:
            name = where if row is None else f"{where}: {table['name'][row].as_py()!r}"
            raise ManifestError(name, problem, remedy=_REBUILD)

        if any(column.null_count for column in table.columns):
            fault("the shard table has empty fields")
        if not len(table):
            fault("it lists no shards")
        names = table["name"]
        safe = pc.and_(pc.match_substring_regex(names, _SHARD_NAME), pc.invert(pc.match_substring(names, "..")))
        if not pc.all(safe).as_py():
            fault(
                "unsafe shard name (a separator, '..', or a character out of A-Z a-z 0-9 _.+=@,~-)", _first_false(safe)
            )
        if pc.count_distinct(names).as_py() != len(table):
            counts = pc.value_counts(_one_chunk(names))
            twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
            fault(f"shard {twice.as_py()!r} is listed twice")
        count, size, stride = (table[name].to_numpy() for name in ("count", "bytes", "stride"))
        index_size = table["index_bytes"].to_numpy()
        negative = (count < 0) | (size < 0) | (stride < 0) | (index_size < 0)
        if negative.any():
            fault("a negative count or size", int(np.flatnonzero(negative)[0]))
        fixed = stride > 0
        # Checked by division first: count * stride of a hostile manifest may not fit into 64 bits.
        possible = ~fixed | (count <= size // np.maximum(stride, 1))
        padded = -(-(np.where(possible, count * stride, 0) + 1024) // RECORD) * RECORD
        consistent = possible & (~fixed | (padded == size)) & (fixed | (count <= size // BLOCK))
        if not consistent.all():
            fault("count, stride and bytes do not fit together", int(np.flatnonzero(~consistent)[0]))
        if count.sum(dtype=np.float64) >= 2**62:
            fault("more rows than can be numbered")

    def _content_digest(self) -> str:
        """xxh3_128 over schema, names, counts, sizes and content digests; not over where or how anything is stored."""
        digest = xxhash.xxh3_128(self.schema.canonical_json().encode())
        names = _one_chunk(self.shards["name"])
        digest.update(np.ascontiguousarray(pc.binary_length(names).to_numpy(), "<i4").data)
        joined = pc.binary_join(pa.ListArray.from_arrays([0, len(names)], names), "")
        digest.update(joined[0].as_buffer())
        for name in ("count", "bytes", "stride"):
            digest.update(np.ascontiguousarray(self.shards[name].to_numpy(), "<i8").data)
        contents = _one_chunk(self.shards["digest"])
        data = contents.buffers()[1]
        digest.update(memoryview(data)[16 * contents.offset : 16 * (contents.offset + len(contents))])
        return digest.hexdigest()

    # Writing

    @classmethod
    def assemble(
        cls,
        folder: str | os.PathLike[str],
        shards: Iterable[str | ShardEntry],
        info: Mapping[str, Any] | None = None,
        check_keys: bool = True,
        tars: Path | None = None,
    ) -> Self:
        """Write the manifest of shards that lie in a local folder with their indexes, in the order given.

        A shard is given by name (its entry is made from its index, which is read and checked) or as the `ShardEntry`
        that `write_shard` returned. tars: folder of the shards themselves, if only their indexes lie in this one.

        Raises ShardError for a missing or unusable index, a schema that differs between shards, a size that differs,
        and, with `check_keys`, for a key that occurs in two samples; ValueError for `info` that JSON cannot hold.
        """
        folder = Path(folder).absolute()
        entries, schema, keys = [], None, []
        for item in shards:
            name = item if isinstance(item, str) else item.name
            check_shard_name(name)
            entry, own_schema, own_keys = _read_entry(folder, name, cls.schema_type, tars)
            if not isinstance(item, str) and item != entry:
                raise ShardError(name, "is not the shard that was written", expected=item, found=entry)
            if schema is not None and own_schema != schema:
                raise ShardError(
                    name, "schema differs from the first shard's", expected=schema.to_dict(), found=own_schema.to_dict()
                )
            schema = own_schema
            entries.append(entry)
            keys.append(own_keys)
        if schema is None:
            raise ValueError(f"{folder}: no shards to list; write at least one")
        if check_keys:
            _refuse_duplicates(entries, keys)
        manifest = cls(str(folder), schema, table_of(entries), info)
        manifest.save()
        return manifest

    def save(self) -> None:
        """Write `manifest.parquet` into the (local) folder: temporary name, fsync, rename."""
        if not self.is_local:
            raise ValueError(f"{self.folder}: manifests are written to local folders; copy the folder afterwards")
        metadata = {"format": FORMAT, "schema": self.schema.to_dict(), "digest": self.digest, "info": self.info}
        metadata["check"] = _self_check(metadata)
        sink = pa.BufferOutputStream()
        pq.write_table(
            self.shards.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata, sort_keys=True)}),
            sink,
            compression="zstd",
            use_dictionary=["stride"],
            column_encoding={
                "name": "DELTA_BYTE_ARRAY",
                "count": "DELTA_BINARY_PACKED",
                "bytes": "DELTA_BINARY_PACKED",
                "index_bytes": "DELTA_BINARY_PACKED",
            },
            write_page_checksum=True,
        )
        write_bytes(Path(self.folder) / MANIFEST_NAME, sink.getvalue())


def written_entries(
    kind: type[Manifest], folder: Path, names: Iterable[str], contents: Mapping[str, str]
) -> list[ShardEntry]:
    """The entries of shards that a job wrote, each compared with what it says that it wrote.

    contents: shard name -> content digest in hex (empty: of a report that has none yet). Raises ShardError for a shard
    of other content: another job has written there, or a task that one has left behind.
    """
    entries = []
    for name in names:
        entry, _, _ = _read_entry(folder, name, kind.schema_type)
        if name not in contents or contents[name] not in ("", entry.digest.hex()):
            raise ShardError(
                name,
                "is not the shard that this job wrote: another one, or a task that it left behind, writes there too",
                expected=contents.get(name, "a shard of this job"),
                found=entry.digest.hex(),
                remedy=f"Wait for the other's end, remove {name}{TAR_SUFFIX}, and start the same command again",
            )
        entries.append(entry)
    return entries


def plain_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """`info` as it is read back from JSON; ValueError for what JSON cannot hold."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(info)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"manifest info is {info!r}, which JSON cannot hold ({error}); give strings, numbers, lists and mappings"
        ) from None
    return plain


def check_shard_name(name: str) -> None:
    """Raise ShardError unless the name is allowed in a manifest."""
    if not re.fullmatch(_SHARD_NAME, name) or ".." in name:
        raise ShardError(name, "name is unsafe", remedy="Rename it to at most 200 of A-Z a-z 0-9 _.+=@,~- without '..'")


def table_of(entries: Iterable[ShardEntry]) -> pa.Table:
    """The shard table of some entries, in their order."""
    entries = list(entries)
    columns = [pa.array([getattr(entry, f.name) for entry in entries], f.type) for f in _TABLE]
    return pa.Table.from_arrays(columns, schema=_TABLE)


def _read_entry(
    folder: Path, name: str, schema_type: Any, tars: Path | None = None
) -> tuple[ShardEntry, Any, pa.Array]:
    tar, index_path = (tars or folder) / f"{name}{TAR_SUFFIX}", folder / f"{name}{INDEX_SUFFIX}"
    for path in (tar, index_path):
        if not path.is_file():
            raise ShardError(name, f"file {path.name} is missing in {path.parent}")
    size, data = tar.stat().st_size, read_whole(index_path)
    index = decode_index(name, data, size, schema_type)
    keys = read_table(name, data, ["key"])["key"]
    entry = ShardEntry(name, len(index), size, index.stride, index.digest, len(data), xxhash.xxh3_128_digest(data))
    return entry, index.schema, _one_chunk(keys)


def _refuse_duplicates(entries: list[ShardEntry], keys: list[pa.Array]) -> None:
    everything = pa.concat_arrays(keys)
    if pc.count_distinct(everything).as_py() == len(everything):
        return
    counts = pc.value_counts(everything)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
    holders = [entry.name for entry, own in zip(entries, keys, strict=True) if pc.any(pc.equal(own, twice)).as_py()]
    raise ShardError(holders[-1], f"key occurs twice (in {', '.join(holders)}); rename it", sample=twice.as_py())


def _self_check(metadata: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(metadata, sort_keys=True).encode())


def _one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _first_false(mask: Any) -> int:
    return int(np.flatnonzero(~np.asarray(mask.to_numpy(), bool))[0])


@lru_cache(maxsize=8)
def _reopen(kind: type[Manifest], folder: str, storage_options: str, digest: str) -> Manifest:
    manifest = kind.open(folder, json.loads(storage_options))
    if manifest.digest != digest:
        raise ManifestError(
            manifest.path(MANIFEST_NAME),
            "the data set changed since this reader was made",
            expected=digest,
            found=manifest.digest,
            remedy="Start again from the new manifest",
        )
    return manifest
