"""The reader against the samples that were written, against `webdataset`, and against damage."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

import shards
from shards import (
    Column,
    CorruptionError,
    CorruptSample,
    Manifest,
    Reader,
    Sample,
    Schema,
    ShardError,
    ShardWriter,
    View,
    group_id,
)
from shards.format import storage as storage_module
from shards.format.index_store import IndexCache
from shards.reading.stream import RowMemory
from tests.shards.small_data import SCHEMA, flip_bit, make_samples, write


@dataclass
class Sized:
    """What a cache asks of an index."""

    nbytes: int


def test_indexes_are_kept_up_to_the_limit_to_the_byte_and_the_oldest_goes() -> None:
    cache = IndexCache(limit=30)
    for shard in range(3):
        cache.put(shard, None, Sized(10))  # type: ignore[arg-type]
    assert all(cache.get(shard) is not None for shard in (2, 1, 0)), "three of ten bytes fit into thirty"
    cache.put(3, None, Sized(1))  # type: ignore[arg-type]
    assert [cache.get(shard) is not None for shard in range(4)] == [True, True, False, True], "2 was asked for first"
    cache.put(4, None, Sized(31))  # type: ignore[arg-type]
    assert [cache.get(shard) is not None for shard in range(5)] == [False] * 4 + [True], "one is kept, however large"


@dataclass
class Selected:
    """The least a view is: chosen rows of each shard."""

    chosen: list[np.ndarray]

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(rows) for rows in self.chosen])

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    def indices(self, shard: int) -> np.ndarray:
        return self.chosen[shard]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return make_samples(64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> Manifest:
    return write(tmp_path_factory.mktemp("reader") / "data", samples, shard_samples=25)


@pytest.fixture
def copy(whole: Manifest, tmp_path: Path) -> Path:
    """The data set once more, to be damaged."""
    shutil.copytree(whole.folder, tmp_path / "data")
    return tmp_path / "data"


def assert_is_sample(rows: object, i: int, number: int, sample: Sample) -> None:
    """Row i of a batch is the sample, looked up the slow and obvious way."""
    v2d, v3d, audio = (sample.columns[name] for name in ("v2d", "v3d", "audio"))
    there = v3d is not None
    assert rows.row[i] == number  # type: ignore[attr-defined]
    assert rows.present["video"][i] == there  # type: ignore[attr-defined]
    expected = np.concatenate([v2d, v3d]) if v2d is not None and v3d is not None else np.zeros(12)
    np.testing.assert_array_equal(rows.features["video"][i], expected)  # type: ignore[attr-defined]
    heard = audio is not None and not np.isnan(audio).all()
    assert rows.present["audio"][i] == heard  # type: ignore[attr-defined]
    np.testing.assert_array_equal(rows.features["audio"][i], audio if heard else 0)  # type: ignore[attr-defined]
    mood = sample.labels["mood"]
    assert rows.labels["mood"][i] == (-1 if mood is None else ("calm", "angry", "sad").index(mood))  # type: ignore[attr-defined]
    valence = sample.labels["valence"]
    np.testing.assert_equal(rows.labels["valence"][i], np.nan if valence is None else valence)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(rows.labels["signs"][i], sample.labels["signs"])  # type: ignore[attr-defined]
    assert rows.group[i] == group_id(sample.group)  # type: ignore[attr-defined]


def test_every_range_is_what_was_written(whole: Manifest, samples: list[Sample]) -> None:
    reader = Reader(whole)
    assert reader.widths == {"video": 12, "audio": 130}
    for shard, count in enumerate(whole.counts.tolist()):
        before = int(whole.rows_before[shard])
        for start, stop in ((0, count), (3, 4), (count - 2, count), (5, 5), (0, 1)):
            rows = reader.read(shard, start, stop)
            assert len(rows) == stop - start
            for i in range(stop - start):
                assert_is_sample(rows, i, before + start + i, samples[before + start + i])
    assert len(reader.corrupt) == 0


def test_blocks_and_small_caches_change_nothing(
    whole: Manifest, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.reading.reader.LOCAL_BLOCK_BYTES", 10_000)
    monkeypatch.setattr("shards.format.raw_columns.LOCAL_BLOCK_BYTES", 10_000)
    monkeypatch.setattr(storage_module, "_OPEN_FILES", 1)
    reader = Reader(whole, index_cache_bytes=1)
    rows = reader.read_ranges([(2, 0, 3), (0, 1, 20), (1, 7, 9), (0, 0, 1)], size=30)
    before = whole.rows_before
    numbers = [*range(before[2], before[2] + 3), *range(1, 20), *range(before[1] + 7, before[1] + 9), 0]
    for i, number in enumerate(numbers):
        assert_is_sample(rows, i, int(number), samples[int(number)])
    assert (rows.row[len(numbers) :] == -1).all()
    assert not any(mask[len(numbers) :].any() for mask in rows.present.values())
    assert not any(array[len(numbers) :].any() for array in rows.features.values())
    assert (rows.labels["mood"][len(numbers) :] == -1).all() and np.isnan(rows.labels["signs"][len(numbers) :]).all()


def test_a_view_counts_its_own_positions(whole: Manifest, samples: list[Sample]) -> None:
    random = np.random.default_rng(0)
    chosen = [np.flatnonzero(random.random(count) < 0.6) for count in whole.counts]
    reader = Reader(whole, Selected(chosen))
    assert len(reader) == sum(map(len, chosen))
    for shard, rows in enumerate(chosen):
        got = reader.read(shard, 2, len(rows))
        for i, row in enumerate(rows[2:]):
            number = int(whole.rows_before[shard] + row)
            assert_is_sample(got, i, number, samples[number])
    with pytest.raises(IndexError):
        reader.read(0, 0, len(chosen[0]) + 1)
    wrong = Reader(whole, Selected([np.array([0, 99]), *chosen[1:]]))
    with pytest.raises(ShardError, match="view selects rows"):
        wrong.read(0, 0, 2)


def test_remote_is_local(whole: Manifest, samples: list[Sample]) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(whole.folder, "/remote", recursive=True)
    try:
        manifest = Manifest.open("memory://remote")
        assert manifest.digest == whole.digest and not manifest.is_local
        reader = Reader(manifest, Selected([np.array([0, 3, 4, 20]), np.array([2]), np.array([0, 1])]))
        for i, row in enumerate((0, 3, 4, 20)):
            assert_is_sample(reader.read(0, 0, 4), i, row, samples[row])
        assert_is_sample(
            Reader(manifest).read(1, 0, 9),
            8,
            int(manifest.rows_before[1]) + 8,
            samples[int(manifest.rows_before[1]) + 8],
        )
        memory.pipe("/remote/part-000000.tar", b"x" * 512)
        with pytest.raises(ShardError, match="size in bytes differs"):
            Reader(manifest).read(0, 0, 1)
        memory.rm("/remote/part-000000.tar")
        with pytest.raises(ShardError, match="missing"):
            Reader(manifest).read(0, 0, 1)
    finally:
        memory.rm("/remote", recursive=True)


def test_far_ranges_are_fetched_apart() -> None:
    merged = storage_module._merge([(0, 10), (10, 5), (30, 5), (1000, 1), (5, 1)], gap=20)
    assert merged == [(0, 35, [(0, 10), (10, 5), (30, 5)]), (1000, 1001, [(1000, 1)]), (5, 6, [(5, 1)])]


def test_modalities_labels_and_dtype_by_choice(whole: Manifest, samples: list[Sample]) -> None:
    reader = Reader(
        whole, modalities={"all": ("audio", "v2d"), "motion": ("v3d",)}, labels=("valence",), dtype="float64"
    )
    rows = reader.read(0, 0, 4)
    assert reader.widths == {"all": 137, "motion": 5} and list(rows.labels) == ["valence"]
    np.testing.assert_array_equal(rows.features["all"][0, 130:], samples[0].columns["v2d"])
    assert rows.features["motion"].dtype == np.float64
    assert Reader(whole, modalities={"motion": ("v3d",)}).read(0, 0, 1).features["motion"].dtype == np.float16
    assert Reader(whole, modalities=["audio"]).widths == {"audio": 130}
    assert Reader(whole, labels=()).read(0, 0, 1).labels == {}
    for options, message in (
        ({"modalities": ["vido"]}, "'vido' is unknown.*did you mean 'video'"),
        ({"modalities": {"m": ("v2",)}}, "'v2' is unknown"),
        ({"labels": ("emotion",)}, "'emotion' is unknown.*mood"),
        ({"max_corrupt_share": 2.0}, "max_corrupt_share is 2.0"),
        ({"dtype": "int64"}, "'int64'"),
    ):
        with pytest.raises(ValueError, match=message):
            Reader(whole, **options)


def test_out_is_filled_in_place_and_threads_do_not_disturb_each_other(whole: Manifest) -> None:
    reader = Reader(whole)
    expected = [reader.read(shard, 0, 10) for shard in range(2)]
    out = reader.allocate(12)
    assert (out.row == -1).all()
    assert reader.read(0, 0, 10, out=out.part(1, 11)).features["audio"].base is not None
    np.testing.assert_array_equal(out.features["audio"][1:11], expected[0].features["audio"])
    assert out.row[0] == out.row[11] == -1
    with pytest.raises(ValueError, match="out has 12 rows, expected 10"):
        reader.read(0, 0, 10, out=out)
    wrong: list[int] = []

    def work(shard: int) -> None:
        for _ in range(200):
            if not np.array_equal(reader.read(shard, 0, 10).features["audio"], expected[shard].features["audio"]):
                wrong.append(shard)

    threads = [threading.Thread(target=work, args=(shard,)) for shard in (0, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_reader_travels_light_and_notices_a_changed_data_set(copy: Path) -> None:
    script = (
        "import sys, cloudpickle\nfrom shards import *\n"
        "sys.stdout.buffer.write(cloudpickle.dumps(Reader(Manifest.open(sys.argv[1]), labels=('mood',))))"
    )
    read = (
        "import sys, cloudpickle\nreader = cloudpickle.load(sys.stdin.buffer)\n"
        "print(reader.read(1, 0, 5).features['audio'].sum())"
    )
    root = Path(__file__).parents[3]
    sent = subprocess.run([sys.executable, "-c", script, str(copy)], cwd=root, capture_output=True, check=True).stdout
    assert len(sent) < 1000
    got = subprocess.run([sys.executable, "-c", read], cwd=root, input=sent, capture_output=True, check=True).stdout
    assert float(got) == float(Reader(Manifest.open(copy)).read(1, 0, 5).features["audio"].sum())
    write(copy, make_samples(9), overwrite=True)
    late = subprocess.run([sys.executable, "-c", read], cwd=root, input=sent, capture_output=True, check=False)
    assert late.returncode and b"the data set changed" in late.stderr


def test_webdataset_and_tar_read_what_was_written(whole: Manifest, samples: list[Sample]) -> None:
    script = """
