"""Shares of a sequence: which of the first t slots belong to whom, in closed form, so that shares hold in every window.

Owners are the leaves of a binary tree, in which a node of weight b that has a child of weight a gives it, of its own
first m slots,

    round(m a / b)

and the rest to the other child (Bresenham's line). Both parts never shrink when m grows and miss their share by at most
1/2. Through the tree the errors add up, each scaled by the weights below it: with w the weight of an owner and w_v that
of the nodes v on its path, the root left out, the slots of an owner among the first t miss its share by at most

    E = 1/2 sum_v w / w_v.

The tree is Huffman's, in which each node weighs at least as much as its child and grandchild together; so the sum is
below that of the reciprocals of Fibonacci's numbers, and E < 1.68 for any weights of any number of owners. A window is
the difference of two beginnings: it misses a share by at most 2 E < 3.36 slots, however long it is.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

LARGEST_TOTAL = 1 << 30
LARGEST_SPAN = 1 << 31  # slots counted at once: twice the total's product with it fits into 64 bits

Int64 = NDArray[np.int64]


def whole_weights(weights: Sequence[Fraction | int]) -> tuple[int, ...]:
    """Integers in the same proportion, without a common divisor; where they would add up to more than 2**30 they are
    rounded to parts of 2**30, a positive one to at least 1. Raises ValueError unless they are >= 0 and one is above."""
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    if total <= 0 or min(exact, default=0) < 0:
        raise ValueError(f"weights are {list(map(str, weights))}; expected numbers >= 0, one of them above 0.")
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= LARGEST_TOTAL:
        return tuple(weight // divisor for weight in whole)
    room = LARGEST_TOTAL - len(exact)  # what raising small ones to 1, and rounding, may add
    return tuple(max(round(weight / total * room), int(weight > 0)) for weight in exact)


class Shares:
    """Slots 0, 1, 2, ... dealt to owners by weight.

    weights: (owners,) integers >= 0 that add up to 1 to 2**30; an owner of weight 0 gets nothing.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        total = sum(weights)
        if not 0 < total <= LARGEST_TOTAL or min(weights, default=0) < 0:
            raise ValueError(f"weights are {list(weights)}; expected integers >= 0 with a sum of 1 to 2**30.")
        self.weights = tuple(weights)
        self.total = total
        # Nodes are numbered: owners first, then each merge of the two lightest nodes.
        self._nodes = list(weights)
        self._splits: list[tuple[int, int, int]] = []  # (node, child that is rounded, the other one), root first
        waiting = [(weight, node) for node, weight in enumerate(weights) if weight]
        heapq.heapify(waiting)
        while len(waiting) > 1:
            (light, one), (heavy, other) = heapq.heappop(waiting), heapq.heappop(waiting)
            heapq.heappush(waiting, (light + heavy, len(self._nodes)))
            self._splits.insert(0, (len(self._nodes), one, other))
            self._nodes.append(light + heavy)
        self._root = waiting[0][1]

    def share(self, owner: int) -> Fraction:
        return Fraction(self.weights[owner], self.total)

    def error(self, owner: int) -> Fraction:
        """E of the owner: slots by which its part of any beginning misses its share at most; of a window twice that."""
        above = {child: node for node, *children in self._splits for child in children}
        node, found = owner, Fraction(0)
        while node in above:
            found += Fraction(self.weights[owner], 2 * self._nodes[node])
            node = above[node]
        return found

    def most(self, owner: int, slots: int) -> int:
        """Slots of the owner in any window of `slots` at most."""
        return min(slots, math.floor(self.share(owner) * slots + 2 * self.error(owner)))

    def before(self, slot: int) -> list[int]:
        """How many of the slots before `slot` each owner has. Exact for any integer >= 0."""
        return self._dealt(slot, np.zeros(0, np.int64))[0]

    def after(self, slot: int, lengths: Int64) -> tuple[list[int], Int64]:
        """`before(slot)`, and (owners, n): how many of the next `lengths` (n,) slots each owner has.

        lengths: 0 to 2**31 each.
        """
        assert not len(lengths) or 0 <= lengths.min() <= lengths.max() <= LARGEST_SPAN
        return self._dealt(slot, lengths)

    def _dealt(self, slot: int, lengths: Int64) -> tuple[list[int], Int64]:
        start = [0] * len(self._nodes)
        more = np.zeros((len(self._nodes), len(lengths)), np.int64)
        start[self._root], more[self._root] = slot, lengths
        for node, one, other in self._splits:
            a, b, m = self._nodes[one], self._nodes[node], start[node]
            # round(x) is floor((2 x b + b) / 2 b) in integers; its remainder carries over from the start to the window.
            start[one], left = divmod(2 * a * m + b, 2 * b)
            start[other] = m - start[one]
            more[one] = (left + 2 * a * more[node]) // (2 * b)
            more[other] = more[node] - more[one]
        owners = len(self.weights)
        return start[:owners], more[:owners]
