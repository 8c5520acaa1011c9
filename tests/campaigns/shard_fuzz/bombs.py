"""Parquet files that are small and would decode to gigabytes."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq


def bomb(rows: int, longest: int) -> bytes:
    """A dictionary of one long string, that every row repeats: some kilobytes that would decode to rows * longest."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * longest]))
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": column}), sink, compression="zstd", write_page_checksum=True, store_schema=False)
    return sink.getvalue()


def zeros(rows: int) -> bytes:
    """Runs of one number: claimed rows cost nothing in the file."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"count": pa.repeat(pa.scalar(7, pa.int64()), rows)}), sink, compression="zstd")
    return sink.getvalue()
