"""Tables drawn at random, over encodings, separators, quoting and odd names, are read as Python's csv module and pandas
read them when they are told how; and what is no table is refused with the row's number."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.format.tables import Table, read_table

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "iso8859-1", "mac-roman"]
SEPARATORS = [",", ";", "\t", "|"]
# No separator of another kind stands in a head, or two readings would be right.
HEADS = ["path", "Grüße", "emotion label", "naïve", "speaker-id", "x", "#", "1.0", "Ångström", 'say "it"']
VALUES = ["a", "007", "1.0", "", "  padded ", "Grüße", 'he said "no"', "two\nlines", "crlf\r\nwithin", "a,b;c\td|e",
          "NA", "nan", "0,5", "#hash", "'single'", "=1+2", "é", "a  b", "-", "\\", "true", '""',
          "a\\b\\c.mp4"]  # fmt: skip
EASTERN = ["привет", "联通", "日本語", "\u0130stanbul", "e\u0301"]


def draw(seed: int) -> tuple[list[str], list[list[str]]]:
    """A head and rows; at least one row and one value in each row."""
    drawn = random.Random(seed)
    head = drawn.sample(HEADS, drawn.randint(2, 6))
    rows = [[drawn.choice(VALUES) for _ in head] for _ in range(drawn.randint(1, 12))]
    for row in rows:
        row[0] = row[0].strip() or "first"
    return head, rows


def written(head: list[str], rows: list[list[str]], separator: str, quoting: Any, ending: str) -> str:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=separator, quoting=quoting, lineterminator=ending)
    writer.writerows([head, *rows])
    return sink.getvalue()


def as_read(value: str) -> str | None:
    """The rule, spelled out once more: composed, without white space around it, empty is missing."""
    return unicodedata.normalize("NFC", value).strip() or None


def content(table: Table) -> dict[str, list[Any]]:
    return {name: table.column(name) for name in table.names}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", SEPARATORS, ids=["comma", "semicolon", "tab", "bar"])
def test_drawn_tables_are_read_as_csv_and_pandas_read_them(separator: str, encoding: str, tmp_path: Path) -> None:
    marked = encoding in ("utf-8-sig", "utf-16", "utf-32")
    for seed in range(12):
        quoting = csv.QUOTE_ALL if seed % 3 == 0 else csv.QUOTE_MINIMAL
        ending = ["\r", "\n", "\r\n"][seed % 3]
        head, rows = draw(seed)
        if encoding.startswith("utf"):
            rows[0][-1] = EASTERN[seed % len(EASTERN)]
        text = written(head, rows, separator, quoting, ending)
        path = tmp_path / f"t{seed}{['.csv', '.CSV', '.txt', '.tsv'][seed % 4]}"
        path.write_bytes(text.encode(encoding))
        said = None if encoding in ("utf-8", "utf-16-le", "utf-16-be") or marked else encoding
        table = read_table(path, said)
        # One oracle is told everything and keeps every character; the other is another implementation.
        again = list(csv.reader(io.StringIO(path.read_bytes().decode(encoding), newline=""), delimiter=separator))
        assert again[0] == head and again[1:] == rows
        expected = {as_read(name): [as_read(row[i]) for row in rows] for i, name in enumerate(head)}
        assert content(table) == expected, (seed, encoding)
        assert table.numbers == list(range(2, len(rows) + 2))
        frame = pd.read_csv(path, sep=separator, encoding=encoding, dtype=str, keep_default_na=False, engine="python")
        if ending != "\r" and "crlf\r\nwithin" not in [
            value for row in rows for value in row
        ]:  # which pandas reads as "\n"
            assert {as_read(str(n)): [as_read(v) for v in frame[n]] for n in frame.columns} == expected


@pytest.mark.parametrize("mark", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_excels_first_line_says_the_separator(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{mark}a,b;c\n1,5;2\n", encoding="utf-16")
    table = read_table(path)
    assert content(table) == {"a,b": ["1,5"], "c": ["2"]} and table.numbers == [2] and not table.doubts
    assert table.how == "utf-16, separator semicolon"


def test_a_german_spreadsheet_is_read(tmp_path: Path) -> None:
    """Semicolons, decimal commas, a mark, empty rows and unused columns at the end, as such programs write them."""
    path = tmp_path / "Tabelle1.CSV"
    path.write_bytes("\ufeffdatei;wert;;\r\nä.mp4;1,5;;\r\n;;;\r\nb.mp4;2;;\r\n;;;\r\n".encode())
    table = read_table(path)
    assert content(table) == {"datei": ["ä.mp4", "b.mp4"], "wert": ["1,5", "2"]}
    assert table.numbers == [2, 4] and not table.doubts
    assert table.how == "utf-8, separator semicolon, rows without any value passed over: 2"


def test_two_readings_that_both_fit_are_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b;c\n1,2;3\n")
    assert "but semicolon would fit as well; write `sep=,`" in read_table(path).doubts[0]


REFUSED = {
    "too many": (b"a,b\n1,2\n1,2,3\n", "row 3: 3 fields, the head has 2: quote fields"),
    "too few": (b"a,b\n1\n", "row 2: 1 fields, the head has 2"),
    "separator at the end": (b"a,b\n1,2,\n3,4,\n", "row 2: 3 fields, the head has 2: there is a separator too many"),
    "after a field of two lines": (b'a,b\n"x\ny",2\n1,2,3\n', r"row 3 \(line 4\): 3 fields"),
    "semicolons": (b"a;b\n1;2\n1;2;3\n", "row 3: 3 fields, the head has 2.*separator: semicolon"),
    "open quote": (b'a,b\n1,2\n"x,2\n3,4\n', r"row 3 \(from line 3 on\): a quoted field does not end"),
    "after a quote": (b'a,b\n"x"y,2\n', "row 2 .*text after a closing quote"),
    "windows": (b"a,b\n1,2\ncaf\xe9,2\n", "byte 0xe9 in line 3 is not utf-8.*--encoding cp1252"),
    "zeros": (b"a,b\n1,\0\0\0\n", "zero byte|not utf-8"),
    "same names": (b"a, a\n1,2\n", "two columns have the same name: 'a'"),
    "no head": (b"\n\n", "head is empty"),
    "no rows": (b"a,b\n,\n", "has no rows"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_table_is_refused_by_row(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


def test_encodings_are_named_marked_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("a,b\ncafé,“x”\n".encode("cp1252"))
    assert read_table(path, "windows-1252").column("b") == ["“x”"]
    with pytest.raises(ValueError, match="--encoding 'windoes' is unknown; usual ones: utf-8"):
        read_table(path, "windoes")
    for other in ("hex", "rot13", "zlib"):  # codecs, but of no text
        with pytest.raises(ValueError, match="is unknown"):
            read_table(path, other)
    path.write_bytes("a,b\ncafé,x\n".encode())
    table = read_table(path, "latin-1")  # obeyed, and told
    assert table.column("a") == ["cafÃ©"] and "valid UTF-8 as well" in table.doubts[0]
    path.write_bytes("a,b\ncafé,x\n".encode("utf-8-sig"))
    assert read_table(path, "latin-1").column("a") == ["café"] and not read_table(path, "latin-1").doubts
    path.write_bytes("a,b\n联通,x\n".encode("gb18030"))
    assert read_table(path, "gb18030").column("a") == ["联通"]


def test_columns_without_a_name_are_passed_over(tmp_path: Path) -> None:
    """As data frames write their row numbers."""
    path = tmp_path / "t.csv"
    pd.DataFrame({"path": ["a.mp4", "b.mp4"], "speaker": [1, np.nan]}).to_csv(path)
    table = read_table(path)
    assert content(table) == {"path": ["a.mp4", "b.mp4"], "speaker": ["1.0", None]}
    assert "column 1 has no name (row 2 has a value)" in table.doubts[0]


def test_parquet_and_json_lines_give_plain_values(tmp_path: Path) -> None:
    rows = [
        {"n": 1.0, "t": " x ", "b": True, "l": [1.0], "bytes": b"001", "cat": "é"},
        {"n": float("nan"), "t": "", "b": None, "l": None, "bytes": None, "cat": "e\u0301"},
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.set_column(5, "cat", table["cat"].dictionary_encode()), tmp_path / "t.PARQUET")
    expected = {"n": [1.0, None], "t": ["x", None], "b": [True, None], "l": [[1.0], None], "bytes": ["001", None]}
    read = read_table(tmp_path / "t.PARQUET")
    assert content(read) == expected | {"cat": ["é", "é"]} and read.numbers == [1, 2]
    lines = [json.dumps({k: v for k, v in row.items() if k not in ("bytes", "n")}) for row in rows]
    (tmp_path / "t.jsonl").write_bytes("\n\n".join(lines).encode("utf-16"))
    again = read_table(tmp_path / "t.jsonl")
    assert content(again) == {k: v for k, v in content(read).items() if k not in ("bytes", "n")}
    assert again.numbers == [1, 3]


def test_rows_that_are_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("k,v\na,1\nb,2\na,1\nb,3\nc,4\na, 1\n")
    table = read_table(path)
    kept, rivals = table.once(table.column("k"))
    assert [table.numbers[i] for i in kept] == [2, 3, 5, 6]
    assert {table.numbers[i]: [table.numbers[j] for j in same] for i, same in rivals.items()} == {3: [3, 5], 5: [3, 5]}


def test_damaged_tables_are_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    """Bytes of good tables overwritten, cut and doubled at random: a ValueError that names the file, or a table."""
    drawn = random.Random(3)
    read = refused = 0
    for seed in range(300):
        head, rows = draw(seed)
        encoding = drawn.choice(ENCODINGS[:6])
        data = bytearray(written(head, rows, drawn.choice(SEPARATORS), csv.QUOTE_MINIMAL, "\r\n").encode(encoding))
        for _ in range(drawn.randint(1, 3)):
            place = drawn.randrange(len(data))
            data[place : place + drawn.choice([0, 1, 9])] = drawn.choice(
                [b"", b"x", b";", b'"', b"\n", drawn.randbytes(2)]
            )
        path = tmp_path / drawn.choice(["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
        path.write_bytes(data)
        try:
            table = read_table(path, drawn.choice([None, None, "cp1252", "utf-16", "idna", "utf-7", "unicode_escape"]))
        except ValueError as error:
            assert str(path) in str(error) or "--encoding" in str(error)
            refused += 1
        else:
            assert all(len(values) == len(table) for values in table.columns.values())
            read += 1
    assert read > 20 and refused > 100


def test_other_files_say_what_to_do(tmp_path: Path) -> None:
    for name, remedy in (
        ("t.xlsx", "save the sheet as CSV"),
        ("t.pkl", "pickles are not read"),
        ("t.gz", "decompress"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=remedy):
            read_table(tmp_path / name)
    with pytest.raises(ValueError, match=r"none\.csv does not exist"):
        read_table(tmp_path / "none.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match=r"pipe\.csv cannot be read.*not a regular file"):
        read_table(tmp_path / "pipe.csv")
