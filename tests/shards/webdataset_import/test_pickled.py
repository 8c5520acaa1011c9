"""Pickled feature files: the reader gives what pickle itself gives, and executes nothing of a hostile file."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import Manifest, Reader
from shards.__main__ import main
from shards.webdataset_import import pickled
from shards.webdataset_import.pickled import PickleError, read_pickle

BENIGN = [
    None,
    True,
    -(2**80),
    1.5,
    "Grüße",
    b"\x00\xff",
    [],
    {"a": [1, (2, 3.0, ("x",))], "b": {}},
    collections.OrderedDict([("k", 1), ("l", [2])]),
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(5, dtype=">i4"),
    np.zeros((0, 3), np.float16),
    np.array(["ab", "cde"]),
    np.array([b"ab", b"cde"]),
    np.array(3.0),
    np.float32(2.5),
    np.int64(-7),
    np.array([True, False]),
    np.array([np.ones((2, 3)), np.zeros((1, 3)), None], object),
    np.arange(100.0)[::3],
    [np.arange(3)] * 3,
]


def write(path: Path, value: Any, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def _native(array: np.ndarray) -> np.dtype:
    return array.dtype.newbyteorder("=")


def same(a: Any, b: Any) -> bool:
    """b: as pickle gives it. Tuples come as lists, bytearrays as bytes, numpy's numbers as Python's."""
    if isinstance(b, np.ndarray) and b.dtype.kind != "O":
        return (
            isinstance(a, np.ndarray) and _native(a) == _native(b) and a.shape == b.shape and bool(np.array_equal(a, b))
        )
    if isinstance(b, np.ndarray):
        return a.shape == b.shape and all(same(x, y) for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True))
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, list | tuple):
        return isinstance(a, list) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("number", range(len(BENIGN)))
def test_benign_files_come_as_pickle_reads_them(tmp_path: Path, number: int, protocol: int) -> None:
    path = write(tmp_path / "a.pkl", BENIGN[number], protocol)
    with path.open("rb") as file:
        expected = pickle.load(file)  # noqa: S301 - made above
    assert same(read_pickle(path), expected)


def test_text_and_arrays_of_python_2(tmp_path: Path) -> None:
    """Its strings are bytes, and so are the contents of its arrays (written here as numpy 1 under Python 2 did)."""
    raw = np.arange(3, dtype="<f4").tobytes()
    data = (
        b"\x80\x02}q\x00U\x01ac"
        + b"numpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )
    path = tmp_path / "py2.pkl"
    path.write_bytes(data)
    expected = pickle.loads(data, encoding="latin-1")  # noqa: S301 - made above
    found = read_pickle(path)
    assert list(found) == ["a"] and np.array_equal(found["a"], expected["a"]) and found["a"].dtype == np.float32


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class Plain:
    def __init__(self) -> None:
        self.x = 1


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["alone", "in a dict", "in an array", "as a key"])
def test_calls_are_refused_and_nothing_happens(tmp_path: Path, protocol: int, where: str) -> None:
    mark = tmp_path / "executed"
    for function, arguments in (
        (os.system, (f"touch {mark}",)),
        (eval, (f"open({str(mark)!r}, 'w')",)),
        (exec, (f"open({str(mark)!r}, 'w')",)),
        (open, (str(mark), "w")),
        (getattr, (os, "system")) if protocol > 9 else (__import__, ("os",)),
        (np.load, (str(mark),)),
        (bytes, (10**9,)),
        (range, (10**9,)),
    ):
        call: Any = Call(function, *arguments)
        value = {"alone": call, "in a dict": {"a": [call]}, "in an array": np.array([call], object), "as a key": call}[
            where
        ]
        if where == "as a key":
            value = {call: 1}
        path = write(tmp_path / "a.pkl", value, protocol)
        with pytest.raises(PickleError):
            read_pickle(path)
    assert not mark.exists()


@pytest.mark.parametrize("value", [Plain(), {1, 2}, frozenset("a"), 1j, slice(3), np.datetime64("2020"), Plain])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_other_objects_are_refused_with_what_to_do(tmp_path: Path, value: Any, protocol: int) -> None:
    with pytest.raises(PickleError, match=r"byte \d+"):
        read_pickle(write(tmp_path / "a.pkl", [value], protocol))


def array_of(shape: bytes, data: bytes, code: bytes = b"f4") -> bytes:
    """A pickled array with any shape (opcodes) and bytes."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\nU"
        + bytes([len(code)])
        + code
        + b"K\x00K\x01\x87R\x89U"
        + bytes([len(data)])
        + data
        + b"tb."
    )


