"""Limits of memory and cores, as the kernel's files in their two versions tell them; made folders stand for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conclugen.common import machine
from conclugen.common.machine import Memory, cores, memory_limit


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return tmp_path / "cgroup"


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_of_the_groups_counts(root: Path) -> None:
    """The job's own group has no limit, the batch system's above it has; what the kernel keeps of files is free."""
    (root.parent / "own").write_text("0::/slurm/job_7/step_0\n")
    stat = "anon 5\ninactive_file 300\n"
    group(
        root / "slurm/job_7/step_0",
        memory__max="max\n",
        memory__current="900\n",
        memory__stat=stat,
        cpu__max="max 100000\n",
    )
    group(
        root / "slurm/job_7",
        memory__max="1000\n",
        memory__current="900\n",
        memory__stat=stat,
        cpu__max="250000 100000\n",
    )
    group(root / "slurm", memory__max="5000\n", memory__current="901\n", memory__stat=stat)
    assert memory_limit() == Memory(1000, 400)
    assert cores() == 3
    group(root / "slurm", memory__max="5000\n", memory__current="5200\n", memory__stat=stat)
    assert memory_limit() == Memory(5000, 100)


def test_the_first_version(root: Path) -> None:
    (root.parent / "own").write_text("4:memory:/job\n3:cpu,cpuacct:/job\n0::/\nnonsense\n")
    stat = "inactive_file 1\ntotal_inactive_file 50\n"
    none = str((1 << 63) - 4096)
    group(root / "memory", memory__limit_in_bytes=none, memory__usage_in_bytes="7", memory__stat=stat)
    assert memory_limit() is None and cores() == 16
    group(root / "memory/job", memory__limit_in_bytes="2000\n", memory__usage_in_bytes="1500\n", memory__stat=stat)
    group(root / "cpu/job", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert memory_limit() == Memory(2000, 550) and cores() == 16


def test_a_container_sees_its_own_group_as_the_root(root: Path) -> None:
    """The path is one of the host, which is not there."""
    (root.parent / "own").write_text("0::/docker/abc\n")
    group(root, memory__max="4096\n", memory__current="96\n", memory__stat="", cpu__max="50000 100000\n")
    assert memory_limit() == Memory(4096, 4000) and cores() == 1


@pytest.mark.parametrize("text", ["", "0::", "::", "0:x\n", "\n\n"])
def test_what_can_not_be_read_limits_nothing(root: Path, text: str) -> None:
    (root.parent / "own").write_text(text)
    group(root, memory__max="many", memory__current="", memory__stat="x", cpu__max="1 0")
    assert memory_limit() is None and cores() == 16
    (root.parent / "own").unlink()
    assert memory_limit() is None and cores() == 16


def test_cores_that_the_process_may_not_run_on_do_not_count(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert cores() == 2
