"""Every system with every method at every share of labels: the numbers that an evaluation is read by.

A system is a named matrix of representations; baselines are systems too. A method learns from labelled training rows
and predicts the test rows. Scores are means over label draws; intervals are by bootstrap over test groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conclugen import downstream
from conclugen.common.names import did_you_mean
from conclugen.downstream import FineTuneConfig, Interval, checks
from conclugen.downstream.class_weights import PUBLISHED
from shards.schema import Label

METHODS = ("probe", "neighbours", "fine_tune")
# Constants that know the training labels alone: the majority class; the share of each label; mean and median.
BASELINES = ("majority", "frequency", "mean", "median")
CLASS_WEIGHTS = ("none", "inverse_frequency", "frequency", *PUBLISHED)


@dataclass(frozen=True)
class ComparisonConfig:
    """What is compared.

    Attributes:
        methods: `probe` (logistic or ridge regression), `neighbours` (cosine vote; classes only), `fine_tune` (the
            published dropout and linear layer, trained by gradient descent).
        fractions: Shares of the training rows whose labels are used. A draw of too few to learn from is named below the
            table, where it leaves a dash or a mean of fewer draws.
        draws: Label draws of each share below 1.
        class_weights: Of the fine-tuned head's loss; a data set's name is its published list.
        sentiment: Score a continuous label as CMU-MOSI's: Acc-7 and both Acc-2.
        seed: Of draws, bootstrap and fine-tuning.
        fine_tune: Settings of the fine-tuned head.
    """

    methods: tuple[str, ...] = METHODS
    fractions: tuple[float, ...] = (0.03, 0.1, 1.0)
    draws: int = 3
    class_weights: str = "none"
    sentiment: bool = False
    seed: int = 127
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            *(("methods", method, METHODS) for method in self.methods),
            ("class_weights", self.class_weights, CLASS_WEIGHTS),
        ):
            if value not in allowed:
                raise ValueError(f"comparison.{name}: {value!r} is unknown, {did_you_mean(value, allowed)}")
        if not self.methods or not self.fractions or self.draws < 1:
            raise ValueError("comparison: name at least one method, one fraction and one draw")
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise ValueError(f"comparison.fractions: {fraction} found, expected a share above 0 and up to 1")


@dataclass(frozen=True)
class Task:
    """One label of one data set: target and group of the training, validation and test rows.

    Attributes:
        label: The label; decides kind, classes and scores.
        target: (N,) or (N, L) of all rows.
        group: (N,) group of each row: speakers are on one side only.
        train, validation, test: Row numbers of each part.
    """

    label: Label
    target: NDArray[Any]
    group: NDArray[Any]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Failure:
    """A draw of labels from which a method could learn nothing, and why."""

    draw: int
    reason: str


@dataclass(frozen=True)
class Score:
    """One cell: scores averaged over the draws that have them, and intervals of those that have one.

    Attributes:
        intervals: Empty where the test rows are of one group only.
        draws: The main score of each draw that was scored.
        predictions: Of the first such draw; None where there is none.
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


def main_score(label: Label) -> str:
    """The score by which a label is read: accuracy, weighted accuracy, or concordance."""
    return {"class": "accuracy", "multilabel": "accuracy_weighted", "continuous": "concordance"}[label.kind]


