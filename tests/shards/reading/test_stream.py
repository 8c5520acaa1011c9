"""The one-process stream against rows looked up one by one in the plan's order."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.errors import CorruptionError, ShardError
from shards.format.manifest import Manifest
from shards.format.schema import Column, Label, Sample, Schema
from shards.format.writer import ShardWriter
from shards.planning.plan import REMAINDERS, Cursor, EpochPlan, Range
from shards.planning.view import View
from shards.reading.reader import Reader
from shards.reading.rows import Rows
from shards.reading.stream import ReadAhead, merged, stream

ROWS = 157


def features_of(row: int) -> dict[str, np.ndarray | None]:
    rng = np.random.default_rng(row)
    columns: dict[str, np.ndarray | None] = {
        "a": rng.standard_normal(3, np.float32),
        "b": rng.standard_normal(5, np.float32),
    }
    if row % 11 == 4:
        columns["b"] = None
    return columns


def write(folder: Path) -> Manifest:
    schema = Schema(
        columns=(Column("a", 3), Column("b", 5)), labels=(Label("mood", "class", ("x", "y", "z")),), grouped=True
    )
    with ShardWriter(folder, schema, max_shard_bytes=81_920) as writer:
        for i in range(ROWS):
            text = "x" * (700 * (i // 60))  # so that shards differ in the length of a sample
            writer.append(Sample(f"k{i}", features_of(i), {"mood": i % 3}, group=f"g{i % 7}", text=text))
    assert writer.manifest is not None
    return writer.manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(tmp_path_factory.mktemp("stream") / "data")


@pytest.fixture(params=[False, True], ids=["columns", "views"])
def views(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Features with memory of their own (as samples so small have), or as views on whole samples."""
    monkeypatch.setattr("shards.reading.reader._VIEW_OVERHEAD", 1e9 if request.param else 0.0)
    return request.param


def check_rows(batch: Rows, expected: list[int]) -> None:
    """The batch holds exactly the global rows expected (-1 padding), with their values."""
    assert batch.row.tolist() == expected
    for i, row in enumerate(expected):
        columns = features_of(row) if row >= 0 else {"a": None, "b": None}
        for name, values in columns.items():
            assert bool(batch.present[name][i]) == (values is not None)
            assert np.array_equal(
                batch.features[name][i], np.zeros_like(batch.features[name][i]) if values is None else values
            )
        assert batch.labels["mood"][i] == (row % 3 if row >= 0 else -1)


def expected_rows(plan: EpochPlan, view: View, cursor: Cursor, rank: int, world: int) -> list[int]:
    """Global row numbers of one rank's batch, looked up one by one."""
    rows = [
        int(view.manifest.rows_before[piece.shard] + view.indices(piece.shard)[position])
        for piece in plan.rows(cursor.epoch, cursor.step, rank, world)
        for position in range(piece.start, piece.stop)
    ]
    return rows + [-1] * (plan.local_batch(world) - len(rows))


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_stream_follows_the_plan(manifest: Manifest, remainder: str, world: int, prefetch: int, views: bool) -> None:
    assert len(set(manifest.shards["stride"].to_pylist())) > 1
    view = View.where(manifest, np.arange(ROWS) % 5 != 2)
    plan = EpochPlan(view.counts, seed=4, global_batch=32, chunk_rows=5, remainder=remainder)
    reader = Reader(manifest, view)
    start, steps = Cursor(0, 2), 9
    for rank in range(world):
        cursor = start
        batches = list(stream(reader, plan, rank, world, start, steps, prefetch))
        assert len(batches) == steps
        for batch in batches:
            assert batch.cursor == cursor and (batch.raw is not None) == views
            check_rows(batch, expected_rows(plan, view, cursor, rank, world))
            cursor = plan.advance(cursor, 1)


def test_resume_equals_the_rest(manifest: Manifest) -> None:
    plan = EpochPlan(manifest.counts, seed=4, global_batch=20, remainder="carry")
    whole = [batch.row.tolist() for batch in stream(Reader(manifest), plan, 0, 1, Cursor(), 20)]
    first = list(stream(Reader(manifest), plan, 0, 1, Cursor(), 9))
    assert first[-1].cursor is not None
    then = plan.advance(first[-1].cursor, 1)
    rest = [batch.row.tolist() for batch in stream(Reader(manifest), plan, 0, 1, then, 11)]
    assert [batch.row.tolist() for batch in first] + rest == whole
    # Two ranks resume what one rank began.
    halves = [list(stream(Reader(manifest), plan, r, 2, then, 11)) for r in range(2)]
    assert [[*a.row.tolist(), *b.row.tolist()] for a, b in zip(*halves, strict=True)] == rest


