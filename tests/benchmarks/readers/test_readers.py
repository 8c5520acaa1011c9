"""The benchmark's arithmetic, the simulated store, and one small run of what needs no cluster."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from benchmarks.readers import command as bench
from benchmarks.readers import remote as bench_remote
from benchmarks.readers import writing as bench_writing
from benchmarks.readers.methods import WIDTHS, OwnMethods, write_shards
from benchmarks.readers.peers import MOSAIC_SCRIPT, PeerMethods
from benchmarks.readers.report import Measured, measure, summary, table
from shards.format.manifest import Manifest
from shards.planning.plan import Cursor, EpochPlan
from shards.reading.reader import Reader
from shards.reading.stream import stream
from tests.clock import Clock


def test_rate_counts_from_the_first_batch_and_the_stream_is_closed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()
    monkeypatch.setattr(time, "process_time", lambda: clock.now / 4)  # it sleeps three quarters of the time

    def batches() -> Iterator[int]:
        try:
            time.sleep(0.3)
            while True:
                yield 4
                time.sleep(0.02)
        finally:
            closed.set()

    measured = measure(batches(), 0.4)
    assert measured.start == pytest.approx(0.3) and closed.is_set()
    assert measured.samples == pytest.approx(200) and measured.cpu_samples == pytest.approx(800)
    begin = clock.now
    assert measure(batches(), 60, most=40, own_cpu=False).cpu_samples is None
    assert clock.now - begin == pytest.approx(0.3 + 9 * 0.02), "it ends with the tenth batch of 4"
    with pytest.raises(ValueError, match="fewer than two batches"):
        measure(iter([4]), 1)


def test_summary_takes_medians_and_ratios_round_by_round() -> None:
    runs = {
        "own_process": [Measured(rate, 0.1, 2 * rate) for rate in (10.0, 30.0, 20.0)],
        "readinto": [Measured(rate, 0.0) for rate in (20.0, 50.0, 50.0)],
    }
    report = summary(runs)
    assert report["own_process"] == 20 and report["spread"]["own_process"] == [10, 30]
    assert report["ratios"] == {"own_process/readinto": 0.5}  # of 0.5, 0.6 and 0.4
    assert report["samples_per_cpu_second"] == {"own_process": 40}
    assert "| own_process/readinto | 0.5 | 0.5 |" in table(report, 10)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_shards(tmp_path_factory.mktemp("bench") / "data", 96, "float16")


def test_what_is_measured_is_what_webdataset_reads(manifest: Manifest) -> None:
    """Features as views on whole samples, in the order of the plan, against the other library's decoder."""
    import webdataset

    own = OwnMethods(manifest, 16)
    pipeline = PeerMethods(own.paths, 16, 0)._pipeline(batched=False)
    assert isinstance(pipeline, webdataset.WebDataset)
    decoded = [sample for _, sample in zip(range(96), pipeline, strict=False)]
    for step in stream(Reader(manifest), own.plan, 0, 1, Cursor(), 12):
        assert step.raw is not None
        for i, row in enumerate(step.row.tolist()):
            for name, expected in zip(WIDTHS, decoded[row], strict=True):
                found = step.features[name][i]
                assert found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.mark.parametrize(
    "method",
    ["readinto", "readinto_batch", "own_process", "own_process_one_thread", "own_process_ahead", "own_process_copied"],
)
def test_own_methods_count_every_row(manifest: Manifest, method: str) -> None:
    sizes = getattr(OwnMethods(manifest, 16), method)()
    assert sum(next(sizes) for _ in range(len(manifest) if method.startswith("readinto") else 6)) == 96
    sizes.close()