def compare(task: Task, systems: Mapping[str, NDArray[np.float64]], config: ComparisonConfig) -> Iterator[Score]:
    """Yield the score of every system, method and fraction, the constant predictions first.

    A draw of a few labels may hold too little to learn from (a label that none of its rows has, speakers for fewer than
    three inner folds). It is left out of its cell, which names it in `failures`; the others go on.

    Raises:
        ValueError: before anything is scored: a class without training rows, one class only, groups on both sides of
            the split, a published list of class weights of another size.
    """
    check_task(task, config)
    for name, prediction in constant_predictions(task).items():
        yield _score(task, name, name, 1.0, [prediction], config)
    for fraction in config.fractions:
        draws = 1 if fraction == 1 else config.draws
        for system, features in systems.items():
            for method in config.methods:
                if method == "neighbours" and task.label.kind != "class":
                    continue
                predictions, failures = [], []
                for draw in range(draws):
                    stratum = task.target[task.train] if task.label.kind == "class" else None
                    rows = downstream.label_draw(task.train, fraction, config.seed, draw, stratum)
                    try:
                        predictions.append(_predict(task, features, rows, method, config))
                    except ValueError as error:
                        failures.append(Failure(draw, str(error)))
                yield _score(task, system, method, fraction, predictions, config, failures)


def check_task(task: Task, config: ComparisonConfig) -> None:
    """Refuse a task that can't be learned or judged by these methods, with what is wrong with it."""
    if task.label.kind == "continuous" and task.label.width > 1:
        raise ValueError(
            f"label {task.label.name!r}: {task.label.width} numbers in each row, and a score is of one number; "
            "pack each of them as a continuous label of its own"
        )
    for name, rows in (("training", task.train), ("test", task.test)):
        if not len(rows):
            raise ValueError(f"label {task.label.name!r}: no {name} row has it; choose another view or label")
        if task.label.kind == "class" and len(found := np.unique(task.target[rows])) < 2:
            raise ValueError(
                f"label {task.label.name!r}: all {len(rows)} {name} rows are {task.label.classes[found[0]]!r}, and "
                "with one class nothing is learned or judged; choose another view, or split anew with another seed"
            )
    both = set(task.group[task.train].tolist()) & set(task.group[task.test].tolist())
    if both:
        raise ValueError(
            f"label {task.label.name!r}: {len(both)} group(s) are in the training and in the test view, so the score "
            "would measure recognition of speakers; split by group: python -m shards split FOLDER --by group"
        )
    label = task.label
    if label.kind != "class" and set(config.methods) == {"neighbours"}:
        raise ValueError(
            f"comparison.methods: neighbours vote on classes only, and label {label.name!r} is {label.kind}; "
            "use probe or fine_tune"
        )
    if label.kind == "class" and {"probe", "fine_tune"} & set(config.methods):
        target = checks.class_labels(task.target[task.train], len(label.classes), "target", label.classes)
        checks.trainable_classes(target, len(label.classes), label.classes)
    if "fine_tune" in config.methods and not len(task.validation):
        raise ValueError(
            f"label {label.name!r}: no validation row has it, and fine_tune chooses its epoch on those; choose another "
            "data.validation_view (null: the training rows), or leave fine_tune out of comparison.methods"
        )
    if "fine_tune" in config.methods and config.class_weights in PUBLISHED and label.kind != "continuous":
        _published(label, config.class_weights)


def _predict(
    task: Task, features: NDArray[np.float64], rows: NDArray[np.int64], method: str, config: ComparisonConfig
) -> NDArray[Any]:
    """Test predictions: (n,) classes, (n, L) probabilities, or (n,) values."""
    label, target, group = task.label, task.target, task.group
    classes, names = len(label.classes), label.classes
    test = features[task.test]
    if method == "neighbours":
        return downstream.neighbour_vote(features[rows], target[rows], group[rows], test, classes).predictions
    if method == "fine_tune":
        head = downstream.fine_tune(
            features[rows],
            target[rows],
            features[task.validation],
            target[task.validation],
            label.kind,  # type: ignore[arg-type]
            config.fine_tune,
            classes=classes or None,
            weights=_weights(label, target[rows], config.class_weights),
            names=names or None,
        )
        return head.probabilities(test) if label.kind == "multilabel" else _flat(head.predict(test))
    if label.kind == "class":
        return downstream.fit_classes(features[rows], target[rows], group[rows], classes, names=names).predict(test)
    if label.kind == "multilabel":
        return downstream.fit_labels(features[rows], target[rows], group[rows], names=names).probabilities(test)
    return _flat(downstream.fit_values(features[rows], target[rows], group[rows]).predict(test))


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _weights(label: Label, target: NDArray[Any], choice: str) -> Sequence[float] | NDArray[np.float64] | None:
    if choice == "none" or label.kind == "continuous":
        return None
    if choice in ("inverse_frequency", "frequency"):
        if label.kind == "multilabel":
            return downstream.positive_weights(target)
        of_classes = downstream.inverse_frequency if choice == "inverse_frequency" else downstream.frequency
        return of_classes(target, len(label.classes))
    return _published(label, choice)


