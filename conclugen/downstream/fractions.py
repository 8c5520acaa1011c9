"""Which training rows are labelled when only a fraction of them is."""

import numpy as np
from numpy.typing import ArrayLike

from conclugen.downstream.checks import Integers


def label_draw(
    rows: ArrayLike,
    fraction: float,
    seed: int,
    draw: int = 0,
    target: ArrayLike | None = None,
    minimum_per_class: int = 3,
) -> Integers:
    """Sorted row numbers, drawn from `rows` without replacement; the same for the same (seed, draw, fraction, rows).

    Without `target` it is a plain draw of round(fraction x rows), at least one: classes may be missing from it.
    With `target` (a class for each of `rows`) each class gives max(minimum_per_class, round(fraction x its rows)) rows,
    or all it has: so every class that has rows is in every draw, and rare ones are drawn a little more often.
    Fraction 1 is all rows, whatever the draw.
    """
    pool = np.asarray(rows, dtype=np.int64)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: {fraction}; expected a share above 0 and up to 1")
    if not len(pool):
        raise ValueError("rows: none to draw from")
    if fraction == 1:
        return np.sort(pool)
    generator = np.random.Generator(np.random.PCG64([seed, draw, round(fraction * 1e9)]))
    if target is None:
        return np.sort(generator.choice(pool, max(1, round(fraction * len(pool))), replace=False))
    labels = np.asarray(target)
    if len(labels) != len(pool):
        raise ValueError(f"target: {len(labels)} labels for {len(pool)} rows")
    parts = []
    for label in np.unique(labels):
        own = pool[labels == label]
        parts.append(
            generator.choice(own, min(len(own), max(minimum_per_class, round(fraction * len(own)))), replace=False)
        )
    return np.sort(np.concatenate(parts))
