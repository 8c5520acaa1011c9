"""`pack`: arrays and folders to shards, read back; and every wrong input named before anything is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shards import Column, Label, Manifest, Reader, View, group_id, shuffled_order
from shards.__main__ import main
from shards.packing.command import PackOptions, pack, work_of
from shards.packing.labels import LabelSpec
from shards.packing.sample_table import SampleTable


def _arrays(count: int = 30) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "au": random.standard_normal((count, 6)).astype(np.float32),
        "mfcc": random.standard_normal((count, 4)),
        "counts": random.integers(0, 9, (count, 2)),
        "emotion": np.arange(count) % 3,
        "names": np.array(["calm", "sad", "happy"]),
        "actor": np.arange(count) // 5 + 1,
        "ids": np.array([f"clip-{i:02d}" for i in range(count)]),
        "said": np.array(["kids", "dogs"] * (count // 2)),
        "score": np.linspace(-3, 3, count),
        "split": np.array(["train"] * 20 + ["test"] * (count - 20)),
    }
    arrays["au"][3] = np.nan
    arrays["mfcc"][[3, 8]] = np.nan
    return arrays


ARGUMENTS = [
    "--column", "au", "--column", "mfcc", "--column", "n=counts",
    "--modality", "video=au", "--modality", "sound=mfcc,n",
    "--label", "emotion:class:names=names", "--label", "score:continuous", "--group", "actor", "--key", "ids",
    "--text", "said", "--meta", "split", "--view-by", "split",
]  # fmt: skip


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "in.npz", **_arrays())  # type: ignore[arg-type]
    return tmp_path / "in.npz"


def _check(folder: Path) -> None:
    arrays, manifest = _arrays(), Manifest.open(folder)
    assert manifest.columns == (Column("au", 6), Column("mfcc", 4, "float64"), Column("n", 2))
    assert manifest.labels == (Label("emotion", "class", ("calm", "sad", "happy")), Label("score", "continuous"))
    rows, table = Reader(manifest).read(0, 0, 30), Reader(manifest).metadata(0)
    for position, i in enumerate(shuffled_order(30, 0)):
        assert (
            table["key"][position].as_py() == arrays["ids"][i] and table["text"][position].as_py() == arrays["said"][i]
        )
        assert rows.present["video"][position] == (i != 3) and rows.present["sound"][position] == (i not in (3, 8))
        np.testing.assert_array_equal(rows.features["video"][position], np.nan_to_num(arrays["au"][i]))
        sound = np.concatenate([arrays["mfcc"][i], arrays["counts"][i]])
        np.testing.assert_array_equal(rows.features["sound"][position], 0 if i in (3, 8) else sound)
        assert rows.labels["emotion"][position] == i % 3 and rows.labels["score"][position] == arrays["score"][i]
        assert rows.group is not None and rows.group[position] == group_id(str(arrays["actor"][i]))
    assert View.open(manifest, "train").rows == 20 and View.open(manifest, "test").rows == 10
    assert main(["verify", str(folder), "--quiet"]) == 0


def test_npz(npz: Path, tmp_path: Path) -> None:
    assert main(["pack", "--source", str(npz), "--out", str(tmp_path / "out"), *ARGUMENTS]) == 0
    _check(tmp_path / "out")


def test_folder_of_arrays_is_the_same_data_set(npz: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, array in _arrays().items():
        np.save(tmp_path / "in" / f"{name}.npy", array)
    for name, source in (("a", npz), ("b", tmp_path / "in")):
        main(["pack", "--source", str(source), "--out", str(tmp_path / name), "--quiet", *ARGUMENTS])
    _check(tmp_path / "b")
    assert Manifest.open(tmp_path / "a").digest == Manifest.open(tmp_path / "b").digest


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_file_for_each_sample_with_a_table(tmp_path: Path, kind: str) -> None:
    arrays = _arrays()
    for column in ("au", "mfcc", "counts"):
        for i, key in enumerate(arrays["ids"]):
            if column == "mfcc" and i in (3, 8):
                continue  # a missing file is a missing row, as a file of NaN is (au of 3)
            folder = tmp_path / "in" / column / arrays["split"][i]
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{key}.npy", arrays[column][i] if i % 2 else arrays[column][i : i + 1])
    fields = ("ids", "emotion", "actor", "said", "score")
    frame = pd.DataFrame({name: arrays[name] for name in fields}).sample(frac=1, random_state=1)
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="," if kind == "csv" else "\t", index=False, float_format="%.17g")
    arguments = [a.replace("names=names", "calm,sad,happy") for a in ARGUMENTS]
    del arguments[arguments.index("--key") : arguments.index("--key") + 2]
    command = ["pack", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--table", str(path)]
    assert main([*command, "--table-key", "ids", *arguments]) == 0
    _check(tmp_path / "out")


def test_rows_of_a_table_that_repeat_or_belong_to_no_sample_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,x\nb,2\na,1\nb,2\nz,9\na,1\n")
    table = SampleTable(path, "id", np.array(["a", "b"]))
    assert [float(value) for value in table.field("x")] == [1.0, 2.0]
    assert "rows given again, identically, and counted once: 2" in table.lines()
    (doubt,) = table.doubts()
    assert doubt.startswith("rows of t.csv that belong to no sample: 1 (row ") and doubt.endswith(": z)")


def test_real_feature_sets(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "ravdess"
    arguments = [
        "--column", "video=visual_au35", "--column", "audio_egemaps=audio_egemaps88",
        "--column", "audio_mfcc=audio_mfcc259", "--modality", "video=video",
        "--modality", "audio=audio_egemaps,audio_mfcc", "--label", "emotion:class:names=emotion_names",
        "--group", "actor", "--key", "ids", "--text", "text", "--quiet",
    ]  # fmt: skip
    assert main(["pack", "--source", str(real_data / "ravdess_features.npz"), "--out", str(out), *arguments]) == 0
    source, manifest = np.load(real_data / "ravdess_features.npz", allow_pickle=False), Manifest.open(out)
    rows, order = Reader(manifest).read(0, 0, 1440), shuffled_order(1440, 0)
    np.testing.assert_array_equal(rows.features["video"], source["visual_au35"][order])
    audio = np.concatenate([source["audio_egemaps88"], source["audio_mfcc259"]], axis=1)
    np.testing.assert_array_equal(rows.features["audio"], audio[order])
    np.testing.assert_array_equal(rows.labels["emotion"], source["emotion"][order])
    assert len(np.unique(rows.group)) == 24 and manifest.labels[0].classes == tuple(source["emotion_names"])  # type: ignore[arg-type]


def _options(npz: Path, **changes: Any) -> PackOptions:
    defaults: dict[str, Any] = {"source": npz, "out": npz.parent / "out", "columns": {"au": "au"}, "key": "ids"}
    return PackOptions(**(defaults | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"au": "aux"}}, "no array 'aux'.*did you mean 'au'"),
        ({"columns": {}}, "name the columns.*mfcc"),
        ({"columns": {"a": "said"}}, "'said'.*expected numbers"),
        ({"columns": {"a": "actor"}}, r"'actor' has shape \(30,\)"),
        ({"columns": {"a.b": "au"}}, "column name 'a.b'"),
        ({"modalities": {"m": ("aux",)}}, "'aux' is unknown.*did you mean 'au'"),
        ({"key": "said"}, "key 'kids' occurs twice"),
        ({"key": "names"}, "'names' has 3 rows.*30"),
        ({"group": "nope"}, "no array 'nope'"),
        ({"group": "score"}, "--group score: sample number 1 is -2.79.*, expected text or a whole number"),
        ({"labels": [LabelSpec.parse("emotion:class:a,b")]}, r"class 2, expected 0\.\.1"),
        ({"labels": [LabelSpec.parse("emotion:class:a,b,c,d")]}, "no sample is of the class 'd'"),
        ({"labels": [LabelSpec.parse("absurd:class")]}, "'absurd': sample number 5: class number 1000000000000, "
         "expected at most 99999.*list their names"),
        ({"labels": [LabelSpec.parse("digits:class")]}, "'digits': sample number 5: class number 300000000"),
        ({"labels": [LabelSpec.parse("infinite_class:class")]}, "'infinite_class': sample number 5: class number inf"),
        ({"labels": [LabelSpec.parse("infinite_class:class:a,b")]}, r"sample number 5: .*class inf, expected 0\.\.1"),
        ({"labels": [LabelSpec.parse("one:class")]}, "all samples are of the class '0'"),
        ({"labels": [LabelSpec.parse("said:class:kids,cats")]}, "'dogs' is unknown.*allowed: kids, cats"),
        ({"labels": [LabelSpec.parse("said:continuous")]}, "not a number.*'kids'"),
        ({"labels": [LabelSpec.parse("au:multilabel:a,b")]}, "6 numbers a sample, but 2 classes"),
        ({"labels": [LabelSpec.parse("none:continuous")]}, "no sample has one"),
        ({"columns": {"a": "hole"}}, r"column 'a': row 4 \(key 'clip-04'\) is NaN in 1 of 6.*element 2"),
        ({"columns": {"a": "infinite"}}, r"row 7 \(key 'clip-07'\), element 1 is inf"),
        ({"columns": {"a": "big"}, "dtype": "float16"}, r"row 2 .*element 0 is 100000.0, beyond float16"),
        ({"columns": {"a": "empty"}}, r"column 'a' is missing \(NaN\) in every row"),
        ({"columns": {"au": "au", "half": "half", "other": "other"}, "modalities": {"m": ("half", "other")}},
         "modality 'm': no sample has all of its columns half, other"),
        ({"columns": {"au": "au", "short": "short"}}, "column 'short' has 5 rows, but column 'au' has 30"),
        ({"columns": {"a": "objects"}}, "array 'objects' cannot be read"),
        ({"source": Path("/nowhere.npz")}, "does not exist"),
    ],
)  # fmt: skip
def test_wrong_input_is_named_and_nothing_written(npz: Path, change: dict[str, Any], message: str) -> None:
    arrays: dict[str, Any] = _arrays()
    arrays |= {name: arrays["au"].copy() for name in ("hole", "infinite", "big", "half", "other")}
    arrays["hole"][4, 2] = np.nan
    arrays["infinite"][7, 1] = np.inf
    arrays["big"][2, 0] = 1e5
    arrays["half"][:15] = np.nan
    arrays["other"][15:] = np.nan
    arrays |= {"empty": np.full((30, 2), np.nan), "short": np.ones((5, 2)), "one": np.zeros(30, int)}
    classes = np.arange(30) % 2
    arrays["absurd"] = np.where(np.arange(30) == 5, 10**12, classes)
    arrays["digits"] = np.where(np.arange(30) == 5, "300000000", classes.astype(str))
    arrays["infinite_class"] = np.where(np.arange(30) == 5, np.inf, classes)
    arrays |= {"none": np.full(30, np.nan), "objects": np.array([[object()]] * 30, dtype=object)}
    np.savez(npz, **arrays)
    with pytest.raises(ValueError, match=message):
        pack(_options(npz, **change))
    assert not (npz.parent / "out").exists()


def test_long_digits_are_names(npz: Path) -> None:
    names = np.where(np.arange(30) % 2, "7" * 5000, "12")
    np.savez(npz, **_arrays(), long=names)  # type: ignore[arg-type]
    manifest, _ = pack(_options(npz, labels=[LabelSpec.parse("long:class")], shuffle_seed=None))
    assert manifest.labels[0].classes == ("12", "7" * 5000)
    assert Reader(manifest).read(0, 0, 30).labels["long"].tolist() == (np.arange(30) % 2).tolist()


def test_all_problems_are_listed_at_once(npz: Path) -> None:
    with pytest.raises(ValueError) as caught:
        pack(_options(npz, group="nope", text="neither", labels=[LabelSpec.parse("emotion:class:a,b")]))
    assert all(part in str(caught.value) for part in ("'nope'", "'neither'", "class 2"))


def test_partly_nan_rows_are_missing_on_request(npz: Path) -> None:
    arrays = _arrays()
    arrays["au"][4, 2] = np.nan
    np.savez(npz, **arrays)  # type: ignore[arg-type]
    manifest, _ = pack(_options(npz, nan="any", shuffle_seed=None))
    assert np.flatnonzero(~Reader(manifest).read(0, 0, 30).present["au"]).tolist() == [3, 4]


def test_labels_of_all_kinds_and_classes_that_are_found(npz: Path) -> None:
    arrays: dict[str, Any] = _arrays()
    arrays["tags"] = np.stack([np.arange(30) % 2, np.ones(30)], axis=1).astype(float)
    np.savez(npz, **arrays)
    specs = ["said:class", "emotion:class", "tags:multilabel:odd,one", "pair=score,actor:continuous"]
    manifest, _ = pack(_options(npz, labels=[LabelSpec.parse(s) for s in specs], shuffle_seed=None))
    rows = Reader(manifest).read(0, 0, 30)
    assert [label.classes for label in manifest.labels] == [("dogs", "kids"), ("0", "1", "2"), ("odd", "one"), ()]
    np.testing.assert_array_equal(rows.labels["said"], (arrays["said"] == "kids").astype(int))
    np.testing.assert_array_equal(rows.labels["tags"], arrays["tags"])
    np.testing.assert_array_equal(rows.labels["pair"], np.stack([arrays["score"], arrays["actor"]], axis=1))
    with_gap, _ = pack(
        _options(npz, labels=[LabelSpec.parse("emotion:class:a,b,c,d")], allow_empty_class=True, overwrite=True)
    )
    assert with_gap.labels[0].classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "emotion"], "whole numbers; say whether they are classes or amounts: --label emotion:class or"),
        (["--label", "emotion:clas"], "did you mean 'class'"),
        (["--label", "score:continuous:a,b"], "has no classes"),
        (["--column", "au", "--column", "au=mfcc"], "--column au is given twice"),
        (["--shuffle-seed", "-1"], "--shuffle-seed"),
        (["--view-by", "splt"], "splt"),
        (["--table", "nowhere.csv"], "nowhere.csv does not exist"),
    ],
)
def test_wrong_arguments(npz: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pack", "--source", str(npz), "--out", str(npz.parent / "out"), "--column", "m=mfcc"]
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train"] * 29 + ["dev set"], "--view-by part: view name 'dev set': expected 1 to 100 of"),
        (["train"] * 29 + ["everything"], "--view-by part: view name 'everything'"),
        ([f"v{i}" for i in range(101)], "--view-by part: part has 101 values, each would be a view"),
        ([""] * 30, "--view-by part: no sample has a value"),
    ],
)
def test_views_that_cannot_be_made_are_refused_before_anything_is_written(
    tmp_path: Path, values: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((len(values), 2)), part=np.array(values))
    command = ["pack", "--source", str(tmp_path / "in.npz"), "--out", str(tmp_path / "out"), "--column", "x"]
    assert main([*command, "--meta", "part", "--view-by", "part"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--meta", "part", "--quiet"]) == 0, "as a field it is well"


def test_a_view_by_a_field_keeps_the_field_as_meta_does(npz: Path, tmp_path: Path) -> None:
    common = ["pack", "--source", str(npz), "--column", "m=mfcc", "--view-by", "split", "--quiet", "--output"]
    for name, meta in (("alone", []), ("said", ["--meta", "split"]), ("another", ["--meta", "split=said"])):
        assert main([*common, str(tmp_path / name), *meta]) == 0
    alone, said, another = (Manifest.open(tmp_path / name) for name in ("alone", "said", "another"))
    order, split, words = shuffled_order(30, 0), _arrays()["split"], _arrays()["said"]
    assert Reader(alone).metadata(0)["meta.split"].to_pylist() == [split[i] for i in order]
    assert alone.digest == said.digest
    assert View.open(alone, "train").rows == 20 and View.open(alone, "test").rows == 10
    # A field of that name which --meta takes from elsewhere stays what it says.
    assert Reader(another).metadata(0)["meta.split"].to_pylist() == [words[i] for i in order]
    assert View.open(another, "kids").rows == 15


def test_a_view_by_a_field_that_is_not_there_is_one_problem(npz: Path) -> None:
    with pytest.raises(ValueError) as caught:
        pack(_options(npz, meta={"part": "nope"}, view_by="part"))
    assert "no array 'nope'" in str(caught.value) and "--view-by" not in str(caught.value)


def test_tables_that_do_not_fit(npz: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text, message in (
        ("key,x\nclip-00,1\nclip-00,2\n", "'clip-00' is listed twice"),
        ("key,x\nclip-00,1\n", "29 samples are not listed in key, such as 'clip-01'"),
        ("kee,x\nclip-00,1\n", "no column 'key'.*did you mean 'kee'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            pack(_options(npz, table=path, table_key="key"))
    path.write_text("x\n1\n")
    with pytest.raises(ValueError, match="'x' has 1 rows, but the columns have 30"):
        pack(_options(npz, table=path, text="x"))


def test_packing_is_deterministic_and_overwrites_only_on_request(npz: Path) -> None:
    first, _ = pack(_options(npz, shuffle_seed=3, max_shard_bytes=30_000))
    bytes_before = {p.name: p.read_bytes() for p in Path(first.folder).iterdir()}
    with pytest.raises(ValueError, match="holds a data set already"):
        pack(_options(npz))
    pack(_options(npz, shuffle_seed=3, max_shard_bytes=30_000, overwrite=True))
    assert {p.name: p.read_bytes() for p in Path(first.folder).iterdir()} == bytes_before and len(first) > 1
    other, _ = pack(_options(npz, shuffle_seed=4, overwrite=True))
    assert other.digest != first.digest and other.info == {"source": "in.npz", "shuffle_seed": 4}


@pytest.mark.parametrize("kind", [np.int64, np.float32, str])
@pytest.mark.parametrize("first", [1, 3])
def test_codes_that_do_not_begin_at_0_are_classes_by_name(
    tmp_path: Path, kind: type, first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """RAVDESS's codes are 1 to 8. Before, listing them ended in `class 4, expected 0..3`, and not listing them in a
    class without rows, which evaluation then refused."""
    codes = np.array([first + i % 4 for i in range(24)])
    np.savez(tmp_path / "x.npz", v=np.random.default_rng(0).normal(size=(24, 3)), code=codes.astype(kind))

    def pack_with(label: str) -> int:
        options = ["--source", str(tmp_path / "x.npz"), "--output", str(tmp_path / "out"), "--column", "v", "--quiet"]
        return main(["pack", *options, "--label", label, "--overwrite"])

    names = [str(first + i) for i in range(4)]
    listed = f"mood=code:class:{','.join(names)}"
    if kind is not str:
        assert pack_with("mood=code:class") == 2
        error = capsys.readouterr().err
        assert f"no sample is of the class '0'; leave the class out: --label {listed}, or say" in error
    assert pack_with(listed) == 0, "the command that the message names"
    manifest = Manifest.open(tmp_path / "out")
    read = Reader(manifest, labels=("mood",)).read_ranges([(0, 0, 24)])
    assert manifest.schema.label("mood").classes == tuple(names)
    stored = {int(key): int(value) for key, value in zip(index_keys(manifest), read.labels["mood"], strict=True)}
    assert stored == {i: i % 4 for i in range(24)}
    assert pack_with(f"mood=code:class:{','.join(names[:3])}") == 2
    assert f"class '{names[3]}' is unknown, allowed: {', '.join(names[:3])}" in capsys.readouterr().err


def index_keys(manifest: Manifest) -> list[str]:
    reader = Reader(manifest)
    keys = [key for shard in range(len(manifest)) for key in reader.metadata(shard)["key"].to_pylist()]
    return [key.removeprefix("row-") for key in keys]


def test_the_work_of_a_pack_is_told_by_what_it_reads(tmp_path: Path) -> None:
    (tmp_path / "arrays").mkdir()
    for source, file in ((tmp_path / "x.npz", tmp_path / "x.npz"), (tmp_path / "arrays", tmp_path / "arrays/x.npy")):
        file.write_bytes(b"1")
        options = PackOptions(source=source, out=tmp_path / "out", columns={"v": "x"})
        first = work_of(options)
        assert work_of(options) == first == work_of(dataclasses.replace(options, out=tmp_path / "other"))
        file.write_bytes(b"22")
        assert work_of(options) != first
