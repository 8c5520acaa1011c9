"""Archives and arrays made to harm: each is refused by name, and nothing of it is used."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import ShardError
from shards.format.layout import BLOCK, tar_header
from shards.format.schema import Column
from shards.webdataset_import.command import index_folder
from shards.webdataset_import.mapping import LabelSource, MemberMapping, Source
from shards.webdataset_import.member import MemberError, parse_npy, read_npy
from shards.webdataset_import.tarscan import scan_tar
from tests.campaigns.shard_fuzz.judge import bounded
from tests.shards.webdataset_import.plain_tars import npy, plain_members, write_tar


def _refused(tmp_path: Path, message: str) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ShardError, match=message) as caught:
        index_folder(tmp_path)
    assert "bad" in caught.value.shard
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing may be written"


@pytest.mark.parametrize("name", ["../up.a.npy", "/abs.a.npy", "x/../../up.a.npy", "./../up.a.npy", "x\\..\\up.a.npy"])
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_paths_outside(tmp_path: Path, name: str, kind: int) -> None:
    write_tar(tmp_path / "bad.tar", [*plain_members(1), (name, npy(np.ones(3, np.float32)))], kind)
    _refused(tmp_path, "absolute or leads outside")


def test_a_path_outside_in_a_pax_header(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("harmless.a.npy")
        info.pax_headers = {"path": "../../etc/passwd.npy"}
        tar.addfile(info)
    _refused(tmp_path, r"etc/passwd\.npy' has a name that is absolute or leads outside")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "named pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"Z", "unknown type b'Z'"),
    ],
)
def test_members_that_are_no_files(tmp_path: Path, kind: bytes, message: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("k0.a.npy")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    _refused(tmp_path, rf"'bad': member 'k0\.a\.npy' is .*{message}")


def test_gnu_sparse_in_pax(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("k0.a.npy")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "99999999"}
        tar.addfile(info)
    _refused(tmp_path, "sparse")


def _claim(size: int) -> Callable[[bytes], bytes]:
    return lambda _: tar_header("k0.a.npy", size) + bytes(10 * BLOCK)


def _base_256(first: int) -> Callable[[bytes], bytes]:
    def build(_: bytes) -> bytes:
        header = bytearray(tar_header("k0.a.npy", 0))
        header[124:136] = bytes([first]) + b"\xff" * 11
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header) + bytes(1024)

    return build


def _renamed(data: bytes) -> bytes:
    return data.replace(b"k0.a.npy", b"k1.a.npy")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_claim(10 * BLOCK + 1), "claims 5121 bytes, but only 5120"),
        (_claim(8**11 - 1), "claims 8589934591 bytes"),
        (_base_256(0x80), "claims .* bytes, but only"),
        (_base_256(0xFF), "negative"),
        (_renamed, "header checksum differs at byte 0"),
        (lambda data: data[:-10240], "cut short, or no end-of-archive marker|ends within"),
        (lambda data: data[: 4 * BLOCK], "no end-of-archive marker"),
        (lambda data: data[: 4 * BLOCK + 100], "ends within a header at byte 2048"),
        (lambda data: data[: BLOCK + 40], "claims 140 bytes, but only 40"),
        (lambda data: data[: BLOCK + 150], "cut short"),
        (lambda data: b"", "no end-of-archive marker"),
        (lambda data: bytes(1024), "no members named"),
        (lambda data: data + data, "data after the end-of-archive marker"),
        (lambda data: bytes(BLOCK) + data, "lone zero block"),
        (lambda data: b"\x1f\x8b" + data[2:], "header checksum"),
    ],
)
def test_broken_archives(tmp_path: Path, build: Callable[[bytes], bytes], message: str) -> None:
    write_tar(tmp_path / "good.tar", plain_members(4))
    data = build((tmp_path / "good.tar").read_bytes())
    (tmp_path / "good.tar").rename(tmp_path / "bad.tar")
    (tmp_path / "bad.tar").write_bytes(data)
    _refused(tmp_path, message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"20 path=k0.a.npy\n", "malformed"),
        (b"xx path=k\n", "malformed"),
        (b"999 path=k\n", "malformed"),
        (b"0 path=k\n", "malformed"),
        (b"13 size=-100\n", "has the size '-100'"),
        (b"29 size=99999999999999999999\n", "has the size"),
        (b"23 size=99999999999999\n", "claims 99999999999999 bytes"),
        (b"12 path=\xff\xfe\n\n", "not UTF-8"),
    ],
)
def test_pax_headers_that_lie(tmp_path: Path, header: bytes, message: str) -> None:
    block = bytearray(tar_header("pax", len(header)))
    block[156:157] = b"x"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data = bytes(block) + header.ljust(BLOCK, b"\0") + tar_header("k0.a.npy", 0) + bytes(1024)
    (tmp_path / "bad.tar").write_bytes(data)
    _refused(tmp_path, message)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*plain_members(2), ("k0.b.npy", npy(np.ones(2)))], r"'k0'.*apart from its sample, or the key is used twice"),
        ([("k0.a.npy", npy(np.ones(3))), ("k0.a.npy", npy(np.zeros(3)))], r"sample 'k0'.*occurs twice"),
        ([("k0.a.npy", npy(np.ones(3))), ("k0.A.npy", npy(np.zeros(3)))], r"sample 'k0'.*occurs twice"),
        ([("./k0.a.npy", npy(np.ones(3))), ("k0.a.npy", npy(np.ones(3)))], r"sample 'k0'.*occurs twice"),
        ([("k0.a.npy", npy(np.ones(3))), ("k1.a.npy", npy(np.ones(4)))],
         r"sample 'k1'.*another width or dtype.*expected float64 \(3,\), found float64 \(4,\)"),
        ([("k0.a.npy", npy(np.ones(3))), ("k1.a.npy", npy(np.ones(3, np.float32)))], r"'k1'.*float64.*found float32"),
        ([("k0.a.npy", npy(np.ones((2, 3))))], r"'k0'.*unusable shape.*\(2, 3\)"),
        ([("k0.a.npy", npy(np.float64(1)))], r"'k0'.*unusable shape"),
        ([("k0.a.npy", npy(np.zeros(0)))], r"'k0'.*unusable shape"),
        ([("k0.a.npy", npy(np.ones(3, np.int64)))], r"'k0'.*'<i8' is not read"),
        ([("k0.a.npy", npy(np.array([1, np.nan])))], r"'k0'.*element 1 is not finite"),
        ([("k0.a.npy", npy(np.array([1, np.inf])))], r"'k0'.*element 1 is not finite"),
        ([("k0.a.npy", b"not an array")], r"'k0'.*not an npy array"),
        ([("k0.a.npy", npy(np.ones(3))[:-1])], r"'k0'.*needs 24 bytes, the member has 23"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "bad.tar", members)
    _refused(tmp_path, message)


def test_one_key_in_two_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", plain_members(2))
    write_tar(tmp_path / "bad.tar", plain_members(1))
    _refused(tmp_path, r"sample 'k0': key occurs in a\.tar as well")


def test_unsafe_shard_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "bad..x.tar", plain_members(1))
    _refused(tmp_path, "name is unsafe")


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    np.save(file, np.array([_Payload()], dtype=object), allow_pickle=True)
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "bad.tar", [("k0.a.npy", file.getvalue())])
    _refused(tmp_path / "data", r"'k0'.*(not that of a plain array|is not read)")
    assert not (tmp_path / "executed").exists()


def _with_header(
    text: bytes, payload: bytes = bytes(24), version: bytes = b"\x01\x00", length: int | None = None
) -> bytes:
    size = len(text) if length is None else length
    return b"\x93NUMPY" + version + size.to_bytes(2 if version[0] == 1 else 4, "little") + text + payload


@pytest.mark.parametrize(
    "data",
    [
        _with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999,), }"),
        _with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-3,), }"),
        _with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (__import__('os').getpid(),), }"),
        _with_header(b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"),
        _with_header(b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,), }"),
        _with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", length=65535),
        _with_header(
            b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", version=b"\x02\x00", length=2**32 - 1
        ),
        _with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", version=b"\x03\x00"),
        _with_header(b"{" * 3000),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"",
    ],
)
def test_npy_headers_that_lie(data: bytes) -> None:
    with pytest.raises(MemberError):
        read_npy(data)


@given(st.integers(1, 40), st.sampled_from(["<f2", "<f4", ">f8", "<f8"]), st.booleans())
def test_npy_arrays_as_numpy_reads_them(width: int, dtype: str, two: bool) -> None:
    array = np.arange(width * (2 if two else 1), dtype=dtype).reshape((2, width) if two else (width,))
    np.testing.assert_array_equal(read_npy(npy(array)), array)
    fortran = np.asfortranarray(array)
    np.testing.assert_array_equal(read_npy(npy(fortran)), array)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10239), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 10240))
def test_no_damage_crashes_or_leads_outside_the_file(
    tmp_path: Path, changes: list[tuple[int, int]], length: int
) -> None:
    write_tar(tmp_path / "x.tar", plain_members(4), tarfile.PAX_FORMAT)
    data = bytearray((tmp_path / "x.tar").read_bytes())
    for position, value in changes:
        data[position] = value
    if length % 3 == 0:
        del data[length:]
    (tmp_path / "x.tar").write_bytes(data)
    try:
        for member in scan_tar(tmp_path / "x.tar"):
            assert 0 <= member.offset <= member.offset + member.size <= len(data)
            assert ".." not in member.name.split("/") and not member.name.startswith("/")
    except ShardError:
        pass


def test_one_sample_does_not_decide_how_much_memory_the_labels_of_all_take(tmp_path: Path) -> None:
    """A list of 200,000 numbers in one of 1,000 samples, none in the others: 200 million were made."""
    members = [(f"k{i}.a.npy", npy(np.full(2, i, np.float32))) for i in range(1000)]
    members.insert(1, ("k0.json", json.dumps({"v": [0.5] * 200_000}).encode()))
    write_tar(tmp_path / "t.tar", members)
    mapping = MemberMapping(labels=(LabelSource("v", Source.parse("json#v"), "continuous"),))
    with bounded(60, 1 << 29), pytest.raises(ShardError, match=r"'t', sample 'k0'.*label 'v'.*has 200000 numbers.*npy"):
        index_folder(tmp_path, mapping)
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar"]


@pytest.mark.parametrize("array", [np.zeros(3, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.float64)])
def test_an_array_of_another_shape_or_type_than_its_column_is_no_value(array: np.ndarray) -> None:
    with pytest.raises(MemberError, match=rf"^found {array.dtype} \{array.shape}"[:-1]):
        parse_npy(npy(array), Column("v", 4))
    np.testing.assert_array_equal(parse_npy(npy(np.ones((1, 4), np.float32)), Column("v", 4)), np.ones(4))
