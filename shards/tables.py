"""Parquet files that are small but would decode to more than memory holds are refused before they do."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

# The tables of this package hold random digits (checksums, digests) in every row: they shrink by 3 to 30 times.
_LEAST_BYTES = 256 << 20
_EXPANSION = 256
_BATCHES = 4  # a batch is decoded before its size is known: it may take this part of the limit
_FIXED_BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


def read_parquet(data: bytes, columns: list[str] | None = None, limit: int | None = None) -> pa.Table:
    """Decode a Parquet file whose pages carry checksums. limit: most bytes it may decode to (default: 256 times the
    file's size, at least 256 MiB).

    Raises ValueError, OSError or pa.ArrowException for what is no Parquet file, is damaged, or decodes to more.
    What is refused takes little more than `limit` before it is (plus one page: 2 GiB at most, whatever the file says
    of it); what is read takes twice its size for a moment, as its batches are joined.
    """
    limit = max(_LEAST_BYTES, _EXPANSION * len(data)) if limit is None else limit
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    rows, claimed, longest = file.metadata.num_rows, 0, 1
    for group in range(file.metadata.num_row_groups):
        described = file.metadata.row_group(group)
        for number in range(described.num_columns):
            chunk = described.column(number)
            claimed += max(chunk.total_uncompressed_size, chunk.num_values * _FIXED_BYTES.get(chunk.physical_type, 1))
            # One string of a dictionary, or a prefix, may be repeated in every row.
            if chunk.physical_type == "BYTE_ARRAY" and set(chunk.encodings) - {"PLAIN", "RLE"}:
                longest = max(longest, chunk.total_uncompressed_size)
    if claimed > limit:
        raise ValueError(f"{len(data)} bytes claim to decode to {claimed}, more than the {limit} allowed")
    if rows * longest <= limit:
        return file.read(columns)
    batches, decoded = [], 0
    for batch in file.iter_batches(batch_size=max(1, limit // (_BATCHES * longest)), columns=columns):
        decoded += batch.nbytes
        if decoded > limit:
            raise ValueError(f"{len(data)} bytes decode to more than the {limit} allowed")
        batches.append(batch)
    return pa.Table.from_batches(batches, file.schema_arrow if columns is None else None).combine_chunks()
