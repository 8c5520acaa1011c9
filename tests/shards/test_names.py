"""One rule for names, numbers, texts and paths: each is spelled out once more here, and the same value gives the same
name whether it comes from an array, a table or an archive."""

from __future__ import annotations

import csv
import io
import json
import math
import tarfile
import unicodedata
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import Manifest, Reader
from shards.__main__ import main
from shards.adapters import read_clips
from shards.format.schema import safe_key
from shards.names import (
    EncodingError,
    FileNames,
    class_value,
    decode_text,
    fold,
    interval_key,
    name,
    number,
    plain,
    text,
    unix_path,
)

NAMES = [
    ("anna", "anna"), (" anna ", "anna"), ("\u00a0anna\t", "anna"), ("", None), ("  ", None), (None, None),
    ("007", "007"), ("-0", "-0"), ("1", "1"), (1, "1"), (1.0, "1"), ("1.0", "1"), ("1.00", "1"), ("-3.0", "-3"),
    ("01.0", "01.0"), ("1.5", "1.5"), ("1e3", "1e3"), (np.float32(7), "7"), (np.int8(-1), "-1"), (True, "1"),
    (math.nan, None), (np.float64("nan"), None), (pd.NA, None), (pd.NaT, None), (np.datetime64("NaT"), None),
    (b"001", "001"), (np.bytes_(b"001"), "001"), (b"abc\0\0", "abc"), (b"", None), ("nan", "nan"), ("NA", "NA"),
    ("e\u0301", "\u00e9"), (Decimal("4"), "4"), (Decimal("NaN"), None), (10**18, str(10**18)), ("\u0663", "\u0663"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), NAMES, ids=repr)
def test_names(value: Any, expected: str | None) -> None:
    assert name(value) == expected


@pytest.mark.parametrize("value", [1.5, math.inf, [1], {"a": 1}, Decimal("1.5"), b"caf\xe9", 1j], ids=repr)
def test_what_is_no_name_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        name(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3), ("3.0", 3), (3.0, 3), ("03", "03"), ("happy", "happy"), ("", None), (-1, -1), ("9" * 25, "9" * 25),
     ("\u0663", "\u0663"), (True, 1), (b"2", 2)],
)  # fmt: skip
def test_classes_are_numbers_or_names(value: Any, expected: Any) -> None:
    found = class_value(value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(("value", "expected"), [("1.50", 1.5), ("1e3", 1000), (" 2 ", 2), (3, 3), ("", math.nan)])
def test_numbers(value: Any, expected: float) -> None:
    np.testing.assert_equal(number(value), expected)


@pytest.mark.parametrize("value", ["1_000", "0,5", "12:30", "soon", "\u0663", [1], 10**400], ids=str)
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"write 0\.5" if value == "0,5" else "expected a number"):
        number(value)


def test_texts_stay_as_they_are_written() -> None:
    assert [text(v) for v in ("1.0", " 1.0\n", 1.0, b"a b", "", None)] == ["1.0", "1.0", "1", "a b", None, None]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@settings(deadline=None, max_examples=60)
@given(words=st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=40))
def test_unicode_is_read_with_and_without_a_mark(encoding: str, words: str) -> None:
    """UTF-16 without a mark needs a few ASCII characters, as every table has them."""
    written = f"path,x\n{words}\n" * 3
    found, _ = decode_text(written.encode(encoding))
    assert found == written


def test_other_bytes_are_refused_or_read_as_named() -> None:
    data = "eins\nGr\u00fc\u00dfe".encode("cp1252")
    with pytest.raises(EncodingError, match=r"byte 0xfc in line 2 is not utf-8.*--encoding cp1252"):
        decode_text(data)
    assert decode_text(data, "cp1252")[0] == "eins\nGr\u00fc\u00dfe"
    with pytest.raises(EncodingError):
        decode_text(b"\x81", "cp1252")
    for bad in (b"a\0b", b"\xff\xfe\x00\xd8", b"\x00" * 6):
        with pytest.raises(EncodingError):
            decode_text(bad)