import sys, json, webdataset as wds
for sample in wds.WebDataset(sys.argv[1:], shardshuffle=False).decode():
    plain = {k: v.tolist() if hasattr(v, 'tolist') else v for k, v in sample.items() if not k.startswith('__url')}
    print(json.dumps(plain))
"""
    paths = [f"{whole.folder}/{name}.tar" for name in whole.shards["name"].to_pylist()]
    command, environment = [sys.executable, "-c", script, *paths], os.environ | {"WDS_SECURE": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    got = [json.loads(line) for line in run.stdout.splitlines()]
    for found, sample in zip(got, samples, strict=True):
        assert found["__key__"] == sample.key and found["json"]["text"] == sample.text
        assert found["json"]["group"] == sample.group and found["json"]["labels"]["mood"] == sample.labels["mood"]
        np.testing.assert_array_equal(np.array(found["v2d.npy"], np.float32), sample.columns["v2d"])
        assert ("v3d" in found["json"]["missing"]) == (sample.columns["v3d"] is None)
    for path, count in zip(paths, whole.counts, strict=True):
        listing = subprocess.run(["tar", "tvf", path], capture_output=True, text=True, check=True)
        assert len(listing.stdout.splitlines()) == 4 * count and not listing.stderr


# Views on whole samples


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """Modalities that can be views, of samples that are large enough for the purpose."""
    monkeypatch.setattr("shards.reading.reader._VIEW_OVERHEAD", 1e9)
    return {"still": ("v2d",), "moving": ("v3d",), "audio": ("audio",)}


def uneven(folder: Path, samples: list[Sample]) -> Manifest:
    """Shards whose samples differ in length, because their longest texts do."""
    later = [dataclasses.replace(sample, text="y" * (40 * i)) for i, sample in enumerate(samples)]
    manifest = write(folder, later, shard_samples=12)
    assert len(set(manifest.shards["stride"].to_pylist())) > 2
    return manifest


@pytest.mark.parametrize("block", [3000, 20_000, 1 << 20])
def test_views_on_samples_equal_copied_columns(
    tmp_path: Path, samples: list[Sample], wide: dict[str, tuple[str, ...]], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.format.raw_columns.LOCAL_BLOCK_BYTES", block)
    manifest = uneven(tmp_path / "data", samples)
    random = np.random.default_rng(1)
    for view in (None, Selected([np.flatnonzero(random.random(n) < 0.7) for n in manifest.counts])):
        reader = Reader(manifest, view, wide)
        copied = reader.read_ranges([(s, 1, int(n)) for s, n in enumerate(reader.counts)], size=70)
        assert copied.raw is None and reader.pitch == manifest.shards["stride"].to_numpy().max()
        seen = reader.allocate(70, views=True)
        for _ in range(2):  # the second time over what the first one left
            reader.read_ranges([(s, 1, int(n)) for s, n in enumerate(reader.counts)], out=seen)
            assert seen.raw is not None
            for name, array in seen.features.items():
                assert np.shares_memory(array, seen.raw) and array.strides == (reader.pitch, array.itemsize)
                np.testing.assert_array_equal(array, copied.features[name])
                np.testing.assert_array_equal(seen.present[name], copied.present[name])
                assert torch.equal(torch.from_numpy(array), torch.from_numpy(copied.features[name]))
                assert torch.from_numpy(array).data_ptr() == array.ctypes.data  # not copied
            np.testing.assert_array_equal(seen.row, copied.row)
            for name, array in seen.labels.items():
                np.testing.assert_array_equal(array, copied.labels[name])
            seen.raw[:] = 0xAB


@pytest.mark.parametrize("views", [True, False])
def test_several_threads_read_what_one_reads(
    copy: Path, wide: dict[str, tuple[str, ...]], views: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.reading.reader._SHARED_OUT", 0)
    manifest = Manifest.open(copy)
    for shard in (2, 0):
        flip_bit(copy / f"part-{shard:06d}.tar", 5 * manifest.entry(shard).stride + 512 + 128 + 9)
    random = np.random.default_rng(0)
    counts = manifest.counts.tolist()
    for count in (1, 2, 5, 16):
        pieces = [(s, a, min(a + 3, n)) for s, n in enumerate(counts) for a in range(0, n, 3)]
        ranges = [pieces[i] for i in random.permutation(len(pieces))[:count]]
        one, several = (Reader(manifest, None, wide, max_corrupt_share=1.0, threads=n) for n in (1, 4))
        rows, again = (r.read_ranges(ranges, out=r.allocate(60, views=views)) for r in (one, several))
        assert again.raw is not None or not views
        assert list(one.corrupt) == list(several.corrupt) and one.corrupt.rows_read == several.corrupt.rows_read
        for name in wide:
            np.testing.assert_array_equal(rows.features[name], again.features[name])
            np.testing.assert_array_equal(rows.present[name], again.present[name])
        np.testing.assert_array_equal(rows.row, again.row)
        for name in rows.labels:
            np.testing.assert_array_equal(rows.labels[name], again.labels[name])
    for shard in (1, 2):
        (copy / f"part-{shard:06d}.tar").unlink()
    for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0)):  # of several errors the first range's
        reader = Reader(manifest, None, wide, max_corrupt_share=1.0, threads=3)
        with pytest.raises(ShardError, match=f"part-00000{next(shard for shard in order if shard)}"):
            reader.read_ranges([(shard, 0, 8) for shard in order])


def test_no_thread_holds_a_batch_that_it_has_read(
    whole: Manifest, wide: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    class Holding(ThreadPoolExecutor):
        """As a pool whose threads were interrupted before they let go of what they ran."""

        def submit(self, run: object, *arguments: object) -> Future:  # type: ignore[override, type-arg]
            held.append((run, arguments))
            return super().submit(run, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("shards.reading.reader.ThreadPoolExecutor", Holding)
    monkeypatch.setattr("shards.reading.reader._SHARED_OUT", 0)
    reader = Reader(whole, None, wide, threads=3)
    memory, places = RowMemory(reader, 30, kept=3), set()
    for _ in range(5):
        rows = memory.take()
        reader.read_ranges([(shard, 0, 8) for shard in range(3)], out=rows)
        places.add(rows.features["audio"].ctypes.data)
        memory.give(rows)
        del rows
    assert len(held) == 10
    assert len(places) == 1


def test_damage_in_views_is_cleared_and_named(
    copy: Path, samples: list[Sample], wide: dict[str, tuple[str, ...]]
) -> None:
    manifest = Manifest.open(copy)
    flip_bit(copy / "part-000000.tar", 5 * manifest.entry(0).stride + 512 + 128 + 9)
    reader = Reader(manifest, modalities=wide, max_corrupt_share=0.1)
    rows = reader.read_ranges([(1, 0, 2), (0, 2, 8)], out=reader.allocate(9, views=True))
    assert [(d.key, d.row) for d in reader.corrupt] == [("s5", 5)] and reader.corrupt.rows_read == 8
    assert rows.row.tolist() == [int(manifest.counts[0]), int(manifest.counts[0]) + 1, 2, 3, 4, 5, 6, 7, -1]
    assert not any(there[5] for there in rows.present.values()) and not any(a[5].any() for a in rows.features.values())
    np.testing.assert_array_equal(rows.features["still"][4], samples[4].columns["v2d"])
    assert not rows.present["moving"][4] and not rows.features["moving"][4].any()  # NaN in the file


def test_restored_samples_are_damaged_no_more(copy: Path, wide: dict[str, tuple[str, ...]]) -> None:
    manifest = Manifest.open(copy)
    place = 5 * manifest.entry(0).stride + 512 + 128 + 9, 7 * manifest.entry(0).stride + 512 + 128 + 9
    for at in place:
        flip_bit(copy / "part-000000.tar", at)
    reader = Reader(manifest, modalities=wide, max_corrupt_share=1.0)
    reader.read(0, 0, 10)
    met = list(reader.corrupt)
    assert [d.row for d in met] == [5, 7] and reader.still_corrupt(met) == met
    flip_bit(copy / "part-000000.tar", place[0])
    only_the_second_shard = View.where(manifest, np.arange(manifest.rows) >= int(manifest.counts[0]))
    elsewhere = Reader(manifest, only_the_second_shard, modalities=wide, max_corrupt_share=0.0)
    assert elsewhere.still_corrupt(met) == met[1:] and len(elsewhere.corrupt) == 0


def test_presence_and_headers_are_checked_in_views(copy: Path, wide: dict[str, tuple[str, ...]]) -> None:
    def contradict(raw: np.ndarray, layout: object) -> None:
        at = layout.payload_offsets[1]  # type: ignore[attr-defined]
        raw[4, at : at + 10] = 0

    reader = Reader(_forge(copy, contradict), modalities=wide, max_corrupt_share=1.0)
    rows = reader.read(0, 0, 10, out=reader.allocate(10, views=True))
    assert [(d.key, d.reason) for d in reader.corrupt] == [
        ("s4", "presence in the index and NaN in the payload disagree")
    ]
    assert not rows.present["still"][4] and not rows.features["still"][4].any()

    def widen(raw: np.ndarray, layout: object) -> None:
        raw[3, 512:640] = np.frombuffer(bytes(raw[3, 512:640]).replace(b"(7,)", b"(8,)"), np.uint8)

    reader = Reader(_forge(copy, widen), modalities=wide, max_corrupt_share=1.0)
    with pytest.raises(ShardError, match=r"sample 's3': column 'v2d' has another width.*\(7,\).*found.*\(8,\)"):
        reader.read(0, 0, 10, out=reader.allocate(10, views=True))


def test_features_are_copied_where_views_would_not_do(whole: Manifest, wide: dict[str, tuple[str, ...]]) -> None:
    assert Reader(whole, modalities=wide).pitch == whole.entry(0).stride
    assert Reader(whole).pitch == 0  # video is composed of two columns
    assert Reader(whole, modalities=wide, dtype="float32").pitch == 0
    assert Reader(whole, modalities={**wide, "again": ("audio",)}).pitch == 0
    assert Reader(whole).allocate(3, views=True).raw is None
    with pytest.raises(ValueError, match="out has samples of"):
        Reader(whole).read(0, 0, 3, out=Reader(whole, modalities=wide).allocate(3, views=True))


def test_views_are_made_where_little_is_kept_beside_them(tmp_path: Path) -> None:
    schema = Schema((Column("big", 4096), Column("small", 128)))
    with ShardWriter(tmp_path / "data", schema) as writer:
        writer.append(Sample("a", {"big": np.ones(4096), "small": np.ones(128)}))
    assert writer.manifest is not None
    assert Reader(writer.manifest).pitch == writer.manifest.entry(0).stride
    assert Reader(writer.manifest, modalities=["small"]).pitch == 0


# Damage


def _slot(whole: Manifest, row: int) -> int:
    return row * whole.entry(0).stride


@pytest.mark.parametrize("part", ["tar header", "npy header", "payload", "json", "padding"])
def test_a_flipped_bit_quarantines_its_sample_by_name(copy: Path, samples: list[Sample], part: str) -> None:
    manifest = Manifest.open(copy)
    offset = {
        "tar header": 3,
        "npy header": 512 + 40,
        "payload": 512 + 128 + 9,
        "json": -20,
        "padding": 512 + 128 + 100,
    }
    flip_bit(
        copy / "part-000000.tar",
        5 * manifest.entry(0).stride + offset[part] + (manifest.entry(0).stride if part == "json" else 0),
    )
    met: list[CorruptSample] = []
    reader = Reader(manifest, max_corrupt_share=0.1, quarantine=met.append)
    for _ in range(2):  # a second epoch does not count it twice
        rows = reader.read(0, 0, 10)
    assert [(d.shard, d.key, d.row) for d in reader.corrupt] == [("part-000000", "s5", 5)] and len(met) == 1
    assert "checksum" in met[0].reason
    assert rows.row[5] == 5 and not rows.present["video"][5] and not rows.present["audio"][5]
    assert not rows.features["video"][5].any() and not rows.features["audio"][5].any()
    assert rows.labels["mood"][5] == -1 and rows.group is not None and rows.group[5] == -1
    for i in (0, 4, 6, 9):
        assert_is_sample(rows, i, i, samples[i])


def test_beyond_the_share_reading_stops_with_the_names(copy: Path) -> None:
    for row in (1, 5):
        flip_bit(copy / "part-000000.tar", row * Manifest.open(copy).entry(0).stride + 700)
    with pytest.raises(CorruptionError, match=r"'part-000000', sample 's1'.*exceed the share 0 of 64"):
        Reader(Manifest.open(copy), max_corrupt_share=0.0).read(0, 0, 10)
    with pytest.raises(CorruptionError, match=r"sample 's5'.*2 corrupt samples"):
        Reader(Manifest.open(copy), max_corrupt_share=0.02).read(0, 0, 10)
    assert len(Reader(Manifest.open(copy), max_corrupt_share=1.0).read(0, 0, 10)) == 10


def test_reordered_slots_are_not_mistaken_for_each_other(copy: Path) -> None:
    stride, path = Manifest.open(copy).entry(0).stride, copy / "part-000000.tar"
    data = bytearray(path.read_bytes())
    data[:stride], data[stride : 2 * stride] = data[stride : 2 * stride], data[:stride]
    path.write_bytes(data)
    reader = Reader(Manifest.open(copy), max_corrupt_share=1.0)
    reader.read(0, 0, 4)
    assert [damage.key for damage in reader.corrupt] == ["s0", "s1"]


@pytest.mark.parametrize("cut", [0, 511, 512, 4096, 50_000, -1, -512, -10240])
def test_a_truncated_shard_is_refused(copy: Path, cut: int) -> None:
    path = copy / "part-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    with pytest.raises(
        ShardError, match=rf"'part-000000': size in bytes differs.*expected {len(data)}.*found {len(data[:cut])}"
    ):
        Reader(Manifest.open(copy)).read(0, 0, 1)


def test_a_shard_that_shrinks_while_it_is_open_is_refused(copy: Path) -> None:
    reader = Reader(Manifest.open(copy))
    reader.read(0, 0, 2)
    os.truncate(copy / "part-000000.tar", 6000)
    with pytest.raises(ShardError, match="size in bytes differs"):
        reader.read(0, 0, 20)


@pytest.mark.parametrize("name", ["part-000000.tar", "part-000000.index.parquet"])
def test_missing_files(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ShardError, match=f"'part-000000'.*{name} is missing"):
        Reader(Manifest.open(copy)).read(0, 0, 1)
    os.mkfifo(copy / name)  # must not wait for a writer
    if name.endswith(".tar"):
        with pytest.raises(ShardError, match="not a regular file"):
            Reader(Manifest.open(copy)).read(0, 0, 1)


def test_a_damaged_index_is_refused_wherever_the_bit_is(copy: Path) -> None:
    path = copy / "part-000000.index.parquet"
    data = path.read_bytes()
    for position in range(0, len(data), len(data) // 50):
        path.write_bytes(data)
        flip_bit(path, position)
        with pytest.raises(ShardError, match=r"'part-000000': index differs from the manifest"):
            Reader(Manifest.open(copy)).read(0, 0, 1)


def test_swapped_shards_and_a_stale_manifest_are_refused(copy: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(copy)
    for end in (".tar", ".index.parquet"):
        (copy / f"part-000000{end}").rename(copy / "spare")
        (copy / f"part-000001{end}").rename(copy / f"part-000000{end}")
        (copy / "spare").rename(copy / f"part-000001{end}")
    with pytest.raises(ShardError, match=r"'part-000000'.*index differs"):
        Reader(manifest).read(0, 0, 1)
    newer = write(tmp_path / "newer", make_samples(64, seed=1), shard_samples=25)
    for file in Path(newer.folder).glob("part*"):
        shutil.copy(file, copy / file.name)
    with pytest.raises(ShardError, match=r"index differs from the manifest.*stale"):
        Reader(manifest).read(0, 0, 1)


def _forge(copy: Path, change: object) -> Manifest:
    """Change the first shard's samples and make index and manifest agree with it, as a faulty writer would."""
    import xxhash

    from shards.format.index import INDEX_SUFFIX, IndexRows, decode_index, encode_index, read_table

    tar, index_path = copy / "part-000000.tar", copy / f"part-000000{INDEX_SUFFIX}"
    index = decode_index("part-000000", index_path.read_bytes())
    table = read_table("part-000000", index_path.read_bytes())
    stride = index.stride
    data = bytearray(tar.read_bytes())
    raw = np.frombuffer(data, np.uint8, len(index) * stride).reshape(-1, stride)
    change(raw, index.layout)  # type: ignore[operator]
    tar.write_bytes(data)
    rows = IndexRows(
        table["key"].to_pylist(),
        table["offset"].to_numpy(),
        np.array([xxhash.xxh3_64_intdigest(sample.tobytes()) for sample in raw], np.uint64),
        index.present,
        {name: values.tolist() for name, values in index.labels.items()},
        table["group"].to_pylist(),
        table["text"].to_pylist(),
        {"split": table["meta.split"].to_pylist()},
    )
    index_path.write_bytes(encode_index(SCHEMA, index.layout_dict, rows))
    return Manifest.assemble(copy, ["part-000000", "part-000001", "part-000002"])


