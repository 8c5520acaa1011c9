"""Pictures of a sweep: the objective over its trials, and over each parameter that varied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from conclugen.common.atomic import atomic_path
from ray_jobs.plots import TEXT, drawable
from tuning.sweep.folder import SweepBook
from tuning.sweep.space import names

# Okabe & Ito (2008), "Color Universal Design"; marks differ in shape as well.
_MARKS = {"stopped": ("x", "#E69F00"), "finished": ("o", "#0072B2")}
_BEST = "#009E73"
_RAW = "#CC79A7"
_MOST_SLICES = 12
_SHORT = 5
_FIRST = ("modalities", "tasks", "recipe")


@mpl.rc_context(TEXT)
def history(book: SweepBook, mode: str, path: Path, raw: tuple[str, str, float] | None = None) -> Path:
    """The objective of every trial in the order of their numbers, the best so far of those that were finished, and a
    line at the strongest raw row (name, score, value), where the objective is its score."""
    ended = {n: o for n, o in sorted(book.outcomes.items()) if o.curve and np.isfinite(book.value(n))}
    pick = max if mode == "max" else min
    figure = Figure(figsize=(7.0, 3.8), layout="constrained")
    axes = figure.subplots()
    for state, (marker, colour) in _MARKS.items():
        points = [(n, book.value(n)) for n, o in ended.items() if o.state == state]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=state, markersize=5)
    best: list[tuple[int, float]] = []
    for n, o in ended.items():
        if o.state == "finished":
            best.append((n, pick([book.value(n), *(value for _, value in best[-1:])])))
    if best:
        axes.step(*zip(*best, strict=True), where="post", color=_BEST, label="best so far")
    if raw is not None and raw[1] == book.objective:
        axes.axhline(raw[2], color=_RAW, linestyle="--", label=drawable(raw[0]))
    axes.set(xlabel="trial", ylabel=book.objective, title="objective over trials")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.legend()
    return _write(figure, path)


@mpl.rc_context(TEXT)
def slices(book: SweepBook, path: Path) -> Path:
    """One panel for each parameter that varied: the objective of the trials that had it, over its values."""
    ended = [n for n, o in book.outcomes.items() if o.curve and np.isfinite(book.value(n))]
    varied = [
        name
        for name in columns(book)
        if len({str(book.choices[n][name]) for n in ended if name in book.choices[n]}) > 1
    ][:_MOST_SLICES]
    across = min(4, max(1, len(varied)))
    down = max(1, -(-len(varied) // across))
    figure = Figure(figsize=(3.2 * across, 2.9 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for place, axes in enumerate(panels):
        if place < len(varied):
            _slice(axes, book, varied[place], [n for n in ended if varied[place] in book.choices[n]])
        else:
            axes.set_axis_off()
    figure.supylabel(book.objective)
    return _write(figure, path)


def _slice(axes: Any, book: SweepBook, name: str, numbers: Sequence[int]) -> None:
    values = [book.choices[n][name] for n in numbers]
    for state, (marker, colour) in _MARKS.items():
        own = [place for place, n in enumerate(numbers) if book.outcomes[n].state == state]
        heights = [book.value(numbers[place]) for place in own]
        if all(isinstance(value, float) for value in values):
            axes.plot([values[place] for place in own], heights, marker, color=colour, markersize=4)
        else:
            options = sorted(set(values), key=lambda value: (isinstance(value, str), value))
            axes.plot([options.index(values[place]) for place in own], heights, marker, color=colour, markersize=4)
            labels = list(map(drawable, _short(options)))
            slanted = any(len(label) > 4 for label in labels)
            axes.set_xticks(
                range(len(options)), labels, rotation=30 if slanted else 0, ha="right" if slanted else "center"
            )
    if all(isinstance(value, float) and value > 0 for value in values) and max(values) > 5 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if max(values) < 100 * min(values) else (1.0,)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(drawable(name.removeprefix("tasks.").removeprefix("model.")), fontsize=9)


def columns(book: SweepBook) -> list[str]:
    """Every name that some trial chose, the ones that all have first."""
    found = list(dict.fromkeys(name for choices in book.choices.values() for name in choices))
    return [*(name for name in _FIRST if name in found), *(name for name in found if name not in _FIRST)]


def _short(options: Sequence[Any]) -> list[str]:
    """Names of tasks and modalities by their first letters, as many as tell them apart."""
    parts = [tuple(names(option)) if isinstance(option, str) else (str(option),) for option in options]
    known = {name for some in parts for name in some}
    longest = max(map(len, known), default=_SHORT)
    length = next((n for n in range(_SHORT, longest) if len({name[:n] for name in known}) == len(known)), longest)
    return ["+".join(name[:length] for name in some) for some in parts]


def _write(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1)
    return path
