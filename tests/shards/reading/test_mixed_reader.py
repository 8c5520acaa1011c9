"""Several corpora read as one: each row's values, speakers, missing modalities and damage, looked up one by one."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import CorruptionError, CorruptSample, ShardError
from shards.format.index import group_id
from shards.format.manifest import Manifest
from shards.format.schema import Column, Sample, Schema
from shards.format.writer import ShardWriter
from shards.planning.mixed_plan import MixedPlan
from shards.planning.plan import Cursor
from shards.planning.view import View
from shards.reading.mixed_reader import MixedReader
from shards.reading.ray_blocks import PADDING_SHARD, TaskReader, fill, places_table, ranges_of
from shards.reading.reader import Reader
from shards.reading.stream import RowMemory, placed, stream
from tests.shards.slow_mixture import slow_mixture
from tests.shards.small_data import flip_bit

# Columns of each corpus, by the modality that they make: `own` names them otherwise, stores half precision and has no
# text; `tv` has no speakers.
COLUMNS = {
    "own": {"video": Column("pictures", 4, "float16"), "audio": Column("sound", 3)},
    "tv": {"audio": Column("audio", 3), "text": Column("text", 2, "float64")},
    "vox": {"video": Column("video", 4), "audio": Column("audio", 3), "text": Column("text", 2, "float64")},
}
ROWS = {"own": 23, "tv": 40, "vox": 61}
WEIGHTS = {0: {"own": 1, "tv": 2, "vox": 3}, 9: {"own": 2, "tv": 1, "vox": 0}}


def value(corpus: str, modality: str, row: int) -> np.ndarray | None:
    if modality not in COLUMNS[corpus] or (row % 7 == 3 and modality == "audio"):
        return None
    column = COLUMNS[corpus][modality]
    return (np.arange(column.width) / 4 + row + 100 * len(corpus)).astype(column.dtype)


def write(folder: Path, corpus: str) -> Manifest:
    columns = COLUMNS[corpus]
    schema = Schema(tuple(columns.values()), {m: (c.name,) for m, c in columns.items()}, grouped=corpus != "tv")
    with ShardWriter(folder / corpus, schema, max_shard_bytes=81_920) as writer:
        for row in range(ROWS[corpus]):
            group = None if corpus == "tv" or row % 5 == 4 else f"s{row % 3}"
            stored = {column.name: value(corpus, modality, row) for modality, column in columns.items()}
            writer.append(Sample(f"k{row}", stored, group=group))
    assert writer.manifest is not None
    return writer.manifest


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    folder = tmp_path_factory.mktemp("mixture")
    return {corpus: write(folder, corpus) for corpus in COLUMNS}


def views_of(manifests: dict[str, Manifest]) -> dict[str, View]:
    return {name: View.where(m, np.arange(m.rows) % 6 != 1) for name, m in manifests.items()}


def mixture(manifests: dict[str, Manifest], **options: Any) -> tuple[MixedReader, MixedPlan, list[list[int]]]:
    """Reader, plan, and the global rows of its first 30 batches by the slow version."""
    views = views_of(manifests)
    reader = MixedReader({name: Reader(m, views[name]) for name, m in manifests.items()}, **options)
    counts = {name: view.counts.tolist() for name, view in views.items()}
    plan = MixedPlan(counts, WEIGHTS, seed=5, global_batch=17, chunk_rows=4)
    selected, first = [], 0
    for name in sorted(manifests):
        before = manifests[name].rows_before
        rows = np.flatnonzero(np.arange(manifests[name].rows) % 6 != 1)
        selected += [rows[(rows >= a) & (rows < b)] + first for a, b in itertools.pairwise(before)]
        first += manifests[name].rows
    batches = slow_mixture(counts, WEIGHTS, 5, 17, 4, 30)
    return reader, plan, [[int(selected[shard][i]) for shard, i in batch] for batch in batches]


def place(row: int) -> tuple[str, int]:
    """Corpus and own number of a global row."""
    for name in sorted(ROWS):
        if row < ROWS[name]:
            return name, row
        row -= ROWS[name]
    raise AssertionError(row)


def check_rows(batch: Any, expected: list[int], damaged: frozenset[int] = frozenset()) -> None:
    assert batch.row.tolist() == expected
    assert batch.features["video"].dtype == np.float32 and batch.features["text"].dtype == np.float64
    for i, row in enumerate(expected):
        corpus, own = place(row) if row >= 0 else ("", -1)
        if batch.corpus is not None:
            assert batch.corpus[i] == (sorted(ROWS).index(corpus) if row >= 0 else -1)
        for modality in ("video", "audio", "text"):
            wanted = None if row < 0 or row in damaged else value(corpus, modality, own)
            assert bool(batch.present[modality][i]) == (wanted is not None)
            array = batch.features[modality][i]
            assert np.array_equal(array, np.zeros_like(array) if wanted is None else wanted)
        alone = row < 0 or row in damaged or corpus == "tv" or own % 5 == 4
        assert (batch.group[i] == -1) == alone


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_stream_follows_the_slow_mixture(manifests: dict[str, Manifest], world: int) -> None:
    reader, plan, batches = mixture(manifests)
    local = plan.local_batch(world)
    for rank in range(world):
        steps = list(stream(reader, plan, rank, world, Cursor(0, 3), 20))
        assert [step.cursor for step in steps] == [plan.cursor_at(3 + i) for i in range(20)]
        for step, rows in zip(steps, batches[3:], strict=False):
            own = rows[rank * local : (rank + 1) * local]
            check_rows(step, own + [-1] * (local - len(own)))


def test_restarts_with_other_numbers_of_workers_read_the_same(manifests: dict[str, Manifest]) -> None:
    _, plan, batches = mixture(manifests)
    state, done = Cursor().to_dict(), 0
    for world, steps in ((2, 4), (3, 7), (1, 5), (4, 6)):
        cursor = Cursor.from_dict(state)
        assert plan.global_step(cursor) == done
        ranks = [list(stream(mixture(manifests)[0], plan, r, world, cursor, steps)) for r in range(world)]
        for i, parts in enumerate(zip(*ranks, strict=True)):
            rows = np.concatenate([part.row for part in parts])
            assert rows[rows >= 0].tolist() == batches[done + i]
        state, done = plan.advance(ranks[0][-1].cursor, 1).to_dict(), done + steps


def test_speakers_of_one_name_are_of_one_corpus(manifests: dict[str, Manifest]) -> None:
    def groups(speakers: dict[str, str] | None) -> dict[str, set[int]]:
        reader = MixedReader({name: Reader(m) for name, m in manifests.items()}, speakers)
        rows = reader.read_ranges([(shard, 0, int(n)) for shard, n in enumerate(reader.counts)])
        corpus = reader.corpus_of(rows.row)
        assert rows.group is not None
        return {name: set(rows.group[corpus == i].tolist()) - {-1} for i, name in enumerate(reader.names)}

    apart = groups(None)
    assert [len(apart[name]) for name in ("own", "tv", "vox")] == [3, 0, 3]
    assert not apart["own"] & apart["vox"]
    plain = {group_id(f"s{i}") for i in range(3)}
    assert not plain & (apart["own"] | apart["vox"])
    shared = groups({"own": "people", "vox": "people"})
    assert shared["own"] == shared["vox"] and len(shared["own"]) == 3


def test_it_reads_the_same_after_a_pickle_and_in_tasks(manifests: dict[str, Manifest]) -> None:
    reader, plan, batches = mixture(manifests, speakers={"own": "x"})
    ranges = plan.rows(0, 1)
    expected = reader.read_ranges(ranges)
    for one in (reader, reader.for_tasks()):
        other = pickle.loads(pickle.dumps(one))  # noqa: S301 - what was just pickled
        rows = other.read_ranges(ranges, size=19)
        check_rows(rows, batches[1] + [-1, -1])
        assert np.array_equal(rows.group[:17], expected.group)


def test_damage_is_named_by_corpus_and_counted_once(tmp_path: Path) -> None:
    manifests = {corpus: write(tmp_path, corpus) for corpus in COLUMNS}
    bad = {"own": 8, "vox": 20}  # own numbers, all selected
    for corpus, row in bad.items():
        manifest = manifests[corpus]
        shard = int(np.searchsorted(manifest.rows_before, row, side="right")) - 1
        entry = manifest.entry(shard)
        at = (row - int(manifest.rows_before[shard])) * entry.stride + 645
        flip_bit(Path(manifest.folder) / f"{entry.name}.tar", at)
    told: list[CorruptSample] = []
    reader, plan, batches = mixture(manifests, max_corrupt_share=0.1, quarantine=told.append)
    rows = {bad["own"], ROWS["own"] + ROWS["tv"] + bad["vox"]}
    for step, expected in zip(stream(reader, plan, 0, 1, Cursor(), 30), batches, strict=True):
        check_rows(step, expected, frozenset(rows))
    assert {damage.row for damage in told} == rows and len(told) == len(reader.corrupt) == 2
    assert {damage.shard.split("/")[0]: damage.key for damage in told} == {"own": "k8", "vox": "k20"}
    assert all(damage.shard == reader.shard_of(damage.row) for damage in told)
    assert reader.corrupt.rows_read == 30 * 17
    again = reader.still_corrupt([*told, CorruptSample("tv/x", "k0", ROWS["own"], "restored since")])
    assert sorted(again, key=lambda d: d.row) == sorted(told, key=lambda d: d.row)
    strict, _, _ = mixture(manifests, max_corrupt_share=0.01)
    with pytest.raises(CorruptionError, match=r"^shard '(own|vox)/[^/]*', .* exceed the share 0.01 of"):
        list(stream(strict, plan, 0, 1, Cursor(), 30))


def test_errors_name_the_corpus(tmp_path: Path, manifests: dict[str, Manifest]) -> None:
    lost = {**manifests, "tv": write(tmp_path, "tv")}
    name = lost["tv"].entry(0).name
    (Path(lost["tv"].folder) / f"{name}.tar").unlink()
    reader, plan, _ = mixture(lost)
    with pytest.raises(ShardError, match=rf"^shard 'tv/{name}'.*missing"):
        list(stream(reader, plan, 0, 1, Cursor(), 30))
    with pytest.raises(IndexError, match="shard number 99"):
        reader.read_ranges([(99, 0, 1)])
    with pytest.raises(ValueError, match="make the plan from the same view"):
        stream(reader, MixedPlan({"a": [40]}, {"a": 1}, 0, 8), 0, 1, Cursor(), 1)


def test_a_modality_has_one_width(manifests: dict[str, Manifest]) -> None:
    other = Reader(manifests["tv"], modalities={"audio": ("text",)})
    with pytest.raises(ValueError) as caught:
        MixedReader({"vox": Reader(manifests["vox"]), "tv": other})
    assert str(caught.value).startswith("corpus 'vox': modality 'audio' (audio) has width 3, expected 2 as in 'tv'")
    assert "\n" not in str(caught.value) and "modalities of the source" in str(caught.value)


def test_corpora_laid_out_alike_are_read_as_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unlike strides; what is read equals what is copied."""
    monkeypatch.setattr("shards.reading.reader._VIEW_OVERHEAD", 1e9)
    schema = Schema((Column("video", 4), Column("audio", 3)), grouped=True)
    manifests = {}
    for name, text in (("a", 10), ("b", 3000)):
        with ShardWriter(tmp_path / name, schema) as writer:
            for row in range(30):
                stored = {"video": np.arange(4) + row, "audio": None if row % 4 == 1 else np.arange(3) - row}
                writer.append(Sample(f"k{row}", stored, group=f"s{row % 3}", text="x" * text))
        assert writer.manifest is not None
        manifests[name] = writer.manifest
    assert len({manifest.entry(0).stride for manifest in manifests.values()}) == 2
    plan = MixedPlan({n: m.counts for n, m in manifests.items()}, {"a": 2, "b": 1}, 0, 10, chunk_rows=3)
    reader = MixedReader({name: Reader(manifest) for name, manifest in manifests.items()})
    tasks = TaskReader(pickle.loads(pickle.dumps(reader.for_tasks())))  # noqa: S301 - what was just pickled
    memory = RowMemory(reader, 12, 2, views=False)
    for step in stream(reader, plan, 0, 1, Cursor(), 12):
        ranges = plan.rows(step.cursor.epoch, step.cursor.step)
        copied, stored = reader.read_ranges(ranges), memory.take()
        fill(stored, tasks.table(np.array([*ranges, (PADDING_SHARD, 0, 2)], np.int64)), reader.offsets)
        assert step.raw is not None and step.raw.shape[1] == reader.pitch and copied.raw is None
        for other in (copied, stored.part(0, 10)):
            assert np.array_equal(step.row, other.row) and np.array_equal(step.group, other.group)
            for modality in ("video", "audio"):
                assert np.array_equal(step.features[modality], other.features[modality])
                assert np.array_equal(step.present[modality], other.present[modality])
        own = step.row % 30
        assert np.array_equal(step.features["video"], own[:, None] + np.arange(4))


def test_what_read_tasks_put_into_the_object_store_is_what_was_read(manifests: dict[str, Manifest]) -> None:
    """Both payloads without Ray: tables of rows, and of places; damage and padding among them."""
    reader, plan, batches = mixture(manifests)
    tasks = TaskReader(pickle.loads(pickle.dumps(reader.for_tasks())))  # noqa: S301 - what was just pickled
    memory = RowMemory(reader, 19, 2, views=False)
    for step in range(12):
        ranges = plan.rows(*divmod(step, plan.steps_per_epoch))
        pieces = np.array([*ranges, (PADDING_SHARD, 0, 2)], np.int64)
        rows = memory.take()
        fill(rows, tasks.table(pieces), reader.offsets)
        check_rows(placed(rows, reader, plan.cursor_at(step)), batches[step] + [-1, -1])
        places = reader.read_ranges(ranges_of(places_table(pieces)), size=19)
        check_rows(places, batches[step] + [-1, -1])
