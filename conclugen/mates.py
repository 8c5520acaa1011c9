"""Others of a row's speaker in its batch, its mates: how many rows have enough of them, and what gives more of them.

Tasks whose negatives are of the same speaker, or that take a speaker's mean away, need some mates of each row. A small
set has few of them in a batch; whether a larger batch would have more is arithmetic. Pure: numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

# With fewer others of a row's group than this, telling it from them alone would teach next to nothing.
FEWEST_MATES = 4
# What whoever knows the data adds to a step's means before it is warned of few mates: the smallest larger batch that
# holds enough of them (0: none does), and how many other columns there are whose values have enough.
LARGER_BATCH, OTHER_COLUMNS = "mates/larger_batch", "mates/other_columns"


def mates_share(sizes: Iterable[int], rows: int, batch: int) -> float:
    """The share of a batch's rows that find FEWEST_MATES others of their speaker in it, where it is drawn from so many
    rows without replacement. sizes: rows of each speaker.

    Of a speaker of n rows, a row of the batch has m others with the hypergeometric probability
    C(n - 1, m) C(rows - n, batch - 1 - m) / C(rows - 1, batch - 1).
    """
    share = 0.0
    for size, speakers in Counter(sizes).items():
        few = sum(
            math.exp(
                _log_choose(size - 1, mates)
                + _log_choose(rows - size, batch - 1 - mates)
                - _log_choose(rows - 1, batch - 1)
            )
            for mates in range(FEWEST_MATES)
        )
        share += speakers * size / rows * (1 - min(few, 1.0))
    return share


def batch_with_mates(sizes: Sequence[int], rows: int, batch: int) -> int:
    """The smallest power of two above a batch, or else all rows, in which most rows find their mates; 0: there is none,
    for too few rows have so many of their speaker at all."""
    larger = [1 << power for power in range(batch.bit_length(), rows.bit_length()) if 1 << power > batch]
    return next((b for b in [*larger, rows] if b <= rows and mates_share(sizes, rows, b) >= 0.5), 0)


def remedies(means: Mapping[str, float]) -> str:
    """What can be done where few rows of a batch have mates, in a sentence; empty where nothing can. means: of a step,
    with LARGER_BATCH and OTHER_COLUMNS where the data is known."""
    found = []
    larger = means.get(LARGER_BATCH)
    if larger is None:
        found.append("A larger batch (--batch) holds more rows of each speaker.")
    elif larger:
        found.append(f"A batch of {larger:.0f} rows holds enough of them: --batch {larger:.0f}.")
    if means.get(OTHER_COLUMNS, larger is None):
        found.append("If the speaker is in another column, name it: --data.speaker, of `run` --group.")
    return " ".join(found)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if 0 <= k <= n else -math.inf
