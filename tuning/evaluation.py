"""Judge representations by a protocol: accuracies, tables with deviations, and paired intervals between systems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.downstream import Interval, Resampling, Scaling, fit_classes, fit_values, mean_difference, mean_interval
from tuning.protocol import Fold, Protocol

# (N, R) of every row of the data set, from what was learned on the fold's training rows.
Representation = Callable[[Fold], ArrayLike]


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one system by one protocol.

    `predicted[fraction]` (draws, N) int16: class predicted for each test row, -1 for rows that no fold tests.
    `strengths[fraction]` (draws, folds): the C that was chosen. `seeds`: of pretraining; where there are several, the
    draws of one seed follow those of the other. `values` (seeds, N): a continuous label as predicted from all labels,
    NaN for rows that no fold tests; None where the set has none.
    """

    protocol: str
    predicted: Mapping[float, NDArray[np.int16]]
    strengths: Mapping[float, NDArray[np.float64]]
    seeds: int = 1
    values: NDArray[np.float64] | None = None

    def draws(self, fraction: float) -> int:
        """Draws of labels at a fraction, each counted once for all seeds."""
        return len(self.predicted[fraction]) // self.seeds

    def save(self, path: Path | str) -> None:
        """As `.npz`, read back by `Evaluation.load`."""
        arrays: dict[str, NDArray[np.generic]] = {
            "protocol": np.asarray(self.protocol),
            "seeds": np.asarray(self.seeds),
        }
        for fraction, predicted in self.predicted.items():
            arrays[f"predicted/{fraction!r}"] = predicted
            arrays[f"strengths/{fraction!r}"] = self.strengths[fraction]
        if self.values is not None:
            arrays["values"] = self.values
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path | str) -> "Evaluation":
        with np.load(path, allow_pickle=False) as stored:
            fractions = [name.removeprefix("predicted/") for name in stored.files if name.startswith("predicted/")]
            predicted = {float(fraction): stored[f"predicted/{fraction}"] for fraction in fractions}
            strengths = {float(fraction): stored[f"strengths/{fraction}"] for fraction in fractions}
            values = stored["values"] if "values" in stored.files else None
            return cls(str(stored["protocol"]), predicted, strengths, int(stored["seeds"]), values)


@dataclass(frozen=True)
class Cell:
    """One number of a table: mean over folds and draws, deviation over folds (sample; NaN of one fold), interval.

    `fold_accuracies` (folds,): mean over draws. `interval`: bootstrap over the test groups, draws averaged.
    """

    mean: float
    deviation: float
    fold_accuracies: NDArray[np.float64]
    interval: Interval


def evaluate(
    protocol: Protocol,
    representation: Representation | ArrayLike,
    draws: int | None = None,
    fractions: Sequence[float] | None = None,
    standardized: bool = False,
    values: ArrayLike | None = None,
) -> Evaluation:
    """Logistic probes of a representation on every split: an (N, R) array, or a function of the fold that returns one.

    The representation is standardised on all the fold's training rows, or taken as it is where `standardized` says that
    this is done (raw features after `normalise`); strength is chosen by inner folds over the training groups. Rows are
    those of the whole data set, in the protocol's order. values (N,): a continuous label, predicted by ridge regression
    from those of all the fold's training rows.
    """
    wanted = protocol.fractions if fractions is None else tuple(fractions)
    classes, rows = len(protocol.class_names), len(protocol.target)
    counts = {fraction: len(protocol.labelled[0].get(fraction, ())) for fraction in wanted}
    kept = {fraction: count if draws is None else min(draws, count) for fraction, count in counts.items()}
    predicted = {fraction: np.full((count, rows), -1, dtype=np.int16) for fraction, count in kept.items()}
    strengths = {fraction: np.full((count, len(protocol.folds)), np.nan) for fraction, count in kept.items()}
    continuous = None if values is None else np.asarray(values, dtype=np.float64)
    regressed = None if values is None else np.full((1, len(protocol.target)), np.nan)
    for fold in protocol.folds:
        array = _of_fold(protocol, representation, fold)
        scaling = Scaling.none(array.shape[1]) if standardized else Scaling.fit(array[fold.train_rows])
        for split in protocol.splits(draws, wanted):
            if split.fold is not fold:
                continue
            labelled = split.labelled_rows
            probe = fit_classes(
                array[labelled],
                protocol.target[labelled],
                protocol.groups[labelled],
                classes,
                names=protocol.class_names,
                strengths=protocol.strengths,
                inner_folds=protocol.inner_folds,
                all_groups=protocol.groups[fold.train_rows],
                scaling=scaling,
            )
            predicted[split.fraction][split.draw, fold.test_rows] = probe.predict(array[fold.test_rows])
            strengths[split.fraction][split.draw, fold.number] = probe.strength
        if continuous is not None and regressed is not None:
            seen = fold.train_rows
            ridge = fit_values(
                array[seen],
                continuous[seen],
                protocol.groups[seen],
                inner_folds=protocol.inner_folds,
                scaling=scaling,
            )
            regressed[0, fold.test_rows] = ridge.predict(array[fold.test_rows])[:, 0]
    return Evaluation(protocol.name, predicted, strengths, values=regressed)


