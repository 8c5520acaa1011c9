"""What is left of a representation when modalities are missing at evaluation?

The probe learns from the training rows as they are. Of the test rows

- subsets: all modalities but some are taken away, for each of the 2^M - 1 subsets that stay;
- shared rate r: each modality of each row is taken away with probability r;
- one modality at rate r: that one alone is taken away with probability r, the others stay.

A row keeps at least one of the modalities that it has: where all were drawn, one of them, drawn uniformly, stays, as is
usual (GCNet, Lian et al. 2023; MMIN, Zhao et al. 2021), so that rates near 1 - 1/M and above are reached in part: the
share that is really missing is given beside the rate. Patterns are functions of (seed, pattern, row, modality) alone,
the same for every system, and those of a higher rate contain those of a lower one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conclugen.evaluation.protocols.base import (
    Cell,
    Chart,
    EvaluationProtocol,
    Fit,
    Masks,
    Material,
    Outcome,
    Point,
    Table,
    draws_of,
    failure_notes,
    finite,
)
from conclugen.evaluation.protocols.deferred import np, statistics
from conclugen.fields import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from conclugen.evaluation.checks import Floats, Integers

SHARED = "all"
_MOST_SUBSETS = 6  # modalities: 63 subsets


@dataclass(frozen=True)
class MissingModalitiesConfig:
    """Scores with modalities missing at evaluation: every subset, and random rates.

    Attributes:
        rates: Probabilities by which a modality of a test row is taken away.
        patterns: Random patterns of each rate; scores are means over them.
    """

    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    patterns: int = 3

    def __post_init__(self) -> None:
        field = "protocols.missing_modalities"
        require(bool(self.rates), f"{field}.rates", self.rates, "at least one rate")
        for rate in self.rates:
            require(0 < rate < 1, f"{field}.rates", rate, "rates between 0 and 1")
        require(self.patterns >= 1, f"{field}.patterns", self.patterns, "1 or more")


@dataclass(frozen=True)
class Condition:
    """What is missing. kind: `subset` or `rate`. name: the modalities that stay, or that are taken away. masks: one
    for each pattern."""

    kind: str
    name: str
    rate: float
    masks: tuple[dict[str, NDArray[np.bool_]], ...]


class MissingModalities(EvaluationProtocol):
    name = "missing-modalities"
    title = "Missing modalities"
    Config = MissingModalitiesConfig
    kinds = ("class", "multilabel", "continuous")
    order = 20

    @classmethod
    def run(cls, material: Material, config: MissingModalitiesConfig) -> Outcome:
        present = material.present
        if len(present) < 2:
            raise ValueError(f"{next(iter(present))} is the only modality: none can be missing beside another")
        conditions = list(_conditions(material, config))
        holes: list[str] = []
        if len(present) > _MOST_SUBSETS:
            holes.append(f"subsets: {len(present)} modalities have too many; those of up to {_MOST_SUBSETS} are judged")
        found: dict[str, list[NDArray[Any]]] = {}
        draws: dict[str, tuple[int, ...]] = {}
        for system in material.systems:
            arrays = system.represent(material.features)
            fits, failures = material.fits(system, arrays, material.options.fraction)
            holes += failure_notes(system.name, material.options.fraction, failures)
            if fits:
                draws[system.name] = draws_of(fits)
                found[system.name] = [_predicted(material, fits, arrays, condition) for condition in conditions]
        if not found:
            raise ValueError(f"no probe could be learned; {holes[-1]}")
        return _outcome(material, conditions, found, draws, tuple(holes))


def _outcome(
    material: Material,
    conditions: Sequence[Condition],
    found: Mapping[str, Sequence[NDArray[Any]]],
    draws: Mapping[str, tuple[int, ...]],
    holes: tuple[str, ...],
) -> Outcome:
    """found: system -> predictions of each condition. draws: system -> the draws of labels that taught it something."""
    fraction, rows = material.options.fraction, material.protocol.test_rows
    values = {
        name: [material.measured(name, fraction, predicted) for predicted in each] for name, each in found.items()
    }
    raw = material.strongest_raw({name: own[0][0] for name, own in values.items()})
    paired = {name: name != raw and draws[name] == draws[raw] for name in found}  # of unlike draws there are no pairs
    unlike = [name for name in found if name != raw and not paired[name]]
    holes += tuple(f"{name} minus {raw}: other draws of labels taught them something" for name in unlike)
    tables: dict[str, list[tuple[Cell, ...]]] = {"subset": [], "rate": []}
    headline: dict[str, float] = {}
    lines: dict[str, dict[str, list[Point]]] = {}
    for name, own in values.items():
        for at, condition in enumerate(conditions):
            value, low, high = own[at]
            change = value - own[0][0]
            minus = _difference(material, found[name][at], found[raw][at]) if paired[name] else (None,) * 3
            gone = _missing_share(material, condition, rows)
            cells = (finite(value), low, high, finite(change), *minus)
            if condition.kind == "subset":
                tables["subset"].append((name, condition.name, *cells))
            if condition.kind == "rate":
                tables["rate"].append((name, condition.name, condition.rate, gone, *cells))
                points = lines.setdefault(condition.name, {}).setdefault(name, [(0.0, *own[0])])
                points.append((condition.rate, value, low, high))
        shared = {c.rate: own[i][0] for i, c in enumerate(conditions) if c.name == SHARED and c.kind == "rate"}
        headline[f"{name}/full"] = own[0][0]
        headline[f"{name}/mean_over_rates"] = float(np.mean(list(shared.values())))
        headline[f"{name}/{max(shared):g}"] = shared[max(shared)]
    ends = (material.score, "low", "high", "minus full", f"minus {raw}", "difference low", "difference high")
    charts = [
        Chart(
            f"rates-{name}",
            f"{'each modality' if name == SHARED else name} missing at random",
            "rate at which it is missing",
            material.score,
            {system: tuple(points) for system, points in series.items()},
        )
        for name, series in lines.items()
    ]
    tables_ = (
        Table("subsets", ("system", "modalities that stay", *ends), tuple(tables["subset"])),
        Table("rates", ("system", "missing", "rate", "share missing", *ends), tuple(tables["rate"])),
    )
    return Outcome(tables_, tuple(charts), headline, _rules(material, conditions), holes)


def _rules(material: Material, conditions: Sequence[Condition]) -> tuple[str, ...]:
    patterns = max(len(condition.masks) for condition in conditions)
    fill = (
        "by the training mean of its block, which tells a linear probe nothing"
        if material.options.fill == "mean"
        else "by zeros, as exported heads write it (of raw features: by the training mean)"
    )
    return (
        f"The probe learns from {material.options.fraction:.0%} of the labels with the modalities that training rows "
        "have; at evaluation only test rows lose any.",
        f"A missing modality is filled {fill}; a mean over modalities is over those that are left.",
        f"Rates: {patterns} seeded pattern(s), the same for every system; a row keeps one modality at least, drawn "
        "uniformly where all would go, so `share missing` can be below the rate.",
        "Scores are means over draws of labels and patterns; intervals resample test groups.",
    )


def _conditions(material: Material, config: MissingModalitiesConfig) -> Iterator[Condition]:
    """Everything first, then the subsets from large to small, then the rates."""
    present = material.present
    names = list(present)
    yield Condition("subset", " + ".join(names), 0.0, (present,))
    if len(names) <= _MOST_SUBSETS:
        for size in range(len(names) - 1, 0, -1):
            for kept in itertools.combinations(names, size):
                mask = {m: here & (m in kept) for m, here in present.items()}
                yield Condition("subset", " + ".join(kept), 0.0, (mask,))
    seed = material.comparison.seed
    for which in (SHARED, *names):
        for rate in config.rates:
            rates = {m: rate if which in (SHARED, m) else 0.0 for m in names}
            masks = tuple(dropped(present, rates, seed, pattern) for pattern in range(config.patterns))
            yield Condition("rate", which, rate, masks)


def dropped(present: Masks, rates: dict[str, float], seed: int, pattern: int) -> dict[str, NDArray[np.bool_]]:
    """Modality -> (N,) what is left: each modality of each row goes with its rate, and one that the row has stays."""
    rows = len(next(iter(present.values())))
    generator = np.random.Generator(np.random.PCG64([seed, pattern, 7]))
    uniform = generator.random((rows, len(present)))
    here = np.stack([np.asarray(present[m], dtype=bool) for m in present], axis=1)
    gone = uniform < np.asarray([rates[m] for m in present])
    left = here & ~gone
    # The last to go as rates rise: of equal rates drawn uniformly, and of unequal ones the first that has none.
    last = np.where(here, uniform - np.asarray([rates[m] for m in present]), -np.inf).argmax(axis=1)
    emptied = here.any(axis=1) & ~left.any(axis=1)
    left[emptied, last[emptied]] = True
    return {m: left[:, i] for i, m in enumerate(present)}


def _predicted(
    material: Material, fits: Sequence[Fit], arrays: dict[str, Floats], condition: Condition
) -> NDArray[Any]:
    """(draws x patterns, N) of every pattern."""
    return np.concatenate([material.predicted(fits, arrays, mask) for mask in condition.masks])


def _missing_share(material: Material, condition: Condition, rows: Integers) -> float:
    """Of the modalities that the test rows have and that were up for going, those that went."""
    present = material.present
    up = list(present) if condition.name == SHARED or condition.kind == "subset" else [condition.name]
    had = sum(int(present[m][rows].sum()) for m in up) * len(condition.masks)
    left = sum(int(mask[m][rows].sum()) for mask in condition.masks for m in up)
    return 1 - left / max(had, 1)


def _difference(
    material: Material, first: NDArray[Any], second: NDArray[Any]
) -> tuple[float | None, float | None, float | None]:
    """first minus second (of the same draws of labels) in the score, with the interval over groups; of classes."""
    rows = material.protocol.test_rows
    groups = material.units[rows]
    if material.target.kind != "class" or len(np.unique(groups)) < 2:
        return None, None, None
    truth, classes = material.target.values[rows], len(material.target.classes)
    sums = [
        np.stack([statistics.confusion_sums(truth, guess[rows], classes, groups) for guess in guesses], axis=1)
        for guesses in (first, second)
    ]
    statistic = statistics.mean_of_draws(statistics.class_statistics()[material.score])
    found = statistics.statistic_difference(sums[0], sums[1], statistic, material.resampling)
    return found.estimate, finite(found.low), finite(found.high)
