"""Shares and the mixed plan once more, slowly and slot by slot: what the closed forms are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import floor

from shards.planning.mixed_plan import _own_seed
from tests.shards.slow_plan import Row, slow_epoch


class Node:
    """A node of the tree, which hands the slots that it gets one by one to its children."""

    def __init__(self, weight: int, owner: int = -1, children: tuple[Node, ...] = ()) -> None:
        self.weight, self.owner, self.children, self.slots = weight, owner, children, 0

    def next_owner(self) -> int:
        self.slots += 1
        if not self.children:
            return self.owner
        rounded, other = self.children
        due = floor(Fraction(self.slots * rounded.weight, self.weight) + Fraction(1, 2))
        return (rounded if due > rounded.slots else other).next_owner()


def slow_owners(weights: list[int]) -> Iterator[int]:
    """Whose slot 0, 1, 2, ... is."""
    nodes = [(weight, number, Node(weight, number)) for number, weight in enumerate(weights) if weight]
    number = len(weights)
    while len(nodes) > 1:
        nodes.sort(key=lambda entry: entry[:2])
        (a, _, one), (b, _, other), *rest = nodes
        nodes = [*rest, (a + b, number, Node(a + b, children=(one, other)))]
        number += 1
    while True:
        yield nodes[0][2].next_owner()


def slow_mixture(
    counts: Mapping[str, list[int]], stages: Mapping[int, Mapping[str, int]], seed: int, size: int, c: int, steps: int
) -> list[list[Row]]:
    """(shard through all corpora, position) of every row of the first batches, in order."""
    names = sorted(counts)
    first = {name: sum(len(counts[other]) for other in names if other < name) for name in names}

    def rows_of(name: str) -> Iterator[Row]:
        epoch = 0
        while True:
            yield from slow_epoch(counts[name], _own_seed(seed, name), epoch, c)
            epoch += 1

    streams = {name: rows_of(name) for name in names}
    owners: Iterator[int] = iter(())
    batches = []
    for step in range(steps):
        if step in stages:
            owners = slow_owners([stages[step][name] for name in names])
        dealt = [next(owners) for _ in range(size)]
        batch = []
        for i, name in enumerate(names):
            for _ in range(dealt.count(i)):
                shard, position = next(streams[name])
                batch.append((shard + first[name], position))
        batches.append(batch)
    return batches
