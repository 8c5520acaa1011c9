"""Every system by every method at every share of labels: the numbers that a representation is judged by.

A system is a named matrix, a row for each row of the data set; baselines are systems too. A method learns from the
labelled rows of a split and predicts the fold's test rows. `evaluate` makes the predictions, `score` reads them: means
over draws of labels, intervals by bootstrap over test groups.

    protocol = Protocol("ravdess", target, speakers, folds).drawn(fractions=(0.03, 1.0), draws=5, seed=127)
    for predictions in evaluate(protocol, {"raw": matrix}):
        print(score(predictions).scores["accuracy"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.evaluation import checks, metrics
from conclugen.evaluation.checks import Floats
from conclugen.evaluation.config import CONSTANTS, PUBLISHED_WEIGHTS, ComparisonConfig, FineTuneConfig
from conclugen.evaluation.features import Scaling
from conclugen.evaluation.knn import neighbour_vote
from conclugen.evaluation.probe import Probe, fit_classes, fit_labels, fit_values
from conclugen.evaluation.protocol import Protocol, Split
from conclugen.evaluation.statistics import (
    DEFAULT,
    Interval,
    Resampling,
    mean_difference,
    mean_interval,
    score_intervals,
)
from conclugen.fields import choose


@dataclass(frozen=True)
class Failure:
    """A draw of labels from which a method could learn nothing, and why."""

    draw: int
    reason: str


@dataclass(frozen=True)
class Predictions:
    """One cell: what a system and method predict at one share of labels.

    Attributes:
        protocol: By which they were made.
        values: (draws, N) classes, -1 in rows that no fold tests; or (draws, N) numbers or (draws, N, L) probabilities,
            NaN there. Draws that failed have no part in it.
        strengths: (draws, folds) the C that was chosen; NaN for methods without.
        failures: The draws that taught nothing, where holes were allowed.
    """

    protocol: Protocol
    system: str
    method: str
    fraction: float
    values: NDArray[Any]
    strengths: Floats
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Score:
    """The numbers of one cell, averaged over the draws that have them, and intervals of those that have one.

    Attributes:
        intervals: Empty where the test rows are of one group only.
        draws: The main score of each draw that was scored.
        predictions: For the test rows, of the first such draw; None where there is none.
        failures: The draws that could not be scored. Where they are all of them, the cell is a hole: `scores`,
            `intervals` and `draws` are empty.
    """

    system: str
    method: str
    fraction: float
    scores: dict[str, float]
    intervals: dict[str, Interval]
    draws: tuple[float, ...]
    predictions: NDArray[Any] | None
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy by folds: mean over folds and draws, deviation over folds (sample; NaN of one fold), interval.

    `of_folds` (folds,): means over draws. `interval`: bootstrap over the test groups, draws averaged.
    """

    mean: float
    deviation: float
    of_folds: Floats
    interval: Interval


def evaluate(
    protocol: Protocol,
    systems: Mapping[str, ArrayLike],
    methods: Sequence[str] = ("probe",),
    *,
    fractions: Sequence[float] | None = None,
    draws: int | None = None,
    fine_tune: FineTuneConfig | None = None,
    class_weights: str = "none",
    holes: bool = False,
) -> Iterator[Predictions]:
    """Yield the predictions of every fraction, system and method, in that order; methods that don't serve the kind of
    label are left out.

    systems: (N, D) each, learned from the training rows of the fold at most: where that differs from fold to fold,
    evaluate `protocol.only(fold)` and put the parts together by `merge_folds`. fractions, draws: fewer of them than the
    protocol has. class_weights: of fine-tuning. holes: a draw of labels that teaches nothing becomes a failure of its
    cell; else its ValueError is raised.
    """
    for method in methods:
        choose("methods", method, _METHODS)
    settings = _Settings(fine_tune or FineTuneConfig(), class_weights)
    arrays = {name: _matrix(protocol, name, values) for name, values in systems.items()}
    for fraction in protocol.fractions if fractions is None else fractions:
        for name, array in arrays.items():
            for method in methods:
                if protocol.target.kind in _METHODS[method].kinds:
                    splits = list(protocol.splits(draws, (fraction,)))
                    yield _predict(protocol, name, array, method, fraction, splits, settings, holes)