def test_simulated_store_keeps_latency_and_bandwidth(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of the same moment wait for one latency, and for each other's bytes."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    (tmp_path / "file").write_bytes(bytes(range(200)) * 100)
    store = bench_remote.SimulatedStore(latency=0.05, bandwidth=1e5, skip_instance_cache=True)
    assert store.cat_file(f"simulated://{tmp_path}/file", start=3, end=1003) == (bytes(range(200)) * 6)[3:1003]
    clock.now = 60.0
    for _ in range(4):
        store.cat_file(f"simulated://{tmp_path}/file", 0, 5000)
    assert waits == pytest.approx([0.05 + 0.01, *(0.05 + n * 0.05 for n in range(1, 5))])
    assert store.requests == 5


def test_prefetch_hides_latency(manifest: Manifest) -> None:
    """The same batches, and with prefetch the consumer waits for a small part of what it waits for without."""
    result = bench_remote.measure_remote(manifest.folder, 32, latency=0.01, bandwidth=1e9, seconds=0.3, step=0.05)
    waited = {run["name"]: run["waited"] for run in result["runs"]}
    assert waited["64 connections, prefetch 4"] < 0.5 * waited["one connection, no prefetch"]
    assert "64 connections, prefetch 4" in bench_remote.table(result)


def test_remote_batches_are_the_local_ones(manifest: Manifest) -> None:
    """Fetched side by side by several threads, in the plan's order all the same, whatever is kept."""
    plan = EpochPlan(manifest.counts, seed=3, global_batch=20, chunk_rows=3, remainder="carry")
    fsspec.register_implementation("simulated", bench_remote.SimulatedStore, clobber=True)
    options = {"latency": 0.002, "bandwidth": 1e9}
    remote = Manifest.open(f"simulated://{manifest.folder}", storage_options=options)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for far, near in zip(
        stream(Reader(remote, connections=5), plan, 0, 1, Cursor(), 40, prefetch=3),
        stream(Reader(manifest), plan, 0, 1, Cursor(), 40, prefetch=0),
        strict=True,
    ):
        assert (far.cursor, far.row.tolist()) == (near.cursor, near.row.tolist())
        assert all(np.array_equal(far.features[name], array) for name, array in near.features.items())
        if len(kept) < 9 and far.cursor.step % 2:
            kept.append((far.features["audio"][3:5], near.features["audio"][3:5].copy()))
    assert all(np.array_equal(one, other) for one, other in kept)


def test_planner_figures() -> None:
    figures = bench_writing.measure_planner(rows=200_000, batch=256, shard_rows=1000, world=2)
    assert figures["chunks"] == 12_500 and figures["held_mb"] <= figures["peak_mb"] <= 10
    assert 8 <= figures["pieces_a_step"] <= 12  # 128 rows in chunks of 16


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(arguments))


@pytest.mark.slow
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, picture = tmp_path / "report.json", tmp_path / "plot.png"
    skipped = [name for name in bench.METHODS if "ray" in name or name in ("read_webdataset", "webdataset_loader")]
    small = ["--rows", "96", "--batch", "16", "--seconds", "0.1", "--rounds", "1", "--dtype", "float16"]
    small += ["--plan-rows", "100000", "--no-remote"]
    files = ["--folder", str(tmp_path), "--json", str(report), "--plot", str(picture)]
    assert command(*small, *files, "--skip", *skipped) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "report.json"]  # the shards are gone
    result = json.loads(report.read_text())
    assert all(result[name] > 0 for name in ("readinto", "own_process", "webdataset"))
    assert [(case["dtype"], case["state"]) for case in result["cases"]] == [("float16", "warm"), ("float16", "cold")]
    assert result["cases"][0]["sample_bytes"] == 2 * 5888 and result["machine"]["cores"] >= 1
    assert set(result["cases"][0]["peak_memory_mb"]) == {name for name in bench.METHODS if name in result}
    assert min(result["writing"].values()) > 0 and picture.read_bytes()[:4] == b"\x89PNG"
    assert "own_process/webdataset" in result["ratios"] and "own_process/webdataset" in capsys.readouterr().out


def test_the_peer_python_must_have_the_library(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"install mosaicml-streaming"):
        command("--rows", "96", "--batch", "16", "--folder", str(tmp_path), "--peer-python", sys.executable)
    assert subprocess.run([sys.executable, MOSAIC_SCRIPT, "read"], capture_output=True, check=False).returncode
    assert not list(tmp_path.iterdir())


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"'webdatset'.*did you mean 'webdataset'"):
        command("--skip", "webdatset")
    with pytest.raises(ValueError, match="fewer than four batches"):
        command("--rows", "96")
    with pytest.raises(ValueError, match="must be positive"):
        command("--seconds", "0")
