"""What a sweep's trials say: the response to each task's weight, and which parameters mattered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuning.ledger import Record

FEWEST_TRIALS = 12
_FOLDS = 4
_REPEATS = 10
_SEED = 127
# What a trial is, not what it was given.
_NOT_CHOSEN = ("seed", "preset")


@dataclass(frozen=True)
class Importance:
    """Of each parameter that varied: by how much the held-out R² falls when its values are shuffled (mean and
    deviation over folds and shuffles), largest first. score: the held-out R² itself; near or below 0 the parameters
    explain nothing, and their importance means nothing."""

    parameters: dict[str, tuple[float, float]]
    score: float
    trials: int


def objective(record: Record) -> tuple[str, float] | None:
    """Name and value of what a trial was judged by; None where it was never measured."""
    name = str(record.tags.get("objective", ""))
    value = record.metrics.get(name)
    return None if value is None or not math.isfinite(value) else (name, float(value))


def weight_response(trials: Sequence[Record]) -> dict[str, list[tuple[float, float]]]:
    """task -> (weight, objective) of every finished trial in which it was active, by weight."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in trials:
        measured = objective(record)
        if record.status != "finished" or measured is None:
            continue
        for name, value in record.tags.items():
            if name.startswith("weight.") and float(value) > 0:
                points.setdefault(name.removeprefix("weight."), []).append((float(value), measured[1]))
    return {task: sorted(own) for task, own in sorted(points.items())}


def importance(trials: Sequence[Record]) -> Importance | None:
    """Permutation importance (Breiman 2001) of the varied parameters for the objective, by a random forest on held-out
    trials; None of fewer than 12 finished trials, or where nothing varied."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    finished = [(r, m[1]) for r in trials if r.status == "finished" and (m := objective(r)) is not None]
    if len(finished) < FEWEST_TRIALS:
        return None
    flat = [_flat(record.configuration) for record, _ in finished]
    names = list(dict.fromkeys(name for each in flat for name in each if name.split(".")[-1] not in _NOT_CHOSEN))
    varied = [name for name in names if len({repr(each.get(name)) for each in flat}) > 1]
    if not varied:
        return None
    X = np.stack([_numbers([each.get(name) for each in flat]) for name in varied], axis=1)
    y = np.asarray([value for _, value in finished])
    drops, scores = [], []
    for train, test in KFold(_FOLDS, shuffle=True, random_state=_SEED).split(X):
        forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=_SEED, n_jobs=1).fit(X[train], y[train])
        scores.append(forest.score(X[test], y[test]))
        found = permutation_importance(forest, X[test], y[test], n_repeats=_REPEATS, random_state=_SEED)
        drops.append(found.importances)
    every = np.concatenate(drops, axis=1)
    order = np.argsort(-every.mean(axis=1), kind="stable")
    parameters = {varied[i]: (float(every[i].mean()), float(every[i].std(ddof=1))) for i in order}
    return Importance(parameters, float(np.mean(scores)), len(finished))


def _flat(configuration: Any, path: str = "") -> dict[str, Any]:
    """Dotted name -> scalar or list; a task that is off is one leaf, None."""
    if not isinstance(configuration, dict):
        return {path: configuration}
    flat: dict[str, Any] = {}
    for name, value in configuration.items():
        flat |= _flat(value, f"{path}.{name}" if path else str(name))
    return flat


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """A column of numbers: those as they are, logarithms where they span decades; categories by their place in sorted
    order; what a trial does not have (of an inactive task) below all others."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        numbers = [float(value) for value in known]
        logarithmic = min(numbers) > 0 and max(numbers) / min(numbers) > 20
        scaled = [math.log10(number) for number in numbers] if logarithmic else numbers
        below = min(scaled) - (max(scaled) - min(scaled) or 1.0)
        given = iter(scaled)
        return np.asarray([below if value is None else next(given) for value in values])
    listed = sorted({repr(value) for value in known})
    return np.asarray([-1.0 if value is None else float(listed.index(repr(value))) for value in values])