def test_small_planning_windows_change_nothing(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = EpochPlan(manifest.counts, seed=4, global_batch=20, remainder="pad")
    whole = [batch.row.tolist() for batch in stream(Reader(manifest), plan, 0, 1, Cursor(), 30)]
    monkeypatch.setattr("shards.reading.stream.PIECES_PLANNED", 50)
    assert [batch.row.tolist() for batch in stream(Reader(manifest), plan, 0, 1, Cursor(), 30)] == whole


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_that_are_kept_keep_their_values(manifest: Manifest, prefetch: int, views: bool) -> None:
    """Memory is used again, but never what somebody still holds, be it as a view, a tensor or a dictionary."""
    plan = EpochPlan(manifest.counts, seed=0, global_batch=16)
    fresh = list(stream(Reader(manifest), plan, 0, 1, Cursor(), 40, prefetch))
    assert (fresh[0].raw is not None) == views
    assert not any(np.may_share_memory(a.features["a"], b.features["b"]) for a, b in itertools.permutations(fresh, 2))
    held: list[tuple[Any, Any]] = []
    places = set()
    batches = stream(Reader(manifest), plan, 0, 1, Cursor(), 40, prefetch)
    for i in range(40):
        batch = next(batches)
        places.add(batch.features["a"].ctypes.data)
        if i % 8 == 3:
            held.append((batch.features["a"][2:5], fresh[i].features["a"][2:5]))
        if i % 8 == 5:
            held.append((torch.from_numpy(batch.features["b"])[3:], fresh[i].features["b"][3:]))
        if i % 8 == 6:
            held.append((memoryview(batch.features["a"][1]), fresh[i].features["a"][1]))
        if i % 8 == 7:
            held.append((batch.features, fresh[i].features))
        if i % 8 == 1 and batch.raw is not None:
            payload = slice(512 + 128, 512 + 128 + 12)  # behind a sample's end lies what lay there before
            held.append((batch.raw[4:6, payload], fresh[i].raw[4:6, payload]))  # type: ignore[index]
        del batch
    for kept, expected in held:
        if isinstance(kept, dict):
            assert all(np.array_equal(kept[name], expected[name]) for name in expected)
        else:
            assert np.array_equal(np.asarray(kept), expected)
    assert len(places) < 35  # 40 without any use again


class Blocks:
    """Memory for batches, all of which is known: by the address of each block."""

    def __init__(self) -> None:
        self.blocks: dict[int, int] = {}
        self._tensors: list[torch.Tensor] = []  # as pinned memory, which belongs to no array

    def __call__(self, size: int) -> np.ndarray:
        self._tensors.append(torch.full((size,), 0x55, dtype=torch.uint8))
        self.blocks[self._tensors[-1].data_ptr()] = size
        found: np.ndarray = self._tensors[-1].numpy()
        return found

    def hold(self, rows: Rows) -> bool:
        """Whether every array of the batch but its labels is a whole block."""
        arrays = [
            *rows.features.values(),
            *rows.present.values(),
            rows.row,
            *([] if rows.group is None else [rows.group]),
        ]
        return all(self.blocks.get(x.ctypes.data) == x.nbytes and x.flags.c_contiguous for x in arrays)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_are_read_into_memory_that_is_given(manifest: Manifest, prefetch: int, views: bool) -> None:
    """Without gaps, whatever the samples look like; taken again once nobody holds any array of a batch, or a part of
    one."""
    view = View.where(manifest, np.arange(ROWS) % 5 != 2)
    plan = EpochPlan(view.counts, seed=4, global_batch=32, chunk_rows=5)
    reader, memory, kept, steps = Reader(manifest, view), Blocks(), [], 14
    expected = [expected_rows(plan, view, plan.advance(Cursor(), i), 1, 2) for i in range(steps)]
    batches = stream(reader, plan, 1, 2, Cursor(), steps, prefetch, memory)
    for i, batch in enumerate(batches):
        assert memory.hold(batch)
        check_rows(batch, expected[i])
        if i < 3:
            kept.append((torch.from_numpy(batch.features["a"])[2:5], batch.features["b"][7:9]))
    for i, (a, b) in enumerate(kept):
        np.testing.assert_array_equal(a, [features_of(row)["a"] for row in expected[i][2:5]])
        np.testing.assert_array_equal(
            b, [np.zeros(5) if (x := features_of(r)["b"]) is None else x for r in expected[i][7:9]]
        )
    arrays = 2 + 2 + 1 + 1 + 1  # features, presence, numbers, groups, labels
    assert len(memory.blocks) <= arrays * (len(kept) + prefetch + 3), "memory is not used again"


def test_errors_reach_the_consumer_after_the_batches_before(tmp_path: Path) -> None:
    manifest = write(tmp_path / "data")
    plan = EpochPlan(manifest.counts, seed=0, global_batch=16, chunk_rows=4)
    cursor, broken = Cursor(), manifest.entry(len(manifest) - 1).name
    before = 0
    while all(piece.shard != len(manifest) - 1 for piece in plan.rows(0, before)):
        before += 1
    (Path(manifest.folder) / f"{broken}.tar").unlink()
    seen = []
    with pytest.raises(ShardError, match=broken):
        for batch in stream(Reader(manifest), plan, 0, 1, cursor, 9):
            seen.append(batch)
    assert len(seen) == before


def test_damage_is_masked_and_counted_then_stops(tmp_path: Path, views: bool) -> None:
    manifest = write(tmp_path / "data")
    path = Path(manifest.folder) / f"{manifest.entry(0).name}.tar"
    data = bytearray(path.read_bytes())
    data[3 * manifest.entry(0).stride + 700] ^= 1  # a payload byte of row 3
    path.write_bytes(bytes(data))
    plan = EpochPlan(manifest.counts, seed=0, global_batch=ROWS)
    reader = Reader(manifest, max_corrupt_share=0.1)
    (batch,) = stream(reader, plan, 0, 1, Cursor(), 1)
    at = batch.row.tolist().index(3)
    assert not any(there[at] for there in batch.present.values()) and batch.labels["mood"][at] == -1
    assert [(d.shard, d.key, d.row) for d in reader.corrupt] == [(manifest.entry(0).name, "k3", 3)]
    with pytest.raises(CorruptionError, match="k3"):
        list(stream(Reader(manifest, max_corrupt_share=0.0), plan, 0, 1, Cursor(), 1))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "shards-read-ahead"]


