"""Ray Data's execution of the plan equals the one-process stream, whatever the timing, the world and the payload."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import HealthCheck, given, seed, settings

from shards.errors import CorruptionError, CorruptSample, ShardError
from shards.format.manifest import Manifest
from shards.format.schema import Column, Label, Sample, Schema
from shards.format.writer import ShardWriter
from shards.planning.plan import Cursor, EpochPlan, Window
from shards.planning.view import View
from shards.reading import ray_source
from shards.reading.ray_blocks import TaskReader
from shards.reading.ray_source import PAYLOADS, Execution, stream
from shards.reading.reader import Reader
from shards.reading.rows import Rows
from shards.reading.stream import stream as one_process
from tests.cluster import drawn_streams
from tests.cluster.drawn_streams import Run
from tests.cluster.slow_view import FailingView, SlowView
from tests.shards.reading import test_mixed_reader

ROWS = 211
# Tasks of 7 rows cut steps into parts; tasks of 200 rows hold many steps; windows of few tasks give many borders.
SMALL = Execution(task_bytes=7 * 32, window_tasks=9)
LARGE = Execution(task_bytes=200 * 32, window_tasks=1)


@pytest.fixture(scope="module", autouse=True)
def no_free_cpu(shared_ray: None) -> Iterator[None]:
    """Both CPUs are held by an actor, as training workers hold theirs."""

    @ray.remote(num_cpus=2)
    class Worker:
        def here(self) -> bool:
            return True

    worker = Worker.remote()  # type: ignore[attr-defined]
    assert ray.get(worker.here.remote())
    yield
    ray.kill(worker)


def write(folder: Path, widths: tuple[int, int] = (3, 5)) -> Manifest:
    """Small samples, with a modality of two columns; or wide ones, whose features are views on whole samples."""
    labels = (Label("mood", "class", ("x", "y")), Label("both", "multilabel", ("p", "q")), Label("size", "continuous"))
    wide = widths[0] > 1000
    modalities = {"one": ("a",), "two": ("b",)} if wide else {"one": ("a", "b"), "two": ("b",)}
    schema = Schema((Column("a", widths[0]), Column("b", widths[1])), modalities, labels, grouped=True)
    rng = np.random.default_rng(0)
    with ShardWriter(folder, schema, max_shard_bytes=700_000 if wide else 102_400) as writer:
        for i in range(ROWS):
            columns = {
                "a": rng.standard_normal(widths[0]),
                "b": None if i % 9 == 2 else rng.standard_normal(widths[1]),
            }
            values: dict[str, Any] = {"mood": i % 2, "size": None if i % 5 else i}
            values["both"] = [float(i % 3 == 0), float("nan")]
            text = "y" * (8 * i)  # so that shards differ in the length of a sample
            writer.append(Sample(f"k{i}", columns, values, group=f"g{i % 7}" if i % 8 else None, text=text))
    assert writer.manifest is not None
    return writer.manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(tmp_path_factory.mktemp("ray") / "data")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(tmp_path_factory.mktemp("ray") / "wide", (2048, 256))


def same(one: Rows, two: Rows) -> bool:
    def arrays(step: Rows) -> list[np.ndarray]:
        assert step.group is not None
        return [
            step.row,
            step.group,
            *step.features.values(),
            *step.present.values(),
            *step.labels.values(),
        ]

    return (
        one.cursor == two.cursor
        and [list(part) for part in (one.features, one.labels)] == [list(part) for part in (two.features, two.labels)]
        and all(
            a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
            for a, b in zip(arrays(one), arrays(two), strict=True)
        )
    )


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    ("world", "remainder", "execution"),
    [
        (2, "carry", SMALL),
        # The drawn runs below meet cases like these.
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((3, "pad", LARGE), (1, "drop", SMALL), (1, "carry", LARGE), (3, "pad", SMALL))
        ),
    ],
)
def test_equals_the_one_process_stream(
    manifest: Manifest, payload: str, world: int, remainder: str, execution: Execution
) -> None:
    """Several epochs, begun in the middle of one, with tasks that take random times; all ranks side by side."""
    check_equal_streams(manifest, payload, world, remainder, execution)


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    ("world", "remainder", "execution"),
    [
        pytest.param(1, "carry", Execution(task_bytes=1 << 20), marks=pytest.mark.slow),
        (2, "pad", Execution(task_bytes=100_000, window_tasks=9)),
    ],
)
def test_equals_it_with_whole_samples_in_the_store(
    wide: Manifest, payload: str, world: int, remainder: str, execution: Execution
) -> None:
    assert Reader(wide).pitch == max(wide.shards["stride"].to_pylist()) > min(wide.shards["stride"].to_pylist())
    check_equal_streams(wide, payload, world, remainder, execution)


def check_equal_streams(manifest: Manifest, payload: str, world: int, remainder: str, execution: Execution) -> None:
    mask = np.arange(ROWS) % 6 != 1
    view = View.where(manifest, mask)
    slow = SlowView(manifest, view.name, view._bits, view.rule)
    plan = EpochPlan(view.counts, seed=9, global_batch=40, chunk_rows=6, remainder=remainder)
    start, steps = Cursor(0, 2), 13  # about three epochs
    peers = [one_process(Reader(manifest, view), plan, r, world, start, steps) for r in range(world)]
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(stream(Reader(manifest, slow), plan, r, world, start, steps, payload, execution))
            for r in range(world)
        ]
        for step in range(steps):
            for rank in range(world):
                assert same(next(ranks[rank]), next(peers[rank])), (step, rank)
        assert all(next(rank, None) is None for rank in ranks)


@pytest.mark.parametrize(
    ("store_steps", "left"),
    [
        (10, 5),  # the five last of a window's 24 batches fill half of the store
        (11, 5),  # half a batch more is no batch
        (1, 1),  # never after the last one was asked for: there would be a gap
        (1000, 13),  # a store that holds whole windows: not before a window's half
    ],
)
def test_a_window_starts_when_half_the_store_holds_what_is_left_of_the_one_before(
    wide: Manifest, store_steps: int, left: int
) -> None:
    """Earlier, its tasks would find the processes of the one before busy, and start others beside them."""
    batch, steps, started, handed_out = 20, 24, [], 0
    plan = EpochPlan(wide.counts, seed=1, global_batch=batch, remainder="carry")
    step_bytes = batch * max(wide.shards["stride"].to_pylist())  # whole samples travel through the store
    execution = Execution(task_bytes=4 * step_bytes, window_tasks=steps // 4, store_bytes=store_steps * step_bytes)

    class Counted(ray_source._Stream):
        def _start(self, parts: Iterator[Any]) -> Any:
            window = super()._start(parts)
            if window is not None:
                started.append(handed_out)
            return window

        def _execute(self, window: Window) -> Iterator[pa.Table]:
            """Without Ray Data, whose timing would decide otherwise."""
            tasks = TaskReader(Reader(wide, threads=1))
            for i in range(len(window.filled)):
                yield tasks.table(np.array(window.ranges(i), np.int64))

    source = Counted(Reader(wide), plan, 0, 1, "object_store", execution)
    for batches in source.batches(Cursor(), 3 * steps):
        assert len(batches) == batch
        handed_out += 1
    assert (started, handed_out) == ([0, steps - left, 2 * steps - left], 3 * steps)


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    ("world", "execution"), [(2, SMALL), pytest.param(3, LARGE, marks=pytest.mark.slow)], ids=["small", "large"]
)
def test_a_mixture_is_read_in_its_own_order(tmp_path: Path, payload: str, world: int, execution: Execution) -> None:
    """Three corpora of different columns, over a border of stages and several epochs of each: what one process reads,
    which is what the slow mixture says (tests.shards.reading.test_mixed_reader)."""
    manifests = {corpus: test_mixed_reader.write(tmp_path, corpus) for corpus in test_mixed_reader.COLUMNS}
    reader, plan, batches = test_mixed_reader.mixture(manifests)
    start, steps = plan.cursor_at(4), 20
    local = plan.local_batch(world)
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(stream(reader, plan, r, world, start, steps, payload, execution)) for r in range(world)
        ]
        for i in range(steps):
            for rank in range(world):
                step, rows = next(ranks[rank]), batches[4 + i][rank * local : (rank + 1) * local]
                assert step.cursor == plan.cursor_at(4 + i)
                test_mixed_reader.check_rows(step, rows + [-1] * (local - len(rows)))


def check_drawn_run(run: Run) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = drawn_streams.write(Path(folder) / "data", run)
        assert drawn_streams.consumed(run, manifest) == drawn_streams.expected(run, manifest)


@settings(max_examples=4, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(drawn_streams.runs())
def test_a_drawn_run_reads_the_uninterrupted_order(run: Run) -> None:
    """Any data, plan, cursor, chain of worker counts and cut into tasks; tasks and workers at random times."""
    check_drawn_run(run)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.campaign) for part in range(1, 5))])
def test_many_drawn_runs(part: int) -> None:
    @seed(part)
    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn_streams.runs())
    def runs(run: Run) -> None:
        check_drawn_run(run)

    runs()


def test_a_stream_that_reads_other_rows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the drawn runs fails where a start begins one step too late, or a worker takes another's part."""
    first = {"seed": 1, "global_batch": 12, "chunk_rows": 4, "remainder": "drop"}
    run = Run(60, 10**6, 5, 1.0, first, 3, [(2, 2), (3, 1)], "worker", SMALL)
    check_drawn_run(run)

    def late(reader: Reader, plan: EpochPlan, rank: int, world: int, cursor: Cursor, *rest: Any) -> Any:
        return stream(reader, plan, rank, world, plan.advance(cursor, 1), *rest)

    def swapped(reader: Reader, plan: EpochPlan, rank: int, world: int, *rest: Any) -> Any:
        return stream(reader, plan, world - 1 - rank, world, *rest)

    for fault in (late, swapped):
        monkeypatch.setattr(drawn_streams, "stream", fault)
        with pytest.raises(AssertionError):
            check_drawn_run(run)


