"""Draws against SplitMix64 in Python integers, over all block borders and numbers of bits."""

import pytest
import torch

from conclugen import random

_ALL = (1 << 64) - 1


def mixed(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _ALL
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _ALL
    return x ^ (x >> 31)


def slow(key: int, row: int, n: int) -> list[int]:
    start = mixed((row ^ key) & _ALL)
    return [mixed((start + i * 0x9E3779B97F4A7C15) & _ALL) for i in range(1, n + 1)]


@pytest.mark.parametrize("n", [0, 1, 5, 9])
def test_draws_are_those_of_splitmix64_whatever_the_blocks(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [-1, 0, 1, 7, 2**40, -(2**62)]
    key = random.key(3, "test", 5)
    bits = [slow(key, row, n) for row in rows]
    for block in (1, 10, 1 << 15):
        monkeypatch.setattr(random, "_BLOCK", block)
        double = random.draws(key, torch.tensor(rows), n)
        assert double.tolist() == [[(x >> 11) * 2.0**-53 for x in each] for each in bits]
        single = random.draws(torch.tensor(key), torch.tensor(rows), n, torch.float32)
        assert single.dtype == torch.float32
        assert single.tolist() == [[(x >> 40) * 2.0**-24 for x in each] for each in bits]
    assert random.draws(key, torch.tensor(rows[:0], dtype=torch.int64), n).shape == (0, n)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_an_order_is_that_of_the_draws(n: int) -> None:
    for row in (-1, 0, 5):
        expected = random.uniform(3, "order", 2, torch.tensor([row]), n)[0].argsort().tolist()
        assert random.order(3, "order", 2, row, n) == expected