def test_files_are_found_in_either_composition(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9.mp4", "cafe\u0301.mp4"
    for there in (composed, decomposed):
        files = FileNames([f"d/{there}"])
        for asked in (composed, decomposed):
            for path in (f"d/{asked}", f"d\\{asked}", f"./d/{asked}", f" d/{asked} "):
                assert files.find(path) == f"d/{there}", (there, path)
        assert files.find("d/cafe.mp4") is None and files.similar("D/Caf\u00e9.MP4") == f"d/{there}"
    assert FileNames([" a.mp4 "]).find("a.mp4") == " a.mp4 ", "tables are read without the spaces"
    both = FileNames([composed, decomposed])
    assert both.find(composed) == composed and both.find(decomposed) == decomposed
    assert FileNames(["a\\b.mp4", "a/b.mp4"]).find("a\\b.mp4") == "a\\b.mp4", "a file of that very name goes first"


def test_two_files_that_differ_in_composition_alone() -> None:
    vietnamese = "\u1ebf.mp4"  # one letter, three ways to write it
    half, whole = unicodedata.normalize("NFD", vietnamese), "\u00ea\u0301.mp4"
    with pytest.raises(ValueError, match="differ in Unicode composition"):
        FileNames([half, whole]).find(vietnamese)


seconds = st.floats(0, 1e6, allow_subnormal=True) | st.sampled_from([0.0, 0.1, 0.1 + 0.2, 0.3, 5e-324, 1e22])


@settings(deadline=None)
@given(st.tuples(seconds, seconds), st.tuples(seconds, seconds))
def test_keys_of_intervals_are_equal_where_intervals_are(one: tuple[float, float], other: tuple[float, float]) -> None:
    keys = [interval_key("clip", *interval) for interval in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)
    start, end = (Fraction(part.replace("p", ".")) for part in keys[0].split("_")[1:])
    assert (float(start), float(end)) == one
    assert safe_key(keys[0], 10_000) == keys[0], "nothing in it needs to be replaced"


def test_names_that_are_alike() -> None:
    assert (
        len({fold(n) for n in ("Very Happy", "very_happy", "VERY-HAPPY", "very happy\u00ad", "\uff36ery happy")}) == 1
    )
    assert fold("happy") != fold("happier") and unix_path("C:\\x\\y.mp4") == "C:\\x\\y.mp4"


# The same values, however they come

SPEAKERS = ["007", "anna", None, "e\u0301va", "12"]
READ = ["007", "anna", None, "\u00e9va", "12"]


def columns_of(kind: str, folder: Path) -> list[str]:
    """Write five samples whose speakers are `SPEAKERS`; the arguments by which `pack` reads them."""
    ids = [f"s{i}" for i in range(5)]
    features = {"v": np.arange(10, dtype=np.float32).reshape(5, 2), "ids": np.array(ids)}
    filled = ["" if s is None else s for s in SPEAKERS]
    if kind == "array":
        features["who"] = np.array(filled)
    elif kind == "bytes":
        features["who"] = np.array([s.encode() for s in filled])
    np.savez(folder / "f.npz", **features)  # type: ignore[arg-type]
    arguments = ["--source", str(folder / "f.npz"), "--column", "v", "--key", "ids", "--group", "who"]
    rows = [{"id": i, "who": s} for i, s in zip(ids, SPEAKERS, strict=True)]
    table = folder / f"t.{kind}"
    if kind == "csv":
        pd.DataFrame(rows).to_csv(table, index=False)
    elif kind == "tsv":
        table.write_bytes(pd.DataFrame(rows[::-1]).to_csv(None, index=False, sep="\t").encode("utf-16"))
    elif kind == "jsonl":
        table.write_text("\n".join(map(json.dumps, rows[::-1])))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    else:
        return arguments
    return [*arguments, "--table", str(table), "--table-key", "id"]


@pytest.mark.parametrize("kind", ["array", "bytes", "csv", "tsv", "jsonl", "parquet"])
def test_speakers_are_the_same_from_every_source(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = columns_of(kind, tmp_path)
    packed = main(["pack", *arguments, "--out", str(tmp_path / "out"), "--shuffle-seed", "none", "--quiet"])
    assert packed == 0, capsys.readouterr()
    rows = Reader(Manifest.open(tmp_path / "out")).metadata(0)
    assert rows["group"].to_pylist() == READ and rows["key"].to_pylist() == [f"s{i}" for i in range(5)]


def test_speakers_and_texts_of_archives(tmp_path: Path) -> None:
    """Members with marks and of other encodings; JSON numbers that are whole."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, (who, said) in enumerate([(1.0, "utf-16"), ("1.0", "utf-8-sig"), ("007", "utf-8"), (None, "utf-32")]):
            array = io.BytesIO()
            np.save(array, np.ones(2, np.float32))
            members = {
                "v.npy": array.getvalue(), "json": json.dumps({"who": who}).encode(),
                "txt": "Gr\u00fc\u00dfe \n".encode(said),
            }  # fmt: skip
            for extension, data in members.items():
                info = tarfile.TarInfo(f"k{i}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert main(["index", str(tmp_path), "--group", "json#who", "--text", "txt"]) == 0
    rows = Reader(Manifest.open(tmp_path)).metadata(0)
    assert rows["group"].to_pylist() == ["1", "1", "007", None]
    assert set(rows["text"].to_pylist()) == {"Gr\u00fc\u00dfe"}


def test_values_of_hdf5_are_read_as_those_of_arrays(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["fixed"] = np.array([b"001", b"caf\xc3\xa9"])
        file["free"] = ["001", "caf\u00e9"]
        file["whole"] = np.array([1.0, np.nan], np.float32)
        read = {key: [name(value) for value in file[key][()]] for key in file}
    assert read == {"fixed": ["001", "caf\u00e9"], "free": ["001", "caf\u00e9"], "whole": ["1", None]}


def test_transcripts_beside_clips(tmp_path: Path) -> None:
    """Marked ones are read; one of another encoding is refused by name, and read where it is named."""
    texts = [("a", "Hello there", "utf-8-sig"), ("b", "Gr\u00fc\u00dfe", "utf-16"), ("c", "Caf\u00e9", "cp1252")]
    for stem, said, encoding in texts:
        (tmp_path / f"{stem}.mp4").touch()
        (tmp_path / f"{stem}.TXT").write_bytes(said.encode(encoding))
    (tmp_path / "cafe\u0301.mp4").touch()
    (tmp_path / "caf\u00e9.txt").write_text("composed")
    (tmp_path / "alone.txt").write_text("x")
    found = read_clips("folder", tmp_path)
    assert {c.key: c.transcript for c in found.clips} == {
        "a": "Hello there",
        "b": "Gr\u00fc\u00dfe",
        "caf\u00e9": "composed",
    }
    assert [(r.name, r.reason) for r in found.rejected] == [("c.mp4", "bad_text")]
    assert "c.TXT: byte 0xe9 in line 1 is not utf-8" in found.rejected[0].message
    assert found.doubts == [".txt files without a video of their name beside them: 1 (alone.txt)"]
    named = read_clips("folder", tmp_path, encoding="cp1252")
    assert {c.key: c.transcript for c in named.clips}["c"] == "Caf\u00e9" and not named.rejected
    assert {c.key: c.transcript for c in named.clips}["b"] == "Gr\u00fc\u00dfe", "a mark goes first"


def test_plain_takes_what_csv_writes() -> None:
    sink = io.StringIO()
    csv.writer(sink).writerow([1.0, True, None, "x"])
    assert [name(plain(v)) for v in next(csv.reader([sink.getvalue()]))] == ["1", "True", None, "x"]
