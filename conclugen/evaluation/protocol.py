"""Protocols: which rows are trained on, labelled and tested, and who they belong to.

A protocol is pure: from rows' labels and groups (speakers, videos) to a list of splits. It holds no features; `judge`
says what systems make of it. Groups are the unit of splits: no group is on both sides of a fold, and inner folds are
dealt over groups. Intervals and tests are over units, which are the groups unless others are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common.names import nearest
from conclugen.evaluation import checks
from conclugen.evaluation.checks import Integers
from conclugen.evaluation.config import Kind, ProbeConfig

Draws = tuple[Integers, ...]


@dataclass(frozen=True)
class Target:
    """One label of N rows.

    Attributes:
        name: Name of the label.
        kind: `class`, `multilabel` or `continuous`.
        values: (N,) class indices, -1 where missing; (N, L) in {0, 1}; or (N,) numbers, NaN where missing.
        classes: Names of the classes, or of the L labels; empty where continuous.
        sentiment: A continuous label that is scored as CMU-MOSI's: Acc-7 and both Acc-2.
    """

    name: str
    kind: Kind
    values: NDArray[Any]
    classes: tuple[str, ...] = ()
    sentiment: bool = False

    @property
    def main_score(self) -> str:
        """The score by which such a label is read: accuracy, weighted accuracy, or concordance."""
        return {"class": "accuracy", "multilabel": "accuracy_weighted", "continuous": "concordance"}[self.kind]

    @property
    def width(self) -> int:
        """Numbers in each row."""
        return 1 if self.values.ndim == 1 else self.values.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of predictions: integers that hold every class, or float64."""
        if self.kind != "class":
            return np.dtype(np.float64)
        return np.result_type(np.int16, np.min_scalar_type(-max(1, len(self.classes))))


@dataclass(frozen=True)
class Fold:
    """Row numbers of one fold, sorted, and its draws of labels.

    Attributes:
        number: Position among the folds of its protocol.
        train_rows: Rows that pretraining and scaling may see, without labels.
        test_rows: Rows that are predicted.
        validation_rows: Rows by which fine-tuning chooses its epoch.
        labelled: Share of labels -> for each draw, the training rows that are labelled.
    """

    number: int
    train_rows: Integers
    test_rows: Integers
    validation_rows: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    labelled: Mapping[float, Draws] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """What one probe learns from: `labelled_rows` (sorted) of the fold's training rows."""

    fold: Fold
    fraction: float
    draw: int
    labelled_rows: Integers


@dataclass(frozen=True)
class Protocol:
    """Rows, folds and draws of one evaluation.

    Attributes:
        name: Of the data set, for messages.
        target: The label that is predicted.
        groups: (N,) speaker or video of each row: the unit of splits.
        folds: Their test rows are disjoint.
        probe: How probes learn.
        units: (N,) unit of intervals and tests; None: the groups.

    Raises:
        ValueError: a group on both sides of a fold, or a labelled row that is not a training row.
    """

    name: str
    target: Target
    groups: NDArray[Any]
    folds: tuple[Fold, ...]
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    units: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for what, owners in (("groups", self.groups), ("units", self.interval_units)):
            if len(owners) != len(self.target.values) or owners.ndim != 1:
                raise ValueError(
                    f"{self.name}: {what} of shape {owners.shape} and labels of shape {self.target.values.shape}; "
                    "expected one of each for every row"
                )
        for fold in self.folds:
            where = f"{self.name}, fold {fold.number}" if len(self.folds) > 1 else self.name
            checks.disjoint_groups(self.groups[fold.train_rows], self.groups[fold.test_rows], where)
            for fraction, draws in fold.labelled.items():
                for draw, rows in enumerate(draws):
                    strangers = np.setdiff1d(rows, fold.train_rows)
                    if len(strangers):
                        raise ValueError(
                            f"{where}, fraction {fraction}, draw {draw}: row {strangers[0]} is labelled but not a "
                            "training row; is the list of draws of this data set, in this row order?"
                        )

    @property
    def main_score(self) -> str:
        """The score that systems are read and compared by: of classes the one that probes are chosen by."""
        return self.probe.select_by if self.target.kind == "class" else self.target.main_score

    @property
    def interval_units(self) -> NDArray[Any]:
        """(N,) unit of intervals and tests."""
        return self.groups if self.units is None else self.units

    @property
    def rows(self) -> int:
        """Rows of the whole data set, N."""
        return len(self.groups)

    @property
    def fractions(self) -> tuple[float, ...]:
        """Shares of labels that there are draws of, ascending."""
        return tuple(sorted(self.folds[0].labelled))

    @property
    def test_rows(self) -> Integers:
        """Every row that some fold tests, sorted."""
        return np.sort(np.concatenate([fold.test_rows for fold in self.folds]))

    def only(self, fold: Fold) -> Protocol:
        """The same protocol with one of its folds."""
        return replace(self, folds=(fold,))

    def drawn(self, fractions: Sequence[float], draws: int, seed: int) -> Protocol:
        """With seeded draws of labels from each fold's training rows, by class where the label is a class; see
        `label_draw`. All labels are one draw."""

        def draw(fold: Fold) -> Fold:
            stratum = self.target.values[fold.train_rows] if self.target.kind == "class" else None
            labelled = {
                float(fraction): tuple(
                    label_draw(fold.train_rows, fraction, seed, number, stratum)
                    for number in range(1 if fraction == 1 else draws)
                )
                for fraction in fractions
            }
            return replace(fold, labelled=labelled)

        return replace(self, folds=tuple(draw(fold) for fold in self.folds))

    def splits(self, draws: int | None = None, fractions: Sequence[float] | None = None) -> Iterator[Split]:
        """Every (fold, fraction, draw), of each fraction the first `draws` draws; all labels are one draw."""
        if draws is not None and draws < 1:
            raise ValueError(f"draws: must be at least 1, got {draws}")
        for fold in self.folds:
            for fraction in self.fractions if fractions is None else fractions:
                if fraction not in fold.labelled:
                    raise ValueError(f"fraction: {fraction}; {self.name} has {self.fractions}")
                listed = fold.labelled[fraction]
                if not listed:
                    raise ValueError(f"{self.name}, fold {fold.number}: no draw of labels at fraction {fraction}")
                if draws is not None and fraction < 1 and draws > len(listed):
                    raise ValueError(f"draws: {draws}; {self.name} has {len(listed)} at fraction {fraction}")
                for draw, rows in enumerate(listed[:draws]):
                    yield Split(fold, fraction, draw, rows)


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


