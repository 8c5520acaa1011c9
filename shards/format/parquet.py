"""Parquet files that are small but would decode to more than memory holds are refused before they do."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# The tables of this package hold random digits (checksums, digests) in every row: they shrink by 3 to 30 times.
_LEAST_BYTES = 256 << 20
_EXPANSION = 256
_BATCHES = 4  # a batch is decoded before its size is known: it may take this part of the limit
_FIXED_BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
_PLAIN = {"PLAIN", "RLE"}
_DICTIONARY = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}


def read_parquet(data: bytes, columns: list[str] | None = None, limit: int | None = None) -> pa.Table:
    """Decode a Parquet file whose pages carry checksums. limit: most bytes it may decode to (default: 256 times the
    file's size, at least 256 MiB).

    Raises ValueError, OSError or pa.ArrowException for what is no Parquet file, is damaged, or decodes to more.
    What is refused takes little more than `limit` before it is (plus one page: 2 GiB at most, whatever the file says
    of it); what is read takes twice its size for a moment, as its parts are joined.
    """
    limit = max(_LEAST_BYTES, _EXPANSION * len(data)) if limit is None else limit
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    schema = file.schema_arrow
    claimed = 0
    repeated: dict[str, int] = {}
    prefixed: dict[str, int] = {}
    for group in range(file.metadata.num_row_groups):
        described = file.metadata.row_group(group)
        for number in range(described.num_columns):
            chunk = described.column(number)
            claimed += max(chunk.total_uncompressed_size, chunk.num_values * _FIXED_BYTES.get(chunk.physical_type, 1))
            encodings, name = set(chunk.encodings) - _PLAIN, chunk.path_in_schema
            # One string of a dictionary, or a prefix, may be repeated in every row.
            if chunk.physical_type != "BYTE_ARRAY" or not encodings:
                continue
            kind = repeated if encodings <= _DICTIONARY and name in schema.names else prefixed
            kind[name] = max(kind.get(name, 1), chunk.total_uncompressed_size)
    if claimed > limit:
        raise ValueError(f"{len(data)} bytes claim to decode to {claimed}, more than the {limit} allowed")
    if file.metadata.num_rows * max(prefixed.values(), default=1) > limit:
        longest = max((prefixed | repeated).values())
        return _read_batches(file, columns, max(1, limit // (_BATCHES * longest)), limit, len(data))
    # A dictionary stays one until it is known what its strings take in all rows.
    names = sorted(repeated.keys() - prefixed.keys())
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, read_dictionary=names or None)
    return _without_dictionaries(file.read(columns), schema, names, limit, len(data))


def _read_batches(file: pq.ParquetFile, columns: list[str] | None, rows: int, limit: int, size: int) -> pa.Table:
    batches, decoded = [], 0
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        decoded += batch.nbytes
        if decoded > limit:
            raise ValueError(f"{size} bytes decode to more than the {limit} allowed")
        batches.append(batch)
    return pa.Table.from_batches(batches, file.schema_arrow if columns is None else None).combine_chunks()


def _without_dictionaries(table: pa.Table, schema: pa.Schema, names: Sequence[str], limit: int, size: int) -> pa.Table:
    """The columns named as `schema` has them, where all that they hold together is within the limit."""
    held = set(table.column_names)
    names = [name for name in names if name in held and not pa.types.is_dictionary(schema.field(name).type)]
    decoded = 0
    for name in names:
        for chunk in table[name].chunks:
            lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
            decoded += 4 * len(chunk) + (pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    if decoded > limit:
        raise ValueError(f"{size} bytes decode to more than the {limit} allowed")
    for name in names:
        number = table.column_names.index(name)
        table = table.set_column(number, schema.field(name), table[name].cast(schema.field(name).type))
    return table
