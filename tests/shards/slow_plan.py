"""The epoch plan once more, slowly and in Python integers: what the fast one and what runs on it are compared with."""

from __future__ import annotations

import hashlib

from shards.planning.plan import ALGORITHM, Range

Row = tuple[int, int]  # shard, position in it


def slow_number(key: int, i: int) -> int:
    """The i-th number (from 0) of splitmix64 with state `key`."""
    word = (1 << 64) - 1
    z = (key + (i + 1) * 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def slow_epoch(counts: list[int], seed: int, epoch: int, c: int) -> list[Row]:
    """All rows of one epoch as (shard, position), chunk by chunk, as the module's docstring says it."""

    def key(purpose: str) -> int:
        text = f"{ALGORITHM}|{seed}|{epoch}|{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    chunks: list[list[Row]] = []
    for shard, count in enumerate(counts):
        rows = [(shard, i) for i in range(count)]
        cut = c - slow_number(key("phase"), shard) % c
        while rows:
            chunks.append(rows[:cut])
            rows, cut = rows[cut:], c
    bits = max(len(chunks) - 1, 1).bit_length()
    order = sorted(range(len(chunks)), key=lambda i: (slow_number(key("order"), i) >> bits, i))
    return [row for i in order for row in chunks[i]]


def slow_batches(
    counts: list[int], seed: int, size: int, c: int, remainder: str, epochs: int
) -> list[tuple[int, list[Row]]]:
    """(epoch, rows) of every global batch of the first epochs; a carried batch counts to the epoch of its last row."""
    batches: list[tuple[int, list[Row]]] = []
    left: list[Row] = []
    for epoch in range(epochs):
        rows = left + slow_epoch(counts, seed, epoch, c)
        while len(rows) >= size:
            batches.append((epoch, rows[:size]))
            rows = rows[size:]
        if remainder == "pad" and rows:
            batches.append((epoch, rows))
        left = rows if remainder == "carry" else []
    return batches


def expand(ranges: list[Range]) -> list[Row]:
    return [(r.shard, i) for r in ranges for i in range(r.start, r.stop)]