def test_width_or_dtype_other_than_the_manifest_says(copy: Path) -> None:
    def as_integers(raw: np.ndarray, layout: object) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": (7,)})
        raw[3, 512:640] = np.frombuffer(header.getvalue(), np.uint8)

    reader = Reader(_forge(copy, as_integers), max_corrupt_share=1.0)
    reader.read(0, 0, 3)
    with pytest.raises(ShardError, match=r"sample 's3': column 'v2d' has another width or dtype.*'<f4'.*found.*'<i4'"):
        reader.read(0, 0, 10)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_presence_that_the_payload_denies(copy: Path, value: float) -> None:
    row = 4 if value == 0.0 else 2  # v3d of s4 is missing, that of s2 is there

    def contradict(raw: np.ndarray, layout: object) -> None:
        at = layout.payload_offsets[1]  # type: ignore[attr-defined]
        raw[row, at : at + 10] = np.frombuffer(np.full(5, value, np.float16).tobytes(), np.uint8)

    reader = Reader(_forge(copy, contradict), max_corrupt_share=1.0)
    rows = reader.read(0, 0, 10)
    assert [(damage.key, "presence" in damage.reason) for damage in reader.corrupt] == [(f"s{row}", True)]
    assert not rows.present["video"][row] and not rows.features["video"][row].any()


def test_errors_survive_the_way_back_from_a_worker() -> None:
    error = ShardError("p", "bad", sample="s", expected=1, found=2, remedy="Mend it")
    again = deepcopy(error)  # by the same protocol as a worker's answer
    assert str(again) == str(error) and again.sample == "s" and type(again) is ShardError


def test_tar_members_cover_the_file(whole: Manifest) -> None:
    with tarfile.open(f"{whole.folder}/part-000000.tar") as tar:
        assert all(member.isreg() and member.mtime == 0 and member.mode == 0o644 for member in tar)


def test_names_of_an_earlier_version_are_refused_with_those_of_today() -> None:
    for name, today in (
        ("Damage", "CorruptSample"),
        ("DamageError", "CorruptionError"),
        ("DamageLog", "CorruptionLog"),
    ):
        with pytest.raises(AttributeError, match=rf"no attribute '{name}'; it is called {today} now"):
            getattr(shards, name)
        assert getattr(shards, today).__name__ == today
