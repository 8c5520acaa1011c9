"""The page of a controlled experiment: what each system keeps of each factor, with intervals over data seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import t as student

from conclugen.common.atomic import write_text
from conclugen.common.tables import csv_text, markdown, markdown_head, markdown_row
from conclugen.evaluation.statistics import Interval
from ray_jobs import plots
from tuning.controlled.experiment import Found
from tuning.controlled.job import MADE, RAW, RENDERED, ControlledJob

LEVEL = 0.95


class Results:
    """accuracy[system][label][share of labels][data seed]; shares[system][task]: of the heads' gradient."""

    def __init__(self, found: Mapping[int, Sequence[Found]]) -> None:
        self.accuracy: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
        self.shares: dict[str, dict[str, list[float]]] = {}
        for seed, cells in found.items():
            for cell in cells:
                for system, labels in cell.accuracy.items():
                    for label, by_fraction in labels.items():
                        for fraction, value in by_fraction.items():
                            place = self.accuracy.setdefault(system, {}).setdefault(label, {})
                            place.setdefault(fraction, {})[seed] = value
                    for task, share in cell.shares.items():
                        self.shares.setdefault(system, {}).setdefault(task, []).append(share)

    def mean(self, system: str, label: str, fraction: str) -> float:
        """Over data seeds; NaN where there is none."""
        values = self.accuracy.get(system, {}).get(label, {}).get(fraction, {})
        return float(np.mean(list(values.values()))) if values else float("nan")

    def strongest_raw(self, label: str, fraction: str) -> str:
        """The raw row with the larger mean on the test speakers themselves: in its favour."""
        return max(RAW, key=lambda name: self.mean(name, label, fraction))

    def difference(self, system: str, label: str, fraction: str) -> Interval | None:
        """System minus the strongest raw row, paired by data seed."""
        own = self.accuracy.get(system, {}).get(label, {}).get(fraction, {})
        other = self.accuracy.get(self.strongest_raw(label, fraction), {}).get(label, {}).get(fraction, {})
        return interval([own[seed] - other[seed] for seed in own if seed in other])


def interval(values: Sequence[float]) -> Interval | None:
    """Mean of independent values and Student's interval around it; of one value there is none: its ends are NaN."""
    if not values:
        return None
    mean, count = float(np.mean(values)), len(values)
    half = float("nan")
    if count > 1:
        half = float(student.ppf((1 + LEVEL) / 2, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half, LEVEL, count)


def write(job: ControlledJob, found: Mapping[int, Sequence[Found]], failed: Mapping[str, str]) -> None:
    """`page.md`, `results.csv` and a picture for each factor, in the experiment's folder."""
    results = Results(found)
    fractions = [f"{fraction:g}" for fraction in job.judging.fractions]
    labels = list(job.source.labels)
    drawn = {label: _draw(job, results, label, fractions) for label in labels}
    write_text(job.folder / "page.md", "\n".join(_lines(job, results, labels, fractions, drawn, failed)) + "\n")
    write_text(job.folder / "results.csv", _csv(results))


def _lines(
    job: ControlledJob,
    results: Results,
    labels: Sequence[str],
    fractions: Sequence[str],
    drawn: Mapping[str, str | None],
    failed: Mapping[str, str],
) -> list[str]:
    count = len(job.data_seeds)
    over = f"{count} data seeds" if count > 1 else "one data seed, so without intervals"
    kind = {MADE: "Features made of known factors", RENDERED: "Rendered talking faces"}[job.features]
    lines = ["# What each task keeps", "", f"{kind}, recipe `{job.recipe}`, {over}.", ""]
    meanings = job.source.meanings
    lines += [
        f"- {markdown(label)}: {meanings[label]}; chance {1 / len(c):.2f}" for label, c in job.source.labels.items()
    ]
    for fraction in fractions:
        lines += ["", f"## {float(fraction):.0%} of labels", "", "Accuracy on speakers never met.", ""]
        lines += markdown_head(["system", *labels])
        for system in results.accuracy:
            cells = [_figure(results.mean(system, label, fraction)) for label in labels]
            lines.append(markdown_row([system, *cells]))
        lines += ["", f"Minus the strongest raw row, points, {LEVEL:.0%} interval over data seeds.", ""]
        lines += markdown_head(["system", *labels])
        for system in (name for name in results.accuracy if name not in RAW):
            differences = [results.difference(system, label, fraction) for label in labels]
            marks = ["{}", *("**{}**" if d is not None and d.excludes_zero else "{}" for d in differences)]
            lines.append(markdown_row([system, *map(_points, differences)], marks))
    if results.shares:
        lines += ["", "## Shares of the heads' gradient", "", "Of each task, in the second half of the steps.", ""]
        lines += [
            f"- {markdown(system)}: " + ", ".join(f"{task} {np.mean(values):.0%}" for task, values in shares.items())
            for system, shares in results.shares.items()
        ]
    pictures = [f"![{markdown(label)}]({name})" for label, name in drawn.items() if name]
    lines += ["", "## Pictures", "", *pictures] if pictures else []
    if failed:
        lines += ["", "## Failed", "", *(f"- {markdown(name)}: {markdown(why)}" for name, why in failed.items())]
    return lines


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _points(difference: Interval | None) -> str:
    if difference is None:
        return "-"
    if np.isnan(difference.low):
        return f"{100 * difference.estimate:+.1f}"
    return f"{100 * difference.estimate:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _draw(job: ControlledJob, results: Results, label: str, fractions: Sequence[str]) -> str | None:
    """The picture's name; None where one data seed gives no intervals."""
    rows: dict[str, dict[float, Interval]] = {}
    for system in (name for name in results.accuracy if name not in RAW):
        for fraction in fractions:
            found = results.difference(system, label, fraction)
            if found is not None and not np.isnan(found.low):
                rows.setdefault(system, {})[float(fraction)] = found
    if not rows:
        return None
    name = f"{label}.png"
    plots.paired_differences(rows, job.folder / name, xlabel="accuracy minus strongest raw", title=label)
    return name


def _csv(results: Results) -> str:
    rows = [
        [system, label, fraction, seed, value]
        for system, labels in results.accuracy.items()
        for label, by_fraction in labels.items()
        for fraction, by_seed in by_fraction.items()
        for seed, value in by_seed.items()
    ]
    return csv_text([["system", "label", "fraction", "data_seed", "accuracy"], *rows])
