"""Paired tests of two systems over speakers: exact sign-flip permutation, and its correction for many comparisons.

Clips of one speaker are alike, so the speaker is the unit. Under the hypothesis that two systems are equal, the
difference of their hits on one speaker is as likely to have either sign: of all 2^G ways to choose the signs of G
speakers' differences, the p-value is the share in which the total is at least as far from zero as the one observed
(Fisher 1935; Good 2005, section 3.2). Nothing is assumed of the distribution.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.downstream import Interval, Resampling, bootstrap_interval, holm

Floats = NDArray[np.float64]
Scores = Mapping[str, float]  # group -> number
# 2^20 sums are kept for each half: all signs of up to 40 groups are counted, none is sampled.
EXACT_GROUPS = 40
_SAMPLED_SIGNS = 100_000
_SEED = 127


@dataclass(frozen=True)
class Comparison:
    """first minus second, in accuracy over all test rows; `interval` by bootstrap over groups, p by sign flips,
    `adjusted` by Holm (1979) over the family of comparisons that it was made in."""

    first: str
    second: str
    interval: Interval
    p_value: float
    adjusted: float

    @property
    def difference(self) -> float:
        return self.interval.estimate

    def verdict(self, level: float = 0.05) -> str:
        """ "better", "worse", or "no difference shown", of the first."""
        if self.adjusted > level or self.difference == 0:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p-value of (G,) paired differences, one of each group, each as likely to have either sign.

    Exact up to 40 groups: the sums of all signs of each half of the groups are sorted, and pairs that reach the
    observed total are counted (Horowitz & Sahni's meeting in the middle). Above, 100,000 seeded draws, the observed one
    counted among them, so that it is never 0.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError(f"differences: shape {d.shape}; expected (G,) finite numbers, one of each group")
    d = d[d != 0]  # the sign of nothing changes nothing
    if not len(d):
        return 1.0
    observed = abs(float(d.sum()))
    # Sums of the same numbers in another order differ by rounding; they are ties.
    reach = observed - 1e-9 * float(np.abs(d).sum())
    if len(d) > EXACT_GROUPS:
        return _sampled(d, reach)
    half = len(d) // 2
    left, right = _all_signs(d[:half]), np.sort(_all_signs(d[half:]))
    above = len(right) - np.searchsorted(right, reach - left, side="left")
    below = np.searchsorted(right, -reach - left, side="right")
    # With a total of (almost) nothing every sum reaches it, and would be counted from both sides.
    return min(1.0, float((above + below).sum()) / 2.0 ** len(d))


def compare(
    pairs: Mapping[tuple[str, str], tuple[Scores, Scores]],
    rows: Scores,
    resampling: Resampling | None = None,
) -> list[Comparison]:
    """Every pair of systems over the same groups, as one family.

    pairs: names of the first and the second system -> for each, group -> accuracy there (means over draws and over the
    seeds that both have). rows: group -> test rows. Raises ValueError where a system lacks a group, or there are fewer
    than 2.
    """
    intervals: dict[str, Interval] = {}
    raw: dict[str, float] = {}
    for names, scores in pairs.items():
        name = " | ".join(names)
        sums = _group_sums(*scores, rows, name)
        intervals[name] = bootstrap_interval(sums, lambda s: s[:, 0] / s[:, 1], resampling or Resampling())
        raw[name] = sign_flip_p(sums[:, 0])
    adjusted = holm(raw)
    named = [(" | ".join(names), names) for names in pairs]
    return [Comparison(*names, intervals[name], raw[name], adjusted[name]) for name, names in named]


def _group_sums(first: Scores, second: Scores, rows: Scores, name: str) -> Floats:
    """(G, 2): difference of hits, and rows, of each group."""
    for kind, there in (("first", first), ("second", second)):
        missing = sorted(set(rows) - set(there))
        if missing:
            raise ValueError(
                f"{name}: the {kind} system has no score of group {missing[0]!r}; is it of other test rows?"
            )
    return np.asarray([[(first[group] - second[group]) * count, count] for group, count in rows.items()])


def _all_signs(values: Floats) -> Floats:
    """(2^n,) sums of +-values."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def _sampled(d: Floats, reach: float) -> float:
    generator = np.random.Generator(np.random.PCG64(_SEED))
    hits = 0
    for _ in range(10):
        signs = generator.integers(0, 2, size=(_SAMPLED_SIGNS // 10, len(d))) * 2.0 - 1.0
        hits += int((np.abs(signs @ d) >= reach).sum())
    return (hits + 1) / (_SAMPLED_SIGNS + 1)
