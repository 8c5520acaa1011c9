"""Nodes that died are waited for until Ray knows: without a cluster. With one: `tests/cluster/test_failures.py`."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from ray_jobs.training import node_refresh as known_nodes
from ray_jobs.training import ray_internals


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often Ray was made to look at its nodes again."""
    made: list[int] = []
    monkeypatch.setattr(ray_internals, "refresh_nodes", lambda: made.append(1))
    monkeypatch.setattr(ray_internals, "nodes_past_their_notice", set)
    return made


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """One that takes connections, and one that refuses them."""
    with socket.create_server(("127.0.0.1", 0)) as good, socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))  # nobody else gets it, and nobody listens
        yield good.getsockname()[1], refusing.getsockname()[1]


def node(name: str, port: int, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port, "Alive": alive}


def test_waits_until_a_node_that_refuses_is_marked_dead(
    monkeypatch: pytest.MonkeyPatch, looks: list[int], ports: tuple[int, int]
) -> None:
    good, refusing = ports
    known = iter([True, True, True, False])
    monkeypatch.setattr(known_nodes.time, "sleep", lambda _: None)
    monkeypatch.setattr(ray, "nodes", lambda: [node("a", good), node("b", refusing, next(known))])
    assert known_nodes.bring_up_to_date() == 1 and looks == [1]
    assert next(known, None) is None, "asked until it was marked"


def test_waits_for_a_node_that_should_have_been_taken_away(
    monkeypatch: pytest.MonkeyPatch, looks: list[int], ports: tuple[int, int]
) -> None:
    known = iter([True, True, False])
    monkeypatch.setattr(known_nodes.time, "sleep", lambda _: None)
    monkeypatch.setattr(ray, "nodes", lambda: [node("a", ports[0]), node("b", ports[0], next(known))])
    monkeypatch.setattr(ray_internals, "nodes_past_their_notice", lambda: {"b", "long gone"})
    assert known_nodes.bring_up_to_date() == 1 and looks == [1] and next(known, None) is None


def test_nothing_is_waited_for_where_all_answer_or_are_known_to_be_dead(
    monkeypatch: pytest.MonkeyPatch, looks: list[int], ports: tuple[int, int]
) -> None:
    good, refusing = ports
    monkeypatch.setattr(known_nodes.time, "sleep", lambda _: pytest.fail("waited"))
    monkeypatch.setattr(ray, "nodes", lambda: [node("a", good), node("b", refusing, alive=False)])
    assert known_nodes.bring_up_to_date() == 0 and looks == [1], "what counts nodes may not have heard of it yet"


def test_a_node_that_lives_on_is_waited_for_a_minute_at_most(
    monkeypatch: pytest.MonkeyPatch, looks: list[int], ports: tuple[int, int]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(known_nodes.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(known_nodes.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(ray, "nodes", lambda: [node("b", ports[1])])
    assert known_nodes.bring_up_to_date() == 1 and looks == [1]
    assert 60 <= clock[0] < 61