def held_out_fold(tested: ArrayLike, among: ArrayLike | None = None, name: str = "data set") -> Fold:
    """One fold from (N,) masks: `tested` rows are predicted, the others train; rows outside `among` are left out."""
    test = np.asarray(tested, dtype=bool)
    allowed = np.ones(len(test), dtype=bool) if among is None else np.asarray(among, dtype=bool)
    fold = Fold(0, np.flatnonzero(allowed & ~test), np.flatnonzero(allowed & test))
    if not len(fold.train_rows) or not len(fold.test_rows):
        raise ValueError(f"{name}: {len(fold.train_rows)} training and {len(fold.test_rows)} test rows")
    return fold


def group_cross_folds(groups: NDArray[Any], folds: int, train_only: Sequence[str] = ()) -> tuple[Fold, ...]:
    """Folds over (N,) groups: every group is tested once, but for those of `train_only`, by what the others taught.

    Groups are names or numbers, dealt in their natural order. Raises ValueError for fewer groups than folds.
    """
    groups = np.asarray(groups).astype(str)
    candidates = [group for group in natural_order(np.unique(groups).tolist()) if group not in set(train_only)]
    if len(candidates) < folds:
        raise ValueError(f"{len(candidates)} groups to test for {folds} folds; lower judging.folds")
    parts = [np.isin(groups, candidates[number::folds]) for number in range(folds)]
    return tuple(Fold(number, np.flatnonzero(~test), np.flatnonzero(test)) for number, test in enumerate(parts))


def natural_order(names: Sequence[str]) -> list[str]:
    """Sorted as numbers where all names are numbers (speaker 2 before speaker 10), else as text."""
    listed = [str(name) for name in names]
    return sorted(listed, key=int) if all(name.isdecimal() for name in listed) else sorted(listed)


def require_groups(field: str, wanted: Sequence[str], groups: NDArray[Any]) -> None:
    """Raise ValueError unless each of `wanted` is one of the (N,) groups."""
    listed = natural_order(np.unique(groups).tolist())
    for group in wanted:
        if group not in listed:
            raise ValueError(
                f"{field}: no row of group {group!r}{nearest(group, listed)}; the set has {len(listed)} groups, "
                f"{listed[0]!r} to {listed[-1]!r}"
            )


def own_groups(groups: NDArray[np.int64] | None, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) groups, in which a row without one (a negative number, or no groups at all) is a group of its own.

    rows (N,): the rows' numbers, 0 and up. Groups that rows have are numbers from 0 up, so -2 - row is nobody else's.
    """
    alone = -2 - rows
    return alone if groups is None else np.where(groups < 0, alone, groups)


def group_folds(groups: ArrayLike, folds: int, all_groups: ArrayLike | None = None) -> Integers:
    """(N,) inner fold of each row: the position of its group in the sorted list of groups, modulo `folds`.

    `all_groups` is the list to sort where it is longer than the groups of these rows (a few labelled rows of many
    training speakers): so a speaker's fold does not depend on which rows happen to be labelled.
    Raises `ValueError` where a fold would be empty (too few groups).
    """
    own = np.asarray(groups)
    listed = np.unique(own if all_groups is None else np.asarray(all_groups))
    missing = np.setdiff1d(own, listed)
    if len(missing):
        raise ValueError(f"groups: {missing[0]!r} of the labelled rows is not among the {len(listed)} training groups")
    if folds < 2:
        raise ValueError(f"inner_folds: {folds}; choosing by held-out groups needs at least 2 folds")
    fold = np.searchsorted(listed, own) % folds
    empty = np.setdiff1d(np.arange(folds), fold)
    if len(empty):
        raise ValueError(
            f"groups: {len(np.unique(own))} group(s) with labels leave {len(empty)} of {folds} inner folds empty; "
            "label rows of more speakers, use fewer inner folds, or give one value instead of a list to choose from"
        )
    return fold.astype(np.int64)
