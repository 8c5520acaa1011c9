"""The page of results: what was run, tables, paired intervals, and sentences that follow from the numbers alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reproduce.evaluation import Evaluation, markdown, paired
from conclugen.common.atomic import write_text
from conclugen.evaluation.judge import FoldAccuracy
from conclugen.evaluation.metrics import sentiment
from conclugen.evaluation.protocol import Protocol
from conclugen.evaluation.statistics import Interval, continuous_intervals

_MODES = {
    "inductive": "Inductive: features standardised on the training speakers; nothing of a test speaker is used.",
    "speaker_normalised": (
        "Speaker-normalised: each speaker's features standardised by that speaker's own unlabelled clips "
        "(transductive, and much easier; not to be compared with the inductive table)."
    ),
}


@dataclass(frozen=True)
class Section:
    """One table.

    pairs: (system, the one it is compared with). aims: fraction -> accuracy that `improved` was to reach. values (N,):
    the continuous label that the systems' `values` predict, or None. figure: the plot, relative to the page.
    """

    title: str
    note: str
    mode: str
    protocol: Protocol
    systems: Mapping[str, Evaluation]
    cells: Mapping[str, Mapping[float, FoldAccuracy]]
    pairs: Sequence[tuple[str, str]]
    aims: Mapping[float, float]
    values: NDArray[np.float64] | None = None
    figure: Path | None = None


def write(path: Path, sections: Sequence[Section], settings: Any, draws: int, recipes: Sequence[str]) -> None:
    """Write the page. settings: a dataclass of what the pretraining was given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(sections, settings, draws, recipes))


def page(sections: Sequence[Section], settings: Any, draws: int, recipes: Sequence[str]) -> str:
    """The whole page in Markdown."""
    sizes = ", ".join(f"{name} {value}" for name, value in asdict(settings).items())
    parts = [
        "# Results",
        f"Written by `make reproduce DATA=folder` on {datetime.now(UTC).date()}; no number here is typed by hand.",
        f"Preset `conclugen`, recipes {' and '.join(f'`{name}`' for name in recipes)}, "
        "pretrained for each fold on its training rows alone, in one process on a CPU: without labels, though "
        "a recipe may use which rows are of one speaker (or video). "
        f"Settings: {sizes}; all else is the recipe's. The peak learning rate of `paper` is the top of the published "
        "search range, since its own is made for far longer runs on far more clips, and its length ends with a cosine "
        "cycle; neither was searched. What was chosen for `improved` was chosen on RAVDESS actors 21 to 24. "
        "Every system is judged by the same logistic probe, its strength chosen by inner folds over training speakers; "
        f"{draws} draws of labels at shares below 100 %. A representation is the concatenation over modalities of what "
        "the heads give; raw features are no part of it.",
        "Cells: accuracy, mean over folds and draws ± deviation over folds, and in brackets the 95 % bootstrap "
        "interval over test speakers (videos for CMU-MOSI).",
        "The untrained rows are the same heads from the same initialisation before the first step. A recipe "
        "minus its own untrained heads is what training adds; a recipe minus raw features also counts how the "
        "modalities' blocks are scaled. Every pretrained number is a mean over the seeds of "
        "pretraining as well; intervals cover the choice of test speakers, not that of the seeds, and no correction "
        "for the number of comparisons is made.",
        "What was tried on the way here, what did not help, and what has yet to be tried: "
        "[experiments.md](experiments.md). What each choice of `improved` is worth: "
        "`python -m benchmarks.reproduce.choices`.",
    ]
    title = None
    for section in sections:
        if section.title != title:
            title = section.title
            parts += [f"## {title}", section.note]
        parts += [f"### {section.mode.replace('_', '-').capitalize()}", _MODES[section.mode], markdown(section.cells)]
        differences = {pair: _differences(section, pair) for pair in section.pairs}
        parts += [paired_table(differences), "\n".join(_sentence(pair, row) for pair, row in differences.items())]
        if section.aims:
            parts.append(_against_aims(section))
        if section.figure is not None:
            parts.append(f"![accuracy over the share of labels]({section.figure.as_posix()})")
        if section.values is not None:
            parts += _sentiment(section, section.values)
    return "\n\n".join(parts) + "\n"


def _differences(section: Section, pair: tuple[str, str]) -> dict[float, Interval]:
    first, second = (section.systems[name] for name in pair)
    return {fraction: paired(section.protocol, first, second, fraction) for fraction in section.protocol.fractions}


def _sentiment(section: Section, truth: NDArray[np.float64]) -> list[str]:
    """Scores of the continuous sentiment, predicted by ridge regression from all labels."""
    tested = section.protocol.test_rows
    lines = [
        "| representation | MAE | Pearson | CCC | Acc-7 | Acc-2 (negative / not) | Acc-2 (negative / positive) |",
        "|---" * 7 + "|",
    ]
    for name, evaluation in section.systems.items():
        if evaluation.values is None:
            continue
        draws = list(evaluation.values[:, tested])
        intervals = continuous_intervals(truth[tested], draws, section.protocol.groups[tested])
        scores = [sentiment(truth[tested], draw) for draw in draws]
        accuracies = np.mean([[s.accuracy7, s.accuracy2_nonnegative, s.accuracy2_positive] for s in scores], axis=0)
        lines.append(
            f"| {name} | {' | '.join(str(interval) for interval in intervals.values())} | "
            f"{' | '.join(f'{accuracy:.3f}' for accuracy in accuracies)} |"
        )
    return [
        "Continuous sentiment (-3 to 3) by ridge regression from all training labels, mean over the seeds of "
        "pretraining: mean absolute error, Pearson correlation, concordance (Lin 1989), with intervals over videos; "
        "accuracy of the seven rounded classes; and of two, once negative against the rest and once against positive "
        "with the zeros left out.",
        "\n".join(lines),
    ]


def paired_table(differences: Mapping[tuple[str, str], Mapping[float, Interval]]) -> str:
    """Rows: first minus second; columns: label fractions."""
    fractions = list(next(iter(differences.values())))
    lines = [
        "| paired difference in accuracy | " + " | ".join(f"{fraction:.0%} of labels" for fraction in fractions) + " |",
        "|---" * (len(fractions) + 1) + "|",
    ]
    for (first, second), row in differences.items():
        lines.append(
            f"| {first} minus {second} | " + " | ".join(_signed(row[fraction]) for fraction in fractions) + " |"
        )
    return "\n".join(lines)


def _signed(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def verdict(interval: Interval) -> str:
    """What an interval of a difference allows to say."""
    if not interval.excludes_zero:
        return "not better (the interval holds 0)"
    return "better" if interval.estimate > 0 else "worse"


def _against_aims(section: Section) -> str:
    """What `improved` reached of what was aimed at."""
    told = []
    for fraction, cell in section.cells["improved"].items():
        if fraction not in section.aims:
            continue
        mean, aim = cell.mean, section.aims[fraction]
        reached = "reached" if round(mean, 3) >= aim else f"missed by {aim - mean:.3f}"
        told.append(f"at {fraction:.0%} {mean:.3f} of {aim:.2f}: {reached}")
    return f"Aims set beforehand for improved: {'; '.join(told)}."


def _sentence(pair: tuple[str, str], row: Mapping[float, Interval]) -> str:
    told = "; ".join(f"at {fraction:.0%}: {_signed(value)}: {verdict(value)}" for fraction, value in row.items())
    return f"- {pair[0]} minus {pair[1]}, {told}."
