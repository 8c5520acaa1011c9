"""Evaluation protocols of a representation: which rows are labelled, which are tested, and how features are normalised.

A protocol is pure: from the rows' groups and classes (and a file of folds and draws) to a list of splits. It trains no
representation; `tuning.evaluation` judges one. Two tables are kept apart, never mixed:

- `inductive`: features standardised on the training groups, nothing of a test speaker is used;
- `speaker_normalised`: each group standardised by its own unlabelled rows (transductive, and much easier).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common.names import did_you_mean
from conclugen.downstream import Scaling, label_draw, standardize_by_group

Mode = Literal["inductive", "speaker_normalised"]
MODES: tuple[Mode, ...] = get_args(Mode)
# Draws of a protocol that lists none in a file.
_DRAW_SEED = 127


@dataclass(frozen=True)
class Fold:
    """`train_rows`: every row that pretraining and standardisation may see, without labels. Both sorted."""

    number: int
    train_rows: NDArray[np.int64]
    test_rows: NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """One probe: `labelled_rows` (sorted, a part of the fold's training rows) are what it learns from."""

    fold: Fold
    fraction: float
    draw: int
    labelled_rows: NDArray[np.int64]


@dataclass(frozen=True)
class Protocol:
    """Rows, folds and draws of one evaluation.

    groups (N,): speaker or video of each row; target (N,): class, 0..K-1. `labelled[fold][fraction]`: the draws.
    """

    name: str
    groups: NDArray[Any]
    target: NDArray[np.int64]
    class_names: tuple[str, ...]
    folds: tuple[Fold, ...]
    labelled: tuple[Mapping[float, tuple[NDArray[np.int64], ...]], ...]
    strengths: tuple[float, ...]
    inner_folds: int

    def __post_init__(self) -> None:
        for fold in self.folds:
            shared = np.intersect1d(self.groups[fold.train_rows], self.groups[fold.test_rows])
            if len(shared):
                raise ValueError(f"{self.name}, fold {fold.number}: group {shared[0]} is in training and in test")
            for fraction, draws in self.labelled[fold.number].items():
                for draw, rows in enumerate(draws):
                    strangers = np.setdiff1d(rows, fold.train_rows)
                    if len(strangers):
                        raise ValueError(
                            f"{self.name}, fold {fold.number}, fraction {fraction}, draw {draw}: row {strangers[0]} is "
                            "labelled but not a training row; is the protocol file of this data set, in this row order?"
                        )

    @property
    def fractions(self) -> tuple[float, ...]:
        return tuple(sorted(self.labelled[0]))

    @property
    def test_rows(self) -> NDArray[np.int64]:
        """Every row that some fold tests, sorted."""
        return np.sort(np.concatenate([fold.test_rows for fold in self.folds]))

    def splits(self, draws: int | None = None, fractions: Sequence[float] | None = None) -> Iterator[Split]:
        """Every (fold, fraction, draw), of each fraction the first `draws` draws; all labels are one draw."""
        for fold in self.folds:
            for fraction in self.fractions if fractions is None else fractions:
                if fraction not in self.labelled[fold.number]:
                    raise ValueError(f"fraction: {fraction}; {self.name} has {self.fractions}")
                listed = self.labelled[fold.number][fraction]
                if draws is not None and fraction < 1 and draws > len(listed):
                    raise ValueError(f"draws: {draws}; {self.name} has {len(listed)} at fraction {fraction}")
                for draw, rows in enumerate(listed[:draws]):
                    yield Split(fold, fraction, draw, rows)


def normalise(
    features: Mapping[str, ArrayLike], mode: str, train_rows: NDArray[np.int64], groups: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """Each modality's (N, D) features standardised, for all rows: on `train_rows`, or each group by its own rows.

    NaN marks a missing value: it counts in no mean and stays NaN.
    """
    _check_mode(mode)
    if mode == "speaker_normalised":
        return {name: standardize_by_group(values, groups) for name, values in features.items()}
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in features.items()}
    return {name: Scaling.fit(array[train_rows]).apply(array) for name, array in arrays.items()}


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode: {mode!r} is unknown; {did_you_mean(mode, MODES)}")


def ravdess(path: Path | str, actors: ArrayLike, emotion: ArrayLike, names: Sequence[str]) -> Protocol:
    """The four test folds of five actors each that a protocol file lists (folds, label draws by row number, C grid).

    actors, emotion (N,): in the row order of the file's draws. The design actors are never tested here; they train.
    """
    groups, target = _rows(actors, emotion)
    listed = _read(path)
    folds, labelled = [], []
    for number, entry in enumerate(listed["folds"]):
        fold = _fold(number, groups, np.isin(groups, entry["test_actors"]))
        draws = {
            float(fraction): tuple(np.sort(np.asarray(rows, dtype=np.int64)) for rows in lists)
            for fraction, lists in entry["draws"].items()
        }
        folds.append(fold)
        labelled.append(draws | {1.0: (fold.train_rows,)})
    tested = {int(actor) for entry in listed["folds"] for actor in entry["test_actors"]}
    overlap = tested.intersection(listed["design_actors"])
    if overlap:
        raise ValueError(f"{path}: actors {sorted(overlap)} are design actors and tested as well")
    strengths = tuple(float(strength) for strength in listed["C_grid"])
    return Protocol("ravdess", groups, target, tuple(names), tuple(folds), tuple(labelled), strengths, 3)


def ravdess_design(
    path: Path | str,
    actors: ArrayLike,
    emotion: ArrayLike,
    names: Sequence[str],
    draws: int = 5,
    seed: int = _DRAW_SEED,
) -> Protocol:
    """For every choice of design: trains on all other actors, tests on the file's design actors only.

    Seeded draws by class (at least 3 rows of each, as the file's own draws have), at the file's fractions.
    """
    groups, target = _rows(actors, emotion)
    listed = _read(path)
    fold = _fold(0, groups, np.isin(groups, listed["design_actors"]))
    fractions = [float(fraction) for fraction in listed["folds"][0]["draws"]]
    labelled = _seeded_draws(fold, target, fractions, draws, seed)
    strengths = tuple(float(strength) for strength in listed["C_grid"])
    return Protocol("ravdess_design", groups, target, tuple(names), (fold,), (labelled,), strengths, 3)


def mosi(
    identifiers: ArrayLike,
    positive: ArrayLike,
    split: ArrayLike,
    draws: int = 5,
    seed: int = _DRAW_SEED,
    fractions: Sequence[float] = (0.03, 0.1),
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
) -> Protocol:
    """The published train/test split, seeded draws by class; group: the video, an identifier up to its last `_`."""
    groups, target = _rows(videos(identifiers), positive)
    fold = _fold(0, groups, np.asarray(split) == "test")
    labelled = _seeded_draws(fold, target, fractions, draws, seed)
    return Protocol("mosi", groups, target, ("negative", "positive"), (fold,), (labelled,), tuple(strengths), 3)


def mosi_design(
    identifiers: ArrayLike, positive: ArrayLike, split: ArrayLike, draws: int = 5, seed: int = _DRAW_SEED
) -> Protocol:
    """For every choice of design: inside the training part, every fifth video (sorted) is the test.

    Features that were fitted with labels on the training part flatter themselves here (CMU-MOSI's `visual_cnn100` was):
    judge choices that touch them with care.
    """
    groups, target = _rows(videos(identifiers), positive)
    training = np.asarray(split) == "train"
    listed = np.unique(groups[training])
    fold = _fold(0, groups, np.isin(groups, listed[::5]), among=training)
    labelled = _seeded_draws(fold, target, (0.03, 0.1), draws, seed)
    strengths = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    return Protocol("mosi_design", groups, target, ("negative", "positive"), (fold,), (labelled,), strengths, 3)


def videos(identifiers: ArrayLike) -> NDArray[np.str_]:
    """`VIDEO_12` -> `VIDEO`: the identifier before its last underscore."""
    return np.asarray([str(identifier).rpartition("_")[0] for identifier in np.asarray(identifiers)])


def _read(path: Path | str) -> dict[str, Any]:
    listed = json.loads(Path(path).read_text())
    missing = {"design_actors", "C_grid", "folds"} - set(listed)
    if missing:
        raise ValueError(f"{path}: not a protocol file: {', '.join(sorted(missing))} missing")
    return listed


def _rows(groups: ArrayLike, target: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    owner, classes = np.asarray(groups), np.asarray(target, dtype=np.int64)
    if owner.shape != classes.shape or owner.ndim != 1:
        raise ValueError(
            f"groups: shape {owner.shape}, target: shape {classes.shape}; expected one of each for every row"
        )
    return owner, classes


def _fold(number: int, groups: NDArray[Any], tested: NDArray[np.bool_], among: NDArray[np.bool_] | None = None) -> Fold:
    allowed = np.ones(len(groups), dtype=bool) if among is None else among
    fold = Fold(number, np.flatnonzero(allowed & ~tested), np.flatnonzero(allowed & tested))
    if not len(fold.train_rows) or not len(fold.test_rows):
        raise ValueError(f"fold {number}: {len(fold.train_rows)} training and {len(fold.test_rows)} test rows")
    return fold


def _seeded_draws(
    fold: Fold, target: NDArray[np.int64], fractions: Sequence[float], draws: int, seed: int
) -> dict[float, tuple[NDArray[np.int64], ...]]:
    labels = target[fold.train_rows]
    drawn = {
        float(fraction): tuple(label_draw(fold.train_rows, fraction, seed, draw, labels) for draw in range(draws))
        for fraction in fractions
    }
    return drawn | {1.0: (fold.train_rows,)}
