"""Shares in closed form against slots dealt one by one, and their bound in every window."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.planning.shares import LARGEST_SPAN, LARGEST_TOTAL, Shares, whole_weights
from tests.shards.slow_mixture import slow_owners

WEIGHTS = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 10**6)), min_size=1, max_size=9).filter(any)
UNIVERSAL = Fraction(168, 100)


def counted(weights: list[int], slots: int) -> np.ndarray:
    """(owners, slots + 1): how many of the first t slots each has, counted one by one."""
    owners = np.array(list(itertools.islice(slow_owners(weights), slots)))
    hits = owners == np.arange(len(weights))[:, None]
    return np.concatenate([np.zeros((len(weights), 1), np.int64), np.cumsum(hits, axis=1)], axis=1)


@given(WEIGHTS, st.integers(0, 60))
@settings(deadline=None, max_examples=50)
def test_counts_equal_slots_dealt_one_by_one(weights: list[int], start: int) -> None:
    shares, slots = Shares(weights), 120
    expected = counted(weights, slots)
    lengths = np.arange(slots - start + 1, dtype=np.int64)
    before, more = shares.after(start, lengths)
    assert before == shares.before(start) == expected[:, start].tolist()
    assert np.array_equal(more, expected[:, start:] - expected[:, start : start + 1])
    assert (np.diff(more, axis=1) >= 0).all() and np.array_equal(more.sum(axis=0), lengths)


def check_every_window(weights: list[int], slots: int) -> float:
    """All windows of all lengths: what one begins and ends with differs from its share by no more than 2 E."""
    shares, total = Shares(weights), sum(weights)
    _, dealt = shares.after(0, np.arange(slots + 1, dtype=np.int64))
    worst = 0.0
    for owner, weight in enumerate(weights):
        # `total` times the error, in integers. That of a window is the difference of those of its two ends.
        error = dealt[owner].astype(object) * total - weight * np.arange(slots + 1).astype(object)
        bound = shares.error(owner)
        assert bound < UNIVERSAL
        assert max(abs(error)) <= bound * total
        window = Fraction(int(max(error) - min(error)), total)
        assert window <= 2 * bound
        for length in (1, 7, 50):
            most = max(dealt[owner][length:] - dealt[owner][:-length], default=0)
            assert most <= shares.most(owner, length)
        worst = max(worst, float(window))
    return worst


@given(WEIGHTS)
@settings(deadline=None, max_examples=40)
def test_shares_hold_in_every_window(weights: list[int]) -> None:
    check_every_window(weights, 400)


def test_shares_hold_in_every_window_of_whole_periods_and_for_hard_weights() -> None:
    """Fibonacci's numbers make the deepest tree; equal weights the broadest; a period holds every window there is."""
    fibonacci = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55]
    assert check_every_window(fibonacci, 2 * sum(fibonacci)) > 1
    for weights in ([1] * 20, [1, 999], [999, 1, 1], [7, 11, 13, 17], [2**29, 1, 2**28]):
        check_every_window(weights, max(100, min(2 * sum(weights), 4000)))


def test_an_error_above_the_bound_is_noticed() -> None:
    """The check fails for shares that drift: slots of a random owner."""

    class Drawn(Shares):
        def _dealt(self, slot: int, lengths: np.ndarray) -> tuple[list[int], np.ndarray]:
            owners = np.random.default_rng(0).choice(len(self.weights), int(lengths.max()), p=[0.5, 0.5])
            hits = owners == np.arange(2)[:, None]
            return [0, 0], np.concatenate([np.zeros((2, 1), np.int64), np.cumsum(hits, axis=1)], axis=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.Shares", Drawn)
        with pytest.raises(AssertionError):
            check_every_window([1, 1], 400)


def test_seeks_are_exact_beyond_64_bits() -> None:
    """Whole periods deal exactly the weights, and beyond them everything repeats."""
    weights = [3, 999_983, 2**29]
    shares, far = Shares(weights), 10**30 * sum(weights)
    assert shares.before(far) == [10**30 * weight for weight in weights]
    lengths = np.array([0, 1, 12345, LARGEST_SPAN], np.int64)
    assert np.array_equal(shares.after(far, lengths)[1], shares.after(0, lengths)[1])
    assert shares.after(0, lengths)[1][:, 3].tolist() == shares.before(LARGEST_SPAN)


def test_whole_weights_keep_proportions() -> None:
    assert whole_weights([Fraction("0.3"), Fraction("0.7")]) == (3, 7)
    assert whole_weights([4, 6, 0]) == (2, 3, 0)
    assert whole_weights([Fraction(1, 3), Fraction(1, 4)]) == (4, 3)
    huge = [10**12 + 39, 5 * 10**11 + 1, 1]
    rounded = whole_weights(huge)
    assert sum(rounded) <= LARGEST_TOTAL and rounded[2] == 1
    for exact, found in zip(huge[:2], rounded, strict=False):
        assert abs(Fraction(exact, sum(huge)) - Fraction(found, sum(rounded))) < Fraction(1, 10**8)
    for wrong in ([], [0, 0], [1, -1]):
        with pytest.raises(ValueError, match="expected numbers >= 0"):
            whole_weights(wrong)
    for wrong in ([0], [2**30, 1], [3, -1]):
        with pytest.raises(ValueError, match=r"1 to 2\*\*30"):
            Shares(wrong)
