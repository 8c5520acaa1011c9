"""Sources beside .npz and .npy: HDF5, per-clip CSV and .npz, sequences by a stated pooling; refusals that say how."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from shards import Manifest, Reader
from shards.__main__ import main
from shards.packing.pooling import Pooling
from shards.packing.source import open_source


def packed(tmp_path: Path, source: Path, *arguments: str) -> Reader:
    command = ["pack", "--source", str(source), "--out", str(tmp_path / "out"), "--shuffle-seed", "none", "--quiet"]
    assert main([*command, *arguments]) == 0
    return Reader(Manifest.open(tmp_path / "out"))


def keys(reader: Reader) -> list[str]:
    return reader.metadata(0)["key"].to_pylist()


def test_hdf5_with_a_row_for_each_sample(tmp_path: Path) -> None:
    x, ids = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), [f"k{i}".encode() for i in range(5)]
    with h5py.File(tmp_path / "f.H5", "w") as file:
        file["video"], file["ids"], file["seq"] = x, ids, np.ones((5, 2, 3))
    reader = packed(tmp_path, tmp_path / "f.H5", "--column", "video", "--key", "ids")
    assert np.array_equal(reader.read(0, 0, 5).features["video"], x) and keys(reader) == ["k0", "k1", "k2", "k3", "k4"]


def test_hdf5_with_a_group_for_each_sample_as_a_csd_file_has(tmp_path: Path) -> None:
    """Two levels of names above the videos, metadata beside them; a video without features has the column missing."""
    rng = np.random.default_rng(0)
    data = {"v1": rng.normal(size=(4, 3)), "v0": rng.normal(size=(2, 3))}
    with h5py.File(tmp_path / "f.csd", "w") as file:
        for name, value in data.items():
            file[f"COVAREP/data/{name}/features"], file[f"COVAREP/data/{name}/intervals"] = (
                value,
                np.zeros((len(value), 2)),
            )
        file["COVAREP/data/v2/other"] = np.ones(2)
        file["COVAREP/metadata/computational sequence version"] = ["1.0"]
    reader = packed(tmp_path, tmp_path / "f.csd", "--column", "features", "--pool", "mean-std")
    rows = reader.read(0, 0, 3)
    assert keys(reader) == ["v0", "v1", "v2"] and rows.present["features"].tolist() == [True, True, False]
    for row, name in enumerate(("v0", "v1")):
        expected = np.concatenate([data[name].mean(axis=0), data[name].std(axis=0)])
        assert rows.features["features"][row] == pytest.approx(expected, abs=1e-6)


OPENFACE = """frame, face_id, timestamp, confidence, success, gaze_0_x, AU01_r, AU01_c
1, 0, 0.0, 0.98, 1, 0.5, 1.0, 1
2, 0, 0.04, 0.20, 0, 9.0, 9.0, 9
3, 0, 0.08, 0.97, 1, 0.7, 3.0, 0
3, 1, 0.08, 0.97, 1, 5.0, 5.0, 5
"""
OPENSMILE = "name;frameTime;F0;jitter\n'clip';0.0;100;0.5\n'clip';0.01;120;\n'clip';0.02;140;1.5\n"


def test_openface_and_opensmile_files_of_clips(tmp_path: Path) -> None:
    """Frames without success, other faces and rows with gaps do not count; a file without a valid row is missing."""
    for column in ("face", "voice"):
        (tmp_path / "src" / column).mkdir(parents=True)
    (tmp_path / "src/face/a.csv").write_text(OPENFACE)
    (tmp_path / "src/face/b.csv").write_text(OPENFACE.replace(", 1, 0.", ", 0, 0.").replace(", 1, 5", ", 0, 5"))
    (tmp_path / "src/voice/a.CSV").write_text(OPENSMILE)
    (tmp_path / "src/voice/b.csv").write_text(OPENSMILE)
    columns = ["--column", "face", "--column", "voice", "--pool", "mean-std"]
    reader = packed(tmp_path, tmp_path / "src", *columns)
    rows = reader.read(0, 0, 2)
    assert keys(reader) == ["a", "b"]
    assert rows.present["face"].tolist() == [True, False] and rows.present["voice"].all()
    assert rows.features["face"][0] == pytest.approx([0.6, 2.0, 0.5, 0.1, 1.0, 0.5], abs=1e-6)
    assert rows.features["voice"][0] == pytest.approx([120, 1.0, 20, 0.5], abs=1e-6)


def test_columns_of_csv_files_by_pattern_and_a_file_that_has_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "src").mkdir()
    for name in "ab":
        (tmp_path / f"src/{name}.csv").write_text(OPENFACE)
    reader = packed(tmp_path, tmp_path / "src", "--column", "csv", "--pool", "mean", "--csv-columns", "AU*_r,gaze*")
    assert reader.read(0, 0, 2).features["csv"] == pytest.approx(np.array([[0.6, 2.0]] * 2), abs=1e-6)
    (tmp_path / "src/b.csv").write_text(OPENFACE.replace("AU01_r", "AU02_r"))
    command = [
        "pack",
        "--source",
        str(tmp_path / "src"),
        "--out",
        str(tmp_path / "o"),
        "--column",
        "csv",
        "--pool",
        "mean",
    ]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "b.csv" in told and "AU0" in told and "differ from the first file's" in told
    assert main([*command, "--csv-columns", "XY*"]) == 2
    assert "no column matches XY*" in capsys.readouterr().err


def test_an_npz_for_each_clip_also_in_splits(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("test", "b")):
        (tmp_path / "src" / split).mkdir(parents=True)
        np.savez(tmp_path / "src" / split / f"{name}.npz", x=np.full((3, 2), ord(name)), y=np.ones(4, np.float32))
    reader = packed(tmp_path, tmp_path / "src", "--column", "x", "--column", "y", "--pool", "max", "--meta", "split")
    rows = reader.read(0, 0, 2)
    assert rows.features["x"].tolist() == [[97, 97], [98, 98]] and rows.features["y"].shape == (2, 4)
    assert reader.metadata(0)["meta.split"].to_pylist() == ["train", "test"]


@pytest.mark.parametrize("kind", ["mean", "mean-std", "max"])
def test_pooling_beside_a_plain_loop(kind: str) -> None:
    rng = np.random.default_rng(1)
    sequence = rng.normal(size=(9, 3))
    sequence[2], sequence[4, 1], sequence[7] = 0.0, np.nan, np.inf
    rows = [row for number, row in enumerate(sequence) if number not in (2, 4, 7)]
    mean = [sum(row[i] for row in rows) / len(rows) for i in range(3)]
    deviation = [(sum((row[i] - mean[i]) ** 2 for row in rows) / len(rows)) ** 0.5 for i in range(3)]
    expected = {"mean": mean, "mean-std": mean + deviation, "max": [max(row[i] for row in rows) for i in range(3)]}[
        kind
    ]
    pooling = Pooling(kind, zero_padding=True)
    assert pooling(sequence) == pytest.approx(expected, rel=1e-6) and len(expected) == pooling.width(3)
    assert np.isnan(pooling(np.zeros((4, 3)))).all() and not np.isnan(Pooling(kind)(np.zeros((4, 3)))).any()


def test_sequences_without_a_stated_pooling_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "f.npz", x=np.ones((4, 3, 2)))
    (tmp_path / "src/x").mkdir(parents=True)
    np.save(tmp_path / "src/x/a.npy", np.ones((3, 2)))
    for source in ("f.npz", "src"):
        assert main(["pack", "--source", str(tmp_path / source), "--out", str(tmp_path / "o"), "--column", "x"]) == 2
        assert "--pool mean, mean-std, max" in capsys.readouterr().err
    assert main(["pack", "--source", "x", "--out", "o", "--column", "x", "--pool", "meen"]) == 2
    assert "did you mean 'mean'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("a.pkl", "convert-pickle"),
        ("a.pt", "numpy.savez"),
        ("a.mat", "scipy.io.loadmat"),
        ("a.csv", "--table"),
        ("a.tar", "--adapter webdataset"),
        ("a.tar.gz", "--adapter webdataset"),
        ("a.npy", "FOLDER/NAME.npy"),
    ],
)
def test_what_is_refused_says_how_to_bring_it(tmp_path: Path, name: str, way: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=way):
        open_source(tmp_path / name)


def test_hostile_hdf5(tmp_path: Path) -> None:
    """No link leads out of the file, and references are no values."""
    (tmp_path / "secret.h5").unlink(missing_ok=True)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((3, 2))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["y"] = np.ones((3, 2))
        file["x"] = h5py.ExternalLink("secret.h5", "/x")
        file["z"] = h5py.SoftLink("/y")
        file["r"] = np.array([file["y"].ref] * 3, h5py.ref_dtype)
    source = open_source(tmp_path / "f.h5")
    assert set(source.names) == {"y", "r"}
    with pytest.raises(ValueError, match="expected numbers or text"):
        source.field("r")
    (tmp_path / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        open_source(tmp_path / "bad.h5")
