"""What the benchmark of placement runs and prints; the jobs themselves need root and several minutes."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest

from benchmarks import placement
from ray_jobs.run_config import PretrainJob


def test_bytes_of_each_node_are_told_in_megabytes() -> None:
    lines = placement.table(
        {"pretrain, worker: this code": [(1_000_000, 2_500_000), (0, 10_000), (4_000, 0)]}
    ).splitlines()
    assert lines[-1] == "| pretrain, worker: this code | 1.0 / 2.5 | 0.0 / 0.0 | 0.0 / 0.0 |"


def test_too_few_rows_make_no_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert placement.main(["--rows", "3"]) == 2
    assert "--rows: must be at least 512, got 3" in capsys.readouterr().err


def test_the_jobs_are_such_as_the_project_takes(tmp_path: Path) -> None:
    args = argparse.Namespace(
        rows=4096, steps=40, clips=tmp_path / "clips", videos=tmp_path / "videos", encoders="random"
    )
    found = placement.jobs(args, tmp_path / "data", tmp_path / "out")
    parsed = {name: importlib.import_module(words[1]).COMMAND.parse(words[2:]) for name, words in found.items()}
    pretrained = [job for job in parsed.values() if isinstance(job, PretrainJob)]
    assert [job.data.payload for job in pretrained] == ["object_store", "worker"]
    assert all(job.run.workers == 2 and job.pretrain.model.representation_dim == 16 for job in pretrained)
    assert all(job.pretrain.epochs * 4096 >= 40 * job.pretrain.global_batch for job in pretrained)
    assert parsed["extract_features"].encoders == ("random",)
    assert parsed["build"].source == tmp_path / "videos" and parsed["build"].faces == "off"
    assert parsed["embed"].data == pretrained[-1].data.folder and parsed["embed"].run == pretrained[-1].run.name
    assert str(parsed["embed"].output) == pretrained[-1].run.output
    older = placement.jobs(args, tmp_path / "data", tmp_path / "out", own=False)
    assert older == {name: words for name, words in found.items() if name.startswith("pretrain")}
