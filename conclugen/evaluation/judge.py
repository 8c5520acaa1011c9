"""Every system by every method at every share of labels: the numbers that a representation is judged by.

A system is a named matrix, a row for each row of the data set; baselines are systems too. A method learns from the
labelled rows of a split and predicts the fold's test rows. Where a system is `Blocks`, columns are scaled as it says,
after they are standardised. `evaluate` makes the predictions, `score` reads them: means
over draws of labels, intervals by a bootstrap that crosses test groups with draws.

    protocol = Protocol("ravdess", target, speakers, folds).drawn(fractions=(0.03, 1.0), draws=5, seed=127)
    for predictions in evaluate(protocol, {"raw": matrix}):
        print(score(predictions).scores["accuracy"])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common import uris
from conclugen.evaluation import checks, metrics
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.checks import Floats
from conclugen.evaluation.classifiers import CLASSIFIERS, Task, classify
from conclugen.evaluation.config import (
    CONSTANTS,
    LAYERS_WEIGHED,
    PUBLISHED_WEIGHTS,
    RAW_SYSTEMS,
    SINGLE,
    ComparisonConfig,
    FineTuneConfig,
)
from conclugen.evaluation.features import Scaling
from conclugen.evaluation.neighbours import neighbour_vote
from conclugen.evaluation.probe import Probe, balanced_weights, fit_classes, fit_labels, fit_values
from conclugen.evaluation.protocol import Protocol, Split, Target, group_folds
from conclugen.evaluation.solvers import LayerBlock, WeighedLayers, log_softmax, sigmoid
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
        choices: Of a system with several weights of its blocks, or layers to weigh, what was chosen or learned in each
            draw and fold.
        failures: The draws that taught nothing, where holes were allowed.
    """

    protocol: Protocol
    system: str
    method: str
    fraction: float
    values: NDArray[Any]
    strengths: Floats
    failures: tuple[Failure, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """The numbers of one cell, averaged over the draws that have them, and intervals of those that have one.

    Attributes:
        intervals: Empty where the test rows are of one group only.
        draws: The protocol's main score of each draw that was scored.
        predictions: For the test rows, of the first such draw; None where there is none.
        failures: The draws that could not be scored. Where they are all of them, the cell is a hole: `scores`,
            `intervals` and `draws` are empty.
        choices: What was chosen among a system's blocks, or learned of its layers -> in how many draws and folds.
        groups: Of classes, test unit (of intervals) -> accuracy over its rows, mean over draws.
        recalls: Of classes and each draw that was scored, test unit -> recall of each class over its rows (NaN where it
            has none).
        confusion: Of classes, (K, K) test rows of each class by the class that they are taken for, mean over draws.
    """

    system: str
    method: str
    fraction: float
    scores: dict[str, float]
    intervals: dict[str, Interval]
    draws: tuple[float, ...]
    predictions: NDArray[Any] | None
    failures: tuple[Failure, ...] = ()
    choices: dict[str, int] = field(default_factory=dict)
    groups: dict[str, float] = field(default_factory=dict)
    recalls: tuple[dict[str, tuple[float, ...]], ...] = ()
    confusion: tuple[tuple[float, ...], ...] = ()

    @property
    def scored(self) -> tuple[int, ...]:
        """Numbers of the draws that were scored."""
        failed = {failure.draw for failure in self.failures}
        return tuple(draw for draw in range(len(self.draws) + len(failed)) if draw not in failed)


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
    systems: Mapping[str, ArrayLike | Blocks],
    methods: Sequence[str] = ("probe",),
    *,
    fractions: Sequence[float] | None = None,
    draws: int | None = None,
    fine_tune: FineTuneConfig | None = None,
    class_weights: str = "none",
    texts: ArrayLike | None = None,
    holes: bool = False,
) -> Iterator[Predictions]:
    """Yield the predictions of every fraction, system and method, in that order; methods that don't serve the kind of
    label are left out. Where a system's blocks have several weights to choose from, the probe alone serves it.

    systems: (N, D) each, or blocks of them, learned from the training rows of the fold at most: where that differs from
    fold to fold, evaluate `protocol.only(fold)` and put the parts together by `merge_folds`. fractions, draws: fewer of
    them than the protocol has. class_weights: of fine-tuning. texts: (K, E) encoded names of the classes, by which
    fine-tuning is steered. holes: a draw of labels that teaches nothing becomes a failure of its cell; else its
    ValueError is raised.
    """
    for method in methods:
        choose("methods", method, _METHODS)
    settings = _Settings(fine_tune or FineTuneConfig(), class_weights, texts)
    if "fine_tune" in methods and (settings.fine_tune.text_encoder is None) != (texts is None):
        raise ValueError(
            "fine_tune.text_encoder: the names of the classes that it encodes must be handed on as `texts`"
        )
    blocks = {name: _blocks(protocol, name, values) for name, values in systems.items()}
    for fraction in protocol.fractions if fractions is None else fractions:
        for name, system in blocks.items():
            for method in methods:
                if protocol.target.kind in _METHODS[method].kinds and (method == "probe" or system.only_choice):
                    splits = list(protocol.splits(draws, (fraction,)))
                    yield _predict(protocol, name, system, method, fraction, splits, settings, holes)


