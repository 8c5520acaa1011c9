"""CPUs beside a worker's memory, out of made trees of /sys; a thread that is bound, on this machine's own CPUs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ray_jobs.training import numa

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def machine(
    root: Path, nodes: dict[int, str], threads: int = 1, cores: int = 8, gpus: dict[str, str] | None = None
) -> Path:
    """A /sys with memory nodes and their CPUs, as many hardware threads of each of the cores (numbered as Linux does: a
    second thread of core c is CPU cores + c), and GPUs by their address."""
    for node, cpus in nodes.items():
        folder = root / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
    for cpu in range(cores * threads):
        folder = root / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        siblings = ",".join(str(cpu % cores + i * cores) for i in range(threads))
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    for address, node in (gpus or {}).items():
        folder = root / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(node + "\n")
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", []), ("3", [3]), ("0-2,5, 7-8", [0, 1, 2, 5, 7, 8]), ("x,1-,-2,4-3", [1]), ("0-0", [0])],
)
def test_lists_of_linux(text: str, expected: list[int]) -> None:
    assert numa.parsed(text) == expected


def test_nodes_have_whole_cores_and_only_what_is_allowed(tmp_path: Path) -> None:
    root = machine(tmp_path, {0: "0-3,8-11", 1: "4-7,12-15", 2: ""}, threads=2)
    assert numa.memory_nodes(root, set(range(16))) == {
        0: [(0, 8), (1, 9), (2, 10), (3, 11)],
        1: [(4, 12), (5, 13), (6, 14), (7, 15)],
    }
    assert numa.memory_nodes(root, {1, 2, 9}) == {0: [(1, 9), (2,)]}  # of a container, say
    assert numa.memory_nodes(tmp_path / "nowhere", {0, 1}) == {}


NODES = {0: [(0, 8), (1, 9), (2, 10), (3, 11)], 1: [(4, 12), (5, 13), (6, 14), (7, 15)]}


@pytest.mark.parametrize(
    ("near", "expected"),
    [
        ([0, 1], [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]),
        ([1, 1, 0, 0], [{4, 5, 12, 13}, {6, 7, 14, 15}, {0, 1, 8, 9}, {2, 3, 10, 11}]),
        ([1, 1, 1], [{4, 12}, {5, 13}, {6, 7, 14, 15}]),  # all GPUs at one socket: its cores, not the other's
        ([None, None], [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]),
        ([None], [{0, 1, 2, 3, 8, 9, 10, 11}]),
        ([0, None], [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]),
        ([7, 0], [{4, 5, 6, 7, 12, 13, 14, 15}, {0, 1, 2, 3, 8, 9, 10, 11}]),  # a node without CPUs
    ],
)
def test_workers_share_the_cores_of_their_node(near: list[int | None], expected: list[set[int]]) -> None:
    assert numa.shares(near, NODES) == expected


def test_more_workers_than_cores_share_all_of_them() -> None:
    assert numa.shares([0, 0, 0], {0: [(0,), (1,)], 1: [(2,)]}) == [{0, 1}] * 3


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("-1", None), (None, None)])
def test_the_node_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: int | None
) -> None:
    found = SimpleNamespace(pci_domain_id=0, pci_bus_id=0xC1, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    root = machine(tmp_path, {}, gpus={} if text is None else {"0000:c1:00.0": text})
    assert numa.nearest(GPU, root) == expected
    assert numa.nearest(CPU, root) is None


def test_a_worker_is_bound_with_the_threads_that_it_starts(tmp_path: Path) -> None:
    """To this machine's own CPUs, as if each had memory of its own. Workers of another machine count for nothing."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("this machine gives one CPU")
    root = machine(tmp_path, {0: str(cpus[0]), 1: str(cpus[1])}, cores=max(cpus) + 1)
    found: dict[str, object] = {}

    def worker() -> None:
        others = [["b", 0, None], ["a", 0, None], ["b", 1, None]]
        found["line"] = numa.bind(CPU, ["a", 1], lambda own: [*others, own], root)
        found["own"] = os.sched_getaffinity(0)
        inner = threading.Thread(target=lambda: found.update(inner=os.sched_getaffinity(0)))
        inner.start()
        inner.join()

    before = os.sched_getaffinity(0)
    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    assert found["own"] == found["inner"] == {cpus[1]} and os.sched_getaffinity(0) == before
    assert found["line"] == "workers keep to the CPUs beside their memory: rank 0 to 1 of 2"


def test_with_one_memory_node_nothing_is_bound(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    root = machine(tmp_path, {0: ",".join(map(str, sorted(before)))}, cores=max(before) + 1)
    assert numa.bind(CPU, ["a", 0], lambda own: [own], root) is None
    assert os.sched_getaffinity(0) == before
