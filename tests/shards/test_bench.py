"""The benchmark's arithmetic, and one small run of what needs no cluster."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards import bench


def test_steady_rate_leaves_the_start_out() -> None:
    def batches() -> Iterator[int]:
        time.sleep(0.3)
        for _ in range(10):
            time.sleep(0.02)
            yield 4

    measured = bench._steady(batches(), 10)
    assert 0.3 < measured.start < 0.4
    assert 100 < measured.samples <= 200  # 8 batches of 4 in at least 0.16 s
    with pytest.raises(AssertionError, match="10 batches, expected 11"):
        bench._steady(batches(), 11)


def test_summary_takes_medians_and_ratios_of_them() -> None:
    runs = {
        "own_process": [bench.Measured(rate, 0.1) for rate in (10.0, 30.0, 20.0)],
        "readinto": [bench.Measured(rate, 0.0) for rate in (40.0, 50.0, 30.0)],
    }
    report = bench.summary(runs)
    assert report["own_process"] == 20 and report["spread"]["own_process"] == [10, 30]
    assert report["ratios"] == {"own_process/readinto": 0.5}


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(arguments))


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    ray_methods = ["own_ray_object_store", "own_ray_worker_read", "read_webdataset", "ray_put_get"]
    small = ["--rows", "96", "--batch", "16", "--epochs", "2", "--rounds", "1", "--dtype", "float16", "--cold"]
    assert command(*small, "--folder", str(tmp_path), "--json", str(report), "--skip", *ray_methods) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]  # the shards are gone
    result = json.loads(report.read_text())
    assert all(result[name] > 0 for name in ("readinto", "own_process", "webdataset"))
    assert result["settings"]["sample_bytes"] == 2 * 5888 and result["machine"]["cores"] >= 1
    assert "own_process/webdataset" in result["ratios"] and "own_process/webdataset" in capsys.readouterr().out


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"'webdatset'.*did you mean 'webdataset'"):
        command("--skip", "webdatset")
    with pytest.raises(ValueError, match="fewer than ten batches"):
        command("--rows", "96")
    with pytest.raises(ValueError, match="fewer than one batch"):
        command("--rows", "96", "--epochs", "200")
