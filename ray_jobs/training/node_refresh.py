"""Before an elastic start (`run.min_workers`): makes Ray count what the nodes of this moment have.

Ray marks a node that died after five health checks without an answer, some 15 s; who tells Ray Train how many workers
there is room for looks at the nodes every 20 s. Until both have noticed, a node that has just come is not used, and
workers are asked for on one that has just gone, which only Ray Train's time limit would end.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from ray_jobs.training import ray_internals

# Ray's own checks take 15 s, and longer where its control store is busy.
_WITHIN_S = 60.0
_ANSWER_WITHIN_S = 2.0
_SIDE_BY_SIDE = 64


def bring_up_to_date() -> int:
    """Wait until Ray has marked every node dead that takes no connection, or was to be taken away before now; then make
    it look at the nodes again.

    It is waited for a minute at most: a node may only be slow, and live on.

    Returns:
        How many nodes were waited for.
    """
    alive = _alive()
    lost = {*_silent(alive), *(alive.keys() & ray_internals.nodes_past_their_notice())}
    if lost:
        print(f"{len(lost)} node(s) are gone: waiting until Ray has noticed", flush=True)
    deadline = time.monotonic() + _WITHIN_S
    while lost & _alive().keys() and time.monotonic() < deadline:
        time.sleep(0.5)
    ray_internals.refresh_nodes()
    return len(lost)


def _alive() -> dict[str, tuple[str, int]]:
    """Of each node that Ray takes to be alive: its id, and where it answers."""
    nodes: list[Mapping[str, Any]] = ray.nodes()
    return {n["NodeID"]: (n["NodeManagerAddress"], n["NodeManagerPort"]) for n in nodes if n["Alive"]}


def _silent(nodes: Mapping[str, tuple[str, int]]) -> list[str]:
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        answered = pool.map(_answers, nodes.values())
        return [node for node, good in zip(nodes, answered, strict=True) if not good]


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=_ANSWER_WITHIN_S).close()
    except OSError:
        return False
    return True
