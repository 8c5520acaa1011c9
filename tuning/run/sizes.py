"""What `run` chooses from the data, and by which rules. Pure: numbers in, numbers out.

Sizes follow the rows to learn from. At 1,000 to 3,000 rows they are those of docs/results.md and docs/lab/ablations.md
(representation 512, batch 256, about 40 epochs); at 10^5 rows and a GPU those of the published presets (4096, 4096).

batch           a quarter of the rows as a power of two: rows are compared with the others of their batch, so it is as
                large as leaves an epoch four steps; at least 16 (all rows of fewer), at most 4096, on CPUs 1024
representation  12 times the square root of the rows as a power of two, 64 to 4096, on CPUs to 1024
projection      a quarter of it, 32 to 512;  hidden layer (of what is reconstructed): as wide as it, at most 1024
clusters        one for 25 rows, 4 to 32;  queue: as many earlier batches as an epoch has, at most 8
epochs          300 steps' worth, 20 to 60
parts           with labels 60 % train, 15 % valid, 25 % test, by speaker; of 14 speakers or more at least six are for
                testing, over fewer no difference can be significant; of fewer than six units no valid part
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_LEAST_ROWS = 8
_LEAST_BATCH, _MOST_BATCH, _MOST_BATCH_CPU = 16, 4096, 1024
_LEAST_WIDTH, _MOST_WIDTH, _MOST_WIDTH_CPU = 64, 4096, 1024
_STEPS, _LEAST_EPOCHS, _MOST_EPOCHS = 300, 20, 60
_LEAST_SHARE = 0.05  # of the rows: a modality that fewer have is left out
_FEWEST_GROUPS = 3  # from which a test part, and what chooses the probe's strength, can have groups of their own
_FEWEST_VALIDATED = 6
_FEWEST_TELLING = 6  # groups to test on: of fewer no sign-flip test gives a p below 0.05
FEWEST_ROWS = 20  # to hold some back, and to judge a label by
_FEW_LABELS = 100


@dataclass(frozen=True)
class Sizes:
    """Of a pretraining: see above."""

    batch: int
    representation: int
    projection: int
    hidden: int
    clusters: int
    queue: int
    epochs: int


def sizes(rows: int, gpu: bool = False, *, batch: int | None = None, representation: int | None = None) -> Sizes:
    """For so many rows to learn from; batch, representation: already chosen. ValueError for too few rows."""
    if rows < _LEAST_ROWS:
        raise ValueError(f"{rows} rows are too few to learn from; at least {_LEAST_ROWS} are needed")
    if batch is None:
        batch = min(_power(rows / 4, down=True), _MOST_BATCH if gpu else _MOST_BATCH_CPU)
        batch = min(max(batch, _LEAST_BATCH), rows)
    if representation is None:
        representation = _power(12 * math.sqrt(rows))
        representation = min(max(representation, _LEAST_WIDTH), _MOST_WIDTH if gpu else _MOST_WIDTH_CPU)
    steps = max(1, rows // batch)
    return Sizes(
        batch=batch,
        representation=representation,
        projection=min(max(representation // 4, 32), 512),
        hidden=min(representation, 1024),
        clusters=min(max(rows // 25, 4), 32),
        queue=min(steps, 8),
        epochs=min(max(round(_STEPS / steps), _LEAST_EPOCHS), _MOST_EPOCHS),
    )


def modalities(present: Mapping[str, int], rows: int) -> tuple[list[str], dict[str, int]]:
    """(modalities to learn, those that too few rows have, with how many). present: modality -> rows that have it."""
    wanted = max(2, math.ceil(_LEAST_SHARE * rows))
    chosen = [name for name, count in present.items() if count >= wanted]
    return chosen, {name: count for name, count in present.items() if count < wanted}


@dataclass(frozen=True)
class Parts:
    """How rows are divided: by `group` or by `row`, and which share each view gets; none: all rows are learned from."""

    by: str
    shares: Mapping[str, float] | None


def parts(rows: int, groups: int, labelled: bool) -> Parts:
    """Speakers stay on one side wherever there are enough of them. groups: how many there are."""
    by = "group" if groups >= _FEWEST_GROUPS else "row"
    units = groups if by == "group" else rows
    if rows < FEWEST_ROWS:
        return Parts("row", None)
    if labelled:
        if units < _FEWEST_VALIDATED:
            return Parts(by, {"train": 0.6, "test": 0.4})
        test = 0.25
        if by == "group" and groups >= 2 * _FEWEST_TELLING + 2:  # as many are left to learn from, two to validate on
            test = max(test, (_FEWEST_TELLING + 0.3) / groups)
        valid = min(0.15, (1 - test) / 4)
        return Parts(by, {"train": 1 - valid - test, "valid": valid, "test": test})
    return Parts(by, {"train": 0.85, "valid": 0.15})


def fractions(labelled: int, classes: int) -> tuple[float, ...]:
    """Shares of the labels at which systems are compared. labelled: training rows; classes: 1 of a continuous label."""
    few = max(_FEW_LABELS, 10 * classes)
    if labelled < few:
        return (1.0,)
    return (0.1, 1.0) if labelled < 10 * few else (0.03, 0.1, 1.0)


def clusters_shown(rows: int) -> range:
    """Numbers of clusters among which the one of the best silhouette is shown."""
    return range(2, min(12, max(3, rows // 10)) + 1)


def _power(value: float, down: bool = False) -> int:
    """The power of two next to a value, by ratio, or the one below it."""
    exponent = math.log2(max(value, 1.0))
    return 1 << (math.floor(exponent) if down else round(exponent))