HOSTILE = {
    "no end": b"\x80\x02]",
    "empty stack": b"\x80\x02.",
    "mark as value": b"\x80\x02(.",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"ab.",
    "text of 2^31": b"\x80\x02X" + struct.pack("<I", (1 << 31) - 1) + b"ab.",
    "number of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"ab.",
    "digits without end": b"L" + b"9" * 100_000 + b"L\n.",
    "memo that is not there": b"\x80\x02h\x07.",
    "nested": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "in itself": b"\x80\x02]q\x00h\x00a.",
    "doubling": b"\x80\x02]q\x00"
    + b"".join(b"]q" + bytes([k + 1]) + (b"h" + bytes([k]) + b"a") * 10 for k in range(30))
    + b".",
    "doubling tuples": b"\x80\x02)q\x00"
    + b"".join(b"(" + b"h" + bytes([k]) + b"h" + bytes([k]) + b"tq" + bytes([k + 1]) for k in range(60))
    + b".",
    "list as a key": b"\x80\x02}](K\x01es.",
    "shape of 2^62": array_of(b"\x8a\x08" + struct.pack("<q", 1 << 62) + b"\x85", b"abcd"),
    "shape below 0": array_of(b"J" + struct.pack("<i", -1) + b"\x85", b"abcd"),
    "too few bytes": array_of(b"K\x09\x85", b"abcd"),
    "objects as bytes": array_of(b"K\x01\x85", b"abcdefgh", b"O8"),
    "dtype as code": array_of(b"K\x01\x85", b"abcdefgh", b"f4,f4"),
    "wide text of nothing": array_of(b"K\x00K\x05\x86", b"", b"U999999999"),
    "array without state": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R.",
    "another class of array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nmatrix\nK\x00\x85U\x01b\x87R.",
    "class called": b"\x80\x02cnumpy\nndarray\nK\x05\x85R.",
    "class alone": b"\x80\x02cnumpy\nndarray\n.",
    "state of a list": b"\x80\x02]}b.",
    "inst": b"(S'x'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'x'\no.",
    "newobj": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"\x80\x02K\x01Q.",
    "buffer": b"\x80\x05\x97.",
    "name with a dot": b"\x80\x04\x8c\x05numpy\x8c\x0ccore.os.path\x93.",
    "unknown opcode": b"\x80\x02\xff.",
    "no pickle": b"PK\x03\x04 and more",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(PickleError):
        read_pickle(path)


def test_drawn_damage_is_refused_or_read_and_never_looks_a_name_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of benign and hostile files changed, cut and joined at random: a value or PickleError, no import."""
    import builtins

    rng = np.random.default_rng(0)
    seeds = [pickle.dumps(value, protocol) for value in BENIGN for protocol in (0, 2, 4)] + [*HOSTILE.values()]
    seeds = [seed for seed in seeds if len(seed) < 2000]
    imported: list[str] = []
    real = builtins.__import__

    def watching(name: str, *args: Any, **kwargs: Any) -> Any:
        imported.append(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", watching)
    path, refused = tmp_path / "a.pkl", 0
    for _ in range(1500):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.3:
            data = data[: rng.integers(1, len(data) + 1)] + seeds[rng.integers(len(seeds))]
        path.write_bytes(data)
        try:
            read_pickle(path)
        except PickleError:
            refused += 1
    assert refused > 500 and not {name.split(".")[0] for name in imported} & {"os", "subprocess", "pickle", "posix"}


def test_no_unpickler_is_used() -> None:
    source = Path(pickled.__file__).read_text()
    assert "import pickle\n" not in source and "Unpickler" not in source and "importlib" not in source


# ---- conversion -----------------------------------------------------------------------------------------------------


def mmsa(rng: np.random.Generator) -> dict[str, Any]:
    """As MMSA's aligned files are: lists and arrays by split, zero-padded, ids `video$_$number`."""
    document = {}
    for split, n in (("train", 6), ("valid", 3), ("test", 4)):
        audio = np.zeros((n, 5, 4), np.float32)
        lengths = rng.integers(1, 6, n)
        for i, length in enumerate(lengths):
            audio[i, :length] = rng.normal(size=(length, 4))
        document[split] = {
            "raw_text": [f"text {i} é" for i in range(n)],
            "audio": audio,
            "audio_lengths": lengths.tolist(),
            "id": [f"{split}$_${i}" for i in range(n)],
            "annotations": ["Positive" if i % 2 else "Negative" for i in range(n)],
            "regression_labels": rng.normal(size=n).astype(np.float32),
        }
    return document


def test_an_mmsa_file_becomes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = mmsa(np.random.default_rng(0))
    path = write(tmp_path / "aligned.pkl", document, 4)
    assert main(["convert-pickle", str(path), "--out", str(tmp_path / "m.npz")]) == 0
    told = capsys.readouterr().out
    assert "audio: float32 (13, 5, 4)" in told and "6 train, 3 valid, 4 test" in told and "left out" not in told
    command = [
        "pack",
        "--source",
        str(tmp_path / "m.npz"),
        "--out",
        str(tmp_path / "s"),
        "--column",
        "audio",
        "--key",
        "id",
    ]
    assert main([*command, "--shuffle-seed", "none", "--quiet"]) == 2
    assert "--pool mean, mean-std, max" in capsys.readouterr().err
    more = ["--pool", "mean-std", "--zero-padding", "--text", "raw_text", "--meta", "split", "--shuffle-seed", "none"]
    assert main([*command, *more, "--label", "regression_labels:continuous", "--quiet"]) == 0
    rows = Reader(Manifest.open(tmp_path / "s")).read(0, 0, 13)
    audio = np.concatenate([part["audio"] for part in document.values()])
    lengths = [length for part in document.values() for length in part["audio_lengths"]]
    expected = [np.concatenate([a[:n].mean(axis=0), a[:n].std(axis=0)]) for a, n in zip(audio, lengths, strict=True)]
    assert rows.features["audio"] == pytest.approx(np.array(expected), abs=1e-6)
    assert rows.labels["regression_labels"].reshape(-1) == pytest.approx(
        np.concatenate([part["regression_labels"] for part in document.values()])
    )


def test_a_multibench_file_with_parts_of_keys_and_sequences_of_differing_length(tmp_path: Path) -> None:
    part = {
        "vision": np.ones((2, 50, 3), np.float32),
        "text": [np.ones((2, 4)), np.full((3, 4), 2.0)],
        "labels": np.array([[[1.0]], [[-0.4]]], np.float32),
        "id": np.array([["abc", 0, 2.5], ["abc", 2.5, 3.0]], object),
        "notes": [{"a": 1}, {"b": 2}],
    }
    path = write(tmp_path / "mosi.pkl", {"train": part, "test": part}, 2)
    assert main(["convert-pickle", str(path), "--out", str(tmp_path / "m.npz")]) == 0
    with np.load(tmp_path / "m.npz", allow_pickle=False) as made:
        assert made["labels"].tolist() == pytest.approx([1.0, -0.4, 1.0, -0.4]) and made["labels"].shape == (4,)
        assert made["id"].tolist() == ["abc_0_2.5", "abc_2.5_3"] * 2
        assert made["text"].shape == (4, 3, 4) and made["text_lengths"].tolist() == [2, 3, 2, 3]
        assert not made["text"][0, 2].any() and (made["text"][1] == 2).all()
        assert made["split"].tolist() == ["train"] * 2 + ["test"] * 2 and "notes" not in made.files


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "expected a dict of splits"),
        ({"train": {"x": [1]}, "y": [1]}, "some are splits and some are not"),
        ({"train": {}}, "no arrays or lists"),
        (Call(os.system, "true"), "byte"),
    ],
)
def test_other_layouts_are_refused_in_a_sentence(
    tmp_path: Path, value: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.pkl", value, 4)
    assert main(["convert-pickle", str(path), "--out", str(tmp_path / "m.npz")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "m.npz").exists()


def test_a_converted_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", {"x": np.ones((2, 3))}, 4)
    for expected, more in ((0, []), (2, []), (0, ["--overwrite"])):
        assert main(["convert-pickle", str(path), "--out", str(tmp_path / "m.npz"), *more]) == expected
    assert io.BytesIO((tmp_path / "m.npz").read_bytes()).read(2) == b"PK"