def damaged(folder: Path, rows: tuple[int, ...]) -> Manifest:
    manifest = write(folder)
    for row in rows:
        shard = int(np.searchsorted(manifest.rows_before, row, side="right")) - 1
        entry = manifest.entry(shard)
        path = Path(manifest.folder) / f"{entry.name}.tar"
        data = bytearray(path.read_bytes())
        data[(row - int(manifest.rows_before[shard])) * entry.stride + 645] ^= 1
        path.write_bytes(bytes(data))
    return manifest


@pytest.mark.parametrize("payload", PAYLOADS)
def test_damage_met_by_tasks_reaches_the_consumer(tmp_path: Path, payload: str) -> None:
    rows = (3, 77, 140)
    manifest = damaged(tmp_path / "data", rows)
    plan = EpochPlan(manifest.counts, seed=1, global_batch=50, remainder="pad")
    told: list[CorruptSample] = []
    reader = Reader(manifest, max_corrupt_share=0.05, quarantine=told.append)  # cannot be pickled, need not be
    peer = Reader(manifest, max_corrupt_share=0.05)
    steps = 2 * int(plan.steps_per_epoch)
    for one, two in zip(
        stream(reader, plan, 0, 1, Cursor(), steps, payload, SMALL),
        one_process(peer, plan, 0, 1, Cursor(), steps),
        strict=True,
    ):
        assert same(one, two)
    assert sorted(entry.row for entry in reader.corrupt) == sorted(rows)
    assert {dataclasses.astuple(d) for d in reader.corrupt} == {dataclasses.astuple(d) for d in peer.corrupt}
    assert reader.corrupt.rows_read == peer.corrupt.rows_read == 2 * ROWS
    assert {entry.key for entry in told} == {f"k{row}" for row in rows}
    strict = Reader(manifest, max_corrupt_share=0.01)  # two of 211 rows
    with pytest.raises(CorruptionError, match=r"3 corrupt samples exceed the share 0.01"):
        list(stream(strict, plan, 0, 1, Cursor(), steps, payload, SMALL))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_missing_shard_is_an_error_with_its_name(tmp_path: Path, payload: str) -> None:
    manifest = write(tmp_path / "data")
    name = manifest.entry(1).name
    (Path(manifest.folder) / f"{name}.tar").unlink()
    plan = EpochPlan(manifest.counts, seed=1, global_batch=50)
    with pytest.raises(ShardError, match=f"{name}.*missing") as caught:
        list(stream(Reader(manifest), plan, 0, 1, Cursor(), 8, payload, SMALL))
    assert caught.value.shard == name