def test_closing_stops_the_thread(manifest: Manifest) -> None:
    plan = EpochPlan(manifest.counts, seed=0, global_batch=16)
    batches = stream(Reader(manifest), plan, 0, 1, Cursor(), 1000)
    next(batches)
    assert threads()
    batches.close()  # type: ignore[attr-defined]
    assert not threads()


def test_read_ahead_is_bounded() -> None:
    made = []
    reached = threading.Event()

    def source() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            if i == 3:
                reached.set()
            yield i

    ahead = ReadAhead(source(), 2)  # starts by itself
    assert not reached.wait(0.3) and made == [0, 1, 2]  # two waiting, one in the thread's hands
    assert next(ahead) == 0
    assert reached.wait(5)
    assert len(made) == 4
    assert list(ahead) == list(range(1, 100))
    assert not threads()


def test_merged() -> None:
    assert merged([Range(0, 0, 4), Range(0, 4, 8), Range(1, 8, 9), Range(1, 10, 12), Range(0, 12, 13)]) == [
        Range(0, 0, 8),
        Range(1, 8, 9),
        Range(1, 10, 12),
        Range(0, 12, 13),
    ]


def test_misfits_are_refused_at_once(manifest: Manifest) -> None:
    plan = EpochPlan(manifest.counts, seed=0, global_batch=16)
    view = View.where(manifest, np.arange(ROWS) % 2 == 0)
    for reader, rank, world, steps, word in [
        (Reader(manifest, view), 0, 1, 1, "make the plan from the same view"),
        (Reader(manifest), 2, 2, 1, "rank is 2"),
        (Reader(manifest), 0, 1, -1, "steps is -1"),
    ]:
        with pytest.raises(ValueError, match=word):
            stream(reader, plan, rank, world, Cursor(), steps)
    assert list(stream(Reader(manifest), plan, 0, 1, Cursor(), 0)) == []