def compare(
    protocol: Protocol,
    systems: Mapping[str, ArrayLike | Blocks],
    config: ComparisonConfig,
    raw: Mapping[str, ArrayLike] | None = None,
    layers: Mapping[str, Sequence[LayerBlock]] | None = None,
    texts: ArrayLike | None = None,
) -> Iterator[Score]:
    """Yield the score of every system, method and fraction, the constant predictions first, then systems, then those
    baselines of `config.baselines` that are made of the raw modalities.

    raw: modality -> (N, D) features, a missing one zero; without it there are no such baselines. layers: as
    `raw_baselines`.
    texts: (K, E) names of the classes, encoded by `config.fine_tune.text_encoder`.

    A draw of a few labels may hold too little to learn from (a label that none of its rows has, speakers for fewer than
    three inner folds). It is left out of its cell, which names it in `failures`; the others continue.

    Raises:
        ValueError: before anything is scored, as `check`.
    """
    check(protocol, config.methods, config.class_weights)
    probe = replace(protocol.probe, class_weights=config.probe_weights, select_by=config.select_by)
    protocol = replace(protocol, probe=probe)
    resampling = Resampling(seed=config.seed)
    nothing = np.empty((protocol.rows, 0))
    constants = CONSTANTS[protocol.target.kind] if "constant" in config.wanted else ()
    for name in constants:
        for predictions in evaluate(protocol.drawn((1.0,), 1, config.seed), {name: nothing}, (name,)):
            yield score(predictions, resampling)
    drawn = protocol.drawn(config.fractions, config.draws, config.seed)
    rows = [(systems, config.methods)]
    if raw is not None:
        rows += raw_baselines(raw, config, layers)
    for some, methods in rows:
        for predictions in evaluate(
            drawn,
            some,
            methods,
            fractions=config.fractions,
            fine_tune=config.fine_tune,
            class_weights=config.class_weights,
            texts=texts,
            holes=True,
        ):
            yield score(predictions, resampling)


def raw_baselines(
    raw: Mapping[str, ArrayLike],
    config: ComparisonConfig,
    layers: Mapping[str, Sequence[LayerBlock]] | None = None,
) -> list[tuple[dict[str, ArrayLike | Blocks], tuple[str, ...]]]:
    """Systems made of raw modalities, and the methods of each, as `config.baselines` asks; of one modality there is
    nothing to balance, choose or fuse.

    layers: modality -> columns of it that are layers of a network side by side; beside `raw` a probe learns how to
    weigh them. Late fusion and classifiers read the balanced blocks, boosted trees (which no scale changes) among them;
    the supervised network has a head for each modality and reads them as they are.
    """
    wanted, several = config.wanted, len(raw) > 1
    rows: list[tuple[dict[str, ArrayLike | Blocks], tuple[str, ...]]] = []
    if "raw" in wanted:
        rows.append(({"raw": Blocks.plain(raw)}, config.methods))
        if layers:
            rows.append(({LAYERS_WEIGHED: Blocks.layered(raw, layers)}, ("probe",)))
    of_balanced = (*(name for name in CLASSIFIERS if name != "supervised"), *(("late_fusion",) if several else ()))
    balanced = tuple(name for name in of_balanced if name in wanted)
    if several:
        if "raw_balanced" in wanted:
            balanced = (*config.methods, *balanced)
        if "best_modality" in wanted:
            rows.append(({SINGLE: Blocks.single(raw)}, ("probe",)))
        if "block_weights" in wanted:
            rows.append(({"raw, block weights chosen": Blocks.weighted(raw)}, ("probe",)))
    if balanced:
        rows.append(({"raw balanced" if several else "raw": Blocks.balanced(raw)}, balanced))
    if "supervised" in wanted:
        rows.append(({"raw": Blocks.plain(raw)}, ("supervised",)))
    return rows