def compare(protocol: Protocol, systems: Mapping[str, ArrayLike], config: ComparisonConfig) -> Iterator[Score]:
    """Yield the score of every system, method and fraction, the constant predictions first.

    A draw of a few labels may hold too little to learn from (a label that none of its rows has, speakers for fewer than
    three inner folds). It is left out of its cell, which names it in `failures`; the others go on.

    Raises:
        ValueError: before anything is scored, as `check`.
    """
    check(protocol, config.methods, config.class_weights)
    resampling = Resampling(seed=config.seed)
    nothing = np.empty((protocol.rows, 0))
    for name in CONSTANTS[protocol.target.kind]:
        for predictions in evaluate(protocol.drawn((1.0,), 1, config.seed), {name: nothing}, (name,)):
            yield score(predictions, resampling)
    drawn = protocol.drawn(config.fractions, config.draws, config.seed)
    for predictions in evaluate(
        drawn,
        systems,
        config.methods,
        fractions=config.fractions,
        fine_tune=config.fine_tune,
        class_weights=config.class_weights,
        holes=True,
    ):
        yield score(predictions, resampling)


def check(protocol: Protocol, methods: Sequence[str] = ("probe",), class_weights: str = "none") -> None:
    """Refuse a protocol that can't be learned or judged by these methods, with what is wrong with it.

    Raises:
        ValueError: no training or test rows, one class only, a class without training rows, a continuous label of
            several numbers, methods that don't serve the label, no validation rows for fine-tuning, a published list of
            class weights of another size.
    """
    target, name = protocol.target, protocol.target.name
    if target.kind == "continuous" and target.width > 1:
        raise ValueError(
            f"label {name!r}: {target.width} numbers in each row, and a score is of one number; pack each of them as a "
            "continuous label of its own"
        )
    if not any(target.kind in _METHODS[method].kinds for method in methods):
        raise ValueError(
            f"comparison.methods: neighbours vote on classes only, and label {name!r} is {target.kind}; "
            "use probe or fine_tune"
        )
    _check_rows(protocol, "test", protocol.test_rows)
    for fold in protocol.folds:
        _check_rows(protocol, "training", fold.train_rows)
        if target.kind == "class" and {"probe", "fine_tune"} & set(methods):
            classes = len(target.classes)
            y = checks.class_labels(target.values[fold.train_rows], classes, "target", target.classes)
            checks.trainable_classes(y, classes, target.classes)
        if "fine_tune" in methods and not len(fold.validation_rows):
            raise ValueError(
                f"label {name!r}: no validation row has it, and fine_tune chooses its epoch on those; choose another "
                "data.validation_view (null: the training rows), or leave fine_tune out of comparison.methods"
            )
    if "fine_tune" in methods and class_weights in PUBLISHED_WEIGHTS and target.kind != "continuous":
        from conclugen.evaluation.finetune import published_weights

        published_weights(target, class_weights)


def _check_rows(protocol: Protocol, part: str, rows: NDArray[np.int64]) -> None:
    target = protocol.target
    if not len(rows):
        raise ValueError(f"label {target.name!r}: no {part} row has it; choose another view or label")
    if target.kind == "class" and len(found := np.unique(target.values[rows])) < 2:
        raise ValueError(
            f"label {target.name!r}: all {len(rows)} {part} rows are {target.classes[found[0]]!r}, and with one class "
            "nothing is learned or judged; choose another view, or split anew with another seed"
        )


# ---- reading predictions


def score(predictions: Predictions, resampling: Resampling = DEFAULT) -> Score:
    """Scores of a cell over all test rows, mean over draws, with their intervals."""
    protocol, rows = predictions.protocol, predictions.protocol.test_rows
    cell = (predictions.system, predictions.method, predictions.fraction)
    guesses = list(predictions.values[:, rows])
    if not guesses:
        return Score(*cell, {}, {}, (), None, predictions.failures)
    each = [metrics.scores(protocol.target, rows, guess) for guess in guesses]
    mean = mean_scores(each)
    intervals = score_intervals(protocol.target, rows, guesses, protocol.groups[rows], resampling)
    intervals = {name: interval for name, interval in intervals.items() if np.isfinite(mean[name])}
    draws = tuple(one[protocol.target.main_score] for one in each)
    return Score(*cell, mean, intervals, draws, guesses[0], predictions.failures)


