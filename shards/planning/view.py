"""Views: named selections of rows, as bitmaps beside the shards. A view is never a copy of data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from conclugen.common.atomic import write_bytes
from conclugen.common.names import did_you_mean
from shards.access import AccessError, reaching
from shards.errors import ShardError
from shards.format import publication
from shards.format.index import read_table
from shards.format.index_store import read_index_bytes
from shards.format.manifest import Manifest
from shards.format.parquet import read_parquet

FORMAT = 1
FOLDER = "views"
EVERYTHING = "everything"
ROW = "row"
_METADATA_KEY = b"conclugen.view"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_TABLE = pa.schema([("count", pa.int64()), ("bitmap", pa.large_binary())])
_REMEDY = "Make the view again with `conclugen split`"

Mask = np.ndarray | Callable[[int], np.ndarray]


def check_view_name(name: str) -> None:
    """ValueError unless `name` is safe as a file name and not the reserved one."""
    if not _NAME.fullmatch(name) or name == EVERYTHING:
        raise ValueError(
            f"view name {name!r}: expected 1 to 100 of A-Z a-z 0-9 _ . + -, beginning with a letter or digit, and not "
            f"{EVERYTHING!r}; rename it"
        )


class View:
    """A selection of the rows of a manifest's shards.

    counts: (S,) int64 selected rows of each shard; rows: their sum; rule: how the selection was made (JSON-able);
    digest: over the manifest's digest and the selection itself, so equal selections of equal data have equal digests,
    whatever their names and rules. Make one with `everything`, `where` or `from_groups`, or `open` a saved one.
    """

    def __init__(self, manifest: Manifest, name: str, bits: np.ndarray | None, rule: Mapping[str, Any]) -> None:
        """bits: (bytes,) uint8, each shard's bitmap after the other, lowest bit first, each from a whole byte on;
        None is everything. Raises ValueError where bits beyond a shard's rows are set."""
        self.manifest = manifest
        self.name = name
        self.rule = dict(rule)
        sizes = -(-manifest.counts // 8)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        if bits is None:
            self.counts = manifest.counts.copy()
        else:
            used = np.flatnonzero(sizes)
            spare = (8 * sizes - manifest.counts)[used]
            last = bits[self._starts[1:][used] - 1]
            if (last >> (8 - spare).astype(np.uint8) != 0)[spare > 0].any():
                raise ValueError(f"view {name!r}: a bitmap selects rows beyond the end of its shard. {_REMEDY}")
            ones = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bitwise_count(bits), dtype=np.int64)])
            self.counts = np.diff(ones[self._starts])
        # All rows chosen one by one are the same selection as everything, and cost no bitmap.
        self._bits = None if np.array_equal(self.counts, manifest.counts) else bits
        self.rows = int(self.counts.sum())
        selection = b"everything" if self._bits is None else self._bits
        self.digest: str = xxhash.xxh3_128(manifest.digest.encode() + bytes(selection)).hexdigest()

    def __repr__(self) -> str:
        return f"View({self.name!r}, {self.rows} of {self.manifest.rows} rows)"

    def indices(self, shard: int) -> np.ndarray:
        """(counts[shard],) int64: the selected rows of one shard, ascending, counted from the shard's first row."""
        if self._bits is None:
            return np.arange(self.counts[shard], dtype=np.int64)
        return np.flatnonzero(self.mask(shard))

    def mask(self, shard: int) -> np.ndarray:
        """(n,) bool over the shard's rows."""
        count = int(self.manifest.counts[shard])
        if self._bits is None:
            return np.ones(count, bool)
        packed = self._bits[self._starts[shard] : self._starts[shard + 1]]
        return np.unpackbits(packed, count=count, bitorder="little").view(bool)

    # ---- making -----------------------------------------------------------------------------------------------------

    @classmethod
    def everything(cls, manifest: Manifest) -> View:
        """All rows."""
        return cls(manifest, EVERYTHING, None, {"by": EVERYTHING})

    @classmethod
    def where(
        cls, manifest: Manifest, mask: Mask, name: str = "selection", rule: Mapping[str, Any] | None = None
    ) -> View:
        """The rows where `mask` is true: (rows,) bool in the global order of rows, or a function from a shard's number
        to (n,) bool. In memory only, until `save`. Raises ValueError for another shape or dtype."""
        check_view_name(name)
        if isinstance(mask, np.ndarray):
            _check_mask(mask, manifest.rows, "the manifest")
        before, packed = manifest.rows_before, []
        for shard, count in enumerate(manifest.counts.tolist()):
            part = mask[before[shard] : before[shard + 1]] if isinstance(mask, np.ndarray) else mask(shard)
            _check_mask(part, count, f"shard {manifest.shards['name'][shard].as_py()!r}")
            packed.append(np.packbits(part, bitorder="little"))
        return cls(manifest, name, np.concatenate(packed), rule or {"by": "mask"})

    @classmethod
    def from_groups(cls, manifest: Manifest, name: str, groups: Collection[str]) -> View:
        """The rows of the named groups, in memory only. ValueError for a group that no row has.

        For many views of one manifest (cross-validation), read `IndexValues` once and ask it for each.
        """
        return IndexValues.read(manifest, "group").view(name, groups, {"by": "group"})

    # ---- keeping ----------------------------------------------------------------------------------------------------

    def save(self, beside: Path | None = None) -> Path:
        """Write `views/<name>.parquet` beside the shards (temporary name, fsync, rename), over one of that name. Views
        that belong together are saved by `shards.planning.split.save_views`.

        beside: another folder in the place of the shards' own. Raises ValueError where its `views` is a link.
        """
        check_view_name(self.name)
        if not self.manifest.is_local:
            raise ValueError(f"{self.manifest.folder}: views are written to local folders; copy the folder afterwards")
        above = Path(self.manifest.folder if beside is None else beside)
        publication.refuse_linked_views(above)
        folder = above / FOLDER
        folder.mkdir(exist_ok=True)
        bits = self._bits
        if bits is None:
            whole = [np.packbits(np.ones(count, bool), bitorder="little") for count in self.manifest.counts.tolist()]
            bits = np.concatenate(whole)
        offsets = pa.py_buffer(np.ascontiguousarray(self._starts, "<i8"))
        bitmap = pa.Array.from_buffers(pa.large_binary(), len(self.counts), [None, offsets, pa.py_buffer(bits)])
        metadata = {
            "format": FORMAT,
            "name": self.name,
            "manifest": self.manifest.digest,
            "rule": self.rule,
            "digest": self.digest,
        }
        table = pa.Table.from_arrays(
            [pa.array(self.counts), bitmap], schema=_TABLE.with_metadata({_METADATA_KEY: json.dumps(metadata)})
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
        path = folder / f"{self.name}.parquet"
        write_bytes(path, sink.getvalue())
        return path

    @classmethod
    def open(cls, manifest: Manifest, name: str) -> View:
        """The saved view of that name; "everything" needs none.

        Raises ValueError where there is no such view (with the names there are), and ShardError (a ValueError) where it
        is damaged or stale: made for other data than the manifest lists now.
        """
        if name == EVERYTHING:
            return cls.everything(manifest)
        check_view_name(name)
        file = f"{FOLDER}/{name}.parquet"
        if manifest.is_local:
            publication.refuse_unfinished(manifest.folder, f"opened by view {name!r}")
        try:
            data = manifest.read_bytes(file)
        except AccessError:
            raise
        except OSError:
            raise ValueError(
                f"{manifest.folder} has no view {name!r}, {did_you_mean(name, [*cls.names(manifest), EVERYTHING])}; "
                "make views with `conclugen split`"
            ) from None
        try:
            bitmaps = int((-(-manifest.counts // 8)).sum())
            table = read_parquet(data, limit=(1 << 20) + 2 * (bitmaps + 24 * len(manifest)))
            metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
            version, of, rule, digest = (metadata[key] for key in ("format", "manifest", "rule", "digest"))
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ShardError(file, f"not a readable view: {error!r}", remedy=_REMEDY) from None
        if version != FORMAT:
            raise ShardError(file, "view has another format version", expected=FORMAT, found=version, remedy=_REMEDY)
        if of != manifest.digest:
            raise ShardError(
                file,
                f"the view is stale: it was made for other data than {manifest.folder} holds now (rule: {rule})",
                expected=f"manifest digest {manifest.digest}",
                found=of,
                remedy=_REMEDY,
            )
        if not table.schema.remove_metadata().equals(_TABLE) or len(table) != len(manifest):
            raise ShardError(file, "columns or number of shards differ", remedy=_REMEDY)
        view = cls(manifest, name, _concatenated_bitmaps(file, table["bitmap"], manifest), rule)
        if view.digest != digest or not np.array_equal(view.counts, table["count"].to_numpy()):
            raise ShardError(file, "counts or digest differ from its bitmaps", remedy=_REMEDY)
        return view

    @classmethod
    def names(cls, manifest: Manifest) -> list[str]:
        """Names of the saved views, sorted."""
        folder = manifest.path(FOLDER)
        if manifest.is_local:
            files = [path.name for path in Path(folder).glob("*.parquet")]
        else:
            with reaching(folder, manifest.storage_options):
                filesystem, inner = fsspec.core.url_to_fs(folder, **manifest.storage_options)
                files = [Path(path).name for path in filesystem.glob(f"{inner}/*.parquet")]
        return sorted(file.removesuffix(".parquet") for file in files)


@dataclass(frozen=True)
class IndexValues:
    """One column of all indexes. names: the different values as text; codes: (rows,) int32, number of each row's value
    in `names`, -1 where the row has none."""

    manifest: Manifest
    column: str
    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def read(cls, manifest: Manifest, column: str) -> IndexValues:
        """Read a column (`group`, `text`, `meta.<name>`, `label.<name>`, `present.<name>`) of every shard's index.

        A class label is given by its classes' names. Raises ValueError for an unknown column (with those there are) or
        one whose values are lists, ShardError for an index that is not the manifest's.
        """
        numbers: dict[str, int] = {}
        parts = []
        classes = {f"label.{label.name}": label.classes for label in manifest.labels if label.kind == "class"}
        for shard in range(len(manifest)):
            entry = manifest.entry(shard)
            table = read_table(entry.name, read_index_bytes(manifest, entry))
            if column not in table.column_names:
                known = [*table.column_names, ROW]
                raise ValueError(f"index column {column!r} is unknown, {did_you_mean(column, known)}")
            if pa.types.is_nested(table.schema.field(column).type):
                raise ValueError(f"index column {column!r} holds lists; split by a column with one value a row")
            encoded = pc.dictionary_encode(table[column].combine_chunks())
            if isinstance(encoded, pa.ChunkedArray):
                encoded = (
                    encoded.combine_chunks() if encoded.num_chunks else pa.array([], pa.string()).dictionary_encode()
                )
            values = encoded.dictionary.to_pylist()
            if column in classes:
                values = [None if value == -1 else classes[column][value] for value in values]
            own = [-1 if value is None else numbers.setdefault(str(value), len(numbers)) for value in values]
            codes = encoded.indices.fill_null(len(own)).to_numpy(zero_copy_only=False)
            parts.append(np.array([*own, -1], np.int32)[codes])
        return cls(manifest, column, tuple(numbers), np.concatenate(parts))

    @classmethod
    def of_rows(cls, manifest: Manifest) -> IndexValues:
        """Every row its own value: its global number. ValueError for more than 2**31 rows."""
        if manifest.rows > np.iinfo(np.int32).max:
            raise ValueError(f"{manifest.rows} rows are too many to split one by one; split by another column")
        return cls(manifest, ROW, tuple(map(str, range(manifest.rows))), np.arange(manifest.rows, dtype=np.int32))

    @property
    def sizes(self) -> dict[str, int]:
        """Rows that have each value."""
        counts = np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    @property
    def missing(self) -> int:
        """Rows without a value."""
        return int((self.codes < 0).sum())

    def view(self, name: str, values: Collection[str], rule: Mapping[str, Any]) -> View:
        """The rows that have one of `values`. Raises ValueError for a value that no row has."""
        numbers = {value: number for number, value in enumerate(self.names)}
        for value in values:
            if value not in numbers:
                raise ValueError(
                    f"view {name!r}: no row has {self.column} {value!r}, {did_you_mean(value, sorted(self.names)[:20])}"
                )
        chosen = np.zeros(len(self.names) + 1, bool)  # the last place answers for code -1
        chosen[[numbers[value] for value in values]] = True
        listed = {} if self.column == ROW else {"values": sorted(values)}
        return View.where(self.manifest, chosen[self.codes], name, {**rule, **listed})


def _check_mask(mask: Any, length: int, what: str) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (length,):
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"the mask of {what} is {found}; expected a bool array of shape ({length},)")


def _concatenated_bitmaps(file: str, column: pa.ChunkedArray, manifest: Manifest) -> np.ndarray:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    if array.null_count or not np.array_equal(np.diff(offsets), -(-manifest.counts // 8)):
        raise ShardError(file, "a bitmap is not as long as its shard", remedy=_REMEDY)
    data = array.buffers()[2]
    bits = np.frombuffer(b"" if data is None else data, np.uint8)
    return bits[offsets[0] : offsets[-1]]
