"""What `conclugen doctor` says of a machine: of enough and of too little, at the border between them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from conclugen.common import machine
from conclugen.common.machine import Memory
from ray_jobs import doctor, ray_cluster, ray_token
from ray_jobs.doctor import Finding

GIB = 1 << 30


def found(monkeypatch: pytest.MonkeyPatch, output: Path, free: int, shared: int) -> dict[str, Finding]:
    def usage(place: object) -> SimpleNamespace:
        return SimpleNamespace(free=shared if Path(str(place)) == doctor._SHARED_MEMORY else free, total=64 * GIB)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return {finding.name: finding for finding in doctor._machine(output)}


@pytest.mark.skipif(not doctor._SHARED_MEMORY.is_dir(), reason="no shared memory here")
def test_room_is_good_enough_or_told_with_what_needs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "not" / "there"
    enough = found(monkeypatch, output, 5 * GIB, GIB)
    assert enough["disk"] == Finding("disk", f"5.0 GiB free for {output}", True)
    assert enough["shared memory"] == Finding("shared memory", "1.0 of 64.0 GiB free in /dev/shm", True)
    little = found(monkeypatch, output, 5 * GIB - 1, GIB - 1)
    assert little["disk"].good is None and little["disk"].text.endswith("; clips, features and checkpoints of a small "
                                                                        "set take a few")  # fmt: skip
    assert little["shared memory"].good is None and little["shared memory"].text.endswith("--shm-size=4g")


def test_a_folder_that_cannot_be_written_to_keeps_commands_from_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: (Path(place), mode) != (tmp_path, os.W_OK))
    disk = found(monkeypatch, tmp_path / "outputs", 9 * GIB, 9 * GIB)["disk"]
    assert disk == Finding("disk", f"{tmp_path} can't be written to; give another --output", False)


@pytest.mark.parametrize(("limit", "told"), [(None, ""), (Memory(3 * GIB, GIB), ", limited to 3.0")])
def test_cores_and_memory_are_those_that_this_process_may_use(
    limit: Memory | None, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "memory_limit", lambda: limit)
    monkeypatch.setattr(machine, "cores", lambda: 3)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 5 * GIB // 4096, "SC_PAGE_SIZE": 4096}.__getitem__)
    own = found(monkeypatch, tmp_path, 9 * GIB, 9 * GIB)["machine"]
    assert own == Finding("machine", f"3 cores to use, 5.0 GiB of memory{told}")


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """One that takes connections, and one that refuses them."""
    with socket.create_server(("127.0.0.1", 0)) as good, socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        yield good.getsockname()[1], refusing.getsockname()[1]


def test_a_cluster_that_is_named_must_answer(monkeypatch: pytest.MonkeyPatch, ports: tuple[int, int]) -> None:
    def told(address: str | None, joins: bool = True) -> tuple[bool | None, str]:
        monkeypatch.setattr(ray_cluster, "joins", lambda: joins)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if address is not None:
            monkeypatch.setenv("RAY_ADDRESS", address)
        finding = doctor._cluster()
        assert finding.name == "Ray"
        return finding.good, finding.text

    monkeypatch.setattr(ray_token, "refusal", lambda _: None)
    good, refusing = (f"127.0.0.1:{port}" for port in ports)
    assert told(None, joins=False) == (
        True,
        "no cluster is named or found here: jobs start one of their own on this machine",
    )
    for address in (good, f"ray://{good}"):
        assert told(address) == (True, f"jobs join the cluster at {address}")
        missing = address.replace(good, refusing)
        status, text = told(missing)
        assert status is False and text.startswith(f"nothing answers at {missing} (Connection refused)")
    assert told("auto") == (True, "jobs join the cluster auto")
    assert told(None) == (True, "jobs join the cluster of this machine")
    monkeypatch.setattr(ray_token, "refusal", lambda address: f"{address} wants a token")
    for address in (good, "auto"):
        assert told(address) == (False, f"{address} wants a token")
