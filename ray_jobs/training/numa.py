"""Which CPUs a training worker computes on: those whose memory is nearest to its GPU, shared with the node's others.

A machine of several sockets has memory at each. A worker that the system moves to another socket copies every batch
across the link between them, and lies in the caches of others. Linux tells in /sys which CPUs each memory node has, and
to which one a GPU is attached.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_SYSTEM = Path("/sys")
Core = tuple[int, ...]
"""The CPUs of one core: its hardware threads."""


def bind(
    device: torch.device, here: Sequence[object], exchange: Callable[[Any], list[Any]], root: Path = _SYSTEM
) -> str | None:
    """Let this thread, and those that it will start, run on this worker's share of its machine's CPUs alone; what was
    done, as text, or None where there is one memory node and nothing to gain.

    here: which machine this is, and the worker's number on it. exchange: tells every worker what each has to tell, in
    the order of ranks; all must call this.
    """
    own = [*here, nearest(device, root)]
    told = [tuple(each) for each in exchange(own)]
    nodes = memory_nodes(root, os.sched_getaffinity(0))
    if len(nodes) < 2:
        return None
    mine = sorted((number, near) for machine, number, near in told if machine == here[0])
    place = [number for number, _ in mine].index(here[1])
    cpus = shares([near for _, near in mine], nodes)[place]
    os.sched_setaffinity(0, cpus)
    return f"workers keep to the CPUs beside their memory: rank 0 to {len(cpus)} of {len(_all(nodes))}"


def memory_nodes(root: Path, allowed: set[int]) -> dict[int, list[Core]]:
    """Memory nodes that have CPUs among the allowed, with their cores; empty where the system does not tell."""
    found = {}
    for folder in sorted(root.glob("devices/system/node/node[0-9]*")):
        cores = []
        left = [cpu for cpu in parsed(_read(folder / "cpulist")) if cpu in allowed]
        while left:
            siblings = parsed(_read(root / f"devices/system/cpu/cpu{left[0]}/topology/thread_siblings_list"))
            core = tuple(cpu for cpu in left if cpu in siblings or cpu == left[0])
            cores.append(core)
            left = [cpu for cpu in left if cpu not in core]
        if cores:
            found[int(folder.name.removeprefix("node"))] = cores
    return found


def nearest(device: torch.device, root: Path) -> int | None:
    """The memory node to which a GPU is attached; None for other devices, and where the system does not know."""
    if device.type != "cuda":
        return None
    found: Any = torch.cuda.get_device_properties(device)
    address = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    text = _read(root / "bus/pci/devices" / address / "numa_node")
    return int(text) if text.isdigit() else None  # -1: not known


def shares(near: Sequence[int | None], nodes: Mapping[int, Sequence[Core]]) -> list[set[int]]:
    """CPUs of each worker of one machine, of the memory node that it is `near` to, or else of the one that has most
    cores for each of its workers. Workers of a node have whole cores of their own where there are enough, else all of
    them together.
    """
    of_node: dict[int, list[int]] = {node: [] for node in nodes}
    for worker, node in enumerate(near):
        if node in of_node:
            of_node[node].append(worker)
    for worker, node in enumerate(near):
        if node not in of_node:
            roomiest = max(of_node, key=lambda n: (len(nodes[n]) / (len(of_node[n]) + 1), -n))
            of_node[roomiest].append(worker)
    found: list[set[int]] = [set() for _ in near]
    for node, workers in of_node.items():
        cores, count = nodes[node], len(workers)
        for place, worker in enumerate(sorted(workers)):
            own = cores[place * len(cores) // count : (place + 1) * len(cores) // count]
            found[worker] = {cpu for core in (own if len(cores) >= count else cores) for cpu in core}
    return found


def parsed(text: str) -> list[int]:
    """Numbers of a list as Linux writes it, `0-3,8,10-11`; those that are none are left out."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last or first).isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def _all(nodes: Mapping[int, Sequence[Core]]) -> set[int]:
    return {cpu for cores in nodes.values() for core in cores for cpu in core}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