def _published(label: Label, choice: str) -> tuple[float, ...]:
    weights = downstream.published(choice)
    if len(weights) != label.width * max(1, len(label.classes) if label.kind == "class" else 1):
        raise ValueError(
            f"comparison.class_weights: the published list {choice!r} has {len(weights)} weights, label {label.name!r} "
            f"has {len(label.classes)} classes; use inverse_frequency"
        )
    return weights


def constant_predictions(task: Task) -> dict[str, NDArray[Any]]:
    """Baseline -> predictions for the test rows that are the same for each: the most frequent class; each label's share
    of the training rows as its probability; mean and median of a continuous label."""
    target, rows = task.target[task.train], len(task.test)
    if task.label.kind == "class":
        return {"majority": downstream.Majority.fit(target, len(task.label.classes)).predict(rows)}
    if task.label.kind == "multilabel":
        return {"frequency": np.tile(target.mean(axis=0), (rows, 1))}
    return {"mean": np.full(rows, target.mean()), "median": np.full(rows, np.median(target))}


def _score(
    task: Task,
    system: str,
    method: str,
    fraction: float,
    predictions: list[NDArray[Any]],
    config: ComparisonConfig,
    failures: Sequence[Failure] = (),
) -> Score:
    if not predictions:
        return Score(system, method, fraction, {}, {}, (), None, tuple(failures))
    target, group = task.target[task.test], task.group[task.test]
    each = [score_predictions(task.label, target, guess, config.sentiment) for guess in predictions]
    # A class without test rows has a precision in those draws only that predict it.
    names = dict.fromkeys(name for scores in each for name in scores)
    mean = {name: float(downstream.mean_of_defined([scores.get(name, np.nan) for scores in each])) for name in names}
    main = main_score(task.label)
    intervals = _intervals(task.label, target, predictions, group, config)
    intervals = {name: interval for name, interval in intervals.items() if np.isfinite(mean[name])}
    draws = tuple(s[main] for s in each)
    return Score(system, method, fraction, mean, intervals, draws, predictions[0], tuple(failures))


def _intervals(
    label: Label, target: NDArray[Any], predictions: list[NDArray[Any]], group: NDArray[Any], config: ComparisonConfig
) -> dict[str, Interval]:
    resampling = downstream.Resampling(seed=config.seed)
    if len(np.unique(group)) < 2:
        return {}
    if label.kind == "class":
        return downstream.class_intervals(target, predictions, len(label.classes), group, resampling)
    if label.kind == "multilabel":
        return downstream.multilabel_intervals(target, predictions, group, resampling=resampling)
    of_numbers = downstream.sentiment_intervals if config.sentiment else downstream.continuous_intervals
    return of_numbers(target, predictions, group, resampling)


def score_predictions(label: Label, target: NDArray[Any], guess: NDArray[Any], sentiment: bool) -> dict[str, float]:
    """Every score that fits the label's kind, by flat name."""
    if label.kind == "class":
        return downstream.single_label(target, guess, len(label.classes), label.classes).scalars()
    if label.kind == "multilabel":
        return downstream.multi_label(target, guess, label.classes).scalars()
    if sentiment:
        return downstream.sentiment(target, guess).scalars()
    return downstream.continuous(target, guess).scalars()