def majority(protocol: Protocol, draws: int | None = None) -> Evaluation:
    """The baseline that predicts the most frequent class of the labelled rows (of equals the first)."""
    predicted: dict[float, NDArray[np.int16]] = {}
    strengths: dict[float, NDArray[np.float64]] = {}
    for split in protocol.splits(draws):
        count = len(protocol.labelled[0][split.fraction][:draws])
        table = predicted.setdefault(split.fraction, np.full((count, len(protocol.target)), -1, dtype=np.int16))
        strengths.setdefault(split.fraction, np.full((count, len(protocol.folds)), np.nan))
        most = np.bincount(protocol.target[split.labelled_rows]).argmax()
        table[split.draw, split.fold.test_rows] = most
    return Evaluation(protocol.name, predicted, strengths)


def cell(protocol: Protocol, evaluation: Evaluation, fraction: float, resampling: Resampling | None = None) -> Cell:
    """Accuracy of a system at one label fraction."""
    hits = _hits(protocol, evaluation, fraction)
    by_fold = np.asarray([hits[fold.test_rows].mean() for fold in protocol.folds])
    tested = protocol.test_rows
    interval = mean_interval(hits[tested], protocol.groups[tested], resampling or Resampling())
    deviation = float(by_fold.std(ddof=1)) if len(by_fold) > 1 else float("nan")
    return Cell(float(by_fold.mean()), deviation, by_fold, interval)


def paired(
    protocol: Protocol,
    first: Evaluation,
    second: Evaluation,
    fraction: float,
    resampling: Resampling | None = None,
) -> Interval:
    """Accuracy of the first minus that of the second, bootstrap over the test groups, same draws of labels.

    A system pretrained from several seeds has each draw once for each seed.
    """
    one, other = (_hits(protocol, evaluation, fraction) for evaluation in (first, second))
    if first.draws(fraction) != second.draws(fraction):
        raise ValueError(
            f"draws at fraction {fraction}: {first.draws(fraction)} of the first system and {second.draws(fraction)} "
            "of the second; pairs need the same draws"
        )
    tested = protocol.test_rows
    return mean_difference(one[tested], other[tested], protocol.groups[tested], resampling or Resampling())


def table(
    protocol: Protocol, systems: Mapping[str, Evaluation], resampling: Resampling | None = None
) -> dict[str, dict[float, Cell]]:
    """System -> fraction -> cell, in the order given. One table holds one normalisation mode: keep them apart."""
    return {
        name: {fraction: cell(protocol, evaluation, fraction, resampling) for fraction in sorted(evaluation.predicted)}
        for name, evaluation in systems.items()
    }


def markdown(cells: Mapping[str, Mapping[float, Cell]]) -> str:
    """A table for a report: `mean ± deviation over folds [interval over groups]`; a hole is an em dash."""
    fractions = sorted({fraction for row in cells.values() for fraction in row})
    head = ["representation", *(f"{fraction:.0%} of labels" for fraction in fractions)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in cells.items():
        shown = [_shown(row[fraction]) if fraction in row else "—" for fraction in fractions]
        lines.append("| " + " | ".join([name, *shown]) + " |")
    return "\n".join(lines)


def _shown(value: Cell) -> str:
    deviation = f" ± {value.deviation:.3f}" if np.isfinite(value.deviation) else ""
    return f"{value.mean:.3f}{deviation} [{value.interval.low:.3f}, {value.interval.high:.3f}]"


def _of_fold(protocol: Protocol, representation: Representation | ArrayLike, fold: Fold) -> NDArray[np.float64]:
    array = np.asarray(representation(fold) if callable(representation) else representation, dtype=np.float64)
    if array.ndim != 2 or len(array) != len(protocol.target):
        raise ValueError(
            f"representation, fold {fold.number}: shape {array.shape}, expected ({len(protocol.target)}, width), "
            "one row for each of the data set"
        )
    return array


def _hits(protocol: Protocol, evaluation: Evaluation, fraction: float) -> NDArray[np.float64]:
    """(N,) share of draws in which a row is predicted rightly (0 for rows never tested)."""
    if evaluation.protocol != protocol.name:
        raise ValueError(f"evaluation of protocol {evaluation.protocol!r}, expected {protocol.name!r}")
    if fraction not in evaluation.predicted:
        raise ValueError(f"fraction: {fraction}; this evaluation has {sorted(evaluation.predicted)}")
    predicted = evaluation.predicted[fraction]
    if (predicted[:, protocol.test_rows] < 0).any():
        raise ValueError(f"fraction {fraction}: some test rows have no prediction; is the evaluation incomplete?")
    return (predicted == protocol.target).mean(axis=0)