def strongest_raw(scores: Sequence[Score], fraction: float, main: str) -> Score | None:
    """The raw row that a system has to beat at a share of labels: the best on the test rows themselves, in its
    favour. None where no raw row was scored."""
    rows = [s for s in scores if s.fraction == fraction and s.system in RAW_SYSTEMS and np.isfinite(_main(s, main))]
    return max(rows, key=lambda s: _main(s, main), default=None)


def _main(score: Score, main: str) -> float:
    return score.scores.get(main, float("nan"))


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


def class_names(target: Target) -> tuple[str, ...]:
    """The names of a label's classes. Raises ValueError where they have none that could be read."""
    if target.kind != "class":
        raise ValueError(
            f"label {target.name!r} is {target.kind}, and has no names of classes for fine_tune.text_encoder; leave it "
            "out"
        )
    for name in target.classes:
        if not any(letter.isalpha() for letter in name):
            raise ValueError(
                f"label {target.name!r}: class {name!r} has no name that a text encoder could read; pack the label "
                "with names of its classes, or leave fine_tune.text_encoder out"
            )
    return target.classes


def _check_rows(protocol: Protocol, part: str, rows: NDArray[np.int64]) -> None:
    target = protocol.target
    if not len(rows):
        raise ValueError(f"label {target.name!r}: no {part} row has it; choose another view or label")
    if target.kind == "class" and len(found := np.unique(target.values[rows])) < 2:
        raise ValueError(
            f"label {target.name!r}: all {len(rows)} {part} rows are {target.classes[found[0]]!r}, and with one class "
            "nothing is learned or judged; choose another view, or split again with another seed"
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
    intervals = score_intervals(protocol.target, rows, guesses, protocol.interval_units[rows], resampling)
    intervals = {name: interval for name, interval in intervals.items() if np.isfinite(mean[name])}
    draws = tuple(one[protocol.main_score] for one in each)
    chosen = dict(Counter(predictions.choices).most_common())
    found = Score(*cell, mean, intervals, draws, guesses[0], predictions.failures, chosen)
    if protocol.target.kind != "class":
        return found
    return replace(
        found,
        groups=group_accuracies(protocol, predictions.values),
        recalls=tuple(group_recalls(protocol, values[None]) for values in predictions.values),
        confusion=tuple(map(tuple, mean_confusion(protocol, predictions.values).tolist())),
    )


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


def mean_confusion(protocol: Protocol, predicted: NDArray[np.integer]) -> Floats:
    """(K, K) test rows of each class (row) by the class that they are taken for, mean over (draws, N) predictions."""
    rows, classes = protocol.test_rows, len(protocol.target.classes)
    true = protocol.target.values[rows]
    mean: Floats = np.mean([metrics.confusion_matrix(true, guess, classes) for guess in predicted[:, rows]], axis=0)
    return mean


def group_accuracies(protocol: Protocol, predicted: NDArray[np.integer]) -> dict[str, float]:
    """Test unit -> accuracy over its rows, mean over draws."""
    rows = protocol.test_rows
    right, owner = hits(protocol, predicted)[rows], protocol.interval_units[rows]
    return {str(group): float(right[owner == group].mean()) for group in np.unique(owner)}


def group_recalls(protocol: Protocol, predicted: NDArray[np.integer]) -> dict[str, tuple[float, ...]]:
    """Test unit -> recall of each class over its rows, mean over draws; NaN where it has no row of the class."""
    rows = protocol.test_rows
    right, owner = hits(protocol, predicted)[rows], protocol.interval_units[rows]
    counts = group_class_rows(protocol)
    true, classes = protocol.target.values[rows], len(protocol.target.classes)
    sums = {str(unit): np.bincount(true[owner == unit], right[owner == unit], classes) for unit in np.unique(owner)}
    return {
        unit: tuple(float(h) / n if n else float("nan") for h, n in zip(sums[unit], own, strict=True))
        for unit, own in counts.items()
    }


def group_class_rows(protocol: Protocol) -> dict[str, tuple[int, ...]]:
    """Test unit -> its test rows of each class."""
    rows, classes = protocol.test_rows, len(protocol.target.classes)
    true, owner = protocol.target.values[rows], protocol.interval_units[rows]
    return {str(unit): tuple(np.bincount(true[owner == unit], minlength=classes).tolist()) for unit in np.unique(owner)}


def fold_accuracy(protocol: Protocol, predicted: NDArray[np.integer], resampling: Resampling = DEFAULT) -> FoldAccuracy:
    """Of (draws, N) predicted classes."""
    right = hits(protocol, predicted)
    of_folds = np.asarray([right[fold.test_rows].mean() for fold in protocol.folds])
    rows = protocol.test_rows
    deviation = float(of_folds.std(ddof=1)) if len(of_folds) > 1 else float("nan")
    return FoldAccuracy(
        float(of_folds.mean()),
        deviation,
        of_folds,
        mean_interval(right[rows], protocol.interval_units[rows], resampling),
    )


def paired(
    protocol: Protocol, first: NDArray[np.integer], second: NDArray[np.integer], resampling: Resampling = DEFAULT
) -> Interval:
    """Accuracy of the first minus that of the second, (draws, N) predicted classes each, over the test groups."""
    rows = protocol.test_rows
    one, other = hits(protocol, first)[rows], hits(protocol, second)[rows]
    return mean_difference(one, other, protocol.interval_units[rows], resampling)


def merge_folds(protocol: Protocol, parts: Sequence[Predictions]) -> Predictions:
    """The same cell of each fold, evaluated apart, as one of the whole protocol, in the order of its folds."""
    values = parts[0].values.copy()
    for fold, part in zip(protocol.folds, parts, strict=True):
        values[:, fold.test_rows] = part.values[:, fold.test_rows]
    strengths = np.concatenate([part.strengths for part in parts], axis=1)
    choices = tuple(choice for part in parts for choice in part.choices)
    return replace(parts[0], protocol=protocol, values=values, strengths=strengths, choices=choices)


# ---- making predictions


@dataclass(frozen=True)
class _Settings:
    fine_tune: FineTuneConfig
    class_weights: str
    texts: ArrayLike | None = None

    @property
    def seed(self) -> int:
        return self.fine_tune.seed


@dataclass(frozen=True)
class _Learned:
    """Predictions for the fold's test rows, the C that was chosen (NaN: none) and, of several, the blocks' weights."""

    predicted: NDArray[Any]
    strength: float = float("nan")
    choice: str = ""


@dataclass(frozen=True)
class _Method:
    """`learn`: (protocol, blocks, split, settings) -> what was learned. `kinds`: of labels that it serves."""

    learn: Callable[[Protocol, Blocks, Split, _Settings], _Learned]
    kinds: tuple[str, ...] = ("class", "multilabel", "continuous")


def _blocks(protocol: Protocol, system: str, values: ArrayLike | Blocks) -> Blocks:
    array = values.matrix if isinstance(values, Blocks) else np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or len(array) != protocol.rows:
        raise ValueError(
            f"system {system!r}: shape {array.shape}, expected ({protocol.rows}, width), one row for each of the data "
            "set"
        )
    return values if isinstance(values, Blocks) else Blocks.plain({system: array})


def _predict(
    protocol: Protocol,
    system: str,
    blocks: Blocks,
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
    choices: list[tuple[int, str]] = []
    for split in splits:
        if split.draw in failures:
            continue
        try:
            learned = _METHODS[method].learn(protocol, blocks, split, settings)
        except ValueError as error:
            if not holes:
                raise
            failures[split.draw] = Failure(split.draw, uris.scrub(error))
            continue
        values[split.draw, split.fold.test_rows] = learned.predicted
        strengths[split.draw, place[split.fold.number]] = learned.strength
        if learned.choice:
            choices.append((split.draw, learned.choice))
    kept = [draw for draw in range(draws) if draw not in failures]
    listed = tuple(failures[draw] for draw in sorted(failures))
    chosen = tuple(choice for draw, choice in choices if draw not in failures)
    return Predictions(protocol, system, method, fraction, values[kept], strengths[kept], listed, chosen)


def _scaling(protocol: Protocol, array: Floats, split: Split, factors: Floats) -> Scaling:
    """Standardisation of the columns, then each times its factor."""
    if protocol.probe.scaling == "none":
        scaling = Scaling.none(array.shape[1])
    else:
        rows = split.fold.train_rows if protocol.probe.scaling == "training" else split.labelled_rows
        scaling = Scaling.fit(array[rows])
    return Scaling(scaling.mean, scaling.deviation / factors)


def _weighed(protocol: Protocol, blocks: Blocks, split: Split, choice: str | None = None) -> tuple[Floats, Scaling]:
    """(N, D) columns that a choice keeps (the only one by default), and how they are scaled."""
    columns, factors = blocks.columns(choice or next(iter(blocks.choices)))
    array = blocks.matrix[:, columns]
    return array, _scaling(protocol, array, split, factors)


def _inner_groups(protocol: Protocol, split: Split) -> NDArray[Any]:
    rows = split.fold.train_rows if protocol.probe.inner_groups == "training" else split.labelled_rows
    return protocol.groups[rows]


def _fit(
    protocol: Protocol,
    array: Floats,
    split: Split,
    scaling: Scaling,
    scored: bool = False,
    allow_absent_classes: bool = False,
    layers: Sequence[LayerBlock] = (),
) -> Probe:
    target, rows = protocol.target, split.labelled_rows
    labelled = (array[rows], target.values[rows], protocol.groups[rows])
    shared: dict[str, Any] = {
        "inner_folds": protocol.probe.inner_folds,
        "all_groups": _inner_groups(protocol, split),
        "scaling": scaling,
        "scored": scored,
        "layers": layers,
    }
    if protocol.probe.strengths is not None:
        shared["strengths"] = protocol.probe.strengths
    if target.kind == "class":
        weights = None
        if protocol.probe.class_weights == "balanced":
            weights = balanced_weights(labelled[1], len(target.classes))
        return fit_classes(
            *labelled,
            len(target.classes),
            names=target.classes,
            class_weights=weights,
            select_by=protocol.probe.select_by,
            allow_absent_classes=allow_absent_classes,
            **shared,
        )
    if target.kind == "multilabel":
        return fit_labels(*labelled, names=target.classes, **shared)
    return fit_values(*labelled, **shared)


@dataclass(frozen=True)
class FittedProbe:
    """A probe of a system's blocks, which reads other rows of the same blocks too.

    Attributes:
        choice: Which of the blocks' weights it was fitted with.
        columns: (d,) of the blocks' matrix, those that the choice keeps.
    """

    probe: Probe
    choice: str
    columns: NDArray[np.int64]

    def on(self, blocks: Blocks) -> Floats:
        """(n, d) the columns that the probe takes, of n rows in blocks of the same names and widths."""
        return blocks.matrix[:, self.columns]

    def whole(self, width: int) -> Probe:
        """The same probe of all `width` columns of the blocks' matrix: those that the choice leaves out weigh 0."""
        scaling, linear = self.probe.scaling, self.probe.model
        mean, deviation = np.zeros(width), np.ones(width)
        mean[self.columns], deviation[self.columns] = scaling.mean, scaling.deviation
        weight = np.zeros((width, linear.weight.shape[1]))
        weight[self.columns] = linear.weight
        return replace(self.probe, scaling=Scaling(mean, deviation), model=replace(linear, weight=weight))


def fit_probe(protocol: Protocol, blocks: Blocks, split: Split, allow_absent_classes: bool = False) -> FittedProbe:
    """The probe of (N, D) blocks from a split's labelled rows, as `evaluate` fits it.

    Of several weights of the blocks those whose best strength scores highest on held-out groups. allow_absent_classes:
    a class without labelled rows is never predicted, instead of being refused.
    Raises ValueError where the labelled rows teach nothing.
    """
    several = blocks.only_choice is None
    best, best_score = None, -np.inf
    for name in blocks.choices:
        array, scaling = _weighed(protocol, blocks, split, name)
        fitted = _fit(protocol, array, split, scaling, several, allow_absent_classes, blocks.layers_of(name))
        found = fitted.scores[fitted.strength] if several else 0.0
        if best is None or found > best_score:
            best, best_score = FittedProbe(fitted, name, blocks.columns(name)[0]), found
    assert best is not None
    return best


def _probe(protocol: Protocol, blocks: Blocks, split: Split, _: _Settings) -> _Learned:
    fitted = fit_probe(protocol, blocks, split)
    predicted = fitted.probe.judged(fitted.on(blocks)[split.fold.test_rows])
    chosen = "" if blocks.only_choice else fitted.choice
    if isinstance(fitted.probe.model, WeighedLayers):
        mixtures = fitted.probe.model.mixtures
        chosen = "; ".join(f"{name} {' '.join(f'{s:.2f}' for s in mixture)}" for name, mixture in mixtures.items())
    return _Learned(predicted, fitted.probe.strength, chosen)


def _late_fusion(protocol: Protocol, blocks: Blocks, split: Split, _: _Settings) -> _Learned:
    """A probe for each block: of classes the highest mean of their log-probabilities, else the mean of their outputs
    (log-odds of labels, values)."""
    tested, kind = split.fold.test_rows, protocol.target.kind
    outputs = []
    for name, array in blocks.arrays.items():
        one = Blocks.plain({name: array})
        columns, scaling = _weighed(protocol, one, split)
        fitted = _fit(protocol, columns, split, scaling)
        raw = fitted.raw(columns[tested])
        outputs.append(log_softmax(raw) if kind == "class" else raw)
    mean = np.mean(outputs, axis=0)
    if kind == "class":
        return _Learned(mean.argmax(axis=1))
    return _Learned(sigmoid(mean) if kind == "multilabel" else mean[:, 0])


def _neighbours(protocol: Protocol, blocks: Blocks, split: Split, _: _Settings) -> _Learned:
    rows = split.labelled_rows
    array, scaling = _weighed(protocol, blocks, split)
    vote = neighbour_vote(
        array[rows],
        protocol.target.values[rows],
        protocol.groups[rows],
        array[split.fold.test_rows],
        len(protocol.target.classes),
        inner_folds=protocol.probe.inner_folds,
        all_groups=_inner_groups(protocol, split),
        scaling=scaling,
    )
    return _Learned(vote.predictions)


def _fine_tune(protocol: Protocol, blocks: Blocks, split: Split, settings: _Settings) -> _Learned:
    from conclugen.evaluation.finetune import class_weights, fine_tune  # the only method that needs torch

    target, rows, validation = protocol.target, split.labelled_rows, split.fold.validation_rows
    columns, factors = blocks.columns(next(iter(blocks.choices)))
    array = blocks.matrix[:, columns] * factors
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
        texts=settings.texts,
    )
    return _Learned(head.judged(array[split.fold.test_rows]))


def _classifier(name: str) -> _Method:
    """One of `classifiers`, on the standardised and weighed columns; of classes."""

    def learn(protocol: Protocol, blocks: Blocks, split: Split, settings: _Settings) -> _Learned:
        target, rows = protocol.target, split.labelled_rows
        array, scaling = _weighed(protocol, blocks, split)
        y = checks.class_labels(target.values[rows], len(target.classes), "target", target.classes)
        checks.trainable_classes(y, len(target.classes), target.classes)
        scaled = scaling.apply(checks.matrix(array, "features"))
        fold = group_folds(protocol.groups[rows], protocol.probe.inner_folds, _inner_groups(protocol, split))
        strength = _fit(protocol, array, split, scaling).strength if name == "self_training" else float("nan")
        unlabelled = np.setdiff1d(split.fold.train_rows, rows)
        task = Task(
            *(scaled[rows], y, fold, scaled[unlabelled], scaled[split.fold.test_rows], strength, settings.seed),
            widths=tuple(width for width in blocks.widths.values() if width),
            class_weights=protocol.probe.class_weights,
            select_by=protocol.probe.select_by,
        )
        return _Learned(classify(name, task), strength)

    return _Method(learn, ("class",))


def _constant(of: Callable[[NDArray[Any]], Any]) -> Callable[..., _Learned]:
    """A method that predicts for every row what `of` says of the labelled rows' targets."""

    def learn(protocol: Protocol, _: Blocks, split: Split, __: _Settings) -> _Learned:
        value = np.asarray(of(protocol.target.values[split.labelled_rows]))
        return _Learned(np.broadcast_to(value, (len(split.fold.test_rows), *value.shape)))

    return learn


_METHODS: Mapping[str, _Method] = {
    "probe": _Method(_probe),
    "late_fusion": _Method(_late_fusion),
    "neighbours": _Method(_neighbours, ("class",)),
    "fine_tune": _Method(_fine_tune),
    # Of equally frequent classes the first; each label's share of the rows as its probability.
    "majority": _Method(_constant(lambda target: np.bincount(target).argmax()), ("class",)),
    "frequency": _Method(_constant(lambda target: target.mean(axis=0)), ("multilabel",)),
    "mean": _Method(_constant(np.mean), ("continuous",)),
    "median": _Method(_constant(np.median), ("continuous",)),
} | {name: _classifier(name) for name in CLASSIFIERS}