def test_other_errors_of_tasks_are_raised_too(manifest: Manifest) -> None:
    view = View.where(manifest, np.arange(ROWS) % 6 != 1)
    plan = EpochPlan(view.counts, seed=1, global_batch=50)
    failing = FailingView(manifest, view.name, view._bits, view.rule)
    with pytest.raises(Exception, match=r"cannot look up shard"):
        list(stream(Reader(manifest, failing), plan, 0, 1, Cursor(), 8, "object_store", SMALL))


def test_without_free_cpus_a_request_for_them_is_refused(manifest: Manifest) -> None:
    """With no CPU free the default reads all the same, as every test here; asking for some says why it cannot."""
    plan = EpochPlan(manifest.counts, seed=1, global_batch=50)
    with pytest.raises(RuntimeError, match=r"0 of the cluster's 2 CPUs are free.*ask for 0.5 each.*read_cpus=0"):
        stream(Reader(manifest), plan, 0, 1, Cursor(), 8, execution=Execution(read_cpus=0.5, patience=0.3))


def test_misfits_are_refused_at_once(manifest: Manifest) -> None:
    plan = EpochPlan(manifest.counts, seed=1, global_batch=50)
    with pytest.raises(ValueError, match=r"'wroker'.*did you mean 'worker'"):
        stream(Reader(manifest), plan, 0, 1, Cursor(), 8, "wroker")
    with pytest.raises(ValueError, match=r"make the plan from the same view"):
        stream(Reader(manifest), EpochPlan([5], 0, 2), 0, 1, Cursor(), 8)
    with pytest.raises(ValueError, match=r"task_bytes is 0"):
        Execution(task_bytes=0)
    assert list(stream(Reader(manifest), plan, 0, 1, Cursor(), 0)) == []
