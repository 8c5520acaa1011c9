"""What an evaluation found: its representations against the strongest raw row, as differences with intervals and in one
sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conclugen.evaluation.config import SINGLE
from conclugen.evaluation.judge import Score, strongest_raw
from conclugen.evaluation.statistics import Comparison, Crossed, Scores, paired_tests
from shards import CorruptSample

# What one would use a pretrained model for: its heads instead of the raw features, or beside them.
_ASKED = ("pretrained", "pretrained + raw")


@dataclass(frozen=True)
class EvaluateResult:
    """Scores, the corrupt samples that were left out, and the folder with the table, the pictures and `scores.json`.

    main_score: by which rows are compared. kind: of the label. class_rows: of classes, test rows of each. group_rows:
    test rows of each unit of intervals; group_class_rows: of classes, its test rows of each. unit: what such a unit is
    called. stamp: what every page and picture of it says, empty where there is nothing to add.
    """

    folder: Path
    label: str
    main_score: str
    scores: list[Score]
    corrupt: list[CorruptSample]
    kind: str = "class"
    class_rows: Mapping[str, int] = field(default_factory=dict)
    group_rows: Mapping[str, int] = field(default_factory=dict)
    unit: str = "speaker"
    group_class_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    corpora: Mapping[str, object] | None = None
    stamp: str = ""


def comparisons(pairs: Mapping[str, tuple[Score, Score]], result: EvaluateResult) -> dict[str, Comparison]:
    """Name -> first minus second in the main score, tested as one family; intervals are over test units and draws of
    labels, crossed. Nothing where there are fewer than two units, or no scores of each (labels that are not
    classes)."""
    rows: Scores = result.group_class_rows if result.main_score == "uar" else result.group_rows
    sides: dict[tuple[str, str], tuple[Crossed, Crossed]] = {}
    for name, (first, second) in pairs.items():
        common = [draw for draw in first.scored if draw in second.scored]
        if len(result.group_rows) >= 2 and second.recalls and common:
            one, other = ([[_by_unit(score, draw, result) for draw in common]] for score in (first, second))
            sides[name, "raw"] = (one, other)
    return {found.first: found for found in paired_tests(sides, rows)}


def _by_unit(score: Score, draw: int, result: EvaluateResult) -> Scores:
    """Of one draw of labels, test unit -> recall of each class, or accuracy."""
    recalls = score.recalls[score.scored.index(draw)]
    if result.main_score == "uar":
        return recalls
    counts = {unit: np.asarray(own) for unit, own in result.group_class_rows.items()}
    return {
        unit: float(np.nansum(counts[unit] * np.asarray(own)) / counts[unit].sum()) for unit, own in recalls.items()
    }


def verdict(result: EvaluateResult) -> str:
    """Does pretraining help here, by how much, at which share of labels: one sentence for each answer.

    The heads alone and beside the raw features, at every share of labels, are one family of tests against the strongest
    raw row of each share, which is chosen on the test rows, in its favour.
    """
    main, pairs = result.main_score, {}
    for fraction in sorted({score.fraction for score in result.scores}):
        best = strongest_raw(result.scores, fraction, main)
        for system in _ASKED:
            own = _probed(result.scores, system, fraction)
            if own is not None and best is not None:
                pairs[f"{fraction:g} {system}"] = (own, best)
    if not pairs:
        return "Whether pretraining helps here is unknown: there is no raw row to compare with."
    tested = comparisons(pairs, result)
    if not tested:
        listed = "; ".join(_plain(*pair, main) for pair in pairs.values())
        why = f"the test rows are of one {result.unit}" if len(result.group_rows) < 2 else "its tests are of classes"
        return f"Whether pretraining helps here can't be told, for {why}: {listed}."
    words: dict[str, list[str]] = {"better": [], "worse": []}
    for name, comparison in tested.items():
        said = comparison.verdict(units=f"{result.unit}s")
        words.setdefault(said, []).append(_interval(*pairs[name], comparison, main))
    begins = {
        "better": "Pretraining helps here",
        "worse": "Pretraining does harm here",
        "no difference shown": "No difference is shown",
    }
    answers = [
        f"{begins.get(said, f'Whether pretraining helps here {said}')}: {'; '.join(differences)}."
        for said, differences in words.items()
        if differences
    ]
    return " ".join(answers)


def _probed(scores: Sequence[Score], system: str, fraction: float) -> Score | None:
    """Of a system its probe, or else whichever method there is."""
    own = [s for s in scores if (s.system, s.fraction) == (system, fraction) and s.scores]
    return next((s for s in own if s.method == "probe"), own[0] if own else None)


def named(score: Score) -> str:
    """The system, and of the best single modality which one it was, where all draws of labels chose the same."""
    if score.system != SINGLE or len(score.choices) != 1:
        return score.system
    return f"{score.system}, {next(iter(score.choices))}"


def which(choices: Mapping[float, Mapping[str, float]]) -> str:
    """`best single modality: video at 3% and 10%, audio at 100% of labels`; where draws of labels differ, the one that
    was chosen most often, and how often. choices: share of labels -> modality -> how often it was chosen. Empty where
    nothing was."""
    said: dict[str, list[str]] = {}
    for share, counts in sorted(choices.items()):
        if counts:
            modality, most = max(counts.items(), key=lambda item: item[1])
            times = sum(counts.values())
            words = modality if most == times else f"mostly {modality} ({most:.0f} of {times:.0f} times)"
            said.setdefault(words, []).append(f"{share:.0%}")
    listed = ", ".join(f"{words} at {_all(shares)}" for words, shares in said.items())
    return f"{SINGLE}: {listed} of labels" if listed else ""


def _all(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _interval(own: Score, best: Score, found: Comparison, main: str) -> str:
    low, high = found.interval.low, found.interval.high
    # Of the same draws it is the difference of the table's own numbers, which rounds as they do.
    gain = own.scores[main] - best.scores[main] if own.scored == best.scored else found.difference
    return (
        f"at {own.fraction:.0%} of labels {own.system} is {gain:+.3f} [{low:+.3f}, {high:+.3f}] in {main} "
        f"from {named(best)} ({own.scores[main]:.3f} against {best.scores[main]:.3f})"
    )


def _plain(own: Score, best: Score, main: str) -> str:
    return (
        f"at {own.fraction:.0%} of labels {own.system} has {main} {own.scores[main]:.3f}, {named(best)} "
        f"{best.scores[main]:.3f}"
    )