def scores(predictions: Predictions) -> dict[str, float]:
    """Every score of a cell over all test rows, mean over draws, without intervals."""
    protocol, rows = predictions.protocol, predictions.protocol.test_rows
    return mean_scores([metrics.scores(protocol.target, rows, guess) for guess in predictions.values[:, rows]])


def mean_scores(draws: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the draws that have it: a class without test rows has a precision in those draws only
    that predict it."""
    names = dict.fromkeys(name for one in draws for name in one)
    return {name: float(metrics.mean_of_defined([one.get(name, np.nan) for one in draws])) for name in names}


def hits(protocol: Protocol, predicted: NDArray[np.integer]) -> Floats:
    """(N,) share of (draws, N) predicted classes that are right (0 for rows never tested).

    Raises ValueError for a test row without prediction.
    """
    if (predicted[:, protocol.test_rows] < 0).any():
        raise ValueError(f"{protocol.name}: some test rows have no prediction; is the evaluation incomplete?")
    share: Floats = (predicted == protocol.target.values).mean(axis=0)
    return share


def group_accuracies(protocol: Protocol, predicted: NDArray[np.integer]) -> dict[str, float]:
    """Test group -> accuracy over its rows, mean over draws."""
    rows = protocol.test_rows
    right, owner = hits(protocol, predicted)[rows], protocol.groups[rows]
    return {str(group): float(right[owner == group].mean()) for group in np.unique(owner)}


def fold_accuracy(protocol: Protocol, predicted: NDArray[np.integer], resampling: Resampling = DEFAULT) -> FoldAccuracy:
    """Of (draws, N) predicted classes."""
    right = hits(protocol, predicted)
    of_folds = np.asarray([right[fold.test_rows].mean() for fold in protocol.folds])
    rows = protocol.test_rows
    deviation = float(of_folds.std(ddof=1)) if len(of_folds) > 1 else float("nan")
    return FoldAccuracy(
        float(of_folds.mean()), deviation, of_folds, mean_interval(right[rows], protocol.groups[rows], resampling)
    )


def paired(
    protocol: Protocol, first: NDArray[np.integer], second: NDArray[np.integer], resampling: Resampling = DEFAULT
) -> Interval:
    """Accuracy of the first minus that of the second, (draws, N) predicted classes each, over the test groups."""
    rows = protocol.test_rows
    one, other = hits(protocol, first)[rows], hits(protocol, second)[rows]
    return mean_difference(one, other, protocol.groups[rows], resampling)


def merge_folds(protocol: Protocol, parts: Sequence[Predictions]) -> Predictions:
    """The same cell of each fold, evaluated apart, as one of the whole protocol, in the order of its folds."""
    values = parts[0].values.copy()
    for fold, part in zip(protocol.folds, parts, strict=True):
        values[:, fold.test_rows] = part.values[:, fold.test_rows]
    strengths = np.concatenate([part.strengths for part in parts], axis=1)
    return replace(parts[0], protocol=protocol, values=values, strengths=strengths)


# ---- making predictions


@dataclass(frozen=True)
class _Settings:
    fine_tune: FineTuneConfig
    class_weights: str


@dataclass(frozen=True)
class _Method:
    """`learn`: (protocol, matrix, split, settings) -> predictions for the fold's test rows, and the C that was chosen
    (NaN: none). `kinds`: of labels that it serves."""

    learn: Callable[[Protocol, Floats, Split, _Settings], tuple[NDArray[Any], float]]
    kinds: tuple[str, ...] = ("class", "multilabel", "continuous")


def _matrix(protocol: Protocol, system: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or len(array) != protocol.rows:
        raise ValueError(
            f"system {system!r}: shape {array.shape}, expected ({protocol.rows}, width), one row for each of the data "
            "set"
        )
    return array


def _predict(
    protocol: Protocol,
    system: str,
    array: Floats,
    method: str,
    fraction: float,
    splits: Sequence[Split],
    settings: _Settings,
    holes: bool,
) -> Predictions:
    target = protocol.target
    draws = 1 + max(split.draw for split in splits)
    shape = (draws, *target.values.shape)
    values = np.full(shape, -1 if target.kind == "class" else np.nan, dtype=target.dtype)
    strengths = np.full((draws, len(protocol.folds)), np.nan)
    place = {fold.number: index for index, fold in enumerate(protocol.folds)}
    failures: dict[int, Failure] = {}
    for split in splits:
        if split.draw in failures:
            continue
        try:
            predicted, strength = _METHODS[method].learn(protocol, array, split, settings)
        except ValueError as error:
            if not holes:
                raise
            failures[split.draw] = Failure(split.draw, str(error))
            continue
        values[split.draw, split.fold.test_rows] = predicted
        strengths[split.draw, place[split.fold.number]] = strength
    kept = [draw for draw in range(draws) if draw not in failures]
    listed = tuple(failures[draw] for draw in sorted(failures))
    return Predictions(protocol, system, method, fraction, values[kept], strengths[kept], listed)


def _scaling(protocol: Protocol, array: Floats, split: Split) -> Scaling:
    if protocol.probe.scaling == "none":
        return Scaling.none(array.shape[1])
    rows = split.fold.train_rows if protocol.probe.scaling == "training" else split.labelled_rows
    return Scaling.fit(array[rows])


def _inner_groups(protocol: Protocol, split: Split) -> NDArray[Any]:
    rows = split.fold.train_rows if protocol.probe.inner_groups == "training" else split.labelled_rows
    return protocol.groups[rows]


def _probe(protocol: Protocol, array: Floats, split: Split, _: _Settings) -> tuple[NDArray[Any], float]:
    target, rows = protocol.target, split.labelled_rows
    labelled = (array[rows], target.values[rows], protocol.groups[rows])
    shared: dict[str, Any] = {
        "inner_folds": protocol.probe.inner_folds,
        "all_groups": _inner_groups(protocol, split),
        "scaling": _scaling(protocol, array, split),
    }
    if protocol.probe.strengths is not None:
        shared["strengths"] = protocol.probe.strengths
    fitted: Probe
    if target.kind == "class":
        fitted = fit_classes(*labelled, len(target.classes), names=target.classes, **shared)
    elif target.kind == "multilabel":
        fitted = fit_labels(*labelled, names=target.classes, **shared)
    else:
        fitted = fit_values(*labelled, **shared)
    return fitted.judged(array[split.fold.test_rows]), fitted.strength


def _neighbours(protocol: Protocol, array: Floats, split: Split, _: _Settings) -> tuple[NDArray[Any], float]:
    rows = split.labelled_rows
    vote = neighbour_vote(
        array[rows],
        protocol.target.values[rows],
        protocol.groups[rows],
        array[split.fold.test_rows],
        len(protocol.target.classes),
        inner_folds=protocol.probe.inner_folds,
        all_groups=_inner_groups(protocol, split),
        scaling=_scaling(protocol, array, split),
    )
    return vote.predictions, float("nan")


def _fine_tune(protocol: Protocol, array: Floats, split: Split, settings: _Settings) -> tuple[NDArray[Any], float]:
    from conclugen.evaluation.finetune import class_weights, fine_tune  # the only method that needs torch

    target, rows, validation = protocol.target, split.labelled_rows, split.fold.validation_rows
    head = fine_tune(
        array[rows],
        target.values[rows],
        array[validation],
        target.values[validation],
        target.kind,
        settings.fine_tune,
        classes=len(target.classes) or None,
        weights=class_weights(target, rows, settings.class_weights),
        names=target.classes or None,
    )
    return head.judged(array[split.fold.test_rows]), float("nan")


def _constant(of: Callable[[NDArray[Any]], Any]) -> Callable[..., tuple[NDArray[Any], float]]:
    """A method that predicts for every row what `of` says of the labelled rows' targets."""

    def learn(protocol: Protocol, _: Floats, split: Split, __: _Settings) -> tuple[NDArray[Any], float]:
        value = np.asarray(of(protocol.target.values[split.labelled_rows]))
        return np.broadcast_to(value, (len(split.fold.test_rows), *value.shape)), float("nan")

    return learn


_METHODS: Mapping[str, _Method] = {
    "probe": _Method(_probe),
    "neighbours": _Method(_neighbours, ("class",)),
    "fine_tune": _Method(_fine_tune),
    # Of equally frequent classes the first; each label's share of the rows as its probability.
    "majority": _Method(_constant(lambda target: np.bincount(target).argmax()), ("class",)),
    "frequency": _Method(_constant(lambda target: target.mean(axis=0)), ("multilabel",)),
    "mean": _Method(_constant(np.mean), ("continuous",)),
    "median": _Method(_constant(np.median), ("continuous",)),
}
