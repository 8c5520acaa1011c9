"""ustar and npy headers against tarfile and numpy; raw against tarfile reading them back."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.layout import (
    BLOCK,
    LayoutError,
    SampleLayout,
    archive_bytes,
    npy_header,
    parse_header,
    tar_header,
)
from shards.format.schema import Column, safe_key

COLUMNS = (Column("a", 3), Column("bb", 64, "float16"), Column("c", 65, "float64"))


@given(st.text("abcXYZ019_-.", min_size=1, max_size=100), st.integers(0, 8**11 - 1))
def test_header_is_the_one_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)
    parsed = parse_header(tar_header(name, size))
    assert parsed is not None and (parsed.name.decode(), parsed.size, parsed.kind) == (name, size, b"0")


@pytest.mark.parametrize(("name", "size"), [("n" * 101, 1), ("", 1), ("n", 8**11), ("n", -1)])
def test_header_refuses_what_ustar_cannot_hold(name: str, size: int) -> None:
    with pytest.raises(LayoutError):
        tar_header(name, size)


def test_header_damage_is_noticed_wherever_it_is() -> None:
    header = tar_header("key.a.npy", 140)
    for position in range(BLOCK):
        changed = bytearray(header)
        changed[position] ^= 1
        damaged = bytes(changed)
        try:
            parsed = parse_header(damaged)
        except LayoutError:
            continue
        # Only the checksum field's own trailing blank carries nothing.
        assert position == 155 and parsed == parse_header(header)


def test_base_256_size_and_prefix() -> None:
    info = tarfile.TarInfo("d" * 90 + "/" + "k" * 90)
    info.size = 8**11 + 5
    parsed = parse_header(info.tobuf(tarfile.GNU_FORMAT)[-BLOCK:])
    assert parsed is not None and parsed.size == 8**11 + 5
    info.size = 7
    parsed = parse_header(info.tobuf(tarfile.USTAR_FORMAT))
    assert parsed is not None and parsed.name.decode() == info.name


@pytest.mark.parametrize(
    "column", [Column("x", w, d) for w in (1, 4096, 1 << 27) for d in ("float16", "float32", "float64")]
)
def test_npy_header_is_the_one_numpy_writes(column: Column) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": column.numpy_dtype.str, "fortran_order": False, "shape": (column.width,)}
    )
    assert npy_header(column) == file.getvalue()


def test_slots_are_tar_archives() -> None:
    random = np.random.default_rng(1)
    arrays = [[random.standard_normal(c.width).astype(c.dtype) for c in COLUMNS] for _ in range(4)]
    texts = [b"{}", b'{"x":1}', b'{"longest":"one"}', b"[]"]
    layout = SampleLayout(COLUMNS, max(map(len, texts)))
    raw = np.zeros((4, layout.stride), np.uint8)
    layout.fill(raw, ["k0", "k1", "k2", "k3"], [b"".join(a.tobytes() for a in row) for row in arrays], texts)
    archive = raw.tobytes() + bytes(archive_bytes(4, layout.stride) - raw.nbytes)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [
            f"k{i}.{end}" for i in range(4) for end in ("a.npy", "bb.npy", "c.npy", "json")
        ]
        for i, member in enumerate(members):
            data = tar.extractfile(member)
            assert data is not None
            if i % 4 == 3:
                assert data.read().rstrip() == texts[i // 4]
            else:
                array = np.load(io.BytesIO(data.read()), allow_pickle=False)
                np.testing.assert_array_equal(array, arrays[i // 4][i % 4])
    assert len(archive) % 10240 == 0
    assert SampleLayout.from_dict(COLUMNS, layout.to_dict()) == layout


@pytest.mark.parametrize(
    "change", [{"stride": 512}, {"payload": {"a": 0}}, {"json": [0, 5]}, {"json": "x"}, {"extra": 1}]
)
def test_layout_that_claims_other_offsets_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(LayoutError):
        SampleLayout.from_dict(COLUMNS, SampleLayout(COLUMNS, 9).to_dict() | change)


@given(st.text(min_size=1, max_size=200))
def test_safe_key_is_safe(key: str) -> None:
    safe = safe_key(key, 60)
    assert safe.isascii() and 0 < len(safe) <= 60 and not set(safe) & set("./\\ \n\0")
    assert safe_key(safe, 60) == safe


def test_safe_key_keeps_different_names_apart() -> None:
    names = ["x.y", "x.z", "x_y", "ä", "ö", "a" * 90, "a" * 91, "-a", ".a"]
    assert len({safe_key(name, 60) for name in names}) == len(names)
    assert safe_key("01-02_a+b=c@d,e~f", 60) == "01-02_a+b=c@d,e~f"


@pytest.mark.parametrize("texts", [[b"{}", b'{"a":1}', b""], [b"x" * 700]])
def test_many_slots_at_once_equal_members_written_one_by_one(texts: list[bytes]) -> None:
    columns = (Column("a", 3), Column("longer-name", 130, "float16"))
    layout = SampleLayout(columns, 700)
    keys = [f"{'k' * (1 + 20 * i)}{i}" for i in range(len(texts))]
    rng = np.random.default_rng(0)
    payloads = [rng.bytes(sum(column.nbytes for column in columns)) for _ in texts]
    raw = np.zeros((len(texts), layout.stride), np.uint8)
    layout.fill(raw, keys, payloads, texts)
    for sample, key, payload, text in zip(raw, keys, payloads, texts, strict=True):
        expected, at = b"", 0
        for column in columns:
            member = npy_header(column) + payload[at : at + column.nbytes]
            at += column.nbytes
            header = tar_header(f"{key}.{column.name}.npy", len(member))
            expected += header + member + bytes(-len(member) % 512)
        expected += tar_header(f"{key}.json", 700) + text.ljust(700) + bytes(-700 % 512)
        assert sample.tobytes() == expected
    with pytest.raises(LayoutError, match="does not fit"):
        layout.fill(raw[:1], ["k" * 90], payloads[:1], texts[:1])
