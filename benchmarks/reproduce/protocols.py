"""The protocols of RAVDESS, CMU-MOSI and MELD's development part: folds, draws of labels and probes, from a protocol
file, a published split, or dealt over dialogues.

Raw and pretrained representations are judged by the same protocol in two modes that are never mixed: see
`conclugen.evaluation.features.normalise`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.evaluation.config import STRENGTHS, ProbeConfig
from conclugen.evaluation.protocol import Fold, Protocol, Target, group_cross_folds, held_out_fold

# Draws of a protocol that lists none in a file.
DRAW_SEED = 127
_FRACTIONS = (0.03, 0.1, 1.0)


def ravdess(path: Path | str, actors: ArrayLike, emotion: ArrayLike, names: Sequence[str]) -> Protocol:
    """The four test folds of five actors each that a protocol file lists (folds, label draws by row number, C grid).

    actors, emotion (N,): in the row order of the file's draws. The design actors are never tested here; they train.
    """
    listed = _read(path)
    groups = np.asarray(actors)
    folds = []
    for number, entry in enumerate(listed["folds"]):
        fold = held_out_fold(np.isin(groups, entry["test_actors"]), name=f"fold {number}")
        draws = {
            float(fraction): tuple(np.sort(np.asarray(rows, dtype=np.int64)) for rows in lists)
            for fraction, lists in entry["draws"].items()
        }
        folds.append(replace(fold, number=number, labelled=draws | {1.0: (fold.train_rows,)}))
    tested = {int(actor) for entry in listed["folds"] for actor in entry["test_actors"]}
    overlap = tested.intersection(listed["design_actors"])
    if overlap:
        raise ValueError(f"{path}: actors {sorted(overlap)} are design actors and tested as well")
    return _protocol("ravdess", "emotion", emotion, names, groups, folds, listed["C_grid"])


def ravdess_design(
    path: Path | str,
    actors: ArrayLike,
    emotion: ArrayLike,
    names: Sequence[str],
    draws: int = 5,
    seed: int = DRAW_SEED,
) -> Protocol:
    """For every choice of design: trains on all other actors, tests on the file's design actors only.

    Seeded draws by class (at least 3 rows of each, as the file's own draws have), at the file's fractions.
    """
    listed = _read(path)
    groups = np.asarray(actors)
    fold = held_out_fold(np.isin(groups, listed["design_actors"]))
    fractions = [float(fraction) for fraction in listed["folds"][0]["draws"]]
    protocol = _protocol("ravdess_design", "emotion", emotion, names, groups, [fold], listed["C_grid"])
    return protocol.drawn([*fractions, 1.0], draws, seed)


def mosi(
    identifiers: ArrayLike, positive: ArrayLike, split: ArrayLike, draws: int = 5, seed: int = DRAW_SEED
) -> Protocol:
    """The published train/test split, seeded draws by class; group: the video, an identifier up to its last `_`."""
    fold = held_out_fold(np.asarray(split) == "test")
    names = ("negative", "positive")
    protocol = _protocol("mosi", "sentiment", positive, names, videos(identifiers), [fold], STRENGTHS)
    return protocol.drawn(_FRACTIONS, draws, seed)


def mosi_design(
    identifiers: ArrayLike, positive: ArrayLike, split: ArrayLike, draws: int = 5, seed: int = DRAW_SEED
) -> Protocol:
    """For every choice of design: inside the training part, every fifth video (sorted) is the test.

    Features that were fitted with labels on the training part flatter themselves here (CMU-MOSI's `visual_cnn100` was):
    judge choices that touch them with care.
    """
    groups, training = videos(identifiers), np.asarray(split) == "train"
    fold = held_out_fold(training & np.isin(groups, np.unique(groups[training])[::5]), among=training)
    names = ("negative", "positive")
    return _protocol("mosi_design", "sentiment", positive, names, groups, [fold], STRENGTHS).drawn(
        _FRACTIONS, draws, seed
    )


def meld(
    dialogues: ArrayLike, emotion: ArrayLike, names: Sequence[str], draws: int = 5, seed: int = DRAW_SEED
) -> Protocol:
    """Four folds over dialogues, seeded draws by class. Nearly half of the rows are neutral, and one class has 22:
    classes weigh the same in every loss, and strengths are chosen by unweighted average recall."""
    groups = np.asarray(dialogues).astype(str)
    protocol = _protocol("meld", "emotion", emotion, names, groups, group_cross_folds(groups, 4), STRENGTHS)
    probe = replace(protocol.probe, class_weights="balanced", select_by="uar")
    return replace(protocol, probe=probe).drawn(_FRACTIONS, draws, seed)


def videos(identifiers: ArrayLike) -> NDArray[np.str_]:
    """`VIDEO_12` -> `VIDEO`: the identifier before its last underscore."""
    return np.asarray([str(identifier).rpartition("_")[0] for identifier in np.asarray(identifiers)])


def _read(path: Path | str) -> dict[str, Any]:
    listed = json.loads(Path(path).read_text())
    missing = {"design_actors", "C_grid", "folds"} - set(listed)
    if missing:
        raise ValueError(f"{path}: not a protocol file: {', '.join(sorted(missing))} missing")
    return listed


def _protocol(
    name: str,
    label: str,
    target: ArrayLike,
    names: Sequence[str],
    groups: NDArray[Any],
    folds: Sequence[Fold],
    strengths: Sequence[float],
) -> Protocol:
    classes = Target(label, "class", np.asarray(target, dtype=np.int64), tuple(names))
    probe = ProbeConfig(tuple(float(strength) for strength in strengths), inner_folds=3)
    return Protocol(name, classes, groups, tuple(folds), probe)
