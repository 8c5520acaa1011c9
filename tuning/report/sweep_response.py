"""What a sweep's trials say: the response to each task's weight, and which parameters mattered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conclugen.common.extras import require
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
    explain nothing, and their importance means nothing. epoch: after which all trials were compared; None: at the end
    of each."""

    parameters: dict[str, tuple[float, float]]
    score: float
    trials: int
    epoch: int | None = None


@dataclass(frozen=True)
class Point:
    """A trial under one task's weight. stopped: before its end, so that its objective is that of a shorter training."""

    weight: float
    value: float
    stopped: bool


def objective(record: Record) -> tuple[str, float] | None:
    """Name and value of what a trial was judged by; None where it was never measured."""
    name = str(record.tags.get("objective", ""))
    value = record.metrics.get(name)
    return None if value is None or not math.isfinite(value) else (name, float(value))


def stopped(record: Record) -> bool:
    """Whether a scheduler ended a trial early."""
    return record.tags.get("state") == "stopped"


def compared(trials: Sequence[Record]) -> tuple[int | None, list[tuple[Record, float]]]:
    """Measured trials with an objective that is of equally long training: where some were stopped early, after the last
    epoch at which all were measured. The epoch, None where each ran to its end (or trials have no epoch in common)."""
    measured = [(r, m[1]) for r in trials if r.status == "finished" and (m := objective(r)) is not None]
    if not any(stopped(record) for record, _ in measured):
        return None, measured
    curves = [dict(zip(r.tags.get("epochs", ()), r.tags.get("curve", ()), strict=True)) for r, _ in measured]
    common = set.intersection(*(set(curve) for curve in curves))
    if not common:
        return None, measured
    epoch = max(common)
    return int(epoch), [(r, float(curve[epoch])) for (r, _), curve in zip(measured, curves, strict=True)]


def by_tasks(trials: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
    """Trials of each task combination."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in trials:
        groups.setdefault(tuple(record.tags.get("tasks", ())), []).append(record)
    return dict(sorted(groups.items(), key=lambda entry: (len(entry[0]), entry[0])))


def weight_response(trials: Sequence[Record]) -> dict[str, list[Point]]:
    """task -> every measured trial in which it was active, by weight."""
    points: dict[str, list[Point]] = {}
    for record in trials:
        measured = objective(record)
        if record.status != "finished" or measured is None:
            continue
        for name, value in record.tags.items():
            if name.startswith("weight.") and float(value) > 0:
                point = Point(float(value), measured[1], stopped(record))
                points.setdefault(name.removeprefix("weight."), []).append(point)
    return {task: sorted(own, key=lambda p: (p.weight, p.value)) for task, own in sorted(points.items())}


def importance(trials: Sequence[Record]) -> Importance | None:
    """Permutation importance (Breiman 2001) of the varied parameters for the objective, by a random forest on held-out
    trials; None of fewer than 12 finished trials, or where nothing varied.

    Of trials of several task combinations, the combination itself and the parameters that all of them have: what only
    some have would stand for the choice of the combination, and share its importance. See `by_tasks` for the others.
    """
    require("what a sweep's parameters are worth", "sklearn")
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    epoch, finished = compared(trials)
    if len(finished) < FEWEST_TRIALS:
        return None
    flat = [_flat(record.configuration) | _combination(record) for record, _ in finished]
    shared = set.intersection(*(set(each) for each in flat))
    names = [name for name in flat[0] if name in shared and name.split(".")[-1] not in _NOT_CHOSEN]
    varied = [name for name in names if len({repr(each[name]) for each in flat}) > 1]
    if not varied:
        return None
    X = np.stack([_numbers([each[name] for each in flat]) for name in varied], axis=1)
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
    return Importance(parameters, float(np.mean(scores)), len(finished), epoch)


def _combination(record: Record) -> dict[str, Any]:
    return {"tasks": "+".join(record.tags["tasks"])} if record.tags.get("tasks") else {}


def _flat(configuration: Any, path: str = "") -> dict[str, Any]:
    """Dotted name -> scalar or list; without the tasks that are off."""
    if not isinstance(configuration, dict):
        off = configuration is None and path.startswith("tasks.") and path.count(".") == 1
        return {} if off else {path: configuration}
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
