"""`python -m benchmarks.readers` inside Ray Train workers: right rows and figures, and an end when one fails."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from benchmarks.readers import command as bench
from benchmarks.readers.methods import WIDTHS, OwnMethods, write_shards
from benchmarks.readers.ray_methods import _together, measure_in
from benchmarks.readers.report import Measured, measure
from benchmarks.readers.train_workers import TrainWorkers
from shards.format.manifest import Manifest
from shards.planning.plan import Cursor
from shards.reading.ray_source import PAYLOADS
from shards.reading.reader import Reader
from shards.reading.stream import stream

ROWS, BATCH, STEPS = 192, 16, 9  # one and a half epochs of two workers


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_shards(tmp_path_factory.mktemp("bench") / "data", ROWS, "float16")


@pytest.fixture(scope="module")
def two(shared_ray: None) -> Iterator[TrainWorkers]:
    """They reserve every CPU there is."""
    with TrainWorkers(2) as workers:
        yield workers


def read(own: OwnMethods, payload: str, rank: int, world: int) -> list[tuple[list[int], list[np.ndarray]]]:
    with own.ray_stream(payload, rank, world) as steps:
        return [
            (step.row.tolist(), [step.features[name].copy() for name in WIDTHS])
            for step, _ in zip(steps, range(STEPS), strict=False)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS)
def test_workers_read_the_global_batches(two: TrainWorkers, manifest: Manifest, payload: str) -> None:
    """The ranks' rows, one rank after the other, are those of one process that reads the whole batch."""
    first, second = two.run(functools.partial(read, OwnMethods(manifest, BATCH), payload))
    together = OwnMethods(manifest, 2 * BATCH).plan
    for i, expected in enumerate(stream(Reader(manifest), together, 0, 1, Cursor(), STEPS)):
        assert first[i][0] + second[i][0] == expected.row.tolist()
        for place, name in enumerate(WIDTHS):
            found = np.concatenate([first[i][1][place], second[i][1][place]])
            assert found.dtype == np.float16 and np.array_equal(found, expected.features[name])


def slowly(rank: int, world: int) -> tuple[Measured, float, float]:
    """What was measured, and by the host's clock: when a batch was first asked for, and when there was one."""
    asked, made = [], []

    def batches() -> Iterator[int]:
        asked.append(time.monotonic())
        time.sleep(0.4 * rank)
        while True:
            made.append(time.monotonic())
            yield 4
            time.sleep(0.02)

    return measure(_together(batches(), world), 0.4, own_cpu=False), asked[0], made[0]


@pytest.mark.slow
def test_workers_count_from_the_moment_when_each_has_a_batch(two: TrainWorkers) -> None:
    found = two.run(slowly)
    last = max(made for _, _, made in found)
    for measured, asked, _ in found:
        assert asked + measured.start >= last, "the one that starts sooner waits"
        assert 0 < measured.samples <= 200  # 4 in at least 0.02 s


@pytest.mark.slow
@pytest.mark.parametrize("method", ["own_ray_object_store", "own_ray_worker_read"])
def test_a_pass_over_the_shards_is_measured(two: TrainWorkers, manifest: Manifest, method: str) -> None:
    begin = time.perf_counter()
    measured = measure_in(two, manifest, BATCH, method, 3600.0, most=ROWS)  # it ends with the pass
    elapsed = time.perf_counter() - begin
    assert measured.samples > 2 * (ROWS - BATCH) / elapsed and 0 < measured.start < elapsed


def test_samples_of_all_workers_from_the_slowest_start(manifest: Manifest) -> None:
    workers = mock.Mock(run=lambda task: [Measured(10.0, 0.1), Measured(25.0, 0.3), Measured(5.0, 0.2)])
    assert measure_in(workers, manifest, BATCH, "own_ray_worker_read", 1.0, None) == Measured(40.0, 0.3)


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here_and_ends_the_others(two: TrainWorkers) -> None:
    def fail(rank: int, world: int) -> None:
        if rank == 1:
            raise ValueError("rank 1 cannot")
        time.sleep(600)

    with pytest.raises(ValueError, match="rank 1 cannot"):
        two.run(fail)
    with pytest.raises(RuntimeError, match=r"Train workers have ended") as caught:
        two.run(slowly)
    assert "rank 1 cannot" in str(caught.value.__cause__)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """In a process of its own, as its Ray is."""
    others = [name for name in bench.METHODS if name not in bench.IN_TRAIN_WORKERS]
    options = ["--rows", "384", "--batch", "16", "--seconds", "0.2", "--rounds", "2", "--dtype", "float16"]
    options += ["--folder", str(tmp_path), "--json", str(tmp_path / "report.json"), "--no-remote", "--no-writing"]
    command = [sys.executable, "-m", "benchmarks.readers", *options, "--skip", *others]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Start of Ray Train's workers, by their number: 1: " in done.stdout, done
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    result = json.loads((tmp_path / "report.json").read_text())
    assert set(result["train_workers_start_seconds"]) == {"1", "2"}
    warm, cold = result["cases"]
    assert set(cold["spread"]) == {"own_ray_object_store", "own_ray_worker_read", "read_webdataset"}
    assert set(warm["spread"]) == set(warm["peak_store_mb"]) == set(bench.IN_TRAIN_WORKERS)
    for method, (low, high) in warm["spread"].items():
        assert 0 < low <= result[method] <= high and warm["start_seconds"][method] > 0
    assert {"own_ray_object_store/read_webdataset", "own_ray_worker_read_2/own_ray_worker_read"} <= set(warm["ratios"])
