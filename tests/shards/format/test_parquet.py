"""Tables that are read within a limit equal those that pyarrow reads without one."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.format.parquet import read_parquet

ROWS = 3000


@pytest.mark.parametrize("encoding", ["dictionary", "plain", "prefixes", "outgrown dictionary"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()], ids=str)
def test_strings_are_those_that_pyarrow_reads(encoding: str, kind: pa.DataType) -> None:
    """Repeated and missing ones, in several groups of rows; of a dictionary that the writer gave up half-way, too."""
    words = [None if i % 7 == 0 else f"speaker-{i % 5 if i < 1000 else i}" for i in range(ROWS)]
    made = pa.table(
        {
            "word": pa.array(words, pa.string()).cast(kind),
            "number": pa.array(range(ROWS)),
            "list": pa.array([[word] for word in words]),
            "category": pa.array(words[::-1]).dictionary_encode(),
        }
    )
    options = {
        "dictionary": {"use_dictionary": True},
        "plain": {"use_dictionary": False},
        "prefixes": {"use_dictionary": False, "column_encoding": {"word": "DELTA_BYTE_ARRAY"}},
        "outgrown dictionary": {"use_dictionary": True, "dictionary_pagesize_limit": 512},
    }[encoding]
    sink = io.BytesIO()
    pq.write_table(made, sink, row_group_size=1100, write_page_checksum=True, **options)
    data = sink.getvalue()
    expected = pq.read_table(io.BytesIO(data))
    found = read_parquet(data)
    assert found.schema == expected.schema and found.to_pylist() == expected.to_pylist()  # categories in any order
    part = ["word", "number", "list"]
    in_batches = read_parquet(data, part, limit=1 << 20)  # for the lists' sake, where those have a dictionary
    assert in_batches.equals(expected.select(part), check_metadata=False)
    assert read_parquet(data, ["word"]).equals(expected.select(["word"]))
    with pytest.raises(ValueError, match="decode to"):
        read_parquet(data, limit=40_000)
